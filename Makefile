# The first command is the only one: each target makes the virtual environment it needs.
# Not from the environment, where these names mean other things; `make demo DEMO=folder` works.
PYTHON := python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := demo
# More options of `make parity`, such as "--recipe recipes/parity-gpu.toml".
PARITY :=
# Of `make bench`: how often each scenario runs, and the python of an environment with vLLM.
RUNS   := 3
VLLM_PYTHON :=
# The environment that serves with vLLM on CPUs, and two whose versions are the newest and the lowest.
VLLM_VENV   := .vllm
NEWEST_VENV := .newest
OLDEST_VENV := .oldest
AUDIT_VENV  := .audit
# What is installed: the versions of constraints/, unless LOCK= is given.
LOCK   := yes
EXTRAS := data,eval,dev
# Of `make gpu`: where its results go, how long it may take, and the python, with PyTorch for CUDA.
GPU_OUT     := gpu
GPU_MINUTES := 9
GPU_PYTHON  := $(if $(GPU_REHEARSAL),$(BIN)/python,$(PYTHON))
# Of `make test-reliability`: kills of each training run, requests in a row, damaged files of each kind.
KILLS       := 30
GENERATIONS := 5000
CASES       := 800
REQUESTS    := 2000
FIGURES     := docs/results/reliability
# What `make test` runs, in two processes and then what has to be alone; as in pyproject.toml, whose
# own selection -m replaces.
FAST   := not slow and not gpu and not vllm
# The tests that `make test-newest` and `make test-oldest` run.
TESTS  := tests/unit

.DEFAULT_GOAL := help
.PHONY: help demo bench parity plan-validate smollm2 adapt-gpu gpu test test-slow test-reliability reliability-files reliability-ranks reliability-vllm test-newest test-oldest test-vllm vllm-env audit lock check format docs clean

help:  ## show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | awk -F': ' '{printf "  make %-12s %s\n", $$1, $$2}'

INSTALL  = $(BIN)/pip install -q $(if $(LOCK),-c constraints/package.txt)
NEW_VENV = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "krakenlm needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }; \
	$(PYTHON) -m venv $(1) || { rm -rf $(1); \
	echo "python3 cannot make virtual environments here: on Debian, apt-get install python3-venv"; exit 2; }

%/bin/pip:
	@$(call NEW_VENV,$*)

$(VENV)/.installed: pyproject.toml constraints/package.txt | $(VENV)/bin/pip
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e ".[$(EXTRAS)]"
	@touch $@

$(VENV)/.installed-gguf: $(VENV)/.installed
	$(INSTALL) -e ".[gguf]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) -e ".[docs]"
	@touch $@

$(VLLM_VENV)/.installed: pyproject.toml constraints/vllm.txt scripts/vllm_env.py | $(VLLM_VENV)/bin/pip
	$(VLLM_VENV)/bin/python scripts/vllm_env.py --extras $(EXTRAS) $(if $(LOCK),--constraints constraints/vllm.txt)
	@touch $@

$(OLDEST_VENV)/.installed: pyproject.toml | $(OLDEST_VENV)/bin/pip
	$(PYTHON) scripts/lock.py --lowest > $(OLDEST_VENV)/lowest.txt
	$(OLDEST_VENV)/bin/pip install -q -c $(OLDEST_VENV)/lowest.txt -e ".[$(EXTRAS)]"
	@touch $@

demo: $(VENV)/.installed  ## train three small models, time every wiring over three links, say what to choose (TEXT=FILE... to choose the text)
	$(BIN)/krakenlm demo $(if $(TEXT),--text $(TEXT)) --out $(DEMO)

bench: $(VENV)/.installed  ## measure what docs/latency.md shows, about 40 minutes (VLLM_PYTHON=... to measure vLLM too)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/run_bench.py --runs $(RUNS) $(if $(VLLM_PYTHON),--vllm-python $(VLLM_PYTHON))

parity: $(VENV)/.installed  ## train every architecture over a grid of learning rates and seeds, six hours on two cores (TEXT=FILE...)
	@test -n "$(TEXT)" || { echo "make parity needs a text to learn from: TEXT=openwebtext.jsonl.gz, or what krakenlm prepare --text reads"; exit 2; }
	$(BIN)/python scripts/parity.py --text $(TEXT) $(PARITY)

plan-validate: $(VENV)/.installed  ## calibrate this machine and compare the planner with measurements, on a quiet one
	$(BIN)/python scripts/plan_validate.py

smollm2: $(VENV)/.installed-gguf  ## fetch SmolLM2-135M (98 MB), convert it, ask it a question on three processes
	$(BIN)/python scripts/smollm2.py $(if $(PROMPT),--prompt "$(PROMPT)")

