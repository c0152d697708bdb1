"""Further passes over a model, all drawing the same, and how far what they give differs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from initlab.anatomy.inputs import Inputs
from initlab.anatomy.look import Anatomy
from initlab.anatomy.operations import Counts, Listening, operation_name
from initlab.anatomy.restoring import untouched
from initlab.anatomy.sizes import vocabulary
from initlab.anatomy.tensors import floats
from initlab.anatomy.unwrapping import eagerly
from initlab.measure.losses import logits_in
from initlab.measure.probe import own
from initlab.measure.reach import NUDGE, random_states
from initlab.recipes import Role

STIR = 0.1  # std of what gains and gates are moved by
TINY = 1e-3  # a matrix or gate without a larger element lets next to nothing through
# What may move relative to the output, where nothing that is read has changed: passes of one shape run the same
# kernels, and what is mixed by a transform (FFT) or regrouped (experts) is off by a few roundings; of 16 bits, by one
# step in a few of the elements.
ROUNDING = 1e-5
ROUNDING_16 = 3e-4
# Where sums are taken in another order, or rows of a matrix are multiplied in another place: a few roundings again (at
# most 5e-7 in the models of benchmarks/), or in 16 bits a step in most of the elements.
REGROUPED = 2e-6
REGROUPED_16 = 3e-2
REGROUPED_64 = 1e-12
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass gave.

    Attributes:
        shown: logits, else the first tensor that is in the batch's shape; None: there is none.
        losses: numbers that came with it.
        drew: the model drew at random.
        states: of the generators, afterwards.
        dropped: modules in which dropout was in force, where it was listened for.
    """

    shown: Tensor | None
    losses: tuple[Tensor, ...]
    drew: bool
    states: list[Any]
    dropped: tuple[str, ...] = ()

    def moved(self, other: Pass) -> list[list[float]]:
        """Relative to what it is itself, how far each position of each sample is in another pass."""
        assert self.shown is not None and other.shown is not None
        return moved(self.shown, other.shown)


