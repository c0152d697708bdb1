"""What a branch of the stream computes: attention or an MLP, read from the operations between two states."""

from __future__ import annotations

from dataclasses import replace

from initlab.anatomy.apart import read_apart
from initlab.anatomy.attending import Read, met, normed_input, read_attention
from initlab.anatomy.crossing import crossed
from initlab.anatomy.experts import mixture_of, unpicked
from initlab.anatomy.graph import Value
from initlab.anatomy.heading import head_gain, head_source
from initlab.anatomy.mlps import read_mlp
from initlab.anatomy.norming import normed
from initlab.anatomy.walking import origin, projected
from initlab.anatomy.weighing import find_weighed
from initlab.wiring import MLP, Attention, Norm


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
            return _in_part(core, core, base)
        found.values["attn_z"] = core
        return found
    if origin(out.source) is origin(base):
        return Read(why="a single matrix")
    inner = normed(out.source)
    h = out.source if inner is None else inner.source
    if inner is not None and origin(inner.source) is origin(base):
        return Read(why="a single matrix")
    gain = head_gain(h)
    gained = None if gain is None else read_attention(gain[0], out.linear, base)
    if gain is not None and gained is not None and isinstance(gained.body, Attention):
        if gain[2] in (1, gained.body.n_head):
            gained.body = replace(gained.body, head_gain=gain[1])
        else:
            gained.body, gained.why = None, f"what its heads give is multiplied with {gain[1]}"
    found = (
        gained
        or read_attention(h, out.linear, base)
        or read_apart(h, out.linear, base)
        or read_mlp(h, out.linear, base)
    )
    if found is None:
        return _in_part(core, h, base)
    if inner is not None and isinstance(found.body, Attention):
        found.body = replace(found.body, out_norm=inner.norm)
    elif inner is not None and isinstance(found.body, MLP):
        found.body = replace(found.body, inner_norm=inner.norm)
    found.values["attn_z" if found.score or found.heads else "mlp_act"] = out.source
    if isinstance(found.body, Attention):
        found.body = replace(found.body, crossed=crossed(found, h))
    return found


def _in_part(core: Value, met_at: Value, base: Value) -> Read:
    """What can be told of a branch that isn't understood: where its attention and its MLPs are."""
    read = Read(why=met(met_at))
    read.experts, read.routed = mixture_of(core, base)
    read.weighed = find_weighed(core, base)
    if not read.weighed:
        if read.experts:
            read.norm, read.source, read.values["ln"] = _given_to(read, base)
        return read
    first = read.weighed[0]
    read.score = first.score
    if not first.key.mixes(base):
        read.other = origin(first.key)
    made = head_source(first.query)
    if made is not None:
        read.norm, read.source, read.values["ln"] = normed_input(made.matrix.source, base)
    return read


def _given_to(read: Read, base: Value) -> tuple[Norm | None, Value, Value]:
    """What a mixture reads, as `normed_input` has it: its router's input, or what tokens are picked from."""
    if read.routed is not None:
        return normed_input(read.routed.matrix.source, base)
    first = read.experts[0]
    source = first.source if first.norm is None or first.source is None else first.values["ln"]
    return normed_input(unpicked(source if source is not None else first.values["mlp_pre"]), base)
