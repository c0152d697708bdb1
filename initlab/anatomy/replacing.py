"""Branches that become the stream: attentions and MLPs whose result is handed on without the stream added to it."""

from __future__ import annotations

from dataclasses import dataclass

from initlab.anatomy.attending import Read
from initlab.anatomy.chains import summands, ungated
from initlab.anatomy.graph import Op, Value
from initlab.anatomy.norming import normed
from initlab.anatomy.reading import read_body
from initlab.anatomy.walking import factor, origin, unscaled
from initlab.wiring import Norm


@dataclass(frozen=True, slots=True)
class Replaced:
    """An attention or MLP of the stream whose result is handed on without the stream being added to it.

    Attributes:
        place: how many sums of the block come before it.
        read: what it computes.
        module: dotted name of the outermost module inside the block that gave it; the block's own without one.
        post: the norm that its result goes through, of the branch (sandwich) or of the sum that is missing (post-norm).
    """

    place: int
    read: Read
    module: str
    post: Norm | None = None


def replaced_between(block: str, place: int, before: Value, after: Value) -> list[Replaced] | None:
    """Read how one state becomes another through branches alone, one after the other.

    Args:
        block: its dotted name.
        place: how many sums of the block come before.
        before: the state.
        after: the other; the branches' norms behind them are theirs.

    Returns:
        the branches in order, none where the states are one; None where a step isn't understood.
    """
    found: list[Replaced] = []
    while origin(after) is not origin(before):
        core = _bare(after, before)
        post = normed(core)
        if post is not None:
            core = _bare(post.source, before)
        parts = [core]
        whole = read_body(core, before)
        mixed = is_mixture(whole)
        while not mixed and (op := parts[0].op) is not None and (operands := summands(op)) is not None:  # in parallel
            parts = [_bare(value, before) for value, _ in operands] + parts[1:]
        reads = [whole] if mixed else [read_body(part, before) for part in parts]
        source = reads[0].source
        known = all((r.body is not None or is_mixture(r)) and r.source is source for r in reads)
        if source is None or not source.after(before) or not known:
            return None
        norm = None if post is None else post.norm
        found = [Replaced(place, r, inside_of(block, p.op)[0], norm) for r, p in zip(reads, parts, strict=True)] + found
        after = source
    return found


def is_mixture(read: Read) -> bool:
    """Tell whether a branch is made of experts, and of nothing beside their MLPs and what chooses among them.

    Args:
        read: of the branch.
    """
    several = read.routed is not None or len(read.experts) > 1
    return read.body is None and bool(read.experts) and several and not read.weighed and read.source is not None


def _bare(value: Value, base: Value) -> Value:
    """What a value is a multiple of, by numbers, by vectors (LayerScale) and by what a condition makes (adaLN)."""
    while True:
        value = unscaled(value)[0]
        times = factor(value.op)
        bare = times.value if times is not None else ungated(value.op, base)
        if bare is None:
            return value
        value = bare


def inside_of(block: str, op: Op | None) -> tuple[str, str]:
    """Name the outermost and the innermost module inside a block that an operation is in; the block without one.

    Args:
        block: its dotted name.
        op: None is in none.
    """
    around = [module for module, _ in op.within] if op is not None else []
    inside = [module for module in around if module.startswith(f"{block}.") or not block]
    return (inside[0], inside[-1]) if inside else (block, block)
