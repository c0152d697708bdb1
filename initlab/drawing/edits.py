"""Single parameters changed in place, all others left to the bit."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from initlab.anatomy.look import Anatomy, of
from initlab.drawing.apply import apply_recipe, draw
from initlab.recipes import Constant, Normal, Recipe, TruncNormal, Uniform

Rows = tuple[int, int, int]  # axis, first, last + 1


def rescale(model: nn.Module, names: Collection[str], factor: float, rows: Rows | None = None) -> None:
    """Multiply parameters in place, which keeps what was drawn but for its scale.

    Args:
        model: that holds them.
        names: of the parameters.
        factor: of every element.
        rows: of these alone.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                part = parameter if rows is None else parameter.narrow(rows[0], rows[1], rows[2] - rows[1])
                part.mul_(factor)


def redraw(
    model: nn.Module,
    names: Collection[str],
    drawn: Recipe | Constant | Normal | Uniform | TruncNormal,
    seed: int,
    *,
    rows: Rows | None = None,
    only_bad: bool = False,
) -> None:
    """Draw parameters anew, each from the stream of its own name.

    Args:
        model: that holds them.
        names: of the parameters.
        drawn: from what; of a recipe, what it says of them.
        seed: of the draw.
        rows: of these alone.
        only_bad: elements that are finite stay.
    """
    anatomy: Anatomy = of(model)
    parameters = {name: parameter for name, parameter in model.named_parameters() if name in names}
    with _others_kept(parameters.values(), rows, only_bad):
        if isinstance(drawn, Recipe):
            apply_recipe(model, drawn, seed, only=names, anatomy=anatomy)
            return
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(draw(drawn, parameter.shape, name, seed) - anatomy.places[name].offset)


@contextmanager
def _others_kept(parameters: Collection[Tensor], rows: Rows | None, only_bad: bool) -> Iterator[None]:
    """Let a draw reach these rows alone, or those elements that aren't finite."""
    before = [parameter.detach().clone() for parameter in parameters] if rows or only_bad else []
    yield
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=False):
            kept = torch.full_like(old, rows is not None, dtype=torch.bool)
            if rows is not None:
                kept.narrow(rows[0], rows[1], rows[2] - rows[1]).fill_(False)
            kept |= old.isfinite() if only_bad else kept
            parameter.copy_(torch.where(kept, old, parameter))


@contextmanager
def all_or_nothing(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Give parameters their values back where what is done to them raises.

    Args:
        model: that holds them.
        names: of the parameters.
    """
    before = {name: value.detach().clone() for name, value in model.named_parameters() if name in names}
    try:
        yield
    except BaseException:  # of an interrupt, too
        with torch.no_grad():
            for name, value in before.items():
                model.get_parameter(name).copy_(value)
        raise


def untouched(model: nn.Module, twin: nn.Module, changed: Collection[str]) -> list[str]:
    """Name the parameters and buffers of a changed copy that were to stay and are others now, bit for bit.

    Args:
        model: as it was.
        twin: the copy.
        changed: parameters that were to change.
    """
    after = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
    before = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, value in before if name not in changed and not _same(value, after[name])]


def _same(one: Tensor, other: Tensor) -> bool:
    equal = (one == other) | ((one != one) & (other != other))
    return bool(equal.all())
