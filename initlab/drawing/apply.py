"""Draws a recipe's weights into a model."""

from __future__ import annotations

import copy
import hashlib
import math
import weakref
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.look import Anatomy, of
from initlab.anatomy.parameters import Parameter
from initlab.drawing import wire
from initlab.errors import ConfigError, RecipeError
from initlab.recipes import (
    Adam,
    Constant,
    Dims,
    Distribution,
    Normal,
    Orthogonal,
    Recipe,
    Role,
    TruncNormal,
    Uniform,
)

_APPLIED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def apply_recipe(
    model: nn.Module,
    recipe: Recipe,
    seed: int,
    only: Collection[str] | None = None,
    anatomy: Anatomy | None = None,
    look: wire.Look | None = None,
) -> tuple[str, ...]:
    """Overwrite the parameters of the model, in place, with the recipe's draw.

    Each parameter has its own stream of standard normals on the CPU, keyed by seed and parameter name, which the
    distribution transforms. So two recipes are compared on the same draw, a deeper model shares the blocks of a
    shallower one, and the result is the same on every device. The global random state is left alone.

    An embedding's padding row becomes zero, as torch and Hugging Face leave it: it gets no gradient, so it would
    keep for ever what was drawn into it. Gates that the recipe has no answer for, and vectors of no known role, stay
    as they are.

    Args:
        model: its parameters are overwritten, on any device but meta.
        recipe: gives a distribution for each role and size.
        seed: of the draw.
        only: names of the parameters to draw; the others, which may be of unknown role, stay as they are.
        anatomy: of the model, where it was looked at before.
        look: looks at a model by a pass through it, for recipes with a wiring; None: they are drawn into NanoGPTs that
            were built for them alone.

    Returns:
        names of the parameters that were left as they are, though asked for.

    Raises:
        RecipeError: the recipe or the model can't be used; then no parameter was changed.
    """
    anatomy = of(model) if anatomy is None else anatomy
    places = anatomy.all_parameters() if only is None else [p for p in anatomy.parameters if p.name in only]
    answers = [(found, drawn_from(found, recipe)) for found in places]
    plan = [(found, values) for found, values in answers if values]
    parameters = dict(model.named_parameters())
    if any(parameter.is_meta for parameter in parameters.values()):
        raise RecipeError(f"{type(model).__name__} is on the meta device: it has shapes but no weights to draw")
    for found, distributions in plan:
        if any(isinstance(value, Orthogonal) for value in distributions):
            _matrices(found, parameters[found.name].shape)  # raises where they can't be told apart
    if plan and only is None:
        wire.wire(model, recipe, plan[0][0].dims, look)
        left = {name for name, _ in model.named_parameters()}  # but for what was taken off
        answers = [(found, values) for found, values in answers if found.name in left]
        plan = [(found, values) for found, values in answers if values]
    with torch.no_grad():
        for found, distributions in plan:
            parameter = parameters[found.name]
            whole = _drawn(found, distributions, parameter.shape, seed)
            if found.offset:
                whole -= found.offset
            if found.padding_row is not None:
                whole[found.padding_row] = 0.0
            parameter.copy_(whole)
    if only is None:
        _APPLIED.add(model)
    return tuple(found.name for found, values in answers if not values)


def portable(recipe: Recipe, model: nn.Module) -> Recipe:
    """Make the recipe a table of what it draws for this model's parameters: it can be pickled, whatever its rule is.

    Raises:
        RecipeError: the recipe or the model can't be used.
    """
    table: dict[tuple[Role, Dims], Distribution] = {}
    adam: dict[tuple[Role, Dims], Adam] = {}
    looked = of(model)
    for found in looked.parameters:
        for _, role, dims in found.asked() if found.role != Role.OTHER else ():
            adam[role, dims] = _plain(recipe.adam(role, dims))
            if role != Role.GATE or recipe.knows(role, dims):
                table[role, dims] = _plain(recipe(role, dims))
    looked.all_parameters()  # raises where a matrix has no role
    optimizer = None if recipe.optimizer is None else _Table(adam)
    wiring = None if recipe.wiring is None else _Wiring(recipe.wired(next(iter(table))[1]))
    return replace(recipe, rule=_Table(table), optimizer=optimizer, wiring=wiring, base=None)


