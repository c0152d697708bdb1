"""From q, k and v, as they enter an attention, back to their matrices: norms, rotations, parts of fused ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

from initlab.anatomy.graph import Op, Value
from initlab.anatomy.norming import normed
from initlab.anatomy.operations import words
from initlab.anatomy.replaying import features, multiplied
from initlab.anatomy.walking import COPYING, PARTING, Projected, copies, factor, origin, parameter_of, projected
from initlab.wiring import Linear, Norm

_ROTATING = words(
    "add sub mul neg cat stack view_as_real view_as_complex complex polar real imag flip roll addcmul getitem chunk "
    "split tensor_split split_with_sizes unbind narrow select index_select conj setitem"
)


@dataclass(frozen=True, slots=True)
class HeadSource:
    """Where the heads of q, k or v come from: a matrix, the norm and factor after it, whether rotated or parted.

    `pieces` are those of a larger matrix's features that they are made of, as `features` finds them; `before` is what
    was rotated, where that is one tensor and was rotated once.
    """

    matrix: Projected
    norm: Norm | None
    scale: float
    rotated: bool
    parted: bool
    pieces: tuple[tuple[int, int], ...] = ()
    before: Value | None = None


def head_source(value: Value) -> HeadSource | None:
    """Read q, k or v as they enter back to the matrix: copies, numbers, a norm, rotations and parts in any order.

    Args:
        value: what enters the attention.
    """
    norm, scale, rotated, parted, first = None, 1.0, False, False, value
    before: Value | None = None
    for _ in range(64):
        found = projected(value)
        if found is not None:
            result = found.result
            larger = result.numel > first.numel and result.shape[-1:] == (found.linear.fan_out,)
            pieces = features(first, result) if larger else ()
            return HeadSource(found, norm, scale, rotated, parted, pieces, before)
        op = value.op
        if op is None:
            return None
        if copies(op):
            value = op.inputs[0]
            continue
        times = factor(op)
        if times is not None and times.vector is None:
            scale, value = scale * times.number, times.value
            continue
        between = normed(value)
        if between is not None:
            if norm is not None:
                return None
            norm, value = between.norm, between.source
            first = value
            continue
        if op.name in PARTING and projected(origin(op.inputs[0])) is not None:
            value, parted = op.inputs[0], True
            continue
        turned = _rotation(value)
        if turned is None:
            return None
        value, by, whole = turned
        before = value if whole and not rotated else before
        rotated = rotated or whole
        scale *= by
    return None


def _rotation(value: Value) -> tuple[Value, float, bool] | None:
    """The one tensor that was rotated by position: (it, what its size was changed by, whether anything was multiplied).

    None where two tensors, or something learned, had a part in it.
    """
    found: dict[Value, None] = {}
    left, seen, turned, times = [value], {value}, False, False
    repeated = (
        False  # what is fewer heads, repeated, may be as large as all that the matrix gave, of which it is a part
    )
    while left:
        each = left.pop()
        op = each.op
        if op is None:
            return None
        if each is not value and (projected(each) is not None or normed(each) is not None):
            found[each] = None
            continue
        if not (copies(op) or op.name in _ROTATING):
            return None
        given = [one for one in op.inputs if one.data and one.floating and one.numel]
        repeated = repeated or (op.name in COPYING and bool(given) and each.numel > given[0].numel)
        if op.name == "mul":
            if len(given) != 1:
                return None
            turned = turned or (factor(op) is None and not _still(op))
            times = times or factor(op) is not None
        for one in given:
            if one not in seen:
                seen.add(one)
                left.append(one)
    if len(found) != 1:
        return None
    (source,) = found
    before, after = source.rms, value.rms
    by = 1.0
    if source.numel == value.numel and not repeated and before > 0 and after > 0 and abs(after / before - 1) > 0.02:
        by = after / before
    elif times and source.numel != value.numel:
        own = multiplied(value, source)
        if own is None:
            return None
        by = own
    return source, by, turned


def _still(op: Op) -> bool:
    """It multiplies with nothing but ones, or nothing but zeros: the cosine and sine of no angle."""
    tables = [each for each in op.inputs if not each.data]
    return all(each.rms == 0 or abs(each.rms - 1) < 1e-6 for each in tables)


def part_of(source: HeadSource, count: int, place: int) -> Linear:
    """Get the part of a matrix that gives `count` features; of three fused ones the place-th.

    Args:
        source: the matrix, as it was found behind q, k or v.
        count: features of all heads together.
        place: 0 to 2, of q, k and v.
    """
    linear = source.matrix.linear
    if not source.parted and linear.fan_out <= count:
        return linear
    start = max(0, 0 if place == 0 else linear.fan_out - (3 - place) * count)
    pieces = source.pieces if sum(end - first for first, end in source.pieces) == count else ()
    start = pieces[0][0] if pieces else start
    return replace(linear, start=start, fan_out=count, fused=linear.fan_out, pieces=pieces if len(pieces) > 1 else ())


def head_gain(value: Value) -> tuple[Value, str, int] | None:
    """Read a tensor as what heads give, each multiplied with a learned number of its own.

    Args:
        value: what may be such a product.

    Returns:
        what the heads give; the parameter; how many numbers it has. None where it is something else.
    """
    op = origin(value).op
    if op is None or len(op.inputs) != 2 or not (op.name == "mul" or _each_by_its_own(op)):
        return None
    for given, gain in (op.inputs, op.inputs[::-1]):
        known = None if gain.data or not given.data else parameter_of(gain)
        if known is None or known[1:] != (1.0, 0.0):
            continue
        wide = [place for place, size in enumerate(gain.shape[::-1]) if size > 1]
        # heads stand before or behind positions
        if op.name == "einsum" or not wide or (len(wide) == 1 and wide[0] in (1, 2)):
            return given, known[0], gain.numel
    return None


def _each_by_its_own(op: Op) -> bool:
    """It is written as a product with a number for each index of a dimension but the last, as in `tbhd,h->tbhd`."""
    equation = next((each for each in op.args if isinstance(each, str)), "").replace(" ", "")
    given, _, out = equation.partition("->")
    data, _, gain = given.partition(",")
    return op.name == "einsum" and data == out and len(gain) == 1 and gain in data[:-1]
