"""A recipe's rates for one's own training loop: `adam_groups`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from initlab.options import checked_number
from initlab.recipes import Base, Recipe, registry
from initlab.recipes.base import Rule

if TYPE_CHECKING:
    from torch import nn


def adam_groups(
    model: nn.Module,
    recipe: str | Recipe | Rule,
    *,
    lr: float,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    base: Base | None = None,
    roles: Mapping[str, str | None] | None = None,
) -> list[dict[str, Any]]:
    """Group a model's parameters for torch.optim.AdamW, with what the recipe's optimizer part multiplies.

    Matrices decay, vectors and single numbers don't, as in nanoGPT. Make them after `apply_recipe`, which may add
    parameters.

    Args:
        model: torch.nn.Module; frozen parameters are left out.
        recipe: id, `file.py:name` or Recipe; one without an optimizer part has one rate for all.
        lr: the rate that was tuned at the base.
        weight_decay: likewise.
        eps: likewise.
        base: depth and width that they were tuned at. Default: the recipe's own.
        roles: what parameters are for, as `apply_recipe` was told.

    Returns:
        groups with `params`, `lr`, `weight_decay`, `eps`, and `lr_multiplier`: a schedule sets a group's rate to its
        own times that.

    Raises:
        ConfigError: not a model, or a rate that is none.
        RecipeError: unknown recipe, or one that has no answer for a parameter, or two for a fused matrix.

    Example:
        >>> torch.optim.AdamW(initlab.adam_groups(model, "mup", lr=3e-3, base=initlab.Base(n_layer=2, n_embd=64)))
    """
    from initlab.anatomy.unwrapping import bare
    from initlab.api.looking import anatomy_of
    from initlab.drawing import groups

    lr = checked_number("lr", lr, above_0=True)
    weight_decay, eps = checked_number("weight_decay", weight_decay), checked_number("eps", eps)
    inside, entry = bare(model)[0], registry.get(recipe).at(base)
    made = groups.adam_groups(
        inside, entry, lr=lr, weight_decay=weight_decay, eps=eps, anatomy=anatomy_of(inside, roles)
    )
    return [group for group in made if group["params"]]
