"""A recipe drawn into a model: `apply_recipe`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule

if TYPE_CHECKING:
    from torch import nn


def apply_recipe(model: nn.Module, recipe: str | Recipe | Rule, *, seed: int = 0) -> None:
    """Re-initialise any model in place, by the role of each parameter; paired draws as `compare` makes them.

    Args:
        model: torch.nn.Module on any device but meta, also compiled or wrapped; every parameter is overwritten.
        recipe: id, `file.py:name`, Recipe, or function `(role, dims) -> distribution`.
        seed: of the draw; a parameter's numbers depend on it and on the parameter's name alone.

    Raises:
        ConfigError: not a model.
        RecipeError: unknown recipe, or a model whose parameters' roles are unknown; then nothing was changed.
    """
    from initlab.anatomy.unwrapping import bare
    from initlab.drawing import apply

    apply.apply_recipe(bare(model)[0], registry.get(recipe), seed)
