"""Attention whose heads are computed one by one, as a list of modules does."""

from __future__ import annotations

from dataclasses import replace

from initlab.anatomy.attending import Read, read_attention
from initlab.anatomy.graph import Value
from initlab.anatomy.walking import origin, unscaled
from initlab.wiring import Attention, Linear

_JOINING = ("cat", "stack")


def read_apart(h: Value, out: Linear, base: Value) -> Read | None:
    """Read heads that are put side by side; None where these aren't several heads of the state before.

    Args:
        h: what the output matrix is given.
        out: that matrix.
        base: the stream's state before the branch.
    """
    op = unscaled(h)[0].op
    if op is None or op.name not in _JOINING or len(op.inputs) < 2:
        return None
    heads = [_of_state(each, base) for each in op.inputs]
    found = [head for head in heads if head is not None]
    if len(found) < len(heads):
        return None
    first = found[0]
    read = Read(_together(found, out), first.norm, source=first.source, values={"ln": first.values["ln"]}, heads=found)
    if read.body is None:
        read.why = next((head.why for head in found if head.why), "its heads aren't alike")
    return read


def _of_state(value: Value, base: Value) -> Read | None:
    """One head, or all, of attention of a state to itself."""
    read = read_attention(value, None, base)
    if read is None or read.score is None or read.other is not None or read.source is not origin(base):
        return None
    read.values["attn_z"] = value
    return read


def _together(heads: list[Read], out: Linear) -> Attention | None:
    """One attention of heads that are alike but for their matrices."""
    bodies = [head.body for head in heads if isinstance(head.body, Attention)]
    linears = [linear for body in bodies for linear in (body.query, body.key, body.value)]
    whole = len({linear.weight for linear in linears}) == 3 * len(heads) and all(
        linear.fused == linear.fan_out for linear in linears
    )
    first = next(iter(bodies), None)
    if first is None or len(bodies) < len(heads) or not whole or any(head.norms for head in heads):
        return None
    norms = {head.norm for head in heads}
    alike = {replace(body, query=first.query, key=first.key, value=first.value) for body in bodies}
    if len(norms) > 1 or len(alike) > 1:
        return None
    count = len(heads)
    return replace(
        first,
        out=out,
        n_head=count * first.n_head,
        n_kv_head=count * first.n_kv_head,
        apart=tuple((body.query, body.key, body.value) for body in bodies),
    )
