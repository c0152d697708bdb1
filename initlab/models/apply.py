"""Draws a recipe's weights into a model."""

from __future__ import annotations

import hashlib
import math
import weakref

import torch
from torch import Tensor, nn

from initlab.errors import RecipeError
from initlab.models.roles import Parameter, assign_roles
from initlab.recipes import Constant, Distribution, Normal, Recipe, TruncNormal, Uniform

_APPLIED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def apply_recipe(model: nn.Module, recipe: Recipe, seed: int) -> None:
    """Overwrite every parameter of the model, in place, with the recipe's draw.

    Each parameter has its own stream of standard normals on the CPU, keyed by seed and parameter name, which the
    distribution transforms. So two recipes are compared on the same draw, a deeper model shares the blocks of a
    shallower one, and the result is the same on every device. The global random state is left alone.

    An embedding's padding row becomes zero, as torch and Hugging Face leave it: it gets no gradient, so it would
    keep for ever what was drawn into it.

    Raises:
        RecipeError: the recipe or the model can't be used; then no parameter was changed.
    """
    plan = [(found, _distributions(found, recipe)) for found in assign_roles(model)]
    parameters = dict(model.named_parameters())
    if any(parameter.is_meta for parameter in parameters.values()):
        raise RecipeError(f"{type(model).__name__} is on the meta device: it has shapes but no weights to draw")
    with torch.no_grad():
        for found, distributions in plan:
            parameter = parameters[found.name]
            whole = _drawn(found, distributions, parameter.shape, seed)
            if found.offset:
                whole -= found.offset
            if found.padding_row is not None:
                whole[found.padding_row] = 0.0
            parameter.copy_(whole)
    _APPLIED.add(model)


def was_applied(model: nn.Module) -> bool:
    """Whether this very object was drawn from a recipe here, whatever its own init code says."""
    return model in _APPLIED


def _distributions(found: Parameter, recipe: Recipe) -> list[Distribution]:
    """One per part of a fused matrix."""
    return [recipe(found.role, dims) for dims in ([dims for _, dims in found.parts] or [found.dims])]


def _drawn(found: Parameter, distributions: list[Distribution], shape: torch.Size, seed: int) -> Tensor:
    """A fused matrix has each part in its own distribution of the same standard normals."""
    if not found.parts:
        return draw(distributions[0], shape, found.name, seed)
    axis = 0 if len(shape) == 1 else found.axis
    sizes = [size for size, _ in found.parts]
    # drawn whole, then cut: queries, keys and values keep the numbers that the matrix has under any other recipe
    kinds = {d: draw(d, shape, found.name, seed).split(sizes, axis) for d in dict.fromkeys(distributions)}
    return torch.cat([kinds[d][place] for place, d in enumerate(distributions)], axis)


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
