"""The documentation says what the code does: its tables and figures come from it.

The scripts that make them are imported and their output compared with the committed pages.
"""

import re
import sys
from pathlib import Path

import pytest

import pages

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "scripts"))

import adapt_page  # noqa: E402
import choose  # noqa: E402
import command_reference  # noqa: E402
import cost_tables  # noqa: E402
import draw_architecture  # noqa: E402
import latency_page  # noqa: E402
import markers  # noqa: E402
import parity_long_page  # noqa: E402
import parity_page  # noqa: E402
import plan_validate_page  # noqa: E402
import publish_demo  # noqa: E402
import publish_serving  # noqa: E402
import publish_training  # noqa: E402
import reliability_page  # noqa: E402
import run_bench  # noqa: E402
import training_page  # noqa: E402
from krakenlm.config import WIRINGS  # noqa: E402


@pytest.mark.parametrize("page", cost_tables.PAGES, ids=lambda page: page.name)
def test_tables_of_numbers_are_what_the_code_computes(page):
    text = page.read_text(encoding="utf-8")
    assert text == markers.filled(text, cost_tables.TABLES), "run scripts/cost_tables.py"


def test_every_table_of_numbers_stands_on_a_page():
    placed = [name for page in cost_tables.PAGES for name in markers.names(page.read_text("utf-8"))]
    assert sorted(placed) == sorted(cost_tables.TABLES)


def test_lists_of_options_are_what_the_commands_take():
    text = command_reference.PAGE.read_text(encoding="utf-8")
    current = markers.filled(text, command_reference.tables())
    if command_reference.written_by() not in text:  # another Typer words types and usage its way
        text, current = map(command_reference.without_wording, (text, current))
    assert text == current, "run scripts/command_reference.py"


def test_lists_of_options_are_compared_across_versions_of_typer():
    older = """written by Typer 0.20.0.

**Usage**:

```console
$ krakenlm perplexity [OPTIONS] MODEL
```

* `MODEL`: A model.  [required]
* `-n, --window INTEGER RANGE`: Tokens.  [default: 4; x&gt;=1]
* `--backend [hf|vllm]`: What runs `vllm`.
"""
    newer = """written by Typer 0.29.2.

**Usage**:

```console
$ krakenlm perplexity [OPTIONS] {model}
```

* `model <path>`: A model.  [required]
* `-n, --window <int range>`: Tokens.  [default: 4; x&gt;=1]
* `--backend <hf|vllm>`: What runs `vllm`.
"""
    alike = command_reference.without_wording
    assert alike(older) == alike(newer)
    for old, new in (("--window", "--windows"), ("Tokens", "Words"), ("`model", "`folder")):
        assert old in newer and alike(older) != alike(newer.replace(old, new))
    assert alike(older) != alike(newer.replace("4;", "8;"))


def test_every_command_has_a_section_with_its_options():
    text = command_reference.PAGE.read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    names = {section.split("\n", 1)[0]: markers.names(section) for section in sections}
    assert sorted(names) == sorted(command_reference.commands())
    assert {"train", "bench serve", "hf-serve"} < names.keys()
    for command, tables in names.items():
        assert command in tables


@pytest.mark.parametrize("page", publish_demo.PAGES, ids=lambda page: page.name)
def test_what_the_pages_say_the_demo_found_is_what_it_found(page):
    text = page.read_text(encoding="utf-8")
    assert markers.names(text) == ["demo"]
    assert text == markers.filled(text, publish_demo.TABLES), "run scripts/publish_demo.py --draw"


def test_the_commands_beside_the_latencies_are_those_that_are_run():
    scenarios = {**run_bench.SCENARIOS, "beside-vllm": run_bench.BESIDE_VLLM}
    shown = {
        path.parent.name: path.read_text() for path in latency_page.RESULTS.glob("*/command.txt")
    }
    assert shown == {name: f"{scenario}\n" for name, scenario in scenarios.items()}


MEASURED = {  # what made the numbers of a page, and how to draw them again
    latency_page: "scripts/run_bench.py --draw",
    training_page: "scripts/training_speed.py --draw",
    parity_page: "scripts/parity.py --draw",
    parity_long_page: "scripts/parity_long.py --draw",
    choose: "scripts/choose.py",
    adapt_page: "scripts/publish_adapt.py --draw",
    plan_validate_page: "scripts/plan_validate.py --draw",
    reliability_page: "scripts/reliability_page.py",
    publish_training: "scripts/publish_training.py --draw",
    publish_serving: "scripts/publish_serving.py --draw",
}


@pytest.mark.parametrize("module", MEASURED, ids=lambda module: module.PAGE.name)
def test_pages_show_what_was_measured(module):
    text = module.PAGE.read_text(encoding="utf-8")
    assert sorted(markers.names(text)) == sorted(module.TABLES)
    assert text == markers.filled(text, module.TABLES), f"run {MEASURED[module]}"


