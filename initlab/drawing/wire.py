"""The wiring that belongs to a recipe, on a model that was built already."""

from __future__ import annotations

from torch import nn

from initlab.errors import RecipeError
from initlab.models.nanogpt import NanoGPT
from initlab.models.wired import wired
from initlab.recipes import Dims, Recipe


def check(model: nn.Module, recipe: Recipe, dims: Dims) -> None:
    """Refuse a model that isn't wired as the recipe has it.

    Args:
        model: any.
        recipe: drawn into it.
        dims: its sizes.

    Raises:
        RecipeError: it isn't, or that can't be told.
        ConfigError: as `wired` raises it.
    """
    if recipe.wiring is None:
        return
    if not isinstance(model, NanoGPT):
        needed = recipe.wired(dims)
        raise RecipeError(
            f"{recipe.id} is more than a draw: it needs {', '.join(f'{name}={needed[name]!r}' for name in needed)}, "
            f"which {type(model).__name__} can't be given from outside; write it into the model, and draw a recipe of "
            "your own, (role, dims) -> distribution, without the wiring"
        )
    if (other := wired(model.config, recipe)) != model.config:
        wrong = [name for name in vars(other) if getattr(other, name) != getattr(model.config, name)]
        raise RecipeError(
            f"{recipe.id} needs {', '.join(f'{name}={getattr(other, name)!r}' for name in wrong)} in the NanoGPT's "
            "config; it can't be changed once the model is built"
        )
