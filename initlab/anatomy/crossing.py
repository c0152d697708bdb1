"""Whether heads are cut out of positions and put together again one position at a time.

Only what moves numbers about counts here, so it is done again with the number of its position in place of each: then
a vector that should be of one position is seen to be of one or of several.
"""

from __future__ import annotations

import torch
from torch import Tensor

from initlab.anatomy.attending import SCORING, Read, scored
from initlab.anatomy.graph import MIXING, Value
from initlab.anatomy.heading import head_source
from initlab.anatomy.operations import words
from initlab.anatomy.walking import PARTING, copies
from initlab.wiring import Attention

_KEEPING = words(
    "contiguous clone to float double half bfloat16 type type_as detach data alias identity requires_grad cuda cpu "
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout nan_to_num positive add sub mul div"
)
_LONGEST = 64  # operations between a matrix and an attention
_NAMES = {"q": "queries", "k": "keys", "v": "values"}


def crossed(read: Read, joined: Value) -> tuple[str, ...]:
    """Name what of an attention isn't cut into heads, or put together, position by position.

    Args:
        read: an attention that is understood.
        joined: what its output projection is given.

    Returns:
        of queries, keys, values and output those; `positions` alone where heads stand in the place of positions. What
        can't be followed isn't among them, nor is anything of an attention of one head.
    """
    body = read.body
    if not isinstance(body, Attention) or read.mixing is None or body.n_head < 2:
        return ()
    found = []
    for site, op, value in scored(read):
        if op.name != SCORING and (op.name != "matmul" or (site == "q" and value is not op.inputs[0])):
            continue
        turned = site == "k" and op.name != SCORING  # q @ kᵀ is given the keys turned
        places = _cut(value, turned=turned)
        heads = body.n_head if site == "q" else body.n_kv_head
        if places is None or places.dim() < 4:
            continue
        if places.shape[-2] in (heads, body.n_head) and places.shape[-3] != places.shape[-2] and _one(places, -2):
            return ("positions",)
        if places.shape[-3] in (heads, body.n_head) and not _one(places, -3):
            found.append(_NAMES[site])
    if _mixes(joined, read.mixing.outputs[0]):
        found.append("output")
    return tuple(found)


def _cut(value: Value, *, turned: bool) -> Tensor | None:
    """Of each element of q, k or v as it enters: the number of the row that its matrix gave it in."""
    source = head_source(value)
    if source is None or len(value.shape) < 4:
        return None
    shape = source.matrix.result.shape
    rows = torch.arange(source.matrix.result.numel // shape[-1]).view(*shape[:-1], 1).expand(shape)
    places = _carried(value, source.matrix.result, rows)
    return places.transpose(-1, -2) if places is not None and turned else places


def _one(places: Tensor, dim: int) -> bool:
    """Whether vectors along a dimension, and their features, are all of one row."""
    first = places.narrow(dim, 0, 1).narrow(-1, 0, 1)
    return bool((places == first).all())


def _mixes(joined: Value, mixing: Value) -> bool:
    """Whether a vector that the output projection is given is of several positions."""
    if len(mixing.shape) < 3 or mixing.op is None or mixing.op.name not in (SCORING, "matmul"):
        return False
    positions = torch.arange(mixing.shape[-2]).view(-1, 1).expand(mixing.shape)
    places = _carried(joined, mixing, positions)
    return places is not None and not bool((places == places.narrow(-1, 0, 1)).all())


def _carried(value: Value, source: Value, given: Tensor) -> Tensor | None:
    """Move numbers as an operation after the other moved a tensor to another; None where one can't be followed."""
    path: list[Value] = []
    while value is not source:
        op = value.op
        if op is None or len(path) > _LONGEST or op.name in MIXING:
            return None
        moves = op.name not in _KEEPING and (copies(op) or op.name in PARTING)
        inner = next((each for each in op.inputs if each.data and (moves or each.shape == value.shape)), None)
        if inner is None:
            return None
        if moves:
            path.append(value)
        value = inner
    try:
        for each in reversed(path):
            op = each.op
            assert op is not None
            if op.name in ("view_as", "reshape_as", "expand_as"):
                given = given.expand(each.shape) if op.name == "expand_as" else given.reshape(each.shape)
                continue
            args = [given if arg is op.inputs[0] else arg for arg in op.args]
            kwargs = {name: given if arg is op.inputs[0] else arg for name, arg in op.kwargs.items()}
            moved = op.function(*args, **kwargs)
            given = moved if isinstance(moved, Tensor) else moved[each.output]
            if tuple(given.shape) != each.shape:
                return None
    except Exception:  # an argument that is a tensor of the pass, a view of what is expanded
        return None
    return given
