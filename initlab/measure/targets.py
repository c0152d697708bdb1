"""Which token a loss asks for: the one that is read, the next, or one further on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from initlab.anatomy.arguments import TARGETS, parameters
from initlab.anatomy.inputs import Inputs, shifts
from initlab.anatomy.tensors import tensors
from initlab.measure.changing import by_name, with_argument
from initlab.measure.passes import Pass, Passes
from initlab.measure.wired import aim_of
from initlab.schema import LABELS_IDS, LABELS_MADE

LIKE = 2e-6  # how near, relative, two means of the same float32 losses are: a few roundings
APART = 10  # times as far is every other
_SAME = 0.9  # share of the targets that are the ids themselves, or the next
SHIFTS = (-1, 0, 1, 2)  # that are tried of ids and of targets: the wrong way, none, one, one too many
_NATURAL = 0.5  # ids that repeat so often can't be told from their next


def shift_of(passes: Passes, inputs: Inputs, base: Pass) -> dict[str, Any]:
    """Tell how many places after the token that is read its target stands; `value` is NaN where it can't be told.

    Below 0 it stands before it. A model's own loss is compared with cross entropies of its logits, at each shift. Where
    a model leaves the loss to its caller, and the caller gave targets, these are compared with the ids. `where` names
    the labels that the loss was taken with; empty where the model took none.

    Args:
        passes: over the model.
        inputs: of two short sequences.
        base: the pass over them.
    """
    ids, targets, given = inputs.ids, inputs.targets, inputs.theirs
    row: dict[str, Any] = {"value": math.nan, "where": "the caller's targets" if given else ""}
    if ids is None or targets is None or inputs.aim != "next-token" or aim_of(passes.model) == "else":
        return row
    if passes.half:
        return row | {"note": "a loss in 16 bits"}
    names = parameters(passes.model)
    if inputs.own_labels is not None or ("labels" in names and "input_ids" in names and shifts(passes.model)):
        labels = ids if inputs.own_labels is None else inputs.own_labels
        try:
            base = passes.run(replace(inputs, kwargs={**inputs.kwargs, "labels": labels}))
        except Exception as error:
            return row | {"note": f"with labels, {type(error).__name__}: {error}"}
        targets, given = labels, inputs.own_labels is not None
        row["where"] = "the caller's labels" if given else LABELS_IDS
    elif not given and any(_holds(each, targets) for each in tensors((inputs.args, inputs.kwargs))):
        row["where"] = LABELS_MADE
    own = place_of(ids, targets)
    if own is None:
        return row
    if given and not base.losses:
        base = _with_targets(passes, inputs, base)
    if not base.losses or base.shown is None or base.shown.dim() != 3:
        return row | ({"value": float(own)} if given and not base.losses else {})
    loss = float(base.losses[0])
    if not math.isfinite(loss) or loss <= 0:  # as the auxiliary loss of a mixture without experts
        return row
    off: dict[int, float] = {}  # by places on, of the nearest
    wide = base.shown if base.shown.dtype == torch.float64 else base.shown.float()
    costs = wide.log_softmax(-1).neg()  # (B, T, V)
    for labels, place in ((ids, 0), (targets, own)):
        for shift in SHIFTS:
            for value in _entropies(costs, labels, shift):
                off[place + shift] = min(off.get(place + shift, math.inf), abs(value - loss) / abs(loss))
    nearest, second = sorted(off, key=off.__getitem__)[:2]
    if off[nearest] <= LIKE and off[second] > APART * LIKE:
        row["value"] = float(nearest)
    return row | {"scale": loss, "noise": LIKE}


def _with_targets(passes: Passes, inputs: Inputs, base: Pass) -> Pass:
    """A pass with the loss of a model that returns nothing beside it, where it is given the caller's targets."""
    name = next((each for each in parameters(passes.model) if each in TARGETS), "")
    if not name or name in by_name(passes.model, inputs):
        return base
    try:
        return replace(base, losses=passes.run(with_argument(passes.model, inputs, name, inputs.targets)).losses)
    except Exception:  # it takes targets of another form; what it was measured with is what is known
        return base


def _holds(tensor: Tensor, targets: Tensor) -> bool:
    return tensor.shape == targets.shape and not tensor.is_floating_point() and torch.equal(tensor.long(), targets)


def place_of(ids: Tensor, targets: Tensor) -> int | None:
    """Tell which ids targets are: 0 the same, 1 the next ones; None: neither, or it can't be told.

    Args:
        ids: (B, T).
        targets: -1 where there is none.
    """
    counted = targets >= 0
    if not counted.any() or targets.shape != ids.shape:
        return None
    if float((ids[:, 1:] == ids[:, :-1]).double().mean()) > _NATURAL:
        return None
    if float((ids == targets)[counted].double().mean()) > _SAME:
        return 0
    after = counted[:, :-1]
    same = (ids[:, 1:] == targets[:, :-1])[after]
    return 1 if len(same) and float(same.double().mean()) > _SAME else None


def _entropies(costs: Tensor, labels: Tensor, shift: int) -> Iterator[float]:
    """Mean cross entropies against labels so many places on, those below 0 left out: cut, or rolled around the end."""
    T, rolled = labels.shape[1], labels.roll(-shift, 1)
    inside = slice(0, T - shift) if shift > 0 else slice(-shift, T)
    for some in (inside, slice(0, T)) if shift else (inside,):
        wanted = rolled[:, some].long()
        counted = wanted >= 0
        if counted.any():
            yield float(costs[:, some].gather(-1, wanted.clamp_min(0)[..., None])[..., 0][counted].mean())
