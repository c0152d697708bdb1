"""Backwards through a trace: from a tensor to what it is a copy of, a multiple of, the norm of, or a matrix of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from initlab.anatomy.operations import words
from initlab.anatomy.trace import Op, Value
from initlab.wiring import Linear, Norm

# the same numbers, or the same once more; also dropout, which keeps their mean
COPYING = words(
    "view reshape contiguous clone to float double half bfloat16 type type_as transpose permute T mT t H adjoint "
    "unsqueeze squeeze flatten unflatten expand expand_as detach data movedim moveaxis swapaxes swapdims view_as "
    "reshape_as dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout alias identity requires_grad cuda "
    "cpu repeat_interleave repeat tile rename align_to nan_to_num positive pad __copy__ deepcopy"
)
PARTING = words("getitem chunk split tensor_split split_with_sizes unbind narrow select index_select")
# of one tensor element by element; with numbers, or tensors that no input had a part in
UNARY = words(
    "relu relu6 gelu silu tanh sigmoid softplus mish elu selu celu leaky_relu hardtanh hardswish hardsigmoid "
    "logsigmoid softsign exp expm1 log log1p sin cos erf erfc abs pow square sqrt rsqrt reciprocal neg sign clamp "
    "clamp_min clamp_max threshold tanhshrink softshrink hardshrink rdiv rsub rpow"
)
_REDUCTIONS = words("mean sum norm vector_norm linalg_norm linalg_vector_norm var std var_mean std_mean")
_TOTALS = words("sum norm vector_norm linalg_norm linalg_vector_norm")


def copies(op: Op) -> bool:
    """Tell whether an operation gives what it is given, in another shape, dtype or place."""
    if op.name in COPYING:
        return True
    return op.name == "getitem" and bool(op.outputs) and op.outputs[0].numel == op.inputs[0].numel


def origin(value: Value) -> Value:
    """Go back to the tensor that a value is a copy of."""
    while value.op is not None and value.op.inputs and copies(value.op):
        value = value.op.inputs[0]
    return value


def settled(value: Value) -> Value:
    """Go back to the tensor that a value is a copy of, but for vectors that were added, as a bias after a sum."""
    while True:
        value = origin(value)
        added = shifted(value.op)
        if added is None or not _is_vector(added[1], added[0]):
            return value
        value = added[0]


def copies_of(value: Value) -> Iterator[Value]:
    """List a value and those that it is a copy of, back to the first."""
    yield value
    while value.op is not None and value.op.inputs and copies(value.op):
        value = value.op.inputs[0]
        yield value


@dataclass(frozen=True, slots=True)
class Factor:
    """What an operation multiplies a tensor with: a number, or a number for each channel."""

    value: Value  # what is multiplied
    number: float = 1.0
    vector: Value | None = None


def factor(op: Op | None) -> Factor | None:
    """Read a multiplication by something that no input had a part in; None where it isn't one."""
    if op is None:
        return None
    if op.name == "neg":
        return Factor(op.inputs[0], -1.0)
    if op.name not in ("mul", "div", "ldexp") or len(op.args) < 2:
        return None
    first, second = op.args[:2]
    if isinstance(first, Value) and isinstance(second, Value) and first.data and second.data:
        return None
    if not (isinstance(first, Value) and first.data):
        if op.name == "div" or not isinstance(second, Value):
            return None
        first, second = second, first
    assert isinstance(first, Value)
    number = second.number if isinstance(second, Value) else second
    if isinstance(number, int | float):
        if op.name == "div" and not number:
            return None
        return Factor(first, 1 / number if op.name == "div" else float(number))
    if op.name == "mul" and isinstance(second, Value) and _is_vector(second, first):
        return Factor(first, vector=second)
    return None


def _is_vector(vector: Value, of: Value) -> bool:
    return bool(of.shape) and not vector.data and vector.numel == of.shape[-1] == (vector.shape or (0,))[-1]


def unscaled(value: Value) -> tuple[Value, float]:
    """Go back to what a tensor is a multiple of, and read the number."""
    scale = 1.0
    while value.op is not None:
        if copies(value.op):
            value = value.op.inputs[0]
            continue
        times = factor(value.op)
        if times is None or times.vector is not None:
            break
        scale, value = scale * times.number, times.value
    return value, scale


def shifted(op: Op | None) -> tuple[Value, Value] | None:
    """Read an addition of something that no input had a part in: (what is shifted, what is added)."""
    if op is None or op.name != "add" or len(op.args) < 2:
        return None
    first, second = op.args[:2]
    if not isinstance(first, Value) or not isinstance(second, Value) or first.data == second.data:
        return None
    return (first, second) if first.data else (second, first)