def test_a_stale_table_is_noticed_and_put_right():
    page = "before\n<!-- table:t -->\n\n| 1 |\n\n<!-- end -->\nafter\n"
    tables = {"t": lambda: "| 2 |\n"}
    put_right = markers.filled(page, tables)
    assert put_right == page.replace("1", "2")
    assert markers.filled(put_right, tables) == put_right


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_timelines_show_as_many_sums_as_the_wiring_says(wiring, layers):
    schedule = draw_architecture.simulate(wiring, layers)
    exposed = sum(schedule.exposed(span) for span in schedule.link)
    traits = WIRINGS[wiring]
    assert len(schedule.link) == traits.allreduces(layers)
    assert len(schedule.link) - exposed == traits.hidden(layers)


def test_timelines_show_how_much_of_the_channels_a_sum_carries():
    schedule = draw_architecture.simulate("shared", 5, allreduce=3.0, message_parts=3)
    assert [span.end - span.start for span in schedule.link] == pytest.approx([1.0] * 4 + [3.0])


READERS_PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))
SPEAK_OF_FILES = (*READERS_PAGES, *sorted((ROOT / "recipes").glob("*.toml")), ROOT / "mkdocs.yml")


@pytest.mark.parametrize("page", READERS_PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert pages.broken(page) == []


@pytest.mark.parametrize("page", READERS_PAGES, ids=lambda page: page.name)
def test_rows_belong_to_tables(page):
    assert pages.rows_without_table(page.read_text(encoding="utf-8")) == []


def test_a_gap_in_a_table_is_found():
    whole = "| a | b |\n| --- | ---: |\n| c | d |\n"
    assert pages.rows_without_table(f"{whole}\n```sh\n| e |\n```\n") == []
    assert pages.rows_without_table(f"text\n\n{whole}\n| e | f |\n") == [7]


def test_pages_of_the_site_link_within_it():
    targets = [link.target for page in DOCS.glob("*.md") for link in pages.links(page.read_text())]
    assert [target for target in targets if target.startswith("..")] == []


@pytest.mark.parametrize("page", SPEAK_OF_FILES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    named = pages.files_named(page.read_text(encoding="utf-8"))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_what_was_not_run_is_said_on_one_page():
    said = re.compile(
        r"(has|have) (not|never) (yet )?been\s+run|never\s+(been\s+)?run|not\s+run\s+yet"
        r"|[Nn]othing has been run"
    )
    pages_that_say_it = [
        page.name for page in READERS_PAGES if said.search(page.read_text("utf-8"))
    ]
    assert pages_that_say_it == ["status.md"]


def test_every_page_of_the_site_is_in_its_navigation():
    navigation = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(navigation) == sorted(page.name for page in DOCS.glob("*.md"))


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ('[a](there.md) ![b](there.png) <img src="there.png">', None),
        ("[a](#what-is-it) [b](there.md#two-words-and-code) [c](there.md#again_1)", "again_1"),
        ("[a](there.md#again) [b](https://arxiv.org/abs/2408.07802#S1)", None),
        ("`[a](not-a-link.md)` and\n```sh\n[b](not-a-link.md)\n```\n", None),
        ("[a](gone.md)", "no such file"),
        ("![a](gone.png)", "no such file"),
        ('<img alt="a"\n src="gone.png">', "no such file"),
        ("[a]\n\n[a]: gone.md", "no such file"),
        ("[a](there.md#gone)", "no such heading"),
        ("[a](there.md#Again)", "no such heading"),
        ("[a](#gone)", "no such heading"),
        ("[a](there.md#a-dash-between)", "no such heading"),  # GitHub's has two dashes
        ("[a](there.md#in-a-fence)", "no such heading"),
        ("[a](there.png#again)", "only pages"),
        ("[a](/docs/there.md)", "not relative"),
        ("[a](http://example.org)", "https"),
        ("[a](https://nowhere)", "https"),
    ],
)
def test_a_broken_link_is_found(tmp_path, link, fault):
    (tmp_path / "there.png").touch()
    (tmp_path / "there.md").write_text(
        "# Two words, and `code`\n## Again\n### Again\n## A dash – between\n"
        "```sh\n# In a fence\n```\n"
    )
    page = tmp_path / "page.md"
    page.write_text(f"# What is it?\n\n{link}\n")
    found = pages.broken(page)
    assert found == [] if fault is None else (len(found) == 1 and fault in found[0]), found


def test_a_broken_link_is_found_on_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One\n\n```sh\n[two](gone.md)\n```\n\nThree `four` [five,\nsix](gone.md)\n")
    assert pages.broken(page) == ["page.md:8: gone.md: no such file"]


def test_files_that_a_text_names_are_found():
    text = "`docs/a.md`, (scripts/b_c.sh) docs/results/NAME/, recipes/*.toml; my/docs/d.md src/e.f"
    assert pages.files_named(text) == {"docs/a.md", "scripts/b_c.sh", "src/e.f"}


def test_every_figure_is_one_that_the_script_draws():
    drawn = {f"{name}.svg" for name in draw_architecture.FIGURES}
    assert {path.name for path in (DOCS / "img").glob("*.svg")} == drawn
