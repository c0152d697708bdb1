"""A recipe drawn into a model: `apply_recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from initlab.options import checked_seed
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule

if TYPE_CHECKING:
    from torch import nn


def apply_recipe(
    model: nn.Module, recipe: str | Recipe | Rule, *, seed: int = 0, roles: Mapping[str, str | None] | None = None
) -> tuple[str, ...]:
    """Re-initialise any model in place, by the role of each parameter; paired draws as `compare` makes them.

    A recipe with a wiring (`initlab recipes NAME` shows it) is drawn into a model that has it. Multipliers, and learned
    ones such as LayerScale, are put around a model's modules by forward hooks where that is exact: the model is run
    once more, and has to be wired so. What an earlier recipe put there is taken off. Optimizers that were made before
    don't know the learned ones.

    Args:
        model: torch.nn.Module on any device but meta, also compiled or wrapped; its parameters are overwritten.
        recipe: id, `file.py:name`, Recipe, or function `(role, dims) -> distribution`.
        seed: of the draw; a parameter's numbers depend on it and on the parameter's name alone.
        roles: what parameters are for, by pattern of their names, where that isn't found or found wrongly:
            `{"blocks.*.mix.merge": "attn_out", "blocks.*.keyval": "attn_k"}`; None leaves one as it is.

    Returns:
        names of the parameters that stayed as they were: gates and LayerScale that the recipe has no answer for,
        vectors of no known role, and what `roles` says None of.

    Raises:
        ConfigError: not a model, or a seed that is none.
        RecipeError: unknown recipe, matrices of no known role, or `roles` that don't fit; then nothing was changed.
    """
    from initlab.anatomy.unwrapping import bare
    from initlab.api.looking import anatomy_of, passed
    from initlab.drawing import apply

    model = bare(model)[0]
    anatomy, entry = anatomy_of(model, roles), registry.get(recipe)
    return apply.apply_recipe(model, entry, checked_seed(seed), anatomy=anatomy, look=passed)
