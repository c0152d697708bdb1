"""What a model does with its input, told by passes over two short sequences of which single tokens are changed.

Passes are of one shape, so that the same kernels run in them: where nothing is read that was changed, nothing moves at
all. What a zero holds back (a zero head, a closed gate) is nudged on a copy of the parameters, as in `reach`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from initlab.anatomy.arguments import DECODED, parameters
from initlab.anatomy.inputs import Inputs
from initlab.anatomy.look import Anatomy
from initlab.anatomy.tensors import changed, tensors
from initlab.measure.changing import ROWS, by_name, holders, short, with_argument, with_ids
from initlab.measure.passes import REGROUPED, REGROUPED_16, REGROUPED_64, Pass, Passes, moved
from initlab.measure.targets import place_of, shift_of
from initlab.measure.wired import aim_of
from initlab.recipes import Role
from initlab.schema import BATCH_AXIS, FIRST_AXIS
from initlab.wiring import reads_another

CHECKS = ("later", "context", "order", "samples", "rows", "targets", "random", "padding")
DRAWS = "how much the model draws at random depends on what it reads"

_PADDING = re.compile(r"^attention_mask$|key_padding_mask$")  # 1 keeps in the one, True hides in the other


def behaviour_rows(
    keys: dict[str, Any],
    anatomy: Anatomy,
    inputs: Inputs,
    *,
    autocast: torch.dtype | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Make a row of the table `behaviour` for each check that applies to a model; those that failed have a note.

    Args:
        keys: the cell's key columns; the step isn't one of this table.
        anatomy: of the model, which is left as it was.
        inputs: of which two short sequences are read; moved to the model's device.
        autocast: run the passes under autocast to this dtype.
        seed: of every pass.
    """
    model = anatomy.model
    inputs = inputs.to(next(model.parameters()).device)
    passes = Passes(anatomy, autocast, seed)
    shared = {name: value for name, value in keys.items() if name != "step"}
    shared |= {
        "aim": aim_of(model, anatomy.seen),
        "mode": "train" if model.training else "eval",
        "routed": int(bool(anatomy.sites.routers) or any(each.role == Role.ROUTER for each in anatomy.parameters)),
    }
    found = _of_tokens(passes, inputs) if inputs.ids is not None else _of_vectors(passes, inputs)
    return [shared | row for row in _told(found)]


