"""How a model was initialised: the std of every role, the recipes that it fits, and what doesn't fit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from initlab.anatomy.look import Anatomy
from initlab.anatomy.parameters import Parameter
from initlab.anatomy.source import depth_code
from initlab.drawing import wire
from initlab.drawing.answers import Answers
from initlab.drawing.apply import was_applied
from initlab.drawing.uneven import odd_rows
from initlab.errors import RecipeError
from initlab.recipes import Distribution, Recipe, Role, registry
from initlab.recipes.base import OUTPUTS

TOLERANCE = 0.05  # relative, of a std; wider where a tensor is too small to tell
_SAMPLE = 1 << 17  # elements that the kurtosis is taken from
_VECTORS = 64  # rows, and columns, that are looked at for equal lengths


@dataclass(frozen=True, slots=True)
class _Part:
    """What one role has of a fused matrix, or a parameter as a whole."""

    role: Role
    numel: int
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class _Found:
    """One parameter's moments, as the module uses it."""

    place: Parameter
    numel: int
    mean: float
    std: float
    kurtosis: float
    orthogonal: bool = False
    parts: tuple[_Part, ...] = ()  # of a fused matrix, a role each
    odd: tuple[dict[str, Any], ...] = ()  # of `initlab.drawing.uneven`


def describe(anatomy: Anatomy, recipes: Iterable[str | Recipe] | None = None) -> list[dict[str, Any]]:
    """Describe each role and stack of blocks in a row, in the model's order: what was found, what recipes would draw.

    Keys: role, stack, n_layer, n_embd, n (parameters), numel, shape (of the first), mean, std (pooled), std_min,
    std_max, stds (by parameter name), distribution, matches (ids of the recipes that fit every parameter), nearest and
    difference (the id closest in std, and how far it is, relative), expected (per id: std, flat: the same in every
    parameter, each: std by parameter, text, misfits; empty where nothing is expected: of gates, and of role `other`),
    odd (rows that differ from the others of their matrix, see `initlab.drawing.uneven`), depth_code (the model's own
    code that scales by depth, unless apply_recipe has overruled it). Gates and what is of role `other` come last.

    Raises:
        RecipeError: an unknown recipe, or a model on the meta device.
    """
    model = anatomy.model
    known = _possible(anatomy) if recipes is None else [registry.get(each) for each in recipes]
    parameters = dict(model.named_parameters())
    if any(parameter.is_meta for parameter in parameters.values()):
        raise RecipeError(f"{type(model).__name__} is on the meta device: it has shapes but no weights to describe")
    groups: dict[tuple[Role, str], list[_Found]] = {}
    for place in anatomy.parameters:
        groups.setdefault((place.role, place.stack), []).append(_moments(place, parameters[place.name]))
    # on a model that was drawn anew on purpose, its own code no longer says what was meant
    outputs = [place.name for place in anatomy.parameters if place.role in OUTPUTS]
    code = "" if was_applied(model) else depth_code(model, outputs)
    rows = []
    answers = Answers(anatomy.parameters)
    for (role, stack), group in groups.items():
        shape = tuple(parameters[group[0].place.name].shape)
        row = _row(group, known, answers)
        rows.append({"role": role.value, "stack": stack, "shape": shape, **row, "depth_code": code})
    return sorted(rows, key=lambda row: row["role"] in (Role.GATE, Role.OTHER))


def _possible(anatomy: Anatomy) -> list[Recipe]:
    """Recipes that a model can have been drawn from: not those that need another wiring, or a base to be asked with."""
    dims = anatomy.parameters[0].dims if anatomy.parameters else None
    return [
        each
        for each in registry.all_recipes().values()
        if each.base is None and (dims is None or wire.fits(anatomy, each, dims))
    ]


def _moments(place: Parameter, parameter: Tensor) -> _Found:
    values = parameter.detach()
    orthogonal = _is_orthogonal(values)
    padding = None
    if place.padding_row is not None and not bool(values[place.padding_row].any()):
        padding = place.padding_row % len(values)
    odd = odd_rows(values, place, padding)
    if padding is not None:
        values = torch.cat([values[:padding], values[padding + 1 :]])
    values = values + place.offset if place.offset else values
    whole = _part(place.role, values)
    if not whole.numel:
        return _Found(place, 0, 0.0, 0.0, math.nan)
    parts = _parts(place, values)
    return _Found(place, whole.numel, whole.mean, whole.std, _kurtosis(values, whole), orthogonal, parts, tuple(odd))


