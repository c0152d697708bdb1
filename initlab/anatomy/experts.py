"""Mixtures of experts: the MLPs anywhere between a state of the stream and what is added to it, and their router."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from initlab.anatomy.attending import Read
from initlab.anatomy.graph import Op, Value
from initlab.anatomy.mlps import read_mlp
from initlab.anatomy.operations import words
from initlab.anatomy.walking import PARTING, Projected, origin, projected, unscaled
from initlab.wiring import MLP

_CHOOSING = words("topk argmax max sort argsort")
_RANKING = words("sort argsort")


@dataclass(frozen=True, slots=True)
class Routed:
    """How a mixture chooses: each token some of the experts, by numbers that a matrix makes of the token.

    Attributes:
        choice: the operation that gives the experts' numbers.
        output: which of the tensors that it gives.
        chosen: experts of a token; of a sort the first so many places.
        matrix: that scores the experts, with what it is given.
    """

    choice: Op
    output: int
    chosen: int
    matrix: Projected

    @property
    def experts(self) -> int:
        """How many there are."""
        return self.matrix.linear.fan_out


def mixture_of(core: Value, base: Value) -> tuple[list[Read], Routed | None]:
    """Find the MLPs of a branch that isn't one as a whole, and what chooses among them.

    Two matrices without a function between them are an expert where a router chooses, there and back from the stream's
    width through one that isn't smaller: else they may be one low-rank matrix.

    Args:
        core: what is added to the stream.
        base: the stream's state before.

    Returns:
        one for each expert, or one for all of a stack, in the order of the pass; the router, None without one.
    """
    found: list[Read] = []
    straight: list[Read] = []
    routed: Routed | None = None
    seen: set[Value] = set()
    left = [core]
    while left:
        value = left.pop()
        if value in seen or value.op is None or not value.mixes(base):
            continue
        seen.add(value)
        choice = _choice(value)
        if choice is not None and (routed is None or choice.choice.outputs[0].index > routed.choice.outputs[0].index):
            routed = choice
        expert = _expert(value, base)
        if expert is not None and (_bent(expert) or _product(expert)):
            found.append(expert)
            continue
        if expert is not None:
            straight.append(expert)
        left += [given for given in value.op.inputs if given.data]
    if routed is not None:
        found += straight
    return found[::-1], routed


def _expert(value: Value, base: Value) -> Read | None:
    """An MLP whose last matrix gave a tensor, what a router gives multiplied in before, after or at once."""
    last = projected(value)
    if last is None or len(value.shape) < 2:
        return None
    for h in _unrouted(last.source):
        read = read_mlp(h, last.linear, base)
        if read is not None and "mlp_pre" in read.values and (_bent(read) or _product(read) or _whole(read)):
            read.values["mlp_act"] = h
            return read
    return None


def _bent(read: Read) -> bool:
    return not isinstance(read.body, MLP) or read.body.activation != "identity"


def _product(read: Read) -> bool:
    """Of two matrices' results: no single linear map, whatever becomes of its gate."""
    return isinstance(read.body, MLP) and read.body.gate is not None


def _whole(read: Read) -> bool:
    body = read.body
    return isinstance(body, MLP) and body.up.fan_in == body.out.fan_out and body.up.fan_out >= body.up.fan_in


def _unrouted(value: Value) -> Iterator[Value]:
    """A tensor, and what it is of where a router's number for each row is multiplied in."""
    yield value
    op = unscaled(value)[0].op
    if op is not None and op.name == "mul" and len(op.inputs) == 2:
        yield from (each for each in op.inputs if each.data and each.numel == op.outputs[0].numel)


def _choice(value: Value) -> Routed | None:
    """Read a choice of experts by their scores: each row's best, along the last dimension."""
    op, chosen, output = value.op, 0, value
    assert op is not None
    if op.name in PARTING and op.inputs and (ranked := op.inputs[0].op) is not None and ranked.name in _RANKING:
        op, chosen, output = ranked, value.shape[-1] if value.shape else 0, op.inputs[0]
    elif op.name in _RANKING:
        return None
    if op.name not in _CHOOSING or not op.inputs or not op.inputs[0].data:
        return None
    scores = op.inputs[0]
    if len(scores.shape) < 2 or scores.shape[-1] < 2:
        return None
    each = output.shape[-1:] if output.shape[:-1] == scores.shape[:-1] else (1,) * (output.shape == scores.shape[:-1])
    chosen = chosen or next(iter(each), 0)
    number = next((n for n, given in enumerate(op.outputs) if not given.floating), None)
    if not 0 < chosen < scores.shape[-1] or number is None:
        return None
    matrix = _scoring(scores, scores.shape[-1])
    return None if matrix is None else Routed(op, op.outputs[number].output, chosen, matrix)


def _scoring(scores: Value, experts: int) -> Projected | None:
    """The matrix that scores are made by, one for each expert, through functions, biases and masks."""
    left, seen = [scores], {scores}
    while left:
        value = left.pop(0)
        made = projected(value)
        if made is not None:
            if made.linear.fan_out == experts and value.shape[-1:] == (experts,):
                return made
            continue
        for given in value.op.inputs if value.op is not None else ():
            if given.data and given not in seen:
                seen.add(given)
                left.append(given)
    return None


def unpicked(value: Value) -> Value:
    """Go back from what experts are given to what their tokens were picked from.

    Args:
        value: the tensor.
    """
    value = origin(value)
    while value.op is not None and value.op.name in PARTING and value.op.inputs[0].data:
        value = origin(value.op.inputs[0])
    return value
