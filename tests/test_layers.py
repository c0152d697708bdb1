"""The import rule of the house: a module imports only what stands above it, and half of them never import torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import initlab

ROOT = Path(initlab.__file__).parent
# design order of the rooms: modules and folders right under initlab
ORDER = (
    "errors",
    "registry",
    "schema",
    "rundir",
    "environment",
    "options",
    "wiring",
    "recipes",
    "corpus",
    "models",
    "anatomy",
    "drawing",
    "measure",
    "engines",
    "training",
    "judge",
    "report",
    "results",
    "api",
    "cli",
    "__init__",
    "__main__",
)
TORCH_HALF = {"corpus", "models", "anatomy", "drawing", "measure", "engines", "training"}
SHOWING_HALF = {"judge", "report", "results"}
PUBLIC_FUNCTIONS = {
    "apply_recipe",
    "assert_healthy",
    "compare",
    "confirm",
    "describe_init",
    "diff",
    "fix",
    "load",
    "predict",
    "probe",
    "scale",
    "statistic",
    "trace_init",
    "train",
    "watch",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """initlab.judge.rules.depth -> judge; the package itself is its `__init__`."""
    return [*module.split("."), "__init__"][1]


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TORCH_FREE = [name for name in MODULES if room(name) not in TORCH_HALF | {"__main__"}] + [
    "initlab.models.config",
    "initlab.models.wiring",
]


def imported(source: str, module: str, modules: set[str]) -> Iterator[str]:
    """Every module that the source imports, at any level: `from initlab import schema` is initlab.schema."""
    package = module if MODULES.get(module, Path("x.py")).name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in modules else base


def violations(source: str, module: str) -> list[str]:
    """Imports that look down the list, or reach torch from the half that shows."""
    own = room(module)
    found = []
    for name in imported(source, module, set(MODULES)):
        top = name.split(".")[0]
        if top == "initlab" and name != "initlab":
            other = room(name)
            if ORDER.index(other) > ORDER.index(own) or (own in SHOWING_HALF and other in TORCH_HALF):
                found.append(f"{module} imports {name}")
        elif own in SHOWING_HALF and top == "torch":
            found.append(f"{module} imports {name}")
    return found


BLOCKER = """
import importlib, importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchgen"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import initlab
heavy = sorted({"numpy", "pandas", "matplotlib", "torch"} & set(sys.modules))
assert not heavy, f"`import initlab` loads {heavy}"
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"{name}: {error}")
assert not [name for name in sys.modules if name.partition(".")[0] == "torch"]
print(f"{len(sys.argv) - 1} modules without torch")
"""


def import_without_torch(*modules: str, path: Path = ROOT.parent) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(path)!r}, {str(ROOT.parent)!r}]\n{BLOCKER}"]
    return subprocess.run([*command, *modules], capture_output=True, text=True, timeout=120)


def test_every_module_outside_the_torch_half_imports_without_torch() -> None:
    assert {"initlab", "initlab.results", "initlab.api", "initlab.recipes.gpt2", "initlab.judge.rules.depth"} <= set(
        TORCH_FREE
    )
    result = import_without_torch(*TORCH_FREE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == f"{len(TORCH_FREE)} modules without torch"


@pytest.mark.parametrize("line", ["import torch", "from torch import nn", "import initlab.models.nanogpt"])
def test_the_torch_block_catches_a_module_that_imports_torch(tmp_path: Path, line: str) -> None:
    (tmp_path / "leaky_module.py").write_text(f"import json\n{line}\n")
    result = import_without_torch("leaky_module", path=tmp_path)
    assert result.returncode == 1
    assert "leaky_module: torch" in result.stderr
    assert "is blocked" in result.stderr


def test_every_room_has_its_place_in_the_order() -> None:
    assert {room(module) for module in MODULES} <= set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    assert violations(MODULES[module].read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("initlab.schema", "from initlab import rundir", True),
        ("initlab.schema", "import initlab.results", True),
        ("initlab.recipes.base", "def f():\n    from initlab.models import roles", True),
        ("initlab.rundir", "if TYPE_CHECKING:\n    from initlab.judge.rules import Finding", True),
        ("initlab.rundir", "from .. import results", True),
        ("initlab.judge.rules.base", "from ...report import console", True),
        ("initlab.report.html", "def f():\n    import torch", True),
        ("initlab.judge.theory", "from torch.nn import functional", True),
        ("initlab.results", "def f():\n    from initlab.measure.moments import Moments", True),
        ("initlab.report.console", "from initlab.models.nanogpt import NanoGPT", True),
        ("initlab.results", "from initlab import api", True),
        ("initlab.api", "from initlab.cli import main", True),
        ("initlab.registry", "from initlab.recipes import Recipe", True),
        ("initlab.models.nanogpt", "from initlab.anatomy.look import of", True),
        ("initlab.anatomy.look", "from initlab.drawing.apply import apply_recipe", True),
        ("initlab.anatomy.sites", "def f():\n    from initlab.measure import inputs", True),
        ("initlab.drawing.describe", "from initlab.measure.moments import Moments", True),
        ("initlab.measure.watch.steps", "from initlab.training import trainer", True),
        ("initlab.measure.statistics", "from initlab.engines import ENGINES", True),
        ("initlab.engines.here", "from initlab.training.protocol import train_cell", True),
        ("initlab.training.config", "from initlab.judge import theory", True),
        ("initlab.judge.theory.expecting", "from initlab.anatomy.look import Anatomy", True),
        ("initlab.report.document", "from initlab.drawing import describe", True),
        ("initlab.results.profile", "def f():\n    import initlab.engines.processes", True),
        ("initlab.drawing.apply", "from initlab.anatomy.look import of\nfrom initlab.recipes import Recipe", False),
        ("initlab.training.protocol", "from initlab.engines import ENGINES\nimport torch", False),
        ("initlab.api", "import torch\nfrom initlab.measure.sweep import Cell\nfrom initlab import results", False),
        ("initlab.results", "from initlab import __version__, rundir", False),
        ("initlab.judge.rules.base", "from . import depth\nfrom ...schema import Tables", False),
        ("initlab.judge.theory", "import torchless\nfrom initlab.judge import activations", False),
        ("initlab.environment", "def f():\n    import torch", False),
    ],
)
def test_the_order_test_catches_what_it_must_and_nothing_else(module: str, source: str, caught: bool) -> None:
    assert bool(violations(source, module)) is caught


def test_no_module_at_the_root_bears_the_name_of_a_public_function() -> None:
    lazy = {name for name in initlab.__all__ if name.islower() and not name.startswith("_")}
    names = {room(module) for module in MODULES}
    assert not names & (PUBLIC_FUNCTIONS | lazy)


def test_all_is_exactly_what_can_be_loaded() -> None:
    assert sorted(initlab.__all__) == sorted([*initlab._HOME, "__version__"])
    assert len(set(initlab.__all__)) == len(initlab.__all__)
    assert dir(initlab) == initlab.__all__
    for name, home in initlab._HOME.items():
        value = getattr(initlab, name)
        assert home in MODULES
        assert value is getattr(sys.modules[home], name)
        assert value.__module__ == home, f"{name} is defined in {value.__module__}, the table says {home}"
    with pytest.raises(AttributeError, match="no attribute 'prob'"):
        initlab.__getattr__("prob")


def test_names_for_type_checkers_are_those_that_load() -> None:
    tree = ast.parse(MODULES["initlab"].read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in guarded.body for alias in node.names}  # type: ignore[attr-defined]
    assert typed == initlab._HOME
