"""Admin's profiled ω: how much larger than each branch the stream is, measured on a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from initlab.drawing.profiled import Subject
from initlab.errors import RecipeError
from initlab.wiring import MLP, Attention, Branch, Linear


def admin_profiled(subject: Subject) -> set[str]:
    """Divide every branch of a post-norm model by its ω; see `initlab.recipes.profiled`.

    Norm(ω·x + f(x)) is norm(x + f(x)/ω), which is what can be given to a model that has no ω: its output matrices and
    biases are divided.

    Args:
        subject: the model, and the batch.

    Raises:
        RecipeError: a block isn't post-norm, or what its branch reads or writes isn't known.
        ConfigError: the forward raises.
    """
    branches = _branches(subject)
    named = dict(subject.model.named_parameters())
    modules = dict(subject.model.named_modules())
    ratio, stream, changed = 1.0, math.nan, set[str]()
    handles = []

    def reads(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal stream
        stream = float(args[0].detach().float().var(correction=0))

    def writes(branch: Branch, keep: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            nonlocal ratio
            own = ratio / keep
            ratio = math.sqrt(ratio**2 * stream + float((output.detach().float() * branch.scale).var(correction=0)))
            for name in filter(None, (_out(branch).weight, _out(branch).bias)):
                named[name].div_(own)
                changed.add(name)
            return output / own

        return hook

    try:
        for branch, keep in branches:
            handles.append(modules[_first(branch).module].register_forward_pre_hook(reads))
            handles.append(modules[_out(branch).module].register_forward_hook(writes(branch, keep)))
        with torch.no_grad():
            subject.run()
    finally:
        for handle in handles:
            handle.remove()
    return changed


def _branches(subject: Subject) -> list[tuple[Branch, float]]:
    """Every branch, in order, with what the stream is multiplied with as it is added.

    Raises:
        RecipeError: a block isn't post-norm, or what its branch reads or writes isn't known.
    """
    kind = type(subject.model).__name__
    wirings = subject.anatomy.seen or subject.anatomy.wirings
    updates = [update for wiring in wirings for block in wiring.blocks for update in block.updates]
    if not updates:
        raise RecipeError(f"admin-profiled needs to know the branches of {kind}, and its blocks weren't understood")
    for update in updates:
        if update.norm is None or len(update.branches) != 1:
            raise RecipeError(
                "admin-profiled is of post-norm blocks, norm(x + f(x)), whose norm takes the stream's scale away; in "
                f"{kind} a branch is added without a norm behind the sum: admin needs norm_placement='post'"
            )
    found = [(update.branches[0], update.keep) for update in updates]
    for branch, _ in found:
        if not isinstance(branch.body, Attention | MLP) or branch.body.out is None or branch.post or branch.gain:
            raise RecipeError(f"admin-profiled can't divide {branch.module}: what it writes isn't a matrix's output")
    return found


def _out(branch: Branch) -> Linear:
    assert isinstance(branch.body, Attention | MLP) and branch.body.out is not None
    return branch.body.out


def _first(branch: Branch) -> Linear:
    """The matrix that reads the stream."""
    return branch.body.query if isinstance(branch.body, Attention) else branch.body.up  # type: ignore[union-attr]