def _told(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield rows until they end, or what they come from raises, which is said of the checks that are left."""
    left = list(CHECKS)
    try:
        for row in rows:
            if row["check"] in left:
                left.remove(row["check"])
            yield row
    except Exception as error:
        note = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        yield from ({"check": check, "note": note} for check in left)


def _of_tokens(passes: Passes, inputs: Inputs) -> Iterator[dict[str, Any]]:
    base, inputs = _first(passes, inputs)
    assert base.shown is not None
    noise = passes.noise(inputs, base)
    yield _random(passes, inputs, base, noise)
    yield shift_of(passes, inputs, base) | {"check": "targets"}
    reading = Reading(passes, inputs, base, noise)
    yield from reading.of_change()
    if base.shown.dim() > 2:
        yield from reading.of_order()
        yield from reading.of_padding()


def _first(passes: Passes, inputs: Inputs) -> tuple[Pass, Inputs]:
    """The shortest batch that the model reads, and the pass over it."""
    first: Exception | None = None
    for call in short(inputs):
        try:
            base = passes.run(call)
        except Exception as error:
            first = first or error
            continue
        if base.shown is not None:
            return base, call
    raise first or ValueError("what the model returned isn't of the batch's shape")


class Reading:
    """What two sequences of tokens make of changed ones.

    Args:
        passes: over the model.
        inputs: of the two sequences.
        base: the pass over them.
        noise: what may move by itself.

    Raises:
        ValueError: no argument holds the ids.
    """

    def __init__(self, passes: Passes, inputs: Inputs, base: Pass, noise: float):
        assert inputs.ids is not None and base.shown is not None
        self.passes, self.inputs, self.base, self.noise = passes, inputs, base, noise
        self.ids, self.whole = inputs.ids, base.shown.dim() > 2
        self.names = holders(passes.model, inputs)
        if not self.names:
            raise ValueError("no argument of the forward holds the ids that the probe knows of")

    def with_ids(self, ids: Tensor) -> Pass:
        """Make a pass over other tokens."""
        return self.passes.run(with_ids(self.passes.model, self.inputs, ids, self.names))

    def of_change(self) -> Iterator[dict[str, Any]]:
        """Yield what moves when one token of one sequence is changed: earlier and later positions, the other one."""
        T = self.ids.shape[1]
        at = 5 * T // 8
        swapped = _swapped(self.ids, 0, slice(at, at + 1))
        after = self.with_ids(swapped)
        if self.whole and max(self.base.moved(after)[0][at + 1 :], default=0.0) <= self.noise:
            self.passes.stir()
            self.base, after = self.passes.run(self.inputs), self.with_ids(swapped)
        if after.states != self.base.states:
            yield from ({"check": check, "note": DRAWS} for check in ("later", "context", "samples"))
            return
        moved = self.base.moved(after)
        row: dict[str, Any] = {"noise": self.noise, "scale": max(moved[0])}
        reach = max(moved[0][at + 1 :], default=0.0) if self.whole else math.inf
        mixed = max(moved[1])
        where = self._mixing(at, reach) if mixed > self.noise else ""
        if self.whole:
            earlier = moved[0][:at]
            places = [place for place, value in enumerate(earlier) if not value <= self.noise]
            said = f"positions {_ranges(places)} when token {at} of {T} changes" if places else ""
            told: dict[str, Any] = {"value": max(earlier), "scale": reach, "share": len(places) / at, "where": said}
            if places and where:
                told = {"note": "samples of the batch aren't apart, which moves positions too"}
            elif places and self._one_for_both():
                told = {"note": "one argument holds what the encoder reads, of which all is seen, and the decoder"}
            yield row | told | {"check": "later"}
            yield row | {"check": "context", "value": reach, "where": where if reach <= self.noise else ""}
        yield row | {"check": "samples", "value": mixed, "where": where}

    def _one_for_both(self) -> bool:
        """Whether a decoder that sees another stack is changed together with what that one reads."""
        return reads_another(self.passes.anatomy.seen) and not any(DECODED.search(name) for name in self.names)

    def _mixing(self, at: int, reach: float) -> str:
        """What samples are mixed by: norms over the batch, or its axis taken for the sequence's."""
        other = _swapped(self.ids, 1, slice(at, at + 1))
        if reach <= self.noise:
            # the second of two positions doesn't reach the first under a causal mask
            back = self.base.moved(self.with_ids(other))
            given, targets = self.inputs.theirs, self.inputs.targets
            # the caller's targets, if they are the next ids along the second axis, say which one is the sequence
            along = given and targets is not None and place_of(self.ids, targets) == 1
            return FIRST_AXIS if max(back[0]) <= self.noise and not along else BATCH_AXIS
        calls = (self.inputs, with_ids(self.passes.model, self.inputs, other, self.names))
        return _norms_alone(self.passes, calls, lambda one, two: max(one.moved(two)[0]) <= self.noise)

    def of_order(self) -> Iterator[dict[str, Any]]:
        """Yield whether the last position reads in which order the others stand, and two equal sequences differ."""
        T = self.ids.shape[1]
        first = self.ids[:1]
        turned = torch.cat([first[:, : T - 1].flip(1), first[:, T - 1 :]], dim=1).expand_as(self.ids)
        model = self.passes.model
        call = with_ids(model, self.inputs, turned, self.names)
        args, kwargs = changed((call.args, call.kwargs), _alike)
        calls = [self.inputs, replace(call, args=args, kwargs=kwargs)]
        calls.append(with_ids(model, self.inputs, _swapped(self.ids, 0, slice(0, T - 1)), self.names))
        # what dropout takes stands where it stood: without it, or every order would matter
        training = False if self.base.drew and model.training else None
        base = self.base if training is None else self.passes.run(self.inputs, training=training)
        after, replaced = (self.passes.run(each, training=training) for each in calls[1:])
        noise = REGROUPED_16 if self.passes.half else REGROUPED
        value, scale = (base.moved(each)[0][-1] for each in (after, replaced))
        row = {"check": "order", "value": value, "scale": scale, "noise": noise}
        if not after.states == base.states == replaced.states:
            row = {"check": "order", "note": DRAWS}
        elif value <= noise < scale:  # where it has next to no effect yet, it may have some beyond the rounding
            try:
                exact, *both = (self.passes.run(each, double=True, training=training) for each in calls)
                value, scale = (exact.moved(each)[0][-1] for each in both)
                row |= {"value": value, "scale": scale, "noise": REGROUPED_64}
            except Exception as error:
                row = {"check": "order", "note": f"in float64, {type(error).__name__}: {error}"}
        yield row
        if after.drew:
            yield {"check": "rows", "note": "the model draws at random"}
            return
        assert after.shown is not None
        apart = max(moved(after.shown[:1], after.shown[1:])[0])
        yield {"check": "rows", "value": apart, "scale": 1.0, "noise": noise}

    def of_padding(self) -> Iterator[dict[str, Any]]:
        """Yield whether positions move when tokens are changed that a mask hides."""
        model, inputs = self.passes.model, self.inputs
        name = next((each for each in parameters(model) if _PADDING.search(each)), "")
        if not name:
            return
        own = by_name(model, inputs).get("input_ids")
        encoder = "input_ids" not in self.names and isinstance(own, Tensor)  # the mask is of what it reads
        read, names = (own, ["input_ids"]) if encoder else (self.ids, self.names)
        assert isinstance(read, Tensor)
        hidden = max(1, read.shape[1] // 4)
        keep = torch.ones_like(read)
        keep[0, :hidden] = 0
        masked = with_argument(model, inputs, name, keep if name == "attention_mask" else keep == 0)
        other = _swapped(read, 0, slice(0, hidden))
        before, after, open_ = (
            self.passes.run(call)
            for call in (
                masked,
                _given(model, masked, other, read, names),
                _given(model, inputs, other, read, names),
            )
        )
        if not before.states == after.states == open_.states:
            yield {"check": "padding", "note": DRAWS}
            return
        first = 0 if encoder else hidden
        # what a convolution reads of its neighbours isn't the mask's to hide: the position that moves least counts
        value, scale = (min(one.moved(two)[0][first:]) for one, two in ((before, after), (self.base, open_)))
        yield {"check": "padding", "value": value, "scale": scale, "noise": self.noise, "where": name}


def _given(model: nn.Module, inputs: Inputs, other: Tensor, read: Tensor, names: list[str]) -> Inputs:
    """A call with other ids in some arguments; the logits are still those of the inputs' own ids."""
    return replace(with_ids(model, replace(inputs, ids=read), other, names), ids=inputs.ids)


def _alike(tensor: Tensor) -> Tensor:
    """What is of the two sequences, the first one's in both."""
    return tensor[:1].expand_as(tensor) if tensor.dim() and len(tensor) == ROWS else tensor


def _swapped(ids: Tensor, row: int, places: slice) -> Tensor:
    """Ids with others in some places of a row, of those that the batch holds: the model knows them, none is padding.

    Raises:
        ValueError: the batch holds a single id.
    """
    known = ids.unique()
    if len(known) < 2:
        raise ValueError("the batch holds a single id, so that no token can be changed")
    other = ids.clone()
    after = torch.searchsorted(known, ids[row, places].contiguous()) + max(1, len(known) // 2)
    other[row, places] = known[after % len(known)]
    return other


def _ranges(places: Sequence[int]) -> str:
    """`0–3, 7` of 0, 1, 2, 3, 7."""
    ends: list[list[int]] = []
    for place in places:
        if ends and place == ends[-1][-1] + 1:
            ends[-1][1:] = [place]
        else:
            ends.append([place])
    return ", ".join("–".join(map(str, each)) for each in ends)


def _random(passes: Passes, inputs: Inputs, base: Pass, noise: float) -> dict[str, Any]:
    """How far two passes in eval differ that draw with other seeds."""
    row = {"check": "random", "scale": 1.0, "noise": noise}
    first = passes.run(inputs, training=False) if base.drew and passes.model.training else base
    if not first.drew:  # what draws nothing in training draws nothing in eval
        return row | {"value": 0.0}
    second = passes.run(inputs, training=False, seed=passes.seed + 1, listen=True)
    return row | {"value": max(map(max, first.moved(second))), "where": ", ".join(second.dropped)}


def _of_vectors(passes: Passes, inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Of a model without tokens: whether samples depend on each other, and whether eval draws."""
    given = list(tensors((inputs.args, inputs.kwargs)))
    lead = next((tensor for tensor in given if tensor.is_floating_point() and tensor.dim() > 1), None)
    base = passes.run(inputs)
    if lead is None or base.shown is None:
        return
    noise = passes.noise(inputs, base)
    yield _random(passes, inputs, base, noise)
    # rows that come with edges, or with anything else, may be parts of one sample
    if len(lead) < 2 or len(base.shown) != len(lead) or not (len(given) == 1 or lead.dim() > 3):
        return
    value = _along(passes, inputs, lead, base, 0)
    if value > noise and lead.dim() == 3 and base.shown.shape[:2] == lead.shape[:2]:
        value = min(value, _along(passes, inputs, lead, base, 1))  # (T, B, C) is as good an order
    where = ""
    if value > noise:
        calls = (inputs, _turned(inputs, lead, 0))
        where = _norms_alone(passes, calls, lambda one, two: _apart(one, two, 0) <= noise)
    yield {"check": "samples", "value": value, "scale": 1.0, "noise": noise, "where": where}


def _along(passes: Passes, inputs: Inputs, lead: Tensor, base: Pass, axis: int) -> float:
    """How far the others along an axis move when the first is turned round."""
    after = passes.run(_turned(inputs, lead, axis))
    if after.states != base.states:
        raise ValueError(DRAWS)
    return _apart(base, after, axis)


def _turned(inputs: Inputs, lead: Tensor, axis: int) -> Inputs:
    """The inputs with the first along an axis of one tensor turned round."""

    def turn(tensor: Tensor) -> Tensor:
        if tensor is not lead:
            return tensor
        other = tensor.clone()
        first = tensor.select(axis, 0)
        other.select(axis, 0).copy_(first.flatten().flip(0).view(first.shape))
        return other

    args, kwargs = changed((inputs.args, inputs.kwargs), turn)
    return replace(inputs, args=args, kwargs=kwargs)


def _apart(before: Pass, after: Pass, axis: int) -> float:
    assert before.shown is not None and after.shown is not None
    one, two = (each.transpose(0, axis)[1:] for each in (before.shown, after.shown))
    return max(map(max, moved(one, two)))


def _norms_alone(passes: Passes, calls: tuple[Inputs, Inputs], still: Callable[[Pass, Pass], bool]) -> str:
    """Norms over the batch, where it is them alone that mix samples: in eval nothing moves."""
    named = passes.model.named_modules()
    norms = [name for name, module in named if isinstance(module, _BatchNorm) and module.training]
    if not norms:
        return ""
    one, two = (passes.run(call, training=False) for call in calls)
    return ", ".join(norms) if still(one, two) else ""
