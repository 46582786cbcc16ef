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
# The environment that serves with vLLM on CPUs.
VLLM_VENV := .vllm

.DEFAULT_GOAL := help
.PHONY: help demo bench parity test test-slow test-vllm vllm-env check format docs clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | awk -F': ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "krakenlm needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "python3 cannot make virtual environments here: on Debian, apt-get install python3-venv"; exit 2; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install -q -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -q -e ".[dev]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install -q -e ".[docs]"
	@touch $@

$(VLLM_VENV)/.installed: pyproject.toml scripts/vllm_env.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "krakenlm needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(VLLM_VENV)/bin/pip || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python scripts/vllm_env.py --extras dev
	@touch $@

demo: $(VENV)/.installed  ## train Kraken and its GPT-2-style twin on text, split and time them (TEXT=FILE... to choose the text)
	$(BIN)/krakenlm demo $(if $(TEXT),--text $(TEXT)) --out $(DEMO)

bench: $(VENV)/.installed  ## measure what docs/latency.md shows, about 40 minutes (VLLM_PYTHON=... to measure vLLM too)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python scripts/run_bench.py --runs $(RUNS) $(if $(VLLM_PYTHON),--vllm-python $(VLLM_PYTHON))

parity: $(VENV)/.installed  ## train every architecture over a grid of learning rates and seeds, two to three hours on two cores (TEXT=FILE...)
	@test -n "$(TEXT)" || { echo "make parity needs a text to learn from: TEXT=openwebtext.jsonl.gz, or what krakenlm prepare --text reads"; exit 2; }
	$(BIN)/python scripts/parity.py --text $(TEXT) $(PARITY)

test: $(VENV)/.installed-dev  ## the fast tests, under 5 minutes on two cores
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-dev  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

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
	rm -rf .venv .vllm .mypy_cache .ruff_cache .pytest_cache site
