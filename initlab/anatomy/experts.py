"""Mixtures of experts: the MLPs anywhere between a state of the stream and what is added to it."""

from __future__ import annotations

from collections.abc import Iterator

from initlab.anatomy.graph import Value
from initlab.anatomy.mlps import read_mlp
from initlab.anatomy.walking import projected, unscaled
from initlab.wiring import MLP


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
    last = projected(value)
    if last is None or len(value.shape) < 2:
        return None
    for h in _unrouted(last.source):
        read = read_mlp(h, last.linear, base)
        linear = read is not None and isinstance(read.body, MLP) and read.body.activation == "identity"
        if read is not None and not linear and "mlp_pre" in read.values:
            return {**read.values, "mlp_act": h}
    return None


def _unrouted(value: Value) -> Iterator[Value]:
    """A tensor, and what it is of where a router's number for each row is multiplied in."""
    yield value
    op = unscaled(value)[0].op
    if op is not None and op.name == "mul" and len(op.inputs) == 2:
        yield from (each for each in op.inputs if each.data and each.numel == op.outputs[0].numel)
