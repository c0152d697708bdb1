"""Inits that look at a batch: what they are given, and how they are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from initlab.anatomy.inputs import Inputs
from initlab.anatomy.look import Anatomy
from initlab.anatomy.restoring import copied, untouched
from initlab.anatomy.unwrapping import eagerly
from initlab.errors import ConfigError, InitlabError, RecipeError
from initlab.registry import Registry


@dataclass(frozen=True)
class Subject:
    """What an init that looks at a batch is given.

    Attributes:
        model: whose parameters it changes in place, in evaluation mode.
        anatomy: of the model, from a pass over the batch.
        inputs: the batch, as one call of the model's forward.
        seed: of what it draws.
    """

    model: nn.Module
    anatomy: Anatomy
    inputs: Inputs
    seed: int

    def run(self) -> object:
        """Call the forward on the batch, without a graph. Raises ConfigError where it raises."""
        args, kwargs = copied((self.inputs.args, self.inputs.kwargs))
        try:
            with torch.no_grad():
                return replace(self.inputs, args=args, kwargs=kwargs).call(self.model)
        except InitlabError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{type(self.model).__name__} raised on the batch: {type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """An init that looks at a batch.

    Attributes:
        id: by which it is found, as a recipe is.
        source: where it was read.
        summary: one sentence.
        change: changes the parameters of a subject's model; gives the names of those that it changed.
    """

    id: str
    source: str
    summary: str
    change: Callable[[Subject], set[str]]


PROFILED: Registry[Profiled] = Registry("profile", ("initlab.drawing.lsuv", "initlab.drawing.omega"), RecipeError)


def profiled(id: str, *, source: str) -> Callable[[Callable[[Subject], set[str]]], Profiled]:
    """Register a function of a Subject as an init that looks at a batch; its docstring's first line is the summary.

    Args:
        id: by which it is found.
        source: where it was read.
    """

    def wrap(change: Callable[[Subject], set[str]]) -> Profiled:
        summary = (change.__doc__ or "").split("\n")[0]
        return PROFILED.add(id, Profiled(id=id, source=source, summary=summary, change=change))

    return wrap


def apply_profiled(model: nn.Module, entry: Profiled, anatomy: Anatomy, inputs: Inputs, seed: int) -> tuple[str, ...]:
    """Change a model's parameters as an init does that looks at a batch; mode, hooks and buffers stay as they are.

    Args:
        model: unwrapped.
        entry: the init.
        anatomy: of the model.
        inputs: the batch, on any device.
        seed: of what is drawn, and of the passes.

    Returns:
        names of the parameters that were left as they are.

    Raises:
        RecipeError, ConfigError: it can't be used on this model or batch; then no parameter was changed.
    """
    inputs = inputs.to(next(model.parameters()).device)
    with untouched(model, seed), eagerly(model):
        model.eval()
        changed = entry.change(Subject(model, anatomy, inputs, seed))
        named = dict(model.named_parameters())
        values = {name: named[name].detach().clone() for name in named if name in changed}
    named = dict(model.named_parameters())
    if broken := [name for name, value in values.items() if not bool(value.isfinite().all())]:
        raise RecipeError(f"{entry.id} made {broken[0]} hold numbers that aren't finite; nothing was changed")
    with torch.no_grad():
        for name, value in values.items():
            named[name].copy_(value)
    return tuple(name for name in named if name not in values)
