"""Init recipes as data. A recipe of your own: a `Recipe`, or a function `(role, dims) -> distribution`."""

from initlab.recipes.base import (
    Adam,
    Base,
    Constant,
    Dims,
    Distribution,
    Formula,
    Normal,
    Orthogonal,
    Recipe,
    Role,
    TruncNormal,
    Uniform,
)
from initlab.recipes.registry import RECIPES

__all__ = [
    "Adam",
    "Base",
    "Constant",
    "Dims",
    "Distribution",
    "Formula",
    "Normal",
    "Orthogonal",
    "Recipe",
    "Role",
    "TruncNormal",
    "Uniform",
]

RECIPES.load()  # in the catalogue's order, whichever family is asked for first
