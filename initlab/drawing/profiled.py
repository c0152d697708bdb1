"""Inits that look at a batch: what they are given, and how they are run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.func import functional_call

from initlab.anatomy.inputs import Inputs
from initlab.anatomy.look import Anatomy
from initlab.anatomy.restoring import copied, untouched
from initlab.anatomy.unwrapping import eagerly
from initlab.errors import ConfigError, InitlabError, RecipeError
from initlab.recipes.profiled import Profiled

Judge = Callable[[object, Inputs], Tensor]


@dataclass(frozen=True)
class Subject:
    """What an init that looks at a batch is given.

    Attributes:
        model: whose parameters it changes in place, in evaluation mode.
        anatomy: of the model, from a pass over the batch.
        inputs: the batch, as one call of the model's forward.
        seed: of what it draws.
        judge: takes the loss of what the forward returned, and says against what; raises where there is none.
        told: of every step of a long one, with how many there are.
    """

    model: nn.Module
    anatomy: Anatomy
    inputs: Inputs
    seed: int
    judge: Judge
    told: Callable[[int], None] = lambda steps: None

    def run(self) -> object:
        """Call the forward on the batch, without a graph. Raises ConfigError where it raises."""
        with torch.no_grad():
            return self._called(self.inputs, None)

    def loss(self, inputs: Inputs, parameters: dict[str, Tensor]) -> Tensor:
        """Take the loss of a call, with other parameters (and buffers) in place of the model's.

        Args:
            inputs: of the call.
            parameters: by name; of tied ones the first.

        Raises:
            ConfigError: the forward raises, or there is no loss.
        """
        return self.judge(self._called(inputs, parameters), inputs)

    def _called(self, inputs: Inputs, parameters: dict[str, Tensor] | None) -> object:
        args, kwargs = copied((inputs.args, inputs.kwargs))
        try:
            if parameters is None:
                return replace(inputs, args=args, kwargs=kwargs).call(self.model)
            return functional_call(self.model, parameters, args, kwargs)
        except InitlabError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{type(self.model).__name__} raised on the batch: {type(error).__name__}: {error}"
            ) from error


def change_of(entry: Profiled) -> Callable[[Subject], set[str]]:
    """Find the function of an init that looks at a batch.

    Args:
        entry: the init.
    """
    if not isinstance(entry.change, str):
        return entry.change
    module, _, name = entry.change.partition(":")
    found: Callable[[Subject], set[str]] = getattr(import_module(module), name)
    return found


def apply_profiled(
    model: nn.Module,
    entry: Profiled,
    anatomy: Anatomy,
    inputs: Inputs,
    seed: int,
    judge: Judge,
    told: Callable[[int], None] = lambda steps: None,
) -> tuple[str, ...]:
    """Change a model's parameters as an init does that looks at a batch; mode, hooks and buffers stay as they are.

    Args:
        model: unwrapped.
        entry: the init.
        anatomy: of the model.
        inputs: the batch, on any device.
        seed: of what is drawn, and of the passes.
        judge: see `Subject`.
        told: see `Subject`.

    Returns:
        names of the parameters that were left as they are.

    Raises:
        RecipeError, ConfigError: it can't be used on this model or batch; then no parameter was changed.
    """
    inputs = inputs.to(next(model.parameters()).device)
    with untouched(model, seed), eagerly(model):
        model.eval()
        changed = change_of(entry)(Subject(model, anatomy, inputs, seed, judge, told))
        named = dict(model.named_parameters())
        values = {name: named[name].detach().clone() for name in named if name in changed}
    named = dict(model.named_parameters())
    if broken := [name for name, value in values.items() if not bool(value.isfinite().all())]:
        raise RecipeError(f"{entry.id} made {broken[0]} hold numbers that aren't finite; nothing was changed")
    with torch.no_grad():
        for name, value in values.items():
            named[name].copy_(value)
    return tuple(name for name in named if name not in values)
