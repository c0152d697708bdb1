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
    found, rows = [], None
    for site, op, value in scored(read):
        if op.name != SCORING and (op.name != "matmul" or (site == "q" and value is not op.inputs[0])):
            continue
        told = _cut(value, turned=site == "k" and op.name != SCORING)  # q @ kᵀ is given the keys turned
        if told is None:
            continue
        places, lengths = told
        rows = places if site == "q" or rows is None else rows  # through rotations only values can be followed
        alike = places.shape[-2] // max(1, _distinct(places))  # of one row, in the slice that one softmax is over
        if alike == places.shape[-2] and alike in (body.n_head, body.n_kv_head):
            return ("positions",)
        if alike > 1 and places.shape[-2] in lengths:  # queries of several heads in one slice make it longer
            found.append(_NAMES[site])
    if not found and rows is not None and _mixes(joined, read.mixing.outputs[0], rows):
        found.append("output")
    return tuple(found)


def _cut(value: Value, *, turned: bool) -> tuple[Tensor, tuple[int, ...]] | None:
    """Of each vector of q, k or v as it enters: the number of the row of its matrix's output that it is of.

    Returns:
        (…, positions, 1), and the lengths of what the rows are numbered by; None where it isn't known, or a vector is
        of several rows.
    """
    source = head_source(value)
    if source is None or len(value.shape) < 3:
        return None
    shape = source.matrix.result.shape
    rows = torch.arange(source.matrix.result.numel // shape[-1]).view(*shape[:-1], 1).expand(shape).contiguous()
    places = _carried(value, source.matrix.result, rows)
    if places is None:
        return None
    places = places.transpose(-1, -2) if turned else places
    first = places.narrow(-1, 0, 1)
    return (first, shape[:-1]) if bool((places == first).all()) else None


def _distinct(places: Tensor) -> int:
    """How many rows are in a slice, most of all slices."""
    ordered = places.squeeze(-1).flatten(0, -2).sort(-1).values
    return int((ordered.diff(dim=-1) != 0).sum(-1).max()) + 1 if ordered.shape[-1] > 1 else 1


def _mixes(joined: Value, mixing: Value, rows: Tensor) -> bool:
    """Whether a vector that the output projection is given is of several rows, those of the queries or values."""
    if mixing.op is None or mixing.op.name not in (SCORING, "matmul") or mixing.shape[:-1] != rows.shape[:-1]:
        return False
    places = _carried(joined, mixing, rows.expand(mixing.shape).contiguous())
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
            if op.name == "view":  # numbers lie otherwise in memory than what they stand for
                given = given.contiguous()
                args[0] = given
            moved = op.function(*args, **kwargs)
            given = moved if isinstance(moved, Tensor) else moved[each.output]
            if tuple(given.shape) != each.shape:
                return None
    except Exception:  # an argument that is a tensor of the pass, a view of what is expanded
        return None
    return given
