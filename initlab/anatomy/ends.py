"""Where a stream begins, and what reads it last: the terms of an embedding, the final norm, the head."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Literal

from initlab.anatomy.attending import dropout, unconditioned
from initlab.anatomy.functions import rounded
from initlab.anatomy.graph import Trace, Value
from initlab.anatomy.norming import normed
from initlab.anatomy.stream import Stack
from initlab.anatomy.walking import (
    Projected,
    copies,
    factor,
    origin,
    parameter_of,
    projected,
)
from initlab.wiring import Norm, Wiring
from initlab.wiring import Term as Summand

# where a stream begins


def embedding(start: Value) -> tuple[tuple[Summand, ...] | None, Norm | None, float, float]:
    """Read the sum that a stream begins with.

    Args:
        start: the stream before its first update.

    Returns:
        its terms (None where it isn't such a sum), the norm of it, what it is multiplied with, the dropout in force.
    """
    norm, scale, drop, value = None, 1.0, 0.0, start
    while value.op is not None:
        op = value.op
        drop = drop or dropout(op)
        times = factor(op)
        if copies(op):
            value = op.inputs[0]
        elif times is not None and times.vector is None:
            scale, value = scale * times.number, times.value
        elif norm is None and (found := normed(value)) is not None:
            norm, value, scale = replace(found.norm, scale=found.norm.scale * scale), found.source, 1.0
        else:
            break
    terms: list[Summand] = []
    for part, by, alike in _summands(value):
        term = _summand(part, by, alike=alike)
        if term is None:
            return None, norm, scale, drop
        terms.append(term)
    return (tuple(terms) if any(term.kind == "token" for term in terms) else None), norm, scale, drop


def _summands(value: Value) -> Iterator[tuple[Value, float, bool]]:
    """What is added, what it is multiplied with, and whether it is one vector for all positions, as of a picture."""
    left = [(value, 1.0, False)]
    while left:
        value, scale, alike = left.pop()
        alike = alike or (len(value.shape) == 3 and value.shape[-2] == 1)
        op = value.op
        times = factor(op)
        if op is not None and op.name == "add" and sum(isinstance(each, Value) for each in op.args[:2]) == 2:
            left += [(each, scale, alike) for each in reversed(op.args[:2])]
        elif op is not None and copies(op):
            left.append((op.inputs[0], scale, alike))
        elif times is not None and times.vector is None:
            left.append((times.value, scale * times.number, alike))
        else:
            yield value, scale, alike


def _summand(value: Value, scale: float, *, alike: bool) -> Summand | None:
    op = value.op
    if (op is not None and op.name == "embedding") or (op is not None and op.name == "getitem" and len(op.inputs) == 2):
        table, ids = op.inputs if op.name == "getitem" else (op.argument(1, "weight"), op.argument(0, "input"))
        known = parameter_of(table)
        if known is None:
            return Summand(kind="position", weight=None, scale=scale, square=_square(value)) if not ids.data else None
        given = origin(ids).kind == "input"
        kind: Literal["token", "position", "constant"] = "token" if given else "position"
        if ids.constant:
            kind = "constant"
        return Summand(kind=kind, weight=known[0], scale=rounded(scale * known[1]))
    if value.data:
        return None
    known = parameter_of(value)
    if known is not None:
        many = len(value.shape) >= 2 and value.shape[-2] > 1
        return Summand(kind="position" if many else "constant", weight=known[0], scale=rounded(scale * known[1]))
    square = _square(value)
    if square is None:
        return None
    return Summand(kind="constant" if alike else "position", weight=None, scale=scale, square=square)


def _square(value: Value) -> float | None:
    return value.rms**2 if math.isfinite(value.rms) else None


# what reads it last


def with_head(trace: Trace, stack: Stack, inside: Collection[str], wiring: Wiring) -> tuple[Wiring, Value | None]:
    """Add the final norm and the head, where a matrix outside all blocks reads the last state; and give the logits.

    Args:
        trace: of the pass.
        stack: whose last state the head reads.
        inside: the modules that are in blocks.
        wiring: of the stack, without its end.
    """
    if stack.final is not None and (found := normed(stack.final)) is not None:
        wiring = replace(wiring, final_norm=found.norm)
    last = stack.final if stack.final is not None else stack.last
    if last is None:
        return wiring, None
    end = origin(last)
    best: tuple[Projected, Value, float, float | None] | None = None
    for op in trace.ops:
        if not op.outputs or not op.outputs[0].after(end) or any(module in inside for module, _ in op.within):
            continue
        head = projected(op.outputs[0])
        if head is None:
            continue
        source, scale = _multiple(head.source, end)
        if source is end:
            value, logit_scale, cap = _onwards(trace, head.result, scale)
            if any(out.after(value) and not out.mixes(value) for out in trace.outputs):  # nothing comes behind it
                best = head, value, logit_scale, cap
    if best is None:
        return wiring, None
    head, logits, logit_scale, cap = best
    tokens = {term.weight for term in wiring.terms or () if term.kind == "token"}
    wiring = replace(
        wiring,
        head=head.linear,
        tied=head.linear.weight in tokens,
        logit_scale=rounded(logit_scale),
        logit_cap=cap,
    )
    return wiring, logits


def _multiple(value: Value, of: Value) -> tuple[Value, float]:
    """Walk back through numbers, until a tensor."""
    scale = 1.0
    while origin(value) is not of:
        inner = origin(value)
        times = factor(inner.op)
        if inner.op is not None and inner.op.name in ("getitem", "index_select", "select") and inner.op.inputs[0].data:
            value = inner.op.inputs[0]  # the last positions alone
            continue
        if times is None or times.vector is not None:
            plain = unconditioned(value, of)
            if plain is value:
                break
            value = plain
            continue
        value, scale = times.value, scale * times.number
    return origin(value), scale


def _onwards(trace: Trace, value: Value, scale: float) -> tuple[Value, float, float | None]:
    """From what the head gives to the logits: through numbers and a soft cap."""
    before = None
    readers = trace.readers()
    for _ in range(16):
        nexts = [op for op in readers.get(value, []) if op.outputs and op.outputs[0].numel == value.numel]
        step = next((op for op in nexts if copies(op) or factor(op) is not None or op.name == "tanh"), None)
        if step is None:
            break
        times = factor(step)
        if step.name == "tanh":
            before, scale = scale, 1.0
        elif times is not None and times.vector is None:
            scale *= times.number
        value = step.outputs[0]
    return (value, scale, None) if before is None else (value, rounded(before * scale), rounded(scale))
