"""Residual streams in a trace: chains of sums, each of an earlier state and something computed from it.

A sum x + f(x) belongs to a stream when f mixes features (see `initlab.anatomy.graph.MIXING`) and x, but for a factor,
a norm or a function of each element, is the state before. Nothing is fitted, and nothing is read from names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from initlab.anatomy.graph import Op, Trace, Value
from initlab.anatomy.norming import normed
from initlab.anatomy.operations import words
from initlab.anatomy.walking import UNARY, copies, factor, origin, shifted

_MOVING = words("getitem chunk split cat index_select roll")


@dataclass(slots=True, eq=False)
class Term:
    """What a sum adds to the stream.

    Attributes:
        value: the operand of the sum.
        core: what it is a multiple of, walked back through factors and copies.
        scale: the number that it is multiplied with; of numbers for each channel their root mean square.
        vector: the numbers for each channel.
        op: the sum.
        gated: what the input had a part in multiplies it besides, as adaLN's gate.
    """

    value: Value
    core: Value
    scale: float = 1.0
    vector: Value | None = None
    op: Op | None = None
    gated: bool = False


@dataclass(slots=True, eq=False)
class Sum:
    """One update of a stream: `value` = keep · `base` + terms, and what is done to it before the next one.

    Attributes:
        base: the state that the terms are computed from.
        value: the state after the sum.
        terms: what is added.
        keep: the number that the base is multiplied with.
        after: the state that the next update begins with: `value`, or the norm or function of it.
    """

    base: Value
    value: Value
    terms: list[Term] = field(default_factory=list)
    keep: float = 1.0
    after: Value | None = None

    @property
    def end(self) -> Value:
        """The state that it leaves."""
        return self.value if self.after is None else self.after


@dataclass(slots=True, eq=False)
class Chain:
    """Updates of one stream, in order."""

    sums: list[Sum]

    @property
    def end(self) -> Value:
        """The state after the last."""
        return self.sums[-1].end


@dataclass(frozen=True, slots=True)
class _Step:
    value: Value
    scale: float
    plain: bool  # only copies and factors so far


def find_chains(trace: Trace) -> list[Chain]:
    """Find every residual stream of a pass, in its order; what is inside a branch of another is none."""
    finder = _Finder()
    for op in trace.ops:
        finder.look_at(op)
    chains = finder.chains
    return [chain for chain in chains if not any(_inside(chain, other) for other in chains if other is not chain)]


def _inside(chain: Chain, other: Chain) -> bool:
    """Whether all of a chain happens within branches of another: it is made of their stream, and they of it."""

    def within(made: Sum, each: Sum) -> bool:
        return made.value.mixes(each.base) and any(term.value.after(made.value) for term in each.terms)

    return all(any(within(made, each) for each in other.sums) for made in chain.sums)


class _Finder:
    def __init__(self) -> None:
        self.chains: list[Chain] = []
        self.heads: dict[Value, Chain] = {}  # by the origin of the state after a chain's last sum
        # by the origin of the state before it: what may turn out to be read by a branch alone
        self.aside: dict[Value, tuple[Chain, list[Sum]]] = {}

    def look_at(self, op: Op) -> None:
        operands = summands(op)
        if operands is None:
            return
        found = [each for pair in (operands, operands[::-1]) if (each := self._as_update(op, *pair)) is not None]
        if not found:
            return
        # of two ways to read it the one that goes on with a stream, and with the latest
        chain, made, sums = max(found, key=lambda each: (each[0] is not None, each[1].base.index))
        if chain is None:
            chain = Chain([])
            self.chains.append(chain)
            before = origin(made.base)
        else:
            before = origin(chain.sums[-1].value)
            self.heads.pop(before, None)
            if sums is not None:
                before, chain.sums = origin(made.base), sums
        until = chain, [replace(each, terms=[replace(t) for t in each.terms]) for each in chain.sums]
        self.aside[before] = until
        if chain.sums and chain.sums[-1].base is made.base and chain.sums[-1].after is None:  # in parallel
            last = chain.sums[-1]
            for term in last.terms:
                term.scale *= made.keep
            last.keep *= made.keep
            last.terms += made.terms
            last.value = made.value
        else:
            if chain.sums and origin(made.base) is not origin(chain.sums[-1].value):
                chain.sums[-1].after = made.base
                self.aside[origin(made.base)] = until
            chain.sums.append(made)
        self.heads[origin(made.value)] = chain

    def _as_update(
        self, op: Op, skip: tuple[Value, float], added: tuple[Value, float]
    ) -> tuple[Chain | None, Sum, list[Sum] | None] | None:
        """skip + added as the next update of a stream, or as the first of a new one.

        Returns:
            the stream; the update; what updates it goes on from, if not from all.
        """
        branch = added[0]
        base: _Step | None = None
        for step in _back(skip[0], skip[1]):
            chain = self.heads.get(origin(step.value))
            if base is None and branch.mixes(origin(step.value)):  # also where a copy of it is added to
                base = step
            if chain is None and base is step and step.plain and (aside := self._aside(step.value, branch)):
                return aside[0], self._sum(op, base, added), aside[1]
            if chain is None or (base is None and chain.sums[-1].keep < 0):  # f(x) - x is no state
                continue
            last = chain.sums[-1]
            read = next((each.base for each in reversed(chain.sums) if branch.mixes(each.base)), None)
            if base is None and step.plain and read is not None:  # a state before the last sum
                terms = list(_terms(branch, added[1], read, op))
                parallel = read is last.base
                return chain, Sum(read if parallel else step.value, op.outputs[0], terms, step.scale), None
            if base is None and (older := self._older(branch, chain)):
                term = Term(branch, older, added[1], None, op)
                return chain, Sum(step.value, op.outputs[0], [term], step.scale), None
            if base is not None:
                return chain, self._sum(op, base, added), None
        return None if base is None else (None, self._sum(op, base, added), None)

    def _aside(self, state: Value, read: Value) -> tuple[Chain, list[Sum]] | None:
        """The chain that went on from a state, and its sums until then, where that last sum is only read by a branch.

        As that of x + f(x + y): what comes of the branch is added to the state as it was before.
        """
        chain, sums = self.aside.get(origin(state), (None, []))
        once = chain is not None and len(chain.sums) - len(sums) <= 1
        return (chain, sums) if chain is not None and once and read.after(chain.sums[-1].value) else None

    def _sum(self, op: Op, base: _Step, added: tuple[Value, float]) -> Sum:
        made = Sum(base.value, op.outputs[0], list(_terms(added[0], added[1], base.value, op)), base.scale)
        for term in made.terms:
            part = term.core.op
            if part is not None and part.name == "sub" and origin(part.inputs[-1]) is origin(base.value):
                term.core = origin(part.inputs[0])  # x + r · (f(x) - x) keeps 1 - r of x
                made.keep -= term.scale
        return made

    def _older(self, branch: Value, chain: Chain) -> Value | None:
        """The state of long ago that is added once more, as modded-nanogpt's x0."""
        states = {origin(each.base): each.base for each in chain.sums}
        return next(
            (states[origin(s.value)] for s in _back(branch, 1.0) if s.plain and origin(s.value) in states), None
        )


