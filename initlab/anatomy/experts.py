"""Mixtures of experts: the MLPs anywhere between a state of the stream and what is added to it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from initlab.anatomy.graph import Value
from initlab.anatomy.mlps import read_mlp
from initlab.anatomy.walking import origin, parameter_of, projected, unscaled
from initlab.wiring import MLP, Linear


def experts_of(core: Value, base: Value) -> list[dict[str, Value]]:
    """Find the MLPs of a branch that isn't one as a whole: one for each expert, or one for all of a stack.

    Args:
        core: what is added to the stream.
        base: the stream's state before.

    Returns:
        the tensors of each by site, in the order of the pass.
    """
    found: list[dict[str, Value]] = []
    seen: set[Value] = set()
    left = [core]
    while left:
        value = left.pop()
        if value in seen or value.op is None or not value.mixes(base):
            continue
        seen.add(value)
        expert = _expert(value, base)
        if expert is not None:
            found.append(expert)
            continue
        left += [given for given in value.op.inputs if given.data]
    return found[::-1]


def _expert(value: Value, base: Value) -> dict[str, Value] | None:
    """An MLP whose last matrix gave a tensor, what a router gives multiplied in before, after or at once."""
    last = _last(value)
    if last is None or len(value.shape) < 2:
        return None
    source, out = last
    for h in _unrouted(source):
        read = read_mlp(h, out, base)
        linear = read is not None and isinstance(read.body, MLP) and read.body.activation == "identity"
        if read is not None and not linear and "mlp_pre" in read.values:
            return {**read.values, "mlp_act": h}
    return None


def _last(value: Value) -> tuple[Value, Linear] | None:
    """The matrix that gave a tensor, and what it was given; also of a product of several tensors at once."""
    plain = projected(value)
    if plain is not None:
        return plain.source, plain.linear
    op = origin(value).op
    if op is None or op.name != "einsum" or len(op.inputs) < 3:
        return None
    equation = next((x for x in op.args if isinstance(x, str)), "").replace(" ", "")
    if "->" not in equation or "." in equation:
        return None
    given, out = equation.split("->")
    letters = given.split(",")
    weights = [i for i, each in enumerate(op.inputs) if len(each.shape) >= 2 and parameter_of(each) is not None]
    if len(weights) != 1:
        return None
    held = letters[weights[0]]
    summed = set(held) - set(out)
    sizes = dict(zip(held, op.inputs[weights[0]].shape, strict=False))
    data = [i for i in range(len(letters)) if i not in weights and op.inputs[i].data and summed & set(letters[i])]
    if not data:
        return None
    place = max(data, key=lambda i: math.prod(sizes[x] for x in summed & set(letters[i])))
    known = parameter_of(op.inputs[weights[0]])
    assert known is not None
    fan_in, fan_out = (math.prod(n for x, n in sizes.items() if (x in out) is side) for side in (False, True))
    return op.inputs[place], Linear(weight=known[0], fan_in=fan_in, fan_out=fan_out, module=op.module)


def _unrouted(value: Value) -> Iterator[Value]:
    """A tensor, and what it is of where a router's number for each row is multiplied in."""
    yield value
    op = unscaled(value)[0].op
    if op is not None and op.name == "mul" and len(op.inputs) == 2:
        yield from (each for each in op.inputs if each.data and each.numel == op.outputs[0].numel)