def _plain(value: Any) -> Any:
    """A user's numbers may be of numpy or torch, and a formula's text isn't needed to draw."""
    return type(value)(**{field.name: float(getattr(value, field.name)) for field in fields(value)})


def asked(anatomy: Anatomy) -> list[tuple[Role, Dims]]:
    """List what every recipe is asked for, to be drawn into a model. Raises RecipeError where a matrix has no role."""
    return [
        (role, dims)
        for found in anatomy.all_parameters()
        if found.role not in (Role.GATE, Role.OTHER)
        for _, role, dims in found.asked()
    ]


@dataclass(frozen=True, slots=True)
class _Table:
    """A recipe's rule, or its optimizer part, for one model."""

    values: dict[tuple[Role, Dims], Any]

    def __call__(self, role: Role, dims: Dims) -> Any:
        return self.values[role, dims]


@dataclass(frozen=True, slots=True)
class _Wiring:
    """A recipe's wiring at one size."""

    values: dict[str, Any]

    def __call__(self, dims: Dims) -> dict[str, Any]:
        return {name: each[dims.layer] if isinstance(each, tuple) else each for name, each in self.values.items()}


def copied(model: nn.Module) -> nn.Module:
    """Copy a model deeply; the copy counts as drawn from a recipe where the model does. Raises ConfigError."""
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # whatever a user's module holds: locks, files, tensors of a graph
        raise ConfigError(
            f"{type(model).__name__} can't be copied ({type(error).__name__}: {error}); changes are tried on a "
            "copy.deepcopy, which needs a model without open files, locks and tensors of a graph"
        ) from error
    if was_applied(model):
        _APPLIED.add(twin)
    return twin


def was_applied(model: nn.Module) -> bool:
    """Tell whether this very object was drawn from a recipe here, whatever its own init code says."""
    return model in _APPLIED


def drawn_from(found: Parameter, recipe: Recipe) -> list[Distribution]:
    """Look up what a parameter is drawn from, part by part of a fused one; nothing where it stays as it is.

    Args:
        found: the parameter.
        recipe: asked.

    Raises:
        RecipeError: the recipe has no answer, or tells parts apart that aren't known of this matrix.
    """
    if found.role == Role.OTHER or (found.role == Role.GATE and not recipe.knows(Role.GATE, found.dims)):
        return []
    asked = found.asked()
    if any(role == Role.ATTN_QKV for _, role, _ in asked) and recipe.splits(found.dims):
        raise RecipeError(
            f"recipe {recipe.id} draws q, k and v differently, and which of them {found.name} holds isn't known; "
            f"say it, as in roles={{{found.name!r}: 'attn_v'}}"
        )
    if len(asked) == 1:
        return [recipe(found.role, found.dims)]
    # a list, of the two or three that differ: sizes that are looked up by their hash count as asked for their block
    answers: list[tuple[Role, Dims, Distribution]] = []
    for _, role, dims in asked:
        if not any(role == known[0] and dims == known[1] for known in answers):
            answers.append((role, dims, recipe(role, dims)))
    return [next(found for to, of_, found in answers if to == role and of_ == dims) for _, role, dims in asked]


