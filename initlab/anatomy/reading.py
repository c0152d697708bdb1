"""What a branch of the stream computes: attention or an MLP, read from the operations between two states."""

from __future__ import annotations

from dataclasses import replace

from initlab.anatomy.apart import heads_of, read_apart
from initlab.anatomy.attending import Read, met, read_attention
from initlab.anatomy.experts import experts_of
from initlab.anatomy.graph import Value
from initlab.anatomy.mlps import read_mlp
from initlab.anatomy.norming import normed
from initlab.anatomy.walking import origin, projected
from initlab.wiring import MLP, Attention


def read_body(core: Value, base: Value) -> Read:
    """Read what gives a tensor that is about to be added to a stream.

    Args:
        core: the tensor, see `initlab.anatomy.chains.Term`.
        base: the stream's state before.
    """
    out = projected(core)
    if out is None:
        found = read_attention(core, None, base)
        if found is None:
            return _in_parts(core, core, base)
        found.values["attn_z"] = core
        return found
    if origin(out.source) is origin(base):
        return Read(why="a single matrix")
    inner = normed(out.source)
    h = out.source if inner is None else inner.source
    if inner is not None and origin(inner.source) is origin(base):
        return Read(why="a single matrix")
    found = read_attention(h, out.linear, base) or read_apart(h, out.linear, base) or read_mlp(h, out.linear, base)
    if found is None:
        return _in_parts(h, core, base)
    if inner is not None and isinstance(found.body, Attention):
        found.body = replace(found.body, out_norm=inner.norm)
    elif inner is not None and isinstance(found.body, MLP):
        found.body = replace(found.body, inner_norm=inner.norm)
    found.values["attn_z" if found.score or found.heads else "mlp_act"] = out.source
    return found


def _in_parts(unknown: Value, core: Value, base: Value) -> Read:
    """What can be seen of a branch that isn't understood as a whole."""
    return Read(why=met(unknown), experts=experts_of(core, base), heads=heads_of(core, base))
