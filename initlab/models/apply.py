"""Draws a recipe's weights into a model."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from initlab.errors import RecipeError
from initlab.models.roles import assign_roles
from initlab.recipes import Constant, Distribution, Normal, Recipe, TruncNormal, Uniform


def apply_recipe(model: nn.Module, recipe: Recipe, seed: int) -> None:
    """Overwrite every parameter of the model, in place, with the recipe's draw.

    Each parameter has its own stream of standard normals on the CPU, keyed by seed and parameter name, which the
    distribution transforms. So two recipes are compared on the same draw, a deeper model shares the blocks of a
    shallower one, and the result is the same on every device. The global random state is left alone.

    Raises:
        RecipeError: the recipe or the model can't be used; then no parameter was changed.
    """
    plan = [(found.name, recipe(found.role, found.dims)) for found in assign_roles(model)]
    parameters = dict(model.named_parameters())
    if any(parameter.is_meta for parameter in parameters.values()):
        raise RecipeError(f"{type(model).__name__} is on the meta device: it has shapes but no weights to draw")
    with torch.no_grad():
        for name, distribution in plan:
            parameter = parameters[name]
            parameter.copy_(draw(distribution, parameter.shape, name, seed))


def draw(distribution: Distribution, shape: torch.Size, name: str, seed: int) -> Tensor:
    """A float32 tensor on the CPU from the distribution, of the stream that belongs to this name and seed."""
    match distribution:
        case Constant(value):
            return torch.full(shape, value, dtype=torch.float32, device="cpu")
        case Normal(std):
            return _standard_normal(shape, name, seed) * std
        case Uniform(bound):
            return torch.erf(_standard_normal(shape, name, seed) / math.sqrt(2)) * bound
        case TruncNormal(scale, cut):
            # inverse CDF: the normal's quantile, squeezed into the part of the distribution that is kept
            inside = torch.erf(_standard_normal(shape, name, seed).double() / math.sqrt(2))
            inside *= math.erf(cut / scale / math.sqrt(2))
            return (torch.erfinv(inside) * math.sqrt(2) * scale).float().clamp_(-cut, cut)


def _standard_normal(shape: torch.Size, name: str, seed: int) -> Tensor:
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(key, "big") >> 1)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
