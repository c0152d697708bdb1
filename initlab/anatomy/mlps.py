"""MLPs, read from operations: a function of each element between two matrices, gated or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from initlab.anatomy.attending import Read, dropout_behind, met, normed_input, unconditioned
from initlab.anatomy.functions import function_of, leaves
from initlab.anatomy.graph import Op, Value
from initlab.anatomy.walking import (
    PARTING,
    Projected,
    copies,
    is_vector,
    origin,
    parameter_of,
    projected,
    shifted,
    unscaled,
)
from initlab.wiring import MLP, Activation, Linear


def read_mlp(h: Value, out: Linear, base: Value) -> Read | None:
    """Read f(x up) or f(x gate) · (x up), and what their parts are; None where it is no function of a matrix.

    Args:
        h: what the last matrix is given.
        out: that matrix.
        base: the stream's state before the branch.
    """
    op = unscaled(h)[0].op
    added = shifted(op)
    if added is not None and is_vector(added[1], added[0]) and projected(h) is None:
        return _biased(read_mlp(added[0], out, base), added[1])
    if op is not None and op.name == "glu":
        whole = projected(origin(op.inputs[0]))
        return (
            None
            if whole is None
            else _gated(whole, whole, op.inputs[0], op.inputs[0], "sigmoid", out, base, fused=True)
        )
    if op is not None and op.name == "mul" and len(op.inputs) == 2:
        sides = [leaves(each, _is_leaf) for each in op.inputs]
        if all(side is not None and len(side) == 1 for side in sides):
            (a,), (b,) = (side or [] for side in sides)
            if a is not b:
                return _product(op, a, b, out, base)
    found = leaves(h, _is_leaf)
    if found is None or len(found) != 1:
        return None
    (leaf,) = found
    matrix = _matrix_of(leaf)
    if matrix is None:
        return None
    activation = function_of(h, leaf)
    if activation is None:
        return Read(why=f"the function of {met(h)}")
    given = unconditioned(matrix.source, base)
    norm, source, result = normed_input(given, base)
    body = MLP(up=matrix.linear, out=out, activation=activation, dropout=dropout_behind([h]))
    values = {"ln": result, "mlp_pre": leaf}
    return Read(body, norm, (), source, values, conditioned=given is not matrix.source)


def _biased(read: Read | None, vector: Value) -> Read | None:
    """An MLP with a vector that is added before its last matrix."""
    if read is None or not isinstance(read.body, MLP):
        return read
    if vector.rms != 0:
        read.body, read.why = None, "a vector is added before its last matrix"
    elif (known := parameter_of(vector)) is not None and read.body.up.bias is None:  # at 0 it is any bias
        read.body = replace(read.body, up=replace(read.body.up, bias=known[0]))
    return read


def _product(op: Op, a: Value, b: Value, out: Linear, base: Value) -> Read | None:
    """f(gate) · up, with the two in any order."""
    for gate, up, gate_side, up_side in ((a, b, *op.inputs), (b, a, *op.inputs[::-1])):
        if function_of(up_side, up) != "identity":
            continue
        one, other = _matrix_of(gate), _matrix_of(up)
        activation = function_of(gate_side, gate)
        if one is None or other is None or activation is None:
            continue
        return _gated(one, other, gate, up, activation, out, base, fused=one.linear.weight == other.linear.weight)
    read = Read(why=f"the product of {met(op.inputs[0])} and {met(op.inputs[1])}")
    bent = [leaf for leaf, side in zip((a, b), op.inputs, strict=True) if not _straight(function_of(side, leaf))]
    if len(bent) == 1:  # f(gate) · g(up), as of an up that is clamped
        read.values = {"mlp_pre": bent[0], "mlp_linear": b if bent[0] is a else a}
    return read


def _straight(function: Activation | None) -> bool:
    """It is a straight line where most of what it is given lies."""
    if function is None or isinstance(function, str):
        return function == "identity"
    return bool(np.allclose(np.diff(function(np.linspace(-1, 1, 9)), 2), 0, atol=1e-9))


def _gated(
    gate: Projected,
    up: Projected,
    pre: Value,
    linear: Value,
    activation: Activation,
    out: Linear,
    base: Value,
    *,
    fused: bool,
) -> Read:
    first, second = gate.linear, up.linear
    if fused:
        half = first.fan_out // 2
        late = _is_late(pre)
        if pre is linear:  # F.glu: the second half is the gate
            late = True
        first = replace(first, start=half if late else 0, fan_out=half, fused=2 * half)
        second = replace(second, start=0 if late else half, fan_out=half, fused=2 * half)
    given, its = unconditioned(gate.source, base), unconditioned(up.source, base)
    norm, source, result = normed_input(given, base)
    also, other, _ = normed_input(its, base)
    if other is not source or (also is None) is not (norm is None):
        return Read(why="gate and up read different tensors")
    values = {"ln": result, "mlp_pre": pre}
    if pre is not linear:
        values["mlp_linear"] = linear
    body = MLP(up=second, gate=first, out=out, activation=activation)
    conditioned = given is not gate.source or its is not up.source
    return Read(body, norm, () if also is None or also == norm else (also,), source, values, conditioned=conditioned)


def _is_late(value: Value) -> bool:
    """The second of two parts."""
    op = value.op
    if op is None:
        return False
    if op.name != "getitem":
        return value.output > 0
    index = op.args[1] if len(op.args) > 1 else None
    last = index[-1] if isinstance(index, tuple) and index else index
    return (isinstance(last, slice) and bool(last.start)) or last == 1


def _is_leaf(value: Value) -> bool:
    return _matrix_of(value) is not None


def _matrix_of(value: Value) -> Projected | None:
    """The matrix that gave a tensor, or whose part it is."""
    found = projected(value)
    if found is None and value.op is not None and value.op.name in PARTING and not copies(value.op):
        return projected(origin(value.op.inputs[0]))
    return found