def parameter_of(value: Value | None) -> tuple[str, float, float] | None:
    """Go back to a parameter: (its name, what it is multiplied with, the offset that is added before that)."""
    scale, offset = 1.0, 0.0
    while value is not None:
        if value.kind == "parameter":
            return value.name, scale, offset
        op = value.op
        if op is not None and op.name in PARTING and not op.inputs[0].data:  # an expert's too
            value = op.inputs[0]
            continue
        if op is not None and op.name == "embedding" and len(op.inputs) == 2 and not value.data:
            value = op.inputs[1]  # a table of positions
            continue
        if op is None or value.data:
            return None
        numbers = [x.number if isinstance(x, Value) else x for x in op.args]
        known = [float(x) for x in numbers if isinstance(x, int | float) and not isinstance(x, bool)]
        if copies(op) or op.name in PARTING:
            value = op.inputs[0]
        elif op.name == "mul" and len(known) == 1:
            scale *= known[0]
            value = next((x for x in op.args if isinstance(x, Value) and x.number is None), None)
        elif op.name == "add" and len(known) == 1:
            offset += known[0]
            value = next((x for x in op.args if isinstance(x, Value) and x.number is None), None)
        else:
            return None
    return None


@dataclass(frozen=True, slots=True)
class Normed:
    """A norm, what it was given, and the values from its result to the last that is its own: gain, bias."""

    norm: Norm
    source: Value
    result: Value


def normed(value: Value) -> Normed | None:
    """Read a tensor as the result of a normalisation over its last dimension, gain and bias included."""
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
        elif added is not None and bias is None and _is_vector(added[1], added[0]):
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


@dataclass(frozen=True, slots=True)
class Projected:
    """A matrix that was applied, what it was given, and what came out, its bias included."""

    linear: Linear
    source: Value
    result: Value


def projected(value: Value) -> Projected | None:
    """Read a tensor as a matrix of another, with the bias that is added at once."""
    result, op, bias = value, value.op, None
    if op is not None and (added := shifted(op)) is not None:
        inner = origin(added[0])
        if inner.op is None or inner.op.name not in _MATRICES:
            return None
        known = parameter_of(added[1])
        op, bias = inner.op, known[0] if known else None
    if op is None or op.name not in _MATRICES:
        return None
    given = _matrix(op)
    if given is None:
        return None
    source, weight, fan_in, fan_out, own_bias = given
    known = parameter_of(weight)
    if known is None:
        return None
    also = parameter_of(own_bias)
    linear = Linear(
        weight=known[0],
        bias=bias or (also[0] if also else None),
        fan_in=fan_in,
        fan_out=fan_out,
        fused=fan_out,
        module=op.module,
    )
    return Projected(linear, source, result)


_MATRICES = words("linear addmm matmul einsum conv1d baddbmm _grouped_mm grouped_mm")


def _matrix(op: Op) -> tuple[Value, Value, int, int, Value | None] | None:
    """(what it is given, weight, fan_in, fan_out, bias)."""
    if op.name == "linear":
        weight = op.argument(1, "weight")
        return op.inputs[0], weight, weight.shape[-1], weight.shape[0], op.argument(2, "bias")
    if op.name in ("addmm", "baddbmm"):
        bias, source, weight = op.inputs if len(op.inputs) == 3 else (None, None, None)
        if not isinstance(weight, Value) or weight.data or not isinstance(source, Value):
            return None
        return source, weight, weight.shape[-2], weight.shape[-1], bias
    if op.name in ("matmul", "_grouped_mm", "grouped_mm") and len(op.inputs) >= 2 and _is_weight(op.inputs[1]):
        weight = op.inputs[1]
        return op.inputs[0], weight, weight.shape[-2], weight.shape[-1], None
    if op.name == "conv1d" and len(op.inputs) >= 2 and op.inputs[1].shape[-1] == 1:
        weight = op.inputs[1]
        whole = weight.shape[1] == op.inputs[0].shape[-2]
        bias = op.inputs[2] if len(op.inputs) > 2 else None
        return (op.inputs[0], weight, weight.shape[1], weight.shape[0], bias) if whole else None
    if op.name == "einsum":
        return _einsum(op)
    return None


def _is_weight(value: Value) -> bool:
    return len(value.shape) >= 2 and parameter_of(value) is not None


def _einsum(op: Op) -> tuple[Value, Value, int, int, Value | None] | None:
    equation = next((x for x in op.args if isinstance(x, str)), "")
    if len(op.inputs) != 2 or "->" not in equation or "..." in equation.split(",")[-1].split("->")[0]:
        return None
    given, out = equation.replace(" ", "").split("->")
    letters = given.split(",")
    place = next((i for i, x in enumerate(op.inputs) if not x.data), None)
    if place is None or not op.inputs[1 - place].data:
        return None
    weight, source = op.inputs[place], op.inputs[1 - place]
    sizes = dict(zip(letters[place], weight.shape, strict=False))
    fan_in = math.prod(n for x, n in sizes.items() if x not in out)
    fan_out = math.prod(n for x, n in sizes.items() if x in out and x not in letters[1 - place])
    return (source, weight, fan_in, fan_out, None) if fan_in > 1 and fan_out else None
