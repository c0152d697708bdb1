"""What a model's own config, or its init code, says of its init."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from torch import nn

from initlab.anatomy.declaring import Declaration
from initlab.anatomy.holding import values_of
from initlab.anatomy.source import depth_code, written_stds
from initlab.drawing.apply import was_applied
from initlab.recipes import Constant, Dims, Distribution, Normal, Recipe, Role
from initlab.recipes.base import OUTPUTS, VECTORS

_STD = re.compile(r"(^|_)(init(ializer)?_(range|std)|init_method_std|initializer_std)$")
_FACTOR = re.compile(r"(^|_)init(ializer)?_factor$")
_HELD = ("config", "cfg", "args", "hparams")  # where a model keeps it


def declared_stds(model: nn.Module) -> list[float]:
    """List the std that a model's config names: `initializer_range`, `init_std`, …; else factors, of which 1 is one.

    Args:
        model: that holds it.
    """
    numbers = [(name, number) for name, number in _numbers(model) if math.isfinite(number) and number > 0]
    stds = [number for name, number in numbers if _STD.search(name)]
    return stds or [number for name, number in numbers if _FACTOR.search(name)]


def written_std(model: nn.Module) -> Declaration | None:
    """Read the one number that a model's own init code draws normals with.

    Args:
        model: read, never called.

    Returns:
        None where there are several, or other draws, or the model was drawn from a recipe since.
    """
    found = {} if was_applied(model) else written_stds(model)
    return (
        Declaration("std", f"the std in {next(iter(found.values()))}", next(iter(found))) if len(found) == 1 else None
    )


def config_recipe(model: nn.Module, id: str) -> Recipe | None:
    """Make a recipe of the one std that a model's config names; its own code tells whether outputs are depth-scaled.

    Where the config names none it is that of `written_std`.

    Args:
        model: that holds it.
        id: of the recipe.

    Returns:
        None where neither names one, or the model was drawn from a recipe since.
    """
    stds = {number for name, number in _numbers(model) if _STD.search(name) and number > 0}
    if not stds and (written := written_std(model)) is not None:
        stds = {written.said}
    if len(stds) != 1 or was_applied(model):
        return None
    (std,) = stds
    scaled = bool(depth_code(model))

    def rule(role: Role, dims: Dims) -> Distribution:
        if role in VECTORS:
            return Constant(1.0 if role == Role.NORM_GAIN else 0.0)
        return Normal(dims(f"{std!r} / sqrt(2 * n_layer)" if scaled and role in OUTPUTS else f"{std!r}"))

    return Recipe(
        id=id, family="config", summary="the std that the config or the init code names", source="the model", rule=rule
    )


def _numbers(model: nn.Module) -> Iterator[tuple[str, float]]:
    for held in _HELD:
        config = getattr(model, held, None)
        for name, value in ({} if isinstance(config, nn.Module) else values_of(config)).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield name, float(value)
