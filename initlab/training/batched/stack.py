"""The weights of models of one shape as one, with a leading run dimension, and AdamW over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from initlab.training.batched.folding import Folding
from initlab.training.task import Task

_ADAM = ("lr_multiplier", "weight_decay", "eps")  # of a group, that differ between recipes


class Refused(Exception):
    """Runs that can't be trained side by side, and why."""


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Parameters that AdamW treats alike, each run's in a row of its own.

    Attributes:
        names: of the parameters, in the order of their numbers.
        weights, first, second: (R, numbers); the weights, and the two moments of their gradients.
        multiplier, decay, eps: (R, 1).
    """

    names: tuple[str, ...]
    weights: Tensor
    first: Tensor
    second: Tensor
    multiplier: Tensor
    decay: Tensor
    eps: Tensor


class Stack:
    """The weights of R runs.

    Args:
        tasks: of each run; a model may be of several runs, which then start from the same weights.
        groups: of each run, as `adam_groups` makes them.

    Raises:
        Refused: the models' tensors aren't of the same names, shapes and kinds.
    """

    def __init__(self, tasks: Sequence[Task], groups: Sequence[list[dict[str, Any]]]):
        self.task = tasks[0]
        self.template = self.task.model
        self._models = [task.model for task in tasks]
        named = [dict(model.named_parameters()) for model in self._models]
        held = [dict(model.named_buffers()) for model in self._models]
        for own in (named, held):
            kinds = [{name: (x.shape, x.dtype, x.requires_grad) for name, x in each.items()} for each in own]
            if any(each != kinds[0] for each in kinds):
                raise Refused("their tensors aren't of the same names, shapes and kinds")
        settings = [_settings(each, own) for each, own in zip(groups, named, strict=True)]
        self.parts = _parts(named, settings)
        self.weights: dict[str, Tensor] = {}
        for part in self.parts:
            at = 0
            for name in part.names:
                one = named[0][name]
                view = part.weights[:, at : at + one.numel()].view(-1, *one.shape)
                self.weights[name] = view.detach().requires_grad_()
                at += one.numel()
        frozen = {name for name, parameter in named[0].items() if not parameter.requires_grad}
        self.fixed = {
            name: torch.stack([each[name].detach() for each in own])
            for own, names in ((named, frozen), (held, held[0]))
            for name in names
        }

    def __len__(self) -> int:
        return len(self._models)

    def losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Run the models, each on a batch of its own; return the loss that each is trained on, (R,).

        Args:
            idx: (R, B, T) ids.
            targets: (R, B, T), the token after each.
        """

        def one(weights: Mapping[str, Tensor], fixed: Mapping[str, Tensor], idx: Tensor, targets: Tensor) -> Tensor:
            return self.task.loss(self._called({**weights, **fixed}), idx, targets)

        with Folding():
            found: Tensor = vmap(one, randomness="error")(self.weights, self.fixed, idx, targets)
        return found

    def judged(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Run the models on one batch; return the cross entropy of each, (R,).

        Args:
            idx: (B, T) ids.
            targets: (B, T), the token after each.
        """

        def one(weights: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> Tensor:
            return self.task.judged(self._called({**weights, **fixed}), idx, targets)

        with Folding():
            found: Tensor = vmap(one, randomness="error")(self.weights, self.fixed)
        return found

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Take the gradients of a sum of the runs' losses, in the order of `parts`: one (R, numbers) for each.

        Args:
            loss: the sum.

        Raises:
            Refused: a parameter has none; AdamW leaves such a one alone, also its decay.
        """
        found = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True)
        rows = {}
        for name, gradient in zip(self.weights, found, strict=True):
            if gradient is None:
                raise Refused(f"the loss doesn't depend on {name}")
            rows[name] = gradient.reshape(len(self), -1)
        return [torch.cat([rows.pop(name) for name in part.names], 1) for part in self.parts]

    def norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """Take the 2-norm of each run's gradient, (R,).

        Args:
            gradients: as `gradients` makes them.
        """
        sizes = [[self.weights[name][0].numel() for name in part.names] for part in self.parts]
        pieces = [piece for each, size in zip(gradients, sizes, strict=True) for piece in each.split(size, 1)]
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each, dim=1) for each in pieces]), dim=0)

    @torch.no_grad()
    def update(
        self, gradients: Sequence[Tensor], lr: Tensor, moved: Tensor, step: Tensor, betas: tuple[float, float]
    ) -> None:
        """Make AdamW's update of the runs that are moved; the others stay as they are, to the bit.

        Args:
            gradients: as `gradients` makes them; overwritten.
            lr: (R,), the rate of each run, float64 as all that is computed once a run.
            moved: (R,), which runs are.
            step: (R,), the update's number in each run, from 1 on.
            betas: of AdamW.
        """
        moved, rate = moved[:, None], lr[:, None]
        corrections = [(1 - beta**step).to(lr.dtype)[:, None] for beta in betas]
        rates = [moved * torch.full_like(rate, 1 - beta) for beta in betas]
        for part, gradient in zip(self.parts, gradients, strict=True):
            kind = part.weights.dtype
            gradient.masked_fill_(~moved, 0.0)  # not times 0: that of a run that diverged isn't finite
            own = rate * part.multiplier
            part.first.lerp_(gradient, rates[0].to(kind))
            part.second.mul_((1 - rates[1]).to(kind)).add_(gradient.square_().mul_(rates[1].to(kind)))
            divisor = part.second.sqrt().div_(corrections[1].sqrt().to(kind)).add_(part.eps.to(kind))
            change = divisor.reciprocal_().mul_(part.first).mul_((own / corrections[0]).to(kind))
            part.weights.mul_(torch.where(moved, 1 - own * part.decay, 1.0).to(kind))
            part.weights.sub_(change.masked_fill_(~moved, 0.0))

    @torch.no_grad()
    def write(self, run: int) -> None:
        """Put a run's weights into its model.

        Args:
            run: its number.
        """
        model = self._models[run]
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, values in {**self.weights, **self.fixed}.items():
            own[name].copy_(values[run])

    def _called(self, tensors: dict[str, Tensor]) -> Any:
        return lambda *args, **kwargs: functional_call(self.template, tensors, args, kwargs)


def _settings(groups: list[dict[str, Any]], named: dict[str, nn.Parameter]) -> dict[str, tuple[float, ...]]:
    """AdamW's settings for each parameter that is trained."""
    names = {id(parameter): name for name, parameter in named.items()}
    return {
        names[id(parameter)]: tuple(float(group[key]) for key in _ADAM)
        for group in groups
        for parameter in group["params"]
    }


def _parts(named: list[dict[str, nn.Parameter]], settings: list[dict[str, tuple[float, ...]]]) -> list[Part]:
    alike: dict[Any, list[str]] = {}
    for name, parameter in named[0].items():
        if parameter.requires_grad:
            alike.setdefault((parameter.dtype, *(own[name] for own in settings)), []).append(name)
    parts = []
    for (_, *own), names in alike.items():
        weights = torch.stack([torch.cat([each[name].detach().flatten() for name in names]) for each in named])
        columns = torch.tensor(own, dtype=torch.float64, device=weights.device).unbind(1)
        first, second = torch.zeros_like(weights), torch.zeros_like(weights)
        parts.append(Part(tuple(names), weights, first, second, *(column[:, None] for column in columns)))
    return parts
