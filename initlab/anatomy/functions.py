"""Which function of each element a part of a trace computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from initlab.anatomy.graph import Value
from initlab.anatomy.operations import words
from initlab.anatomy.walking import copies

Array = NDArray[np.float64]

_ELEMENTWISE = words(
    "add sub mul div pow square neg abs exp expm1 erf tanh sigmoid relu gelu silu softplus mish elu selu celu relu6 "
    "leaky_relu hardtanh hardswish hardsigmoid logsigmoid log1p sqrt clamp clamp_min clamp_max maximum minimum min max "
    "where gt lt ge le threshold tanhshrink softshrink hardshrink softsign sin cos reciprocal rsub rdiv sign log erfc "
    "prelu"
)
_REACH, _STEP = 40.0, 1 / 64
_SPARSE = 199  # of a table's rows, those that tell most functions apart
# what the closed form knows in closed form, or by a name
_KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "relu2": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "mish": F.mish,
    "elu": F.elu,
}


def leaves(value: Value, stop: Callable[[Value], bool]) -> list[Value] | None:
    """List the tensors that one is computed from element by element.

    Args:
        value: the result.
        stop: whether a tensor is one of them.

    Returns:
        in the order they are met; None where something else than a function of each element is in between.
    """
    found: dict[Value, None] = {}
    left, seen = [value], {value}
    while left:
        each = left.pop()
        if stop(each):
            found[each] = None
            continue
        op = each.op
        if op is None or not (copies(op) or op.name in _ELEMENTWISE):
            return None
        for given in op.inputs:
            if given.data and given not in seen:
                seen.add(given)
                left.append(given)
    return list(found)


def function_of(value: Value, leaf: Value) -> str | Callable[[Array], Array] | None:
    """Tell which function of one tensor's elements another is: its name, or the function itself; None if it can't.

    Args:
        value: the result.
        leaf: the only tensor that it is computed from, see `leaves`.
    """
    grid = torch.arange(-_REACH, _REACH + _STEP / 2, _STEP, dtype=torch.float64)
    try:
        with torch.no_grad():
            out = _replayed(value, leaf, grid, {})
    except Exception:  # something that takes another shape
        return None
    if not isinstance(out, Tensor) or out.shape != grid.shape:
        return None
    table = out.numpy()
    if not np.isfinite(table).all():
        return None
    for name, known in _known_tables().items():
        if np.allclose(table[::_SPARSE], known[::_SPARSE], 1e-5, 1e-6) and np.allclose(table, known, 1e-5, 1e-6):
            return name
    return _tabulated(table.tobytes())


@lru_cache(maxsize=1)
def _known_tables() -> dict[str, Array]:
    grid = torch.arange(-_REACH, _REACH + _STEP / 2, _STEP, dtype=torch.float64)
    return {name: known(grid).numpy() for name, known in _KNOWN.items()}


@lru_cache(maxsize=64)
def _tabulated(values: bytes) -> Callable[[Array], Array]:
    """One function object for each table, so that what is computed of it once is known again."""
    table = np.frombuffer(values)
    grid = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
    ends = (table[1] - table[0]) / _STEP, (table[-1] - table[-2]) / _STEP

    def function(x: Array) -> Array:
        inside = np.interp(x, grid, table)
        return np.asarray(inside + ends[0] * np.minimum(x + _REACH, 0) + ends[1] * np.maximum(x - _REACH, 0))

    return function


def _replayed(value: Any, leaf: Value, grid: Tensor, known: dict[Value, Any]) -> Any:
    if not isinstance(value, Value):
        return tuple(_replayed(each, leaf, grid, known) for each in value) if isinstance(value, tuple) else value
    if value is leaf:
        return grid
    if value.number is not None:
        return torch.tensor(value.number, dtype=grid.dtype)  # as torch.minimum wants it
    if value not in known:
        op = value.op
        if op is None:
            raise ValueError("a tensor of the model's own")
        if copies(op):
            known[value] = _replayed(op.inputs[0], leaf, grid, known)
        else:
            args = [_replayed(each, leaf, grid, known) for each in op.args]
            kwargs = {key: _replayed(each, leaf, grid, known) for key, each in op.kwargs.items() if key != "inplace"}
            # a copy, since x.mul_(2) writes into what it is given
            args = [each.clone() if isinstance(each, Tensor) else each for each in args]
            known[value] = op.function(*args, **kwargs)
    return known[value]


def rounded(number: float) -> float:
    """Take rounding in single precision off a number that was written down: 0.12499999 -> 0.125."""
    short = float(f"{number:.6g}")
    return short if math.isclose(short, number, rel_tol=1e-6) else number
