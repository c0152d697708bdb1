"""Backwards through a trace: from a tensor to what it is a copy of, a multiple of, or a matrix of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from initlab.anatomy.graph import Op, Value
from initlab.anatomy.operations import words
from initlab.wiring import Linear

# the same numbers, or the same once more; also dropout, which keeps their mean
COPYING = words(
    "view reshape contiguous clone to float double half bfloat16 type type_as transpose permute T mT t H adjoint "
    "unsqueeze squeeze flatten unflatten expand expand_as detach data movedim moveaxis swapaxes swapdims view_as "
    "reshape_as dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout alias identity requires_grad cuda "
    "cpu repeat_interleave repeat tile rename align_to nan_to_num positive pad __copy__ deepcopy"
)


_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "div": 1}


PARTING = words("getitem chunk split tensor_split split_with_sizes unbind narrow select index_select")


# of one tensor element by element; with numbers, or tensors that no input had a part in
UNARY = words(
    "relu relu6 gelu silu tanh sigmoid softplus mish elu selu celu leaky_relu hardtanh hardswish hardsigmoid "
    "logsigmoid softsign exp expm1 log log1p sin cos erf erfc abs pow square sqrt rsqrt reciprocal neg sign clamp "
    "clamp_min clamp_max threshold tanhshrink softshrink hardshrink rdiv rsub rpow"
)


def copies(op: Op) -> bool:
    """Tell whether an operation gives what it is given, in another shape, dtype or place."""
    if op.name in COPYING:
        return True
    if op.name not in _NEUTRAL and op.name != "getitem":
        return False
    if not op.outputs or not op.inputs or op.outputs[0].numel != op.inputs[0].numel:
        return False
    return op.name == "getitem" or _changes_nothing(op)


def _changes_nothing(op: Op) -> bool:
    """It adds 0, or multiplies with 1."""
    if len(op.args) != 2 or op.args[0] is not op.inputs[0]:
        return False
    other = op.args[1]
    if isinstance(other, Value):
        other = None if other.learned else other.number
    return other == _NEUTRAL[op.name] and not isinstance(other, bool)


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
        if added is None or not is_vector(added[1], added[0]):
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
    if op.name == "add" and _doubled(op):
        return Factor(op.inputs[0], 2.0)
    if op.name not in ("mul", "div", "ldexp") or len(op.args) < 2:
        return None
    first, second = op.args[:2]
    if isinstance(first, Value) and isinstance(second, Value) and first.data and second.data:
        return Factor(first) if op.name == "mul" and _keeps_all(second) else None
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
    if op.name == "mul" and isinstance(second, Value) and is_vector(second, first):
        return Factor(first, vector=second)
    return None


def _doubled(op: Op) -> bool:
    """A tensor that is added to itself."""
    own = len(op.args) >= 2 and all(isinstance(each, Value) and each.data for each in op.args[:2])
    return own and "alpha" not in op.kwargs and origin(op.args[0]) is origin(op.args[1])


def _keeps_all(value: Value) -> bool:
    """A mask of positions, made of the input alone, that hides none."""
    sizes = (each.rms for each in copies_of(value))
    return value.shape[-1:] == (1,) and not value.learned and any(abs(size - 1) < 1e-6 for size in sizes)


def is_vector(vector: Value, of: Value) -> bool:
    """Tell whether a tensor is a vector that meets the last dimension of another, as a gain or a bias does.

    Args:
        vector: the tensor; one that depends on the data is none.
        of: what it is added to or multiplied with.
    """
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


def weight_of(value: Value) -> tuple[str, float | None] | None:
    """Tell whose parameter a matrix is, also one that is computed: normalised, masked, with an adapter's product added.

    Args:
        value: what is multiplied with.

    Returns:
        the name of the one parameter of its size, and the matrix's mean square where it isn't the parameter itself.
    """
    plain = parameter_of(value)
    if plain is not None:
        return plain[0], None if plain[1:] == (1.0, 0.0) else value.rms**2
    if value.data or not value.learned:
        return None
    found: dict[str, None] = {}
    left, seen = [value], {value}
    while left:
        each = left.pop()
        if each.kind == "parameter" and each.numel == value.numel:
            found[each.name] = None
        for given in each.op.inputs if each.op is not None else ():
            if given not in seen:
                seen.add(given)
                left.append(given)
    return (next(iter(found)), value.rms**2) if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class Projected:
    """A matrix that was applied, what it was given, and what came out, its bias included."""

    linear: Linear
    source: Value
    result: Value


def projected(value: Value) -> Projected | None:
    """Read a tensor as a matrix of another, with the bias that is added at once."""
    result, op, bias = value, value.op, None
    if op is not None and (added := shifted(op) or _picked_bias(op)) is not None:
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
    held = weight_of(weight)
    if held is None:
        return None
    also = parameter_of(own_bias)
    linear = Linear(
        weight=held[0],
        square=held[1],
        bias=bias or (also[0] if also else None),
        fan_in=fan_in,
        fan_out=fan_out,
        fused=fan_out,
        module=op.module,
    )
    return Projected(linear, source, result)


def _picked_bias(op: Op) -> tuple[Value, Value] | None:
    """Read an addition of rows of a parameter, picked by what the input had a part in, as an expert's bias is."""
    if op.name != "add" or len(op.inputs) != 2:
        return None
    for given, bias in (op.inputs, op.inputs[::-1]):
        picked = origin(bias).op
        if picked is not None and picked.name in PARTING and bias.data and parameter_of(bias) is not None:
            return given, bias
    return None


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
    if op.name == "matmul" and len(op.inputs) == 2 and _is_weight(op.inputs[0]) and op.inputs[1].shape[-1] == 1:
        weight = op.inputs[0]
        return op.inputs[1], weight, weight.shape[-1], weight.shape[-2], None
    if op.name == "conv1d" and len(op.inputs) >= 2 and op.inputs[1].shape[-1] == 1:
        weight = op.inputs[1]
        groups = op.argument(6, "groups", 1)  # of channels that don't meet: a matrix of blocks on its diagonal
        whole = weight.shape[1] * groups == op.inputs[0].shape[-2]
        bias = op.inputs[2] if len(op.inputs) > 2 else None
        return (op.inputs[0], weight, weight.shape[1], weight.shape[0], bias) if whole else None
    if op.name == "einsum":
        return _einsum(op)
    return None


def _is_weight(value: Value) -> bool:
    return len(value.shape) >= 2 and weight_of(value) is not None


def _einsum(op: Op) -> tuple[Value, Value, int, int, Value | None] | None:
    equation = next((x for x in op.args if isinstance(x, str)), "")
    if len(op.inputs) != 2 or "->" not in equation or "..." in equation.split(",")[-1].split("->")[0]:
        return None
    given, out = equation.replace(" ", "").split("->")
    letters = given.split(",")
    place = next((i for i, x in enumerate(op.inputs) if not x.data or _is_weight(x)), None)
    if place is None or not op.inputs[1 - place].data:
        return None
    weight, source = op.inputs[place], op.inputs[1 - place]
    sizes = dict(zip(letters[place], weight.shape, strict=False))
    fan_in = math.prod(n for x, n in sizes.items() if x not in out)
    fan_out = math.prod(n for x, n in sizes.items() if x in out and x not in letters[1 - place])
    return (source, weight, fan_in, fan_out, None) if fan_in > 1 and fan_out else None
