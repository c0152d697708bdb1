"""Which parameters without a gradient get one as soon as what is 0 before them moves.

A zero head, a closed gate, or a branch that was dropped by chance leaves what stands behind it without a gradient for
one step; what is detached, unused or dead has none for good. The names of the parameters can't tell the two apart, a
few further passes can.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from initlab.anatomy.inputs import Inputs
from initlab.anatomy.restoring import untouched
from initlab.anatomy.sizes import vocabulary
from initlab.anatomy.tensors import floats
from initlab.measure.losses import take_loss

PASSES = 4  # zeros behind zeros, as a head, the gates of the branches, and what is inside: three deep
PASSES_BY_CHANCE = 8  # of a model that draws: a branch that is dropped half of the time is missing in all once in 500
NUDGE = 0.02  # std of what is put in the place of a zero, and added to a gate


def reached(
    model: nn.Module, lacking: Collection[str], inputs: Inputs, run: Callable[[Callable[..., Any]], Any], seed: int
) -> set[str]:
    """Find the parameters that get a gradient once zeros that have one themselves are nudged.

    Each pass draws its own dropout, and takes the gradient of a random linear function of the output: a mean square
    has none where the output is 0. After it, every element that is 0 and has a gradient is set to a small random
    number, on a copy: so would a step of training. An element that has none stays, as in training. Where zeros lead no
    further, everything of one dimension or none moves once: a gate of 1 + w is shut at w = -1.

    Args:
        model: is left as it was; its own weights aren't written.
        lacking: names of the parameters that had no gradient.
        inputs: on the model's device.
        run: makes one pass with what it is given in the model's place, and gives the output.
        seed: of the passes and of what is drawn.

    Raises:
        Exception: whatever the passes raise, as models do that can't be called with other weights.
    """
    moved: dict[str, Tensor] = {}
    found: set[str] = set()
    chance = False  # the model draws as it runs
    gates = False  # what may be a gate has been moved
    for turn in range(PASSES_BY_CHANCE):
        with untouched(model, seed + 1 + turn):
            before = random_states(model)
            output = run(lambda *args, **kwargs: functional_call(model, moved, args, kwargs))  # noqa: B023
            chance = chance or random_states(model) != before
            learning = _learning(model, moved, _aim(output, inputs, vocabulary(model)))
            del output
            new = _any({name: learning[name][1] for name in lacking if name in learning and name not in found})
            nudged = _nudged(learning)
            if not (new or nudged or gates):
                nudged, gates = _shaken(learning), True
        found |= new
        moved |= nudged
        if len(found) == len(lacking) or not (chance or (turn + 1 < PASSES and (new or nudged))):
            break
    return found


def random_states(model: nn.Module) -> list[Any]:
    """Tell where the generators stand that models draw from.

    Args:
        model: for the devices that it is on.
    """
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    # models that draw from NumPy's global state are why it is looked at
    _, numbers, *place = cast("tuple[Any, ...]", np.random.get_state())  # noqa: NPY002
    return [random.getstate(), numbers.tobytes(), place, *(state.numpy().tobytes() for state in states)]


def _learning(model: nn.Module, moved: dict[str, Tensor], aim: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Parameters that the aim depends on, and where they have a gradient; with `moved` in the place of their own."""
    used = {name: p for name, p in model.named_parameters() if p.requires_grad} | moved
    gradients = torch.autograd.grad(aim, list(used.values()), allow_unused=True) if aim.requires_grad else ()
    # a NaN isn't above 0 either
    return {name: (p, g.abs() > 0) for (name, p), g in zip(used.items(), gradients, strict=False) if g is not None}


def _aim(output: Any, inputs: Inputs, vocab_size: int | None) -> Tensor:
    """A random linear function of what the loss is taken from; the model's own loss as it is."""
    judged = take_loss(output, inputs, vocab_size)
    if judged.logits is None and any(tensor is judged.loss for tensor in floats(output)):
        return judged.loss
    value = next(floats(output)) if judged.logits is None else judged.logits
    direction = torch.randn_like(value) / math.sqrt(value.shape[-1] if value.dim() else 1)
    return (value * direction).sum()


def _any(masks: Mapping[str, Tensor]) -> set[str]:
    """Names of the masks that hold anything; waits for the device once."""
    if not masks:
        return set()
    held = torch.stack([mask.any() for mask in masks.values()]).tolist()
    return {name for name, holds in zip(masks, held, strict=True) if holds}


def _nudged(learning: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Copies of the parameters that have zeros with a gradient, small random numbers in their place."""
    zeros = {name: (parameter.detach() == 0) & given for name, (parameter, given) in learning.items()}
    copies = {}
    for name in sorted(_any(zeros)):
        value = learning[name][0].detach()
        copies[name] = torch.where(zeros[name], NUDGE * torch.randn_like(value), value).requires_grad_()
    return copies


def _shaken(learning: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Copies of what may be a gate, a number or one for each channel, moved a little where it has a gradient."""
    copies = {}
    for name, (parameter, given) in sorted(learning.items()):
        if parameter.dim() <= 1:
            value = parameter.detach()
            copies[name] = (value + NUDGE * torch.randn_like(value) * given).requires_grad_()
    return copies