adapt-gpu: $(VENV)/.installed  ## adapt SmolLM2 with all layers late on one GPU, some 5 minutes (TEXT=FILE... OTHER=FILE...)
	$(BIN)/python scripts/publish_adapt.py --model runs/smollm2 --text $(TEXT) --other $(OTHER) \
		--tokens 20000000 --only shared-all-20M --set training.batch_size=32

gpu: $(if $(GPU_REHEARSAL),$(VENV)/.installed-dev)  ## all that waits for a GPU, 9 minutes on one H100 (TEXT=FILE... to train too; GPU_REHEARSAL=1 for tiny sizes on a CPU)
	PYTHONPATH=src $(GPU_PYTHON) scripts/gpu.py --out $(GPU_OUT) --minutes $(GPU_MINUTES) $(if $(TEXT),--text $(TEXT)) $(if $(GPU_REHEARSAL),--rehearsal)

test: $(VENV)/.installed-dev  ## the fast tests, under 6 minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "$(FAST) and not alone"
	$(BIN)/python -m pytest -m "$(FAST) and alone"

test-slow: $(VENV)/.installed-dev  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

test-reliability: $(VENV)/.installed-dev $(VLLM_VENV)/.installed  ## kills, stalls, damaged files and long runs, a line with its figure for each (KILLS, GENERATIONS, CASES, REQUESTS)
	rm -rf $(FIGURES)
	$(MAKE) -j2 reliability-files reliability-ranks reliability-vllm

reliability-files:
	KILLS=$(KILLS) CASES=$(CASES) $(BIN)/python -m pytest --figures $(FIGURES)/files.json -m "slow or not slow" \
		$(addprefix tests/reliability/test_,fuzz.py kills.py)

reliability-ranks:
	GENERATIONS=$(GENERATIONS) $(BIN)/python -m pytest --figures $(FIGURES)/ranks.json -m "slow or not slow" \
		$(addprefix tests/reliability/test_,lost_ranks.py restarts.py interrupt.py requests.py long_runs.py strangers_files.py wheel.py) \
		tests/dist/test_life.py tests/unit/test_mesh.py tests/golden/test_versions.py \
		tests/unit/test_cli.py -k "not test_cli or disk or no_room"

reliability-vllm:
	REQUESTS=$(REQUESTS) $(VLLM_VENV)/bin/python -m pytest --figures $(FIGURES)/vllm.json -m vllm \
		tests/serving/test_many_clients.py tests/serving/test_server.py -k "many_clients or rank"

audit: | $(AUDIT_VENV)/bin/pip  ## ask PyPI for known vulnerabilities of what constraints/ names
	$(AUDIT_VENV)/bin/pip install -q pip-audit
	$(AUDIT_VENV)/bin/pip-audit --strict --no-deps --disable-pip -r constraints/package.txt
	$(AUDIT_VENV)/bin/pip-audit --strict --no-deps --disable-pip -r constraints/vllm.txt

test-newest: | $(NEWEST_VENV)/bin/pip  ## the unit tests with the newest versions that pyproject.toml allows (TESTS=... for others)
	$(NEWEST_VENV)/bin/pip install -q --upgrade --upgrade-strategy eager -e ".[$(EXTRAS)]"
	$(NEWEST_VENV)/bin/python scripts/lock.py --show
	$(NEWEST_VENV)/bin/python -m pytest $(TESTS)

test-oldest: $(OLDEST_VENV)/.installed  ## the unit tests with the lowest versions that it allows; fetches PyTorch for CUDA, 6 GB
	$(OLDEST_VENV)/bin/python scripts/lock.py --show
	$(OLDEST_VENV)/bin/python -m pytest $(TESTS)

lock:  ## write constraints/ anew: fresh environments of the newest versions, kept if all tests pass, half an hour
	$(PYTHON) scripts/lock.py

vllm-env: $(VLLM_VENV)/.installed  ## an environment with vLLM for CPUs in VLLM_VENV=.vllm, about 4 GB

test-vllm: $(VLLM_VENV)/.installed  ## the tests of serving with vLLM
	$(VLLM_VENV)/bin/python -m pytest tests/serving tests/dist/test_ordered_sums.py -m 'vllm or dist'

check: $(VENV)/.installed-dev  ## lint, format, types, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_imports.py

format: $(VENV)/.installed-dev  ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs  ## build the documentation site into site/
	$(BIN)/mkdocs build --strict

clean:  ## remove the environment, the caches and the built site; what the demo made stays
	rm -rf .venv .vllm .newest .oldest .audit .lock .mypy_cache .ruff_cache .pytest_cache site
