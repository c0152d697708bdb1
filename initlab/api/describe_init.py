"""What a model was initialised with: `describe_init`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from initlab.judge.matching import mismatches
from initlab.report.describe import describe_text
from initlab.results import Description

if TYPE_CHECKING:
    from torch import nn


def describe_init(model: nn.Module) -> Description:
    """Describe how a model was initialised: the std found per role, the recipes that fit, and what doesn't.

    Args:
        model: any torch.nn.Module with weights; nothing is run or changed.

    Returns:
        Description; its `str` is the table, `.rows` the data, `.mismatches` the sentences.

    Raises:
        ConfigError: not a model.
        RecipeError: the model is on the meta device.
    """
    from initlab.anatomy.look import of
    from initlab.anatomy.unwrapping import bare
    from initlab.drawing.describe import describe

    rows = describe(of(bare(model)[0]))
    return Description(rows, mismatches(rows), describe_text(rows))