def _kurtosis(values: Tensor, whole: _Part) -> float:
    """Fourth moment ÷ variance squared; NaN where nothing varies."""
    if not 0 < whole.std < math.inf:
        return math.nan
    sample = values.float().flatten()
    sample = sample[:: max(1, len(sample) // _SAMPLE)]
    centred = (sample - whole.mean).div_(whole.std)  # of numbers near 1, fourth powers stay in float32
    square = torch.dot(centred, centred) / len(centred)
    if not square > 0:
        return math.nan
    squares = centred.square_()
    return (torch.dot(squares, squares) / len(squares) / square.double().square()).item()


def _part(role: Role, values: Tensor) -> _Part:
    values = values.float().flatten()
    if not len(values):
        return _Part(role, 0, 0.0, 0.0)
    # torch.var isn't vectorised on the CPU, a dot product is; around a large mean (gains) that one is too coarse
    mean, square = values.mean(), values.dot(values) / len(values)
    if square == math.inf and bool(values.isfinite().all()):  # finite, but too large for its squares in float32
        values = values.double()
        mean, square = values.mean(), values.dot(values) / len(values)
    var = square - mean * mean
    if var < 0.01 * square:
        var = torch.var(values, correction=0)
    return _Part(role, len(values), mean.item(), math.sqrt(max(var.item(), 0.0)))


def _parts(place: Parameter, values: Tensor) -> tuple[_Part, ...]:
    axis = place.axis if values.dim() > 1 else 0
    if len({role for _, role, _ in place.parts}) < 2 or sum(n for n, _, _ in place.parts) != values.shape[axis]:
        return ()
    held: dict[Role, list[Tensor]] = {}
    cut = values.split([size for size, _, _ in place.parts], axis)
    for (_, role, _), piece in zip(place.parts, cut, strict=True):
        held.setdefault(role, []).append(piece)
    return tuple(_part(role, torch.cat(pieces, axis)) for role, pieces in held.items())


def _is_orthogonal(values: Tensor) -> bool:
    """Its rows, or its columns, all have the same length: independent entries scatter by √(2/length) in the square."""
    if values.dim() < 2 or min(values.shape[-2:]) < 2:
        return False
    for vectors in (values[..., :_VECTORS, :], values[..., :_VECTORS].mT):
        squares = vectors.float().square().sum(-1)
        var, mean = torch.var_mean(squares.flatten(), correction=0)
        # bfloat16 rounds every entry by up to 0.4 %, which averages out
        if mean > 0 and var.sqrt() < min(0.01, 0.1 * math.sqrt(2 / vectors.shape[-1])) * mean:
            return True
    return False


def _row(group: list[_Found], recipes: list[Recipe], answers: Answers) -> dict[str, Any]:
    numel = sum(found.numel for found in group)
    std = _pooled((found.numel, found.std) for found in group)
    distribution = _distribution(group, std, numel)
    expected = {}
    known: dict[Any, dict[str, Any]] = {}
    for recipe in recipes:
        try:
            wanted = _expected(group, recipe, distribution, answers, known)
        except RecipeError:  # it has no answer for this role in this model, so it isn't the one
            continue
        if wanted:
            expected[recipe.id] = wanted
    distance = {id: _distance(std, each["std"]) for id, each in expected.items()}
    nearest = min(distance, key=lambda id: (distance[id], len(expected[id]["misfits"])), default="")
    return {
        "n_layer": group[0].place.dims.n_layer,
        "n_embd": group[0].place.dims.n_embd,
        "n": len(group),
        "mean": sum(found.numel * found.mean for found in group) / max(numel, 1),
        "numel": numel,
        "std": std,
        "stds": {found.place.name: found.std for found in group},
        "std_min": min(found.std for found in group),
        "std_max": max(found.std for found in group),
        "distribution": distribution,
        "matches": [id for id, each in expected.items() if not each["misfits"]],
        "nearest": nearest,
        "difference": distance.get(nearest, math.inf),
        "expected": expected,
        "odd": [each for found in group for each in found.odd],
    }


def _expected(
    group: list[_Found],
    recipe: Recipe,
    distribution: str,
    answers: Answers,
    known: dict[Any, dict[str, Any]],
) -> dict[str, Any]:
    """What the recipe draws for these parameters, and the names of those that were drawn otherwise; or nothing.

    What is `known` is of other recipes: many draw the same, gains and biases above all.
    """
    values = [answers.of(found.place, recipe) for found in group]
    if not all(values):
        return {}
    told = {id(each): each for each in values}  # a recipe that doesn't ask for the block has one answer for all
    alike = {at: tuple((one.kind, float(one.std), float(one.mean)) for one in each) for at, each in told.items()}
    key = tuple(alike[id(each)] for each in values)
    if key not in known:
        known[key] = _beside(group, values, distribution)
    first = values[-1][0]
    return {**known[key], "text": first.formula.removeprefix("std = ").removeprefix("value = ")}


def _beside(group: list[_Found], values: list[list[Distribution]], distribution: str) -> dict[str, Any]:
    """Found beside drawn, of distributions that hold a parameter's parts each."""
    misfits: list[_Found] = []
    stds = []
    each: dict[str, float] = {}
    for found, answer in zip(group, values, strict=True):
        told = {answer[0].kind, distribution}
        other = told == {"normal", "uniform"} or (len(told) == 2 and "orthogonal" in told)
        if len(answer) == 1:
            std, mean = float(answer[0].std), float(answer[0].mean)
        else:
            drawn = [(size, role, value) for (size, role, _), value in zip(found.place.parts, answer, strict=True)]
            std, mean = _pooled((size, float(value.std)) for size, _, value in drawn), _mean(drawn)
        for part in found.parts:
            own = [piece for piece in drawn if piece[1] == part.role]
            fits = _fits_one(part, _mean(own), _pooled((size, float(value.std)) for size, _, value in own))
            other = other or not fits
        if not found.parts:
            other = other or not _fits_one(_Part(found.place.role, found.numel, found.mean, found.std), mean, std)
        stds.append((found.numel, std))
        each[found.place.name] = std
        if other:
            misfits.append(found)
    whole = _pooled(stds)
    if not misfits and not _close(_pooled((f.numel, f.std) for f in group), whole, sum(f.numel for f in group)):
        misfits = group
    return {
        "std": whole,
        "flat": len({round(std, 12) for _, std in stds}) == 1,
        "each": each,
        "mean": mean,
        "kind": answer[0].kind,
        "misfits": [found.place.name for found in misfits],
        "misfit_std": _pooled((found.numel, found.std) for found in misfits),
        "misfit_mean": sum(f.numel * f.mean for f in misfits) / max(1, sum(f.numel for f in misfits)),
    }


def _mean(drawn: list[tuple[int, Role, Distribution]]) -> float:
    return sum(size * float(value.mean) for size, _, value in drawn) / sum(size for size, _, _ in drawn)


def _fits_one(found: _Part, mean: float, std: float) -> bool:
    if not found.numel:
        return True
    if std == 0:
        return found.std <= 1e-3 * abs(mean) + 1e-8 and abs(found.mean - mean) <= TOLERANCE * abs(mean) + 1e-8
    error = 5 * std / math.sqrt(found.numel) + TOLERANCE * std
    return _close(found.std, std, found.numel) and abs(found.mean - mean) <= error


def _close(found: float, expected: float, numel: int) -> bool:
    """Within 5 %, or within four standard errors of a normal's std where those are wider."""
    return abs(found - expected) <= max(TOLERANCE, 4 / math.sqrt(2 * max(numel, 1))) * expected + 1e-8


def _pooled(stds: Iterable[tuple[int, float]]) -> float:
    pairs = list(stds)
    total = sum(numel for numel, _ in pairs)
    return math.sqrt(sum(numel * std * std for numel, std in pairs) / total) if total else 0.0


def _distance(found: float, expected: float) -> float:
    return 0.0 if found == expected else abs(found / expected - 1) if expected else math.inf


def _distribution(group: list[_Found], std: float, numel: int) -> str:
    """By kurtosis: 3 of a normal, 1.8 of a uniform, between them a normal with its tails cut. Empty where unclear."""
    if all(found.std <= 1e-6 * abs(found.mean) for found in group):
        return "constant"
    if all(found.orthogonal for found in group):
        return "orthogonal"
    weighed = [(found.numel, found.kurtosis) for found in group if not math.isnan(found.kurtosis)]
    size = sum(n for n, _ in weighed)
    if not size or not math.isfinite(std):
        return ""
    kurtosis = sum(n * k for n, k in weighed) / size
    error = 0.1 + 4 * math.sqrt(24 / min(size, _SAMPLE))
    normal, uniform = abs(kurtosis - 3) <= error, abs(kurtosis - 1.8) <= error
    if normal or uniform:
        return "" if normal and uniform else "normal" if normal else "uniform"
    return "cut normal" if 1.8 < kurtosis < 3 else "heavy tails" if kurtosis > 3 else "other"
