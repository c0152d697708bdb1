"""What a model was initialised with: `describe_init`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from initlab.judge.matching import mismatches
from initlab.report.describe import describe_text
from initlab.results import Description

if TYPE_CHECKING:
    from torch import nn


def describe_init(model: nn.Module, *, roles: Mapping[str, str | None] | None = None) -> Description:
    """Describe how a model was initialised: the std found per role, the recipes that fit, and what doesn't.

    Args:
        model: any torch.nn.Module with weights; left as it was. It is run once, on a small batch, only where its
            structure and names leave matrices without a role.
        roles: what parameters are for, by pattern of their names, as `apply_recipe` takes it.

    Returns:
        Description; its `str` is the table, `.rows` the data, `.mismatches` the sentences.

    Raises:
        ConfigError: not a model.
        RecipeError: the model is on the meta device, or `roles` don't fit it.
        ProbeError: it is sharded.
    """
    from initlab.anatomy.unwrapping import whole
    from initlab.api.looking import anatomy_of
    from initlab.drawing.describe import describe

    rows = describe(anatomy_of(whole(model), roles))
    return Description(rows, mismatches(rows), describe_text(rows))
