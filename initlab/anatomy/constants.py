"""Parameters that a class makes of one number, `self.gate = nn.Parameter(torch.zeros(1))`, and what they are now."""

from __future__ import annotations

import ast
import functools
import inspect
import math

from torch import nn

from initlab.anatomy.source import Path, assigned, called, conditioned, init_trees, is_self, owners, ran, value_of
from initlab.recipes import formulas

_FILLED = {"zeros": 0.0, "zeros_like": 0.0, "ones": 1.0, "ones_like": 1.0}
_SAME = ("float", "half", "bfloat16", "to", "type", "clone", "view", "reshape", "expand", "repeat", "unsqueeze")
_FUNCTIONS = {"sqrt": math.sqrt, "log": math.log, "exp": math.exp, "float": float}
_ASKING = ("endswith", "startswith", "hasattr", "getattr", "search", "match", "fullmatch", "get_parameter")
_BLANKET = ("", "weight", "bias")
_LEVELS = 8  # of names that stand for names


def constants(model: nn.Module) -> dict[str, tuple[str, float]]:
    """Find the parameters that the `__init__` of their class makes of one number, and that no init code names after it.

    `nn.Parameter(torch.ones(n_embd))`, `nn.Parameter(0.2 * torch.ones(1))`, `nn.Parameter(torch.full((n,), init))`
    where `init` is an attribute of the module or its config. Branches that the module's own attributes rule out didn't
    run; where those that are left differ, nothing is known.

    Args:
        model: read, never called.

    Returns:
        (function, number) by parameter name, whatever the parameters are now.
    """
    said: dict[str, tuple[str, float]] = {}
    classes = owners(model)
    for path, module in model.named_modules():
        for name in module._parameters:
            holder: type = type(module)
            found = _made(module, name)
            if found is not None and not any(_named(owner, holder, name) for owner in classes):
                said[f"{path}.{name}" if path else name] = found
    texts = {text for owner in classes for text in _asked(owner)} if said else set()
    own = {name for name, _ in model.named_parameters()}
    return {name: found for name, found in said.items() if name in own and not any(text in name for text in texts)}


def _made(module: nn.Module, name: str) -> tuple[str, float] | None:
    """The `__init__` that makes a parameter of a module, and the number that it fills it with."""
    for owner in type(module).__mro__:
        for function, tree, given in _assignments(owner, name):
            values = {_filled(value, tree, module) for value, path in given if ran(path, module)}
            if values:
                value = values.pop()
                return (function, value) if not values and value is not None else None
    return None


@functools.cache
def _assignments(owner: type, name: str) -> list[tuple[str, ast.AST, list[tuple[ast.expr, Path]]]]:
    """What the `__init__` of a class makes a parameter of: function, its tree, tensors with their conditions."""
    if owner.__module__.startswith("torch.") or not inspect.isfunction(vars(owner).get("__init__")):
        return []
    found = []
    for function, tree in init_trees(owner):
        values: list[tuple[ast.expr, Path]] = []
        for node, path in conditioned(tree, ()) if function.endswith("__init__") else ():
            value: ast.expr | None = None
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if any(isinstance(t, ast.Attribute) and t.attr == name and is_self(t.value) for t in targets):
                    value = node.value
            elif isinstance(node, ast.Call) and called(node) == "register_parameter" and len(node.args) > 1:
                named = isinstance(node.args[0], ast.Constant) and node.args[0].value == name
                value = node.args[1] if named else None
            # a parameter is there, so that another way than the one to None was taken
            if value is not None and not (isinstance(value, ast.Constant) and value.value is None):
                made = isinstance(value, ast.Call) and called(value) == "Parameter" and value.args
                values.append((value.args[0] if made else value, path))  # type: ignore[attr-defined]
        found.append((function, tree, values))
    return found