class Passes:
    """Makes passes over a model, which is left as it was.

    Args:
        anatomy: of the model.
        autocast: run under autocast to this dtype.
        seed: of every pass.
    """

    def __init__(self, anatomy: Anatomy, autocast: torch.dtype | None, seed: int):
        self.model, self.seed = anatomy.model, seed
        self.anatomy, self._autocast = anatomy, autocast
        self._device = next(self.model.parameters()).device
        self._vocab_size = vocabulary(self.model)

    def run(
        self,
        inputs: Inputs,
        *,
        seed: int | None = None,
        training: bool | None = None,
        listen: bool = False,
        double: bool = False,
    ) -> Pass:
        """Make one pass.

        Args:
            inputs: are left as they are.
            seed: in place of the usual one.
            training: the mode; None: as the model was found.
            listen: for dropout.
            double: work in float64, on copies of parameters and buffers.

        Raises:
            Exception: whatever the model raises.
        """
        model, given = self.model, own(inputs)
        heard = _Dropping() if listen else None
        with untouched(model, self.seed if seed is None else seed), eagerly(model), torch.no_grad():
            if training is not None:
                model.train(training)
            before = random_states(model)
            with (
                torch.autocast(self._device.type, self._autocast, self._autocast is not None and not double),
                nullcontext() if heard is None else heard.inside(model),
            ):
                if self._nudged or double:
                    held = self._doubled() if double else self._nudged
                    output = functional_call(model, held, given.args, given.kwargs)
                else:
                    output = given.call(model)
            states = random_states(model)
        return Pass(
            shown=self._shown(output, inputs),
            losses=tuple(each.detach().clone() for each in floats(output) if each.dim() == 0),
            drew=states != before,
            states=states,
            dropped=() if heard is None else tuple(dict.fromkeys(heard.names)),
        )

    def noise(self, inputs: Inputs, base: Pass) -> float:
        """What may move by itself; on a GPU, sums by atomics are also looked for.

        Args:
            inputs: of a pass.
            base: that pass.
        """
        least = ROUNDING_16 if self.half else ROUNDING
        if self._device.type == "cpu":
            return least
        return max(least, 4 * max(map(max, base.moved(self.run(inputs)))))

    @property
    def half(self) -> bool:
        """Numbers of 16 bits are among those that a pass works with."""
        return self._autocast in _HALF or any(p.dtype in _HALF for p in self.model.parameters())

    def _doubled(self) -> dict[str, Tensor]:
        named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers()), **self._nudged}
        return {name: value.detach().double() for name, value in named.items() if value.is_floating_point()}

    def stir(self) -> None:
        """From here on move every gain and gate a little too: one with an offset is closed at another number than 0."""
        generator = torch.Generator().manual_seed(self.seed)
        self._nudged |= {
            name: p.detach() + STIR * torch.randn(p.shape, generator=generator).to(p)
            for name, p in self.model.named_parameters()
            if p.dim() < 2 and p.is_floating_point() and name not in self._nudged
        }

    @cached_property
    def _nudged(self) -> dict[str, Tensor]:
        """Copies of the parameters that let nothing through, with small random numbers in them; gates are opened."""
        biases = {each.name for each in self.anatomy.parameters if each.role in (Role.BIAS, Role.NORM_BIAS)}
        named = {
            name: p.detach()
            for name, p in self.model.named_parameters()
            if p.is_floating_point() and p.numel() and name not in biases
        }
        if not named:
            return {}
        largest = torch.stack([norm.float() for norm in torch._foreach_norm(list(named.values()), math.inf)]).tolist()
        generator = torch.Generator().manual_seed(self.seed)
        return {
            name: (NUDGE * torch.randn(p.shape, generator=generator) if p.dim() > 1 else torch.full(p.shape, 0.5)).to(p)
            for (name, p), size in zip(named.items(), largest, strict=True)
            if size < TINY
        }

    def _shown(self, output: Any, inputs: Inputs) -> Tensor | None:
        ids = inputs.ids
        if ids is None:
            return next((each.detach() for each in floats(output) if each.dim()), None)
        found = logits_in(output, ids, self._vocab_size)
        if found is None:
            each = [value for value in floats(output) if value.dim() > 1 and len(value) == len(ids)]
            found = next((value for value in each if value.dim() == 3 and value.shape[1] == ids.shape[1]), None)
            found = next((value for value in each if value.dim() == 2), None) if found is None else found
        return None if found is None else found.detach()


class _Dropping(Listening):
    """Notes the modules in which something is dropped at random."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._counts = Counts()

    @contextmanager
    def inside(self, model: nn.Module) -> Iterator[None]:
        """Listen to the passes that are made in it."""
        with self._counts.following(list(model.named_modules())), self:
            yield

    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note dropout that is in force."""
        name = operation_name(func)
        if name == "scaled_dot_product_attention":
            drops = bool(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))
        else:
            p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
            drops = name.endswith("dropout") and bool(p) and bool(training)
        if drops:
            self.names.append(self._counts.entered[-1][0] or "the forward itself")
        return func(*args, **kwargs)


def moved(before: Tensor, after: Tensor) -> list[list[float]]:
    """Tell how far each position of each sample moves, relative to its own size: (B, T, ...) or (B, F).

    Args:
        before: it.
        after: of the same shape.

    Raises:
        ValueError: a position has no finite element in common, or the shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(f"the output is {tuple(before.shape)} in one pass and {tuple(after.shape)} in the other")
    one, other = ((each[:, None] if each.dim() < 3 else each).flatten(2) for each in (before, after))
    finite = one.isfinite() & other.isfinite()
    if not finite.any(-1).all():
        raise ValueError("the output isn't finite")
    size = torch.where(finite, one, 0).double().norm(dim=-1)
    way = torch.where(finite, one - other, 0).double().norm(dim=-1)
    way = torch.where((one.isfinite() != other.isfinite()).any(-1), math.inf, way)
    found: list[list[float]] = torch.where(way > 0, way / size, 0.0).tolist()
    return found
