"""What a model's own code sets apart: parameters that it zeroes by name, and steps in time whose range it declares."""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.holding import holders
from initlab.anatomy.source import UNKNOWN, called, conditioned, is_self, owners, ran, value_of

_LAST = "[-1]"
_INIT = "__init__"
_ZEROING = {"zeros_", "constant_", "zero_", "fill_"}
_RANGE = re.compile(r"(?:^|_)(?:dt|delta|time_?step)_(min|max)$")
_STEP = re.compile(r"(?:^|[._])(?:dt|delta|time_?step)(?:_proj(?:ection)?)?[._]bias$")


def zeroed(model: nn.Module) -> dict[str, str]:
    """Find the parameters that the model's own code sets to 0 by name, in a function that its `__init__` surely runs.

    `nn.init.zeros_(block.adaLN_modulation[-1].weight)`, `nn.init.constant_(self.out.weight, 0)`,
    `self.gate.weight.data.zero_()`; what goes by a class (`isinstance(module, nn.Linear)`) names no parameter. A
    function that is called under a condition which can't be known counts where it is called at two places.

    Args:
        model: read, never called.

    Returns:
        function by parameter name, whatever its weights are.
    """
    found: dict[str, str] = {}
    names = [name for name, _ in model.named_parameters()]
    for owner, module in owners(model).items():
        functions = {
            name: whole
            for name, value in vars(owner).items()
            if callable(value) and inspect.isfunction(whole := inspect.unwrap(value))
        }
        if not any(_ZEROING & set(_named(function.__code__)) for function in functions.values()):
            continue  # to read its source takes a hundred times as long
        holds = [path for path, each in model.named_modules() if isinstance(each, owner)]
        for function, tree in _run(owner, functions, module):
            for target in _zeros(tree, module):
                rooted, parts = _parts(target)
                if len(parts) < 2 and not (rooted and parts):
                    continue
                for path in holds:
                    own = [name for name in names if not path or name.startswith(f"{path}.")]
                    found |= dict.fromkeys((n for n in own if _ends(model, n, path, rooted, parts)), function)
    return found


def _named(code: CodeType) -> Iterator[str]:
    """The names that a function's code uses, and those inside it."""
    yield from (*code.co_names, *code.co_varnames, *code.co_freevars)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _named(inner)


def _run(owner: type, functions: Mapping[str, FunctionType], module: nn.Module) -> Iterator[tuple[str, ast.AST]]:
    """The `__init__` of a class, and the methods that it calls, in turn."""
    wanted, seen = [_INIT], set[str]()
    while wanted:
        name = wanted.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(functions[name])))
        except (OSError, TypeError, SyntaxError):  # typed into a prompt, or made elsewhere
            continue
        yield f"{owner.__name__}.{name}", tree
        sure: dict[str, int] = {}
        for node, path in conditioned(tree, ()):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_self(node.func.value):
                known = all(value_of(test, module) is not UNKNOWN for test, _ in path)
                if ran(path, module):
                    sure[called(node)] = sure.get(called(node), 0) + (2 if known else 1)
        wanted += [each for each, count in sure.items() if count > 1]


def _zeros(tree: ast.AST, module: nn.Module) -> Iterator[ast.expr]:
    """What a function sets to 0, on every way that its conditions leave open."""
    for node, path in conditioned(tree, ()):
        if not isinstance(node, ast.Call):
            continue
        if any((value := value_of(test, module)) is UNKNOWN or bool(value) != wanted for test, wanted in path):
            continue
        name, of_init = called(node), len(node.args) > 0
        constant = name == "constant_" and len(node.args) > 1 and value_of(node.args[1], module) == 0
        if (name == "zeros_" and of_init) or constant:
            yield node.args[0]
        elif isinstance(node.func, ast.Attribute) and (
            name == "zero_" or (name == "fill_" and of_init and value_of(node.args[0], module) == 0)
        ):
            yield node.func.value


def _parts(node: ast.expr) -> tuple[bool, list[str]]:
    """`b.modulation[-1].weight` as names from the outermost, without a loop's name; and whether it begins at self."""
    parts: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            parts += [] if node.attr == "data" else [node.attr]
            node = node.value
        elif isinstance(node, ast.Subscript):
            try:
                at = ast.literal_eval(node.slice)
            except ValueError:  # a variable: any of them
                at = None
            parts.append(_LAST if at == -1 else str(at) if isinstance(at, int) else "*")
            node = node.value
        else:
            return is_self(node), parts[::-1]


def _ends(model: nn.Module, name: str, path: str, rooted: bool, parts: list[str]) -> bool:
    """Whether a parameter is what an expression of the code names."""
    own = name.split(".")
    inside = own[len(path.split(".")) if path else 0 :]
    if len(inside) < len(parts) or (rooted and len(inside) != len(parts)):
        return False
    at = len(own) - len(parts)
    for place, part in enumerate(parts, at):
        if part == _LAST:
            parent = model.get_submodule(".".join(own[:place]))
            if own[place] != str(len(list(parent.children())) - 1):
                return False
        elif part not in ("*", own[place]):
            return False
    return True


def time_steps(model: nn.Module) -> Iterator[tuple[str, str, float, float, float]]:
    """Find the biases that softplus makes steps in time of, and the range that the model declares for them.

    Declared by its config or attributes (`time_step_min`, `dt_max`), or by the defaults of a module's arguments.

    Args:
        model: read, never called.

    Returns:
        parameter; where the range is said; its ends; the median step.
    """
    around: dict[str, tuple[str, float, float]] = {}
    for path, module in model.named_modules():
        said = _range(module)
        found = said or (around.get(path.rpartition(".")[0]) if path else None)
        if found is None:
            continue
        around[path] = found
        for name, bias in module.named_parameters(recurse=False):
            whole = f"{path}.{name}" if path else name
            if _STEP.search(whole) and bias.dim() == 1 and bias.is_floating_point() and not bias.is_meta:
                yield whole, *found, float(nn.functional.softplus(_median(bias)))


def _median(bias: Tensor) -> Tensor:
    with torch.no_grad():
        return bias.detach().float().median()


def _range(module: nn.Module) -> tuple[str, float, float] | None:
    """The two ends that a module says, and where."""
    places: list[tuple[str, dict[str, Any]]] = list(holders(module))
    if not type(module).__module__.startswith("torch."):
        try:
            asked = inspect.signature(type(module).__init__).parameters
        except (TypeError, ValueError):
            asked = {}  # type: ignore[assignment]
        places.append((f"{type(module).__name__}.__init__", {name: each.default for name, each in asked.items()}))
    for place, values in places:
        ends: dict[str, tuple[str, float]] = {}
        for name, value in values.items():
            match = _RANGE.search(name)
            if match and isinstance(value, int | float) and not isinstance(value, bool):
                ends.setdefault(match[1], (name, float(value)))
        if len(ends) == 2 and 0 < ends["min"][1] < ends["max"][1] < math.inf:
            (low, least), (high, most) = ends["min"], ends["max"]
            return f"{place}.{low} and {high}", least, most
    return None