def _filled(node: ast.expr, tree: ast.AST, module: nn.Module, level: int = 0) -> float | None:
    """The number that all elements of a tensor are, as an expression says; None where it doesn't."""
    if level > _LEVELS:
        return None
    if isinstance(node, ast.Call):
        name = called(node)
        if name in _FILLED:
            return _FILLED[name]
        if name in ("full", "full_like"):
            said = [each.value for each in node.keywords if each.arg == "fill_value"] or node.args[1:2]
            return _number(said[0], module) if said else None
        if name in ("tensor", "as_tensor") and node.args:
            given = node.args[0]
            elements = given.elts if isinstance(given, ast.List | ast.Tuple) else [given]
            numbers = {_number(each, module) for each in elements}
            return numbers.pop() if len(numbers) == 1 else None
        if name in _SAME and isinstance(node.func, ast.Attribute):
            return _filled(node.func.value, tree, module, level + 1)
        return None
    if isinstance(node, ast.Name):
        read = [each for each in ast.walk(tree) if isinstance(each, ast.Name) and each.id == node.id]
        if sum(isinstance(each.ctx, ast.Load) for each in read) > 1:  # and may be filled there: pe[:, ::2] = sin
            return None
        said = list(assigned(node.id, tree))
        return _filled(said[0], tree, module, level + 1) if len(said) == 1 else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _filled(node.operand, tree, module, level + 1)
        return None if value is None else -value
    if isinstance(node, ast.BinOp):
        left, right = (_filled(each, tree, module, level + 1) for each in (node.left, node.right))
        if left is None and right is None:  # neither is a tensor
            return None
        left = _number(node.left, module) if left is None else left
        right = _number(node.right, module) if right is None else right
        return None if left is None or right is None else _calculated(node.op, left, right)
    return None


def _number(node: ast.expr, module: nn.Module) -> float | None:
    """A number of literals, attributes and arithmetic."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _number(node.operand, module)
        return None if value is None else -value
    if isinstance(node, ast.BinOp):
        left, right = _number(node.left, module), _number(node.right, module)
        return None if left is None or right is None else _calculated(node.op, left, right)
    if isinstance(node, ast.Call) and called(node) in _FUNCTIONS and len(node.args) == 1:
        value = _number(node.args[0], module)
        try:
            return None if value is None else float(_FUNCTIONS[called(node)](value))
        except (ValueError, OverflowError):
            return None
    value = value_of(node, module)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _calculated(operation: ast.operator, left: float, right: float) -> float | None:
    try:
        value = float(formulas.evaluated(ast.BinOp(ast.Constant(left), operation, ast.Constant(right)), {}))
    except (ValueError, ArithmeticError):
        return None
    return value if math.isfinite(value) else None


@functools.cache
def _named(owner: type, holder: type, name: str) -> bool:
    """Whether init code of a class names a parameter of another: in an in-place call, or an assignment into it."""
    classes = {each.__name__ for each in holder.__mro__}
    return any(name in named and (not told or told & classes) for named, told in _named_inits(owner))


@functools.cache
def _named_inits(owner: type) -> list[tuple[set[str], set[str]]]:
    """Attributes that such a line names, and the classes that it is about where a condition says so."""
    found = []
    for node, path in (each for _, tree in init_trees(owner) for each in conditioned(tree, ())):
        call = isinstance(node, ast.Call) and called(node).endswith("_") and not called(node).startswith("_")
        targets = node.targets if isinstance(node, ast.Assign) else []
        changed = any(
            isinstance(each, ast.Subscript) or (isinstance(each, ast.Attribute) and each.attr == "data")
            for each in targets
        )
        if call or changed or isinstance(node, ast.AugAssign):
            tests = [each for test, wanted in path if wanted for each in ast.walk(test)]
            tests = [each for each in tests if isinstance(each, ast.Call) and called(each) == "isinstance"]
            told = [each for test in tests for each in ast.walk(test.args[1])]  # type: ignore[attr-defined]
            found.append(
                (
                    {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)},
                    {getattr(each, "attr", getattr(each, "id", "")) for each in told} - {""},
                )
            )
    return found


@functools.cache
def _asked(owner: type) -> frozenset[str]:
    """Texts that init code holds names of parameters against, `if "gate" in name`; but for a blanket `weight`."""
    found = set()
    for node in (each for _, tree in init_trees(owner) for each in ast.walk(tree)):
        if isinstance(node, ast.Compare) or (isinstance(node, ast.Call) and called(node) in _ASKING):
            texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
            found |= {text for text in texts if isinstance(text, str) and text not in _BLANKET}
    return frozenset(found)
