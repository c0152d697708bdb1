"""A model's init, read and written: `describe_init`, `apply_recipe`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from initlab.judge.inits import mismatches
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule
from initlab.report.inits import describe_text
from initlab.results import Description

if TYPE_CHECKING:
    from torch import nn


def describe_init(model: nn.Module) -> Description:
    """What the model was initialised with: the std found per role, the recipes that fit, and what doesn't.

    Works on any model; its `str` is the table, `.rows` the data, `.mismatches` the sentences.
    """
    from initlab.models.describing import describe

    rows = describe(model)
    return Description(rows, mismatches(rows), describe_text(rows))


def apply_recipe(model: nn.Module, recipe: str | Recipe | Rule, *, seed: int = 0) -> None:
    """Re-initialise any model in place, by the role of each parameter; paired draws as `compare` makes them.

    Raises:
        RecipeError: unknown recipe, or a model whose parameters' roles are unknown; then nothing was changed.
    """
    from initlab.models import apply

    apply.apply_recipe(model, registry.get(recipe), seed)
