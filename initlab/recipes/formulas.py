"""Formulas of recipes: arithmetic over names, and nothing else that Python can do.

They may come from anybody's file, and Python's own evaluation can't be fenced in: from any object, attributes lead to
every other.
"""

from __future__ import annotations

import ast
import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping

Number = int | float

_LONGEST = 1000  # characters
_LARGEST_POWER = 64.0
_BITS = 1024  # of a whole number, which Python lets grow without end


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) > _LARGEST_POWER:
        raise ValueError(f"a power of {exponent:g}; expected one up to {_LARGEST_POWER:g}")
    found = base**exponent
    if isinstance(found, complex):
        raise ValueError(f"{base:g} ** {exponent:g} is no real number")
    return found


_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_COMPARING: dict[type[ast.cmpop], Callable[[Number, Number], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_FUNCTIONS: dict[str, Callable[..., Number]] = {"sqrt": math.sqrt, "log": math.log, "min": min, "max": max}


@functools.lru_cache(maxsize=1024)
def parsed(text: str) -> tuple[ast.expr, frozenset[str]]:
    """Read a formula, once: a model has thousands of parameters, and the catalogue few formulas.

    Args:
        text: as `0.02 / sqrt(2 * n_layer)`.

    Returns:
        It, and the names that it uses.

    Raises:
        ValueError, SyntaxError, RecursionError: it is no formula.
    """
    if not isinstance(text, str):
        raise ValueError(f"it is a {type(text).__name__}; expected text")
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text)} characters; expected at most {_LONGEST}")
    tree = ast.parse(text.strip(), mode="eval").body
    return tree, frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def evaluated(node: ast.expr, names: Mapping[str, Number]) -> Number:
    """Evaluate a formula.

    Args:
        node: of `parsed`.
        names: their values.

    Raises:
        ValueError: it does more than arithmetic, or grows beyond bounds.
        ArithmeticError: as a division by zero.
    """
    found = _evaluated(node, names)
    if isinstance(found, int) and found.bit_length() > _BITS:
        raise ValueError("a number in it is too large")
    return found


def _evaluated(node: ast.expr, names: Mapping[str, Number]) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            if name not in names:
                raise ValueError(f"name {name!r} is not defined")
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluated(operand, names)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return evaluated(operand, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](evaluated(left, names), evaluated(right, names))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return evaluated(body if evaluated(test, names) else orelse, names)
        case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in _COMPARING for op in ops):
            values = [evaluated(each, names) for each in (left, *rest)]
            pairs = itertools.pairwise(values)
            return all(_COMPARING[type(op)](a, b) for op, (a, b) in zip(ops, pairs, strict=True))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(evaluated(each, names) for each in args))
    raise ValueError(f"{ast.unparse(node)!r:.80} is no arithmetic; expected + - * / **, {', '.join(_FUNCTIONS)}")
