"""Imports flow one way, `import krakenlm` is quick, and one place alone knows the wirings.

The checks read the source with `ast`, so that an import inside a function or behind
TYPE_CHECKING counts like any other. Each check is also shown a small tree that breaks it.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

import krakenlm
from krakenlm.config import WiringName

PACKAGE = Path(krakenlm.__file__).parent

# Low to high. A module may import what stands further left, and its own package. Modules that
# share a place must not import each other.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset(
        {"files", "console", "strict", "spread", "environment", "overrides", "utf8", "ending"}
    ),
    frozenset({"config"}),
    frozenset({"data", "model"}),
    frozenset({"ranks"}),
    frozenset({"transport"}),
    frozenset({"engine", "integrations"}),
    frozenset({"train", "eval", "bench"}),
    frozenset({"plan"}),
    frozenset({"adapt", "calibrate", "demo", "emulation", "serving"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}

# These two name others lazily, to be imported when a user first asks for them.
LAZY = {"__init__", "_registration"}

# vLLM is optional and changes fast: one file holds what depends on it, another registers with it.
VLLM_MAY_BE_IMPORTED_IN = {"serving/vllm_api.py", "serving/plugin.py"}

# Transformers, accelerate and lm-evaluation-harness change as fast: what depends on their insides
# stands in these files. Other folders deal with none of them.
INSIDES_MAY_BE_USED_IN = {
    "integrations/hf_compat.py",
    "integrations/hf_trainer.py",
    "serving/vllm_api.py",
}
DOCUMENTED = {"transformers.utils.logging"}
DEAL_WITH_LIBRARIES = ("integrations", "train", "eval", "demo", "serving", "cli")
# Of the standard library: what a named tuple offers, and an end without clean-up.
NOT_PRIVATE = {"_replace", "_asdict", "_exit"}

# What these are for comes with an extra.
NEED_EXTRAS = ("eval", "serving")

WIRINGS_MAY_BE_COMPARED_IN = ("config/", "model/wiring.py")


class Import(NamedTuple):
    """A dotted module name, as far as it can be told, and the line it stands on."""

    module: str
    line: int


def imports(path: Path, package: tuple[str, ...], *, everywhere: bool = True) -> Iterator[Import]:
    """Every import of a file, or those at its top; `package` is the one that the file lies in."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            function = function.id if isinstance(function, ast.Name) else function
            first = node.args[0]
            if (
                function in ("import_module", "__import__")
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
            ):
                yield Import(first.value, node.lineno)


