"""From a model to rows of the tables `draws` (is each matrix a draw of its own, of full rank?) and `declared`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from torch import Tensor

from initlab.anatomy.declaring import Declaration, declarations
from initlab.anatomy.look import Anatomy
from initlab.anatomy.parameters import Parameter
from initlab.anatomy.sharing import shared, sharing_said
from initlab.anatomy.unregistered import Unregistered
from initlab.drawing.apply import was_applied
from initlab.drawing.copies import drawn_matrices, likest, repeated, sketch
from initlab.drawing.declared import written_std
from initlab.drawing.spectrum import stable_rank
from initlab.drawing.uneven import TABLES, odd_rows
from initlab.recipes import Role

_FULL = 8  # rows and columns; of fewer the rank says nothing
_LIKE = 0.5  # correlation from which an earlier matrix is named; by chance it is below 0.35


def draw_rows(keys: dict[str, Any], anatomy: Anatomy) -> list[dict[str, Any]]:
    """Make a row for each matrix that is drawn at random in all models that anyone trains.

    Those of `drawing.copies.drawn_matrices`, then a row for each norm.

    Args:
        keys: the cell's key columns; the step isn't one of this table.
        anatomy: of the model.
    """
    keys = {name: value for name, value in keys.items() if name != "step"}
    copies, said = shared(anatomy.model), sharing_said(anatomy.model)
    rows, sketches, owners = list[dict[str, Any]](), list[Tensor](), list[int]()
    for place, name, matrix in drawn_matrices(anatomy):
        others = copies.get(place.name, [])
        row = keys | {
            "layer": place.layer,
            "module": name,
            "role": place.role.value,
            "rows": matrix.shape[0],
            "columns": matrix.shape[1],
            "shared": 1 + len(others),
            "shared_as": others[0] if others else "",
            "shared_by": said if others else "",
        }
        row["parts"] = _parts(matrix, place, whole=name == place.name)
        rows.append(row | _structure(matrix, place.padding_row) | _odd(matrix, place))
        drawn = sketch(matrix)
        if drawn is not None:
            owners.append(len(rows) - 1)
            sketches.append(drawn)
    for at, (other, value) in zip(owners, likest(sketches), strict=True):
        rows[at] |= {"like": rows[owners[other]]["module"] if value > _LIKE else "", "likeness": value}
    return rows + [keys | gain for gain in _gains(anatomy)]


def _gains(anatomy: Anatomy) -> Iterator[dict[str, Any]]:
    """Of each norm what it multiplies with, if that is one number."""
    named = dict(anatomy.model.named_parameters())
    for place in anatomy.parameters:
        if place.role != Role.NORM_GAIN or not named[place.name].requires_grad or not named[place.name].numel():
            continue
        gain = named[place.name].detach().float() + place.offset
        alike = bool((gain == gain.flatten()[0]).all())
        yield {
            "layer": place.layer,
            "module": place.name,
            "role": place.role.value,
            "rows": gain.numel(),
            "columns": 1,
            "value": float(gain.flatten()[0]) if alike else math.nan,
            "mean": float(gain.mean()),
            "spread": float(gain.std(correction=0)),
        }


def declared_rows(keys: dict[str, Any], anatomy: Anatomy) -> list[dict[str, Any]]:
    """Make a row for each thing that the model's configs declare of its init; where they name no std, its own code.

    Args:
        keys: the cell's key columns; the step isn't one of this table.
        anatomy: of the model.
    """
    keys = {name: value for name, value in keys.items() if name != "step"}
    found = declarations(anatomy.model, anatomy.parameters, anatomy.wirings)
    if was_applied(anatomy.model):  # from another init on purpose
        found = [each for each in found if each.kind not in ("std", "zero", "constant", "least step", "most step")]
    said = any(each.kind == "std" and each.said > 0 for each in found)
    written = None if said else written_std(anatomy.model)
    if written is not None:
        found = [written, *(each for each in found if (each.kind, each.about) != ("std", ""))]
    if anatomy.unregistered is not None:
        each = anatomy.unregistered or (Unregistered("", 0, 0),)
        found += [Declaration("unregistered", place, float(tensors), float(n)) for place, tensors, n in each]
    return [keys | asdict(each) for each in found]


def _odd(matrix: Tensor, place: Parameter) -> dict[str, Any]:
    """The rows of a table that stand out most by their scale, as those of added tokens do."""
    if place.role not in TABLES:  # each costs another reading of the matrix
        return {}
    blank = place.padding_row if place.padding_row is not None and not bool(matrix[place.padding_row].any()) else None
    odd = [each for each in odd_rows(matrix, place, blank) if each["rms"] > 0]
    if not odd:
        return {}
    most = max(odd, key=lambda each: abs(math.log(each["rms"] / each["rest"])))
    return {"odd": most["which"], "odd_rms": most["rms"], "odd_rest": most["rest"]}


def _parts(matrix: Tensor, place: Parameter, *, whole: bool) -> str:
    """What each part of a fused matrix is drawn like, as the table has it; of one that isn't fused nothing."""
    axis = place.axis if whole else place.axis - 1  # of one expert's matrix, a dimension less
    if not place.parts or axis not in (0, 1) or sum(size for size, _, _ in place.parts) != matrix.shape[axis]:
        return ""
    found = []
    pieces = matrix.split([size for size, _, _ in place.parts], dim=axis)
    for piece, (_, role, _) in zip(pieces, place.parts, strict=True):
        values = piece.float()
        found.append(f"{role.value} {piece.numel()} {float(values.mean()):.9g} {float(values.std(correction=0)):.9g}")
    return "; ".join(found)


def _structure(matrix: Tensor, padding: int | None) -> dict[str, Any]:
    row = matrix[1 if padding == 0 and len(matrix) > 1 else 0]
    if min(matrix.shape) > 1 and bool((row == row[0]).all()) and bool((matrix == row[0]).all()):
        return {"value": float(row[0])}
    rows, columns = repeated(matrix), repeated(matrix.T)
    names = ("blocks", "copies", "which")
    found: dict[str, Any] = {f"row_{name}": each for name, each in zip(names, rows, strict=True)}
    found |= {f"column_{name}": each for name, each in zip(names, columns, strict=True)}
    rank = stable_rank(matrix) if min(matrix.shape) >= _FULL else (math.nan, math.nan)
    return found | dict(zip(("stable_rank", "usual_rank"), rank, strict=True))
