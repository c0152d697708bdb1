"""Normalisations in a trace: torch's own, and those that are written out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from initlab.anatomy.graph import Op, Value
from initlab.anatomy.operations import words
from initlab.anatomy.walking import UNARY, copies, factor, is_vector, origin, parameter_of, shifted
from initlab.wiring import Norm

_REDUCTIONS = words("mean sum norm vector_norm linalg_norm linalg_vector_norm var std var_mean std_mean")


_TOTALS = words("sum norm vector_norm linalg_norm linalg_vector_norm")


@dataclass(frozen=True, slots=True)
class Normed:
    """A norm, what it was given, and the values from its result to the last that is its own: gain, bias."""

    norm: Norm
    source: Value
    result: Value


def normed(value: Value) -> Normed | None:
    """Read a tensor as the result of a normalisation over its last dimension, gain and bias included.

    Args:
        value: what may be such a result.
    """
    gain = bias = None
    offset, scale, outer, result = 0.0, 1.0, 1.0, value
    while value.op is not None and value.data:
        op = value.op
        if copies(op):
            value = op.inputs[0]
            continue
        plain = _normalisation(op)
        if plain is not None:
            found, source = plain
            if gain is not None and found.gain is not None:
                return None
            found = replace(
                found,
                gain=found.gain or gain,
                bias=found.bias or bias,
                offset=found.offset or offset,
                scale=found.scale * scale * outer,
            )
            return Normed(found, source, result)
        times, added = factor(op), shifted(op)
        if times is not None and times.vector is None:
            scale *= times.number
            value = times.value
        elif times is not None and gain is None:
            known = parameter_of(times.vector)
            if known is None:
                assert times.vector is not None
                outer *= times.vector.rms if math.isfinite(times.vector.rms) else 1.0
            else:
                gain, by, offset = known
                scale *= by
            value = times.value
        elif added is not None and bias is None and is_vector(added[1], added[0]):
            known = parameter_of(added[1])
            bias = known[0] if known else None
            value = added[0]
        else:
            return None
    return None


def _normalisation(op: Op) -> tuple[Norm, Value] | None:
    """One operation that normalises, or the product with which one written out ends."""
    if op.name in ("layer_norm", "native_layer_norm"):
        gain, bias = (parameter_of(op.argument(place, name)) for place, name in ((2, "weight"), (3, "bias")))
        eps = op.argument(4, "eps", 1e-5)
        size = op.inputs[0].shape[-1]
        return Norm(
            module=op.module,
            gain=gain[0] if gain else None,
            offset=gain[2] if gain else 0.0,
            scale=gain[1] if gain else 1.0,
            bias=bias[0] if bias else None,
            eps=float(eps),
            size=size,
        ), op.inputs[0]
    if op.name == "rms_norm":
        gain = parameter_of(op.argument(2, "weight"))
        eps = op.argument(3, "eps")
        return Norm(
            module=op.module,
            gain=gain[0] if gain else None,
            offset=gain[2] if gain else 0.0,
            scale=gain[1] if gain else 1.0,
            eps=1e-7 if eps is None else float(eps),
            centred=False,
            size=op.inputs[0].shape[-1],
        ), op.inputs[0]
    if op.name == "normalize" and op.argument(1, "p", 2) in (2, 2.0):
        size = op.inputs[0].shape[-1]
        if op.argument(2, "dim", 1) not in (-1, len(op.inputs[0].shape) - 1):
            return None
        return Norm(module=op.module, centred=False, scale=1 / math.sqrt(size), size=size), op.inputs[0]
    if op.name in ("mul", "div") and len(op.args) >= 2:
        for one, other in (op.args[:2], op.args[1::-1]):
            found = _written_out(op, one, other)
            if found is not None:
                return found
            if op.name == "div":
                break
    return None


def _written_out(op: Op, one: object, other: object) -> tuple[Norm, Value] | None:
    """one · other, where `other` is a number for each row that was made of `one`: x · rsqrt(mean(x²) + eps)."""
    if not (isinstance(one, Value) and isinstance(other, Value) and one.data and other.data):
        return None
    if not one.shape or one.shape[-1] < 2 or not other.shape or other.shape[-1] != 1:
        return None
    eps, reduction, value = 0.0, None, other
    while value.op is not None and reduction is None:
        step = value.op
        if step.name in _REDUCTIONS:
            reduction = step
        elif copies(step) or step.name in UNARY or step.name in ("add", "mul", "div", "maximum", "max", "sub"):
            numbers = [x.number if isinstance(x, Value) else x for x in (*step.args, *step.kwargs.values())]
            if step.name in ("add", "clamp", "clamp_min", "maximum"):
                eps += next((float(x) for x in numbers if isinstance(x, int | float) and 0 < x < 0.1), 0.0)
            given = [x for x in step.inputs if x.data]
            if len(given) != 1:
                return None
            value = given[0]
        else:
            return None
    if reduction is None:
        return None
    reduced, also = _uncentred(_unpowered(reduction.inputs[0]))
    gain = None
    times = factor(origin(one).op)
    if times is not None and times.vector is not None:  # weight · x · rsqrt(...)
        gain, one = parameter_of(times.vector), times.value
        if gain is None:
            return None
    rows, centred = _uncentred(one)
    if rows is not reduced:
        return None
    centred = centred or also
    size = one.shape[-1]
    spread = reduction.name in ("std", "var", "var_mean", "std_mean")
    scale = 1.0
    if reduction.name in _TOTALS and op.outputs and math.isfinite(op.outputs[0].rms):
        scale = op.outputs[0].rms
    name, by, offset = gain or (None, 1.0, 0.0)
    return Norm(
        module=op.module,
        gain=name,
        offset=offset,
        eps=eps,
        centred=centred or spread,
        scale=scale * by,
        size=size,
    ), rows


def _unpowered(value: Value) -> Value:
    """What was squared, before a mean is taken."""
    value = origin(value)
    op = value.op
    if op is not None and op.name in ("pow", "square", "abs"):
        return op.inputs[0]
    if op is not None and op.name == "mul" and len(op.inputs) == 2 and op.inputs[0] is op.inputs[1]:
        return op.inputs[0]
    return value


def _uncentred(value: Value) -> tuple[Value, bool]:
    """x of x - mean(x), and whether the mean was taken off."""
    value = origin(value)
    op = value.op
    if op is not None and op.name == "sub" and len(op.inputs) == 2 and op.inputs[1].shape[-1:] == (1,):
        return origin(op.inputs[0]), True
    return value, False