def source_files(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Each source file below `root`, which is the folder of `krakenlm`, and its package."""
    for path in sorted(root.rglob("*.py")):
        yield path, ("krakenlm", *path.relative_to(root).parts[:-1])


def back_edges(root: Path) -> list[str]:
    """Imports that go up or sideways, as lines for people."""
    found = []
    for path, package in source_files(root):
        relative = path.relative_to(root)
        importer = relative.parts[0].removesuffix(".py")
        if importer in LAZY:
            continue
        if importer not in HEIGHT:
            found.append(f"{relative}: {importer} has no layer: give it one in LAYERS")
            continue
        for module, line in imports(path, package):
            first, _, rest = module.partition(".")
            imported = rest.partition(".")[0]
            if first != "krakenlm" or not imported or imported == importer:
                continue
            if imported not in HEIGHT:
                found.append(f"{relative}:{line}: {module}: import it from the module it lives in")
            elif HEIGHT[imported] >= HEIGHT[importer]:
                found.append(f"{relative}:{line}: {importer} must not import {imported}")
    return found


def circle(root: Path) -> list[str]:
    """Modules that import each other round in a circle, the first one again at the end, or none."""
    modules = {
        ".".join((*package, path.stem)).removesuffix(".__init__"): (path, package)
        for path, package in source_files(root)
        if path.relative_to(root).parts[0].removesuffix(".py") not in LAZY
    }
    order = TopologicalSorter(
        {
            name: {
                imported
                for module, _ in imports(path, package)
                for imported in (module, module.rpartition(".")[0])
                if imported in modules
            }
            for name, (path, package) in modules.items()
        }
    )
    try:
        order.prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def foreign_imports(root: Path) -> list[str]:
    """What `config` imports from neither the standard library nor krakenlm."""
    return [
        f"{path.relative_to(root)}:{line}: {module}"
        for path, package in source_files(root)
        if package[1:2] == ("config",)
        for module, line in imports(path, package)
        if module.partition(".")[0] not in {*sys.stdlib_module_names, "krakenlm"}
    ]


def vllm_imports(root: Path) -> list[str]:
    """Imports of vLLM outside the files that may."""
    return [
        f"{path.relative_to(root)}:{line}: {module}"
        for path, package in source_files(root)
        if path.relative_to(root).as_posix() not in VLLM_MAY_BE_IMPORTED_IN
        for module, line in imports(path, package)
        if module.partition(".")[0] == "vllm"
    ]


def optional_imports(root: Path, required: set[str]) -> list[str]:
    """Imports at a module's top of what an installation without extras lacks."""
    return [
        f"{path.relative_to(root)}:{line}: {module}"
        for path, package in source_files(root)
        if path.relative_to(root).parts[0] not in NEED_EXTRAS
        for module, line in imports(path, package, everywhere=False)
        if module.partition(".")[0] not in {*sys.stdlib_module_names, "krakenlm", *required}
    ]


def uses_of_insides(root: Path) -> list[str]:
    """Submodules of Transformers, and private names of other objects, outside their files."""
    found: list[str] = []
    for path, package in source_files(root):
        relative = path.relative_to(root)
        if relative.as_posix() in INSIDES_MAY_BE_USED_IN:
            continue
        found.extend(
            f"{relative}:{line}: {module}"
            for module, line in imports(path, package)
            if re.match(r"transformers\.\w+\.\w", module) and module not in DOCUMENTED
        )
        if relative.parts[0] in DEAL_WITH_LIBRARIES:
            found.extend(
                f"{relative}:{node.lineno}: {ast.unparse(node)}"
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path)))
                if isinstance(node, ast.Attribute) and _is_private(node)
            )
    return found


def _is_private(node: ast.Attribute) -> bool:
    """Whether an attribute is one that its owner keeps to itself, and the owner another object."""
    own = ast.unparse(node.value) in ("self", "cls", "super()")
    name = node.attr
    return (
        name.startswith("_") and not name.startswith("__") and not own and (name not in NOT_PRIVATE)
    )


def wiring_comparisons(root: Path) -> list[str]:
    """Places that ask which architecture runs, outside the two that may know."""
    found = []
    for path, _ in source_files(root):
        relative = path.relative_to(root).as_posix()
        if relative.startswith(WIRINGS_MAY_BE_COMPARED_IN):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                asks = any(map(_holds_wiring, sides)) and any(map(_names_wiring, sides))
            elif isinstance(node, ast.Match):
                patterns = [case.pattern for case in node.cases]
                asks = _holds_wiring(node.subject) and any(map(_names_wiring, patterns))
            else:
                continue
            if asks:
                found.append(f"{relative}:{node.lineno}: asks which wiring it runs")
    return found