def summands(op: Op) -> tuple[tuple[Value, float], tuple[Value, float]] | None:
    """Read the two tensors of one shape that an operation adds up, each with its factor; None where it doesn't.

    Args:
        op: any.
    """
    if op.name not in ("add", "sub", "lerp") or not op.outputs or len(op.args) < 2:
        return None
    first, second = op.args[:2]
    out = op.outputs[0]
    if not (isinstance(first, Value) and isinstance(second, Value) and out.floating and len(out.shape) >= 2):
        return None
    if factor(op) is not None:  # of one tensor and itself
        return None
    same = first.shape == second.shape == out.shape or first.numel == second.numel == out.numel
    if not same or not (first.data and second.data):
        return None
    alpha = op.kwargs.get("alpha", 1)
    by = float(alpha) if isinstance(alpha, int | float) else 1.0
    if op.name == "lerp":
        weight = op.argument(2, "weight")
        weight = weight.number if isinstance(weight, Value) else weight
        return None if not isinstance(weight, int | float) else ((first, 1.0 - weight), (second, float(weight)))
    return (first, 1.0), (second, -by if op.name == "sub" else by)


def _back(value: Value, scale: float) -> Iterator[_Step]:
    """The values that one is a multiple, a norm or a function of, element by element."""
    plain = True
    while True:
        yield _Step(value, scale, plain)
        op = value.op
        if op is None:
            return
        if copies(op):
            value = op.inputs[0]
            continue
        times, added = factor(op), shifted(op)
        if times is not None and not (times.vector is not None and normed(value) is not None):
            scale *= times.number
            if times.vector is not None:
                scale *= times.vector.rms if math.isfinite(times.vector.rms) else 1.0
            value = times.value
        elif (norm := normed(value)) is not None:
            value, plain, scale = norm.source, False, 1.0
        elif added is not None:
            value = added[0]
        elif op.name in UNARY | _MOVING and op.inputs:
            value, plain = op.inputs[0], False
        else:
            return


def _terms(value: Value, scale: float, base: Value, op: Op) -> Iterator[Term]:
    """A branch, or the branches that are added up before they are added to the stream."""
    core, vector, gated = value, None, False
    while (product := core.op) is not None:
        if copies(product):
            core = product.inputs[0]
            continue
        times = factor(product)
        if times is None and (kept := ungated(product, base)) is not None:
            core, gated = kept, True
            continue
        if times is None or (times.vector is not None and (vector is not None or normed(core) is not None)):
            break
        scale *= times.number
        vector = vector or times.vector
        core = times.value
    if vector is not None and math.isfinite(vector.rms):
        scale *= vector.rms
    inner = core.op
    # what a module adds up inside itself, as a mixture its shared expert, is one branch
    parts = None if inner is None or vector is not None or inner.module != op.module else summands(inner)
    if parts is not None and inner is not None and not gated and all(part.mixes(base) for part, _ in parts):
        for part, by in parts:
            yield from _terms(part, scale * by, base, inner)
        return
    yield Term(value, core, scale, vector, op, gated)


def ungated(op: Op | None, base: Value) -> Value | None:
    """Take the factor of a product that is computed from the stream; None where both or none are, or it is no product.

    Args:
        op: any.
        base: the stream's state.
    """
    if op is None or op.name != "mul":
        return None
    made = [each for each in op.inputs if each.mixes(base)]
    return made[0] if len(made) == 1 and len(op.inputs) == 2 and made[0].numel == op.outputs[0].numel else None