def expected(found: Parameter, recipe: Recipe) -> tuple[float, float] | None:
    """Compute mean and std of what a parameter is drawn from, over the parts of a fused one; None where it stays.

    Args:
        found: the parameter.
        recipe: asked.

    Raises:
        RecipeError: as `drawn_from` raises it.
    """
    values = drawn_from(found, recipe)
    if not values:
        return None
    shares = [share for share, _, _ in found.asked()]
    mean, square = (
        sum(share * number for share, number in zip(shares, numbers, strict=True)) / sum(shares)
        for numbers in ([float(v.mean) for v in values], [float(v.mean) ** 2 + float(v.std) ** 2 for v in values])
    )
    return mean, math.sqrt(max(square - mean * mean, 0.0)) if len(set(values)) > 1 else float(values[0].std)


def _drawn(found: Parameter, distributions: list[Distribution], shape: torch.Size, seed: int) -> Tensor:
    """A fused matrix has each part in its own distribution of the same standard normals."""
    if not found.parts:
        return _whole(found, distributions[0], shape, seed)
    axis = 0 if len(shape) == 1 else found.axis
    sizes = [size for size, _, _ in found.parts]
    # drawn whole, then cut: queries, keys and values keep the numbers that the matrix has under any other recipe
    kinds = {d: _whole(found, d, shape, seed).split(sizes, axis) for d in dict.fromkeys(distributions)}
    return torch.cat([kinds[d][place] for place, d in enumerate(distributions)], axis)


def _whole(found: Parameter, distribution: Distribution, shape: torch.Size, seed: int) -> Tensor:
    if isinstance(distribution, Orthogonal):
        return _orthogonal(found, distribution.gain, _standard_normal(shape, found.name, seed))
    return draw(distribution, shape, found.name, seed)


def _orthogonal(found: Parameter, gain: float, normal: Tensor) -> Tensor:
    """torch.nn.init.orthogonal_ of every single matrix: each expert's, and each of q, k and v in a fused one."""
    axis, matrices = _matrices(found, normal.shape)
    out = torch.empty_like(normal)
    for places in matrices:
        index = torch.tensor(places)
        out.index_copy_(axis, index, gain * orthonormal(normal.index_select(axis, index)))
    return out


def orthonormal(normal: Tensor) -> Tensor:
    """Turn standard normals into (semi-)orthogonal matrices, as torch.nn.init.orthogonal_.

    Args:
        normal: matrices in the last two dimensions.
    """
    tall = normal.shape[-2] >= normal.shape[-1]
    q, r = torch.linalg.qr(normal if tall else normal.mT)
    # QR leaves the signs open; the diagonal's make the draw uniform over orthogonal matrices (math-ph/0609050)
    q *= r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q if tall else q.mT


def _matrices(found: Parameter, shape: torch.Size) -> tuple[int, list[list[int]]]:
    """The dimension (-2 or -1) along which single matrices are stacked, and the indices of each one.

    Parts of equal fan_out are cut in order; where heads are interleaved, these are blocks of the right size, not q.
    """
    parts = found.parts or ((0, found.role, found.dims),)
    fan_in = found.dims.fan_in
    for axis, other in ((-2, -1), (-1, -2)):
        if len(shape) < 2 or shape[other] != fan_in:
            continue
        rows: dict[int, list[int]] = {}
        start = 0
        for size, _, dims in parts:
            size = size or shape[axis]
            rows.setdefault(dims.fan_out, []).extend(range(start, start + size))
            start += size
        if start == shape[axis] and all(len(places) % fan_out == 0 for fan_out, places in rows.items()):
            return axis, [p[i : i + fan_out] for fan_out, p in rows.items() for i in range(0, len(p), fan_out)]
    raise RecipeError(
        f"{found.name} of shape {tuple(shape)} can't be drawn orthogonal: it isn't made of matrices of "
        f"{fan_in} × {parts[0][2].fan_out}; use a recipe whose entries are independent, such as xavier"
    )


def draw(distribution: Constant | Normal | Uniform | TruncNormal, shape: torch.Size, name: str, seed: int) -> Tensor:
    """Draw a float32 tensor on the CPU from the distribution, of the stream that belongs to this name and seed."""
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