def _holds_wiring(node: ast.AST) -> bool:
    """Whether an expression is a variable, attribute or key named wiring."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            pass
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            pass
        case ast.Call(args=[ast.Constant(value=str(name)), *_]):
            pass
        case ast.NamedExpr(value=value):
            return _holds_wiring(value)
        case _:
            return False
    return re.search(r"(^|_)wiring(_name)?$", name) is not None


def _names_wiring(node: ast.AST) -> bool:
    names = get_args(WiringName)
    return any(isinstance(n, ast.Constant) and n.value in names for n in ast.walk(node))


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write a small package to check."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def fresh_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a new interpreter, which has nothing loaded."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=120
    )


def test_no_import_goes_up_or_sideways():
    assert back_edges(PACKAGE) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config/sizes.py", "from krakenlm.model.decoder import Decoder"),
        ("config/sizes.py", "import krakenlm.model.decoder"),
        ("config/sizes.py", "from krakenlm import model"),
        ("config/sizes.py", "from .. import model"),
        ("config/sizes.py", "from ..model.decoder import Decoder"),
        ("config/deep/inside.py", "from ...model import decoder"),
        ("model/decoder.py", "def f():\n    from krakenlm.engine import engine"),
        ("model/decoder.py", "if TYPE_CHECKING:\n    from krakenlm.engine.engine import Engine"),
        ("model/decoder.py", "import importlib\nimportlib.import_module('krakenlm.engine')"),
        ("model/decoder.py", "from krakenlm.data.text import pieces"),
        ("data/text.py", "from krakenlm.model.decoder import Decoder"),
        ("train/loop.py", "from krakenlm.eval.model import load_causal_lm"),
        ("integrations/hf.py", "from krakenlm.train.loop import train"),
        ("ranks/launch.py", "from krakenlm.transport.connect import connect"),
        ("transport/connect.py", "from krakenlm.engine.engine import Engine"),
        ("engine/engine.py", "from krakenlm.integrations.hf import KrakenForCausalLM"),
        ("demo/run.py", "from krakenlm.cli.main import app"),
        ("errors.py", "from krakenlm.files import write_json"),
        ("files.py", "from krakenlm.console import notes"),
        ("model/decoder.py", "from krakenlm import ModelConfig"),
        ("model/decoder.py", "from krakenlm import _registration"),
        ("helpers.py", "import math"),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_found(tmp_path, name, text):
    assert len(back_edges(tree(tmp_path, {name: text}))) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model/decoder.py", "from krakenlm.model.wiring import kraken\nfrom .layers import Norm"),
        ("engine/engine.py", "from krakenlm.config import ModelConfig\nfrom .. import errors"),
        ("files.py", "from krakenlm.errors import KrakenError"),
        ("eval/model.py", "import krakenlm\nimport torch"),
        ("cli/main.py", "def f():\n    from krakenlm.train.loop import train"),
        ("train/loop.py", "from krakenlm.integrations.hf_trainer import Callback"),
        ("__init__.py", "if TYPE_CHECKING:\n    from krakenlm.integrations.hf import Model"),
    ],
)
def test_an_import_that_goes_down_or_stays_is_left_alone(tmp_path, name, text):
    assert back_edges(tree(tmp_path, {name: text})) == []


def test_no_modules_import_each_other():
    assert circle(PACKAGE) == []


def test_modules_that_import_each_other_are_found(tmp_path):
    files = {
        "engine/__init__.py": "",
        "engine/session.py": "if TYPE_CHECKING:\n    from krakenlm.engine.engine import Engine",
        "engine/engine.py": "from .session import Session\nfrom krakenlm.engine import sampling",
        "engine/sampling.py": "import torch",
    }
    first, second, again = circle(tree(tmp_path, files))
    assert {first, second} == {"krakenlm.engine.engine", "krakenlm.engine.session"}
    assert again == first


def test_config_imports_only_the_standard_library_and_krakenlm():
    assert foreign_imports(PACKAGE) == []


@pytest.mark.parametrize("text", ["import torch", "def f():\n    from numpy import array"])
def test_a_foreign_import_in_config_is_found(tmp_path, text):
    assert len(foreign_imports(tree(tmp_path, {"config/sizes.py": text}))) == 1


def test_vllm_is_imported_in_its_own_place_only():
    assert vllm_imports(PACKAGE) == []


def test_an_import_of_vllm_elsewhere_is_found(tmp_path):
    text = "def f():\n    from vllm.config import VllmConfig"
    files = {"serving/vllm_model.py": text, "serving/vllm_api.py": text}
    assert vllm_imports(tree(tmp_path, files)) == [
        "serving/vllm_model.py:2: vllm.config.VllmConfig"
    ]


def test_what_comes_with_an_extra_is_imported_when_it_is_asked_for():
    pyproject = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    required = {re.split(r"[<>=]", name)[0] for name in pyproject["project"]["dependencies"]}
    assert {"torch", "transformers"} <= required and "datasets" not in required
    assert optional_imports(PACKAGE, required) == []


def test_an_import_of_an_extra_is_found(tmp_path):
    files = {
        "data/hub.py": "import datasets\ndef f():\n    import pyarrow",
        "eval/m.py": "import m",
    }
    assert optional_imports(tree(tmp_path, files), {"torch"}) == ["data/hub.py:1: datasets"]


def test_insides_of_libraries_are_used_in_their_own_places_only():
    assert uses_of_insides(PACKAGE) == []


@pytest.mark.parametrize(
    "text",
    [
        "trainer._tr_loss = 0",
        "def f(self):\n    return self.config._attn_implementation",
        "from transformers.masking_utils import create_causal_mask",
        "def f():\n    import transformers.trainer_utils.helpers",
    ],
)
def test_a_use_of_insides_elsewhere_is_found(tmp_path, text):
    files = {"train/loop.py": text, "integrations/hf_compat.py": text}
    (line,) = uses_of_insides(tree(tmp_path, files))
    assert line.startswith("train/loop.py:")


def test_what_is_public_or_one_s_own_is_left_alone(tmp_path):
    text = "from transformers import Trainer\nfrom transformers.utils import logging\nself._a = 1"
    files = {"train/loop.py": text, "model/packed.py": "torch.ops._linear"}
    assert uses_of_insides(tree(tmp_path, files)) == []


def test_only_the_wirings_themselves_ask_which_architecture_runs():
    assert wiring_comparisons(PACKAGE) == []


@pytest.mark.parametrize(
    "text",
    [
        "if config.wiring == 'kraken': pass",
        "if 'kraken' != wiring: pass",
        "x = 1 if self._wiring in ('ladder', 'standard') else 2",
        "if values['wiring'] == 'parallel': pass",
        "if values.get('wiring') == 'parallel': pass",
        "match config.wiring:\n    case 'kraken' | 'ladder': pass",
    ],
)
def test_a_question_which_architecture_runs_is_found(tmp_path, text):
    root = tree(tmp_path, {"engine/engine.py": text, "config/wirings.py": text})
    assert [line.partition(":")[0] for line in wiring_comparisons(root)] == ["engine/engine.py"]


@pytest.mark.parametrize(
    "text",
    [
        "for wiring in ('standard', 'parallel', 'ladder', 'kraken'): time(wiring)",
        "assert values['model_type'] == 'kraken'",
        "if one.wiring != other.wiring: pass",
    ],
)
def test_listing_the_architectures_is_left_alone(tmp_path, text):
    assert wiring_comparisons(tree(tmp_path, {"bench/latency.py": text})) == []


@pytest.mark.alone
def test_importing_krakenlm_is_quick_and_loads_neither_torch_nor_transformers():
    code = (
        "import sys, time; start = time.perf_counter(); import krakenlm; "
        "print(time.perf_counter() - start, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    # The quickest of three: other work on the machine can only slow it down.
    runs = [fresh_python("-c", code).stdout.split() for _ in range(3)]
    assert {tuple(loaded) for _, *loaded in runs} == {("False", "False")}
    assert min(float(seconds) for seconds, *_ in runs) < 1.0


def test_help_loads_no_torch():
    run = fresh_python("-X", "importtime", "-m", "krakenlm", "--help")
    loaded = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "krakenlm.cli.main" in loaded  # the list of modules was read rightly
    assert not loaded & {"torch", "transformers"}
