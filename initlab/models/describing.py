"""How a model was initialised: the std of every role, the recipes that it fits, and what doesn't fit."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from initlab.errors import RecipeError
from initlab.models.apply import was_applied
from initlab.models.declared import depth_code
from initlab.models.roles import Parameter, find_roles
from initlab.recipes import Recipe, Role, registry

TOLERANCE = 0.05  # relative, of a std; wider where a tensor is too small to tell
_VECTORS = (Role.NORM_GAIN, Role.NORM_BIAS, Role.BIAS)  # ones and zeros in most recipes: they tell little apart
_OUTPUTS = (Role.ATTN_OUT, Role.MLP_OUT)
_SAMPLE = 1 << 17  # elements that the kurtosis is taken from


@dataclass(frozen=True, slots=True)
class _Found:
    """One parameter's moments, as the module uses it."""

    place: Parameter
    numel: int
    mean: float
    std: float
    kurtosis: float


def describe(model: nn.Module, recipes: Iterable[str | Recipe] | None = None) -> list[dict[str, Any]]:
    """One row per role and stack of blocks, in the model's order: what was found, and what each recipe would draw.

    Keys: role, stack, n_layer, n (parameters), shape (of the first), mean, std (pooled), std_min, std_max (of single
    parameters), distribution, matches (ids of the recipes that fit every parameter), nearest and difference (the id
    closest in std, and how far it is, relative), expected (per id: std, text, misfits), depth_code (the model's own
    code that scales by depth, unless apply_recipe has overruled it). Parameters without a role share a last row, with
    role "" and their names.

    Raises:
        RecipeError: an unknown recipe, or a model on the meta device.
    """
    known = [registry.get(each) for each in (registry.all_recipes() if recipes is None else recipes)]
    parameters = dict(model.named_parameters())
    if any(parameter.is_meta for parameter in parameters.values()):
        raise RecipeError(f"{type(model).__name__} is on the meta device: it has shapes but no weights to describe")
    roles = find_roles(model)
    groups: dict[tuple[Role, str], list[_Found]] = {}
    for place in roles.assigned:
        groups.setdefault((place.role, place.stack), []).append(_moments(place, parameters[place.name]))
    # on a model that was drawn anew on purpose, its own code no longer says what was meant
    code = "" if was_applied(model) else depth_code(model)
    rows = []
    for (role, stack), group in groups.items():
        shape = tuple(parameters[group[0].place.name].shape)
        rows.append({"role": role.value, "stack": stack, "shape": shape, **_row(group, known), "depth_code": code})
    if roles.unassigned:
        rows.append({"role": "", "stack": "", "n": len(roles.unassigned), "names": roles.unassigned})
    return rows


def best_recipes(rows: Sequence[dict[str, Any]]) -> tuple[list[str], int]:
    """The recipes that fit most roles (weight matrices first), and how many rows they don't fit.

    Empty, unless they fit more than half of the weight matrices' rows.
    """
    described = [row for row in rows if row["role"]]
    matrices = [row for row in described if row["role"] not in _VECTORS]
    scores = {id: _score(id, described) for row in described for id in row["expected"]}
    top = max(scores.values(), default=(0, 0))
    if 2 * top[0] <= len(matrices):
        return [], len(described)
    return [id for id, score in scores.items() if score == top], len(described) - sum(top)


def mismatches(rows: Sequence[dict[str, Any]], recipes: Sequence[str] | None = None) -> list[str]:
    """Sentences on what doesn't fit the recipe that the model was meant to have.

    Args:
        recipes: what was meant, ids among those described; of several the closest. None: the recipe that fits most
            roles, or nanogpt where the model's own code scales by depth and its weights aren't scaled.

    Raises:
        RecipeError: an id that the rows weren't compared with.
    """
    described = [row for row in rows if row["role"]]
    if recipes is None:
        best, _ = best_recipes(rows)
        if not best:
            return [_nothing_known(described)]
        unscaled = "nanogpt-no-depth-scale" in best and "nanogpt" not in best
        if unscaled and described[0]["depth_code"] and "nanogpt" in described[0]["expected"]:
            best = ["nanogpt"]
    else:
        for id in recipes:
            if not any(id in row["expected"] for row in described):
                raise RecipeError(f"recipe {id!r} is not among those that the model was compared with")
        best = sorted(recipes, key=lambda id: _score(id, described), reverse=True)
    return _misfits(best[0], described) if best else []


def describe_text(rows: Sequence[dict[str, Any]], recipes: Sequence[str] | None = None) -> str:
    """The rows as an aligned table of at most 100 columns, then sentences: the recipe, and what doesn't fit it."""
    table = [("role", "stack", "n", "shape", "std found", "drawn", "fits")]
    compared = max((len(row.get("expected", {})) for row in rows), default=0)
    for row in rows:
        if row["role"]:
            shape = "×".join(str(size) for size in row["shape"])
            fits = _fits(row, compared)
            table.append(
                (row["role"], _tail(row["stack"]), str(row["n"]), shape, _spread(row), row["distribution"], fits)
            )
    table = table if len(table) > 1 else []
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    lines = [line.rstrip() if len(line.rstrip()) <= 100 else line[:99] + "…" for line in lines]
    lines += [""] if lines else []
    best, left = best_recipes(rows)
    problems = mismatches(rows, recipes)
    if not problems and best:
        shown = " or ".join(best[:3]) + (f" and {len(best) - 3} more" if len(best) > 3 else "")
        lines += _wrapped(f"Initialised as {shown}: every role fits." if not left else f"Closest: {shown}.")
    for sentence in problems:
        lines += _wrapped(sentence[0].upper() + sentence[1:] + ".")
    unknown = [name for row in rows if not row["role"] for name in row["names"]]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        lines += _wrapped(f"No role is known for {', '.join(unknown[:5])}{more}: not compared.")
    return "\n".join(lines)


def _moments(place: Parameter, parameter: Tensor) -> _Found:
    values = parameter.detach()
    if place.padding_row is not None and not bool(values[place.padding_row].any()):
        padding = place.padding_row % len(values)
        values = torch.cat([values[:padding], values[padding + 1 :]])
    values = values.float().flatten()
    values = values + place.offset if place.offset else values
    if not len(values):
        return _Found(place, 0, 0.0, 0.0, math.nan)
    # torch.var isn't vectorised on the CPU, a dot product is; around a large mean (gains) that one is too coarse
    mean, square = values.mean(), values.dot(values) / len(values)
    var = square - mean * mean
    if var < 0.01 * square:
        var = torch.var(values, correction=0)
    sample = values[:: max(1, len(values) // _SAMPLE)].double()
    centred = sample - sample.mean()
    square = centred.square().mean()
    kurtosis = (centred.square() / square).square().mean().item() if square > 0 else math.nan
    return _Found(place, len(values), mean.item(), math.sqrt(max(var.item(), 0.0)), kurtosis)


def _row(group: list[_Found], recipes: list[Recipe]) -> dict[str, Any]:
    numel = sum(found.numel for found in group)
    std = _pooled((found.numel, found.std) for found in group)
    distribution = _distribution(group, std, numel)
    expected = {}
    for recipe in recipes:
        try:
            expected[recipe.id] = _expected(group, recipe, distribution)
        except RecipeError:  # it has no answer for this role in this model, so it isn't the one
            continue
    distance = {id: _distance(std, each["std"]) for id, each in expected.items()}
    nearest = min(distance, key=lambda id: (distance[id], len(expected[id]["misfits"])), default="")
    return {
        "n_layer": group[0].place.dims.n_layer,
        "n": len(group),
        "mean": sum(found.numel * found.mean for found in group) / max(numel, 1),
        "std": std,
        "std_min": min(found.std for found in group),
        "std_max": max(found.std for found in group),
        "distribution": distribution,
        "matches": [id for id, each in expected.items() if not each["misfits"]],
        "nearest": nearest,
        "difference": distance.get(nearest, math.inf),
        "expected": expected,
    }


def _expected(group: list[_Found], recipe: Recipe, distribution: str) -> dict[str, Any]:
    """What the recipe draws for these parameters, and the names of those that were drawn otherwise."""
    misfits: list[_Found] = []
    stds = []
    for found in group:
        parts = found.place.parts or ((1, found.place.dims),)
        drawn = [(size, recipe(found.place.role, dims)) for size, dims in parts]
        std = _pooled((size, float(value.std)) for size, value in drawn)
        mean = sum(size * float(value.mean) for size, value in drawn) / sum(size for size, _ in drawn)
        stds.append((found.numel, std))
        first = drawn[0][1]
        other = {first.kind, distribution} == {"normal", "uniform"}
        if other or not _fits_one(found, mean, std):
            misfits.append(found)
    whole = _pooled(stds)
    if not misfits and not _close(_pooled((f.numel, f.std) for f in group), whole, sum(f.numel for f in group)):
        misfits = group
    text = first.formula.removeprefix("std = ").removeprefix("value = ")
    return {
        "std": whole,
        "mean": mean,
        "kind": first.kind,
        "text": text,
        "misfits": [found.place.name for found in misfits],
        "misfit_std": _pooled((found.numel, found.std) for found in misfits),
        "misfit_mean": sum(f.numel * f.mean for f in misfits) / max(1, sum(f.numel for f in misfits)),
    }


def _fits_one(found: _Found, mean: float, std: float) -> bool:
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


def _score(id: str, described: Sequence[dict[str, Any]]) -> tuple[int, int]:
    fitting = [row for row in described if id in row["matches"]]
    matrices = sum(row["role"] not in _VECTORS for row in fitting)
    return matrices, len(fitting) - matrices


def _nothing_known(described: Sequence[dict[str, Any]]) -> str:
    if not described:
        return "no known recipe: nothing to compare"
    known = [row["role"] for row in described if row["matches"] and row["role"] not in _VECTORS]
    fits = f"; only {_list(list(dict.fromkeys(known)))} would fit one" if known else ""
    return f"no known recipe: the weights are trained, or drawn another way{fits}"


def _misfits(id: str, described: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence per way of being different."""
    several = len({row["stack"] for row in described if row["stack"]}) > 1
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in described:
        wanted = row["expected"].get(id)
        if wanted is None or not wanted["misfits"]:
            continue
        place = f"{row['role']} of {row['stack'] or 'outside the blocks'}" if several else row["role"]
        if len(wanted["misfits"]) < row["n"]:
            place += f" in {len(wanted['misfits'])} of {row['n']} parameters ({wanted['misfits'][0]})"
        groups.setdefault((_found_text(wanted), _wanted_text(wanted), _reason(row, wanted)), []).append(place)
    alone = all(row["expected"].get(id, {}).get("misfits") for row in described)
    lead = f"{_name(id)}: " if alone else f"everything else is {_name(id)}, but "
    return [
        f"{lead}{_list(places)} {'has' if len(places) == 1 else 'have'} {found}, not {wanted}{reason}"
        for (found, wanted, reason), places in groups.items()
    ]


def _found_text(wanted: dict[str, Any]) -> str:
    mean, std = wanted["misfit_mean"], wanted["misfit_std"]
    if std <= 1e-6 * abs(mean) or std == 0:
        return f"the value {mean:.3g}"
    return f"std {std:.2g}" + (f" and mean {mean:.2g}" if abs(mean) > std / 5 else "")


def _wanted_text(wanted: dict[str, Any]) -> str:
    value = f"{wanted['mean' if wanted['kind'] == 'constant' else 'std']:.2g}"
    text = wanted["text"].replace(" / ", "/").replace("2 * n_layer", "2*n_layer")
    if wanted["kind"] not in ("normal", "constant"):
        return f"{value} ({wanted['kind']}, {text})"
    return value if text == value else f"{text} = {value}"


def _reason(row: dict[str, Any], wanted: dict[str, Any]) -> str:
    plain = row["expected"].get("nanogpt-no-depth-scale", {"std": 0.0})["std"]
    if (
        row["role"] not in _OUTPUTS
        or "n_layer" not in wanted["text"]
        or _distance(wanted["misfit_std"], plain) > TOLERANCE
    ):
        return ""
    return ": not depth-scaled" + (f", though {row['depth_code']} says so" if row["depth_code"] else "")


def _name(id: str) -> str:
    return "nanogpt (GPT-2's init)" if id == "nanogpt" else id


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _tail(stack: str) -> str:
    return stack if len(stack) <= 22 else "…" + stack[-21:]


def _spread(row: dict[str, Any]) -> str:
    if row["distribution"] == "constant":
        return f"0 (all {row['mean']:.3g})"
    if f"{row['std_min']:.2g}" == f"{row['std_max']:.2g}":
        return f"{row['std']:.3g}"
    return f"{row['std']:.3g} ({row['std_min']:.2g}–{row['std_max']:.2g})"


def _fits(row: dict[str, Any], compared: int) -> str:
    matches = row["matches"]
    if not matches:
        far = not row["nearest"] or not math.isfinite(row["difference"])
        return "none" if far else f"none; {row['difference']:.0%} off {row['nearest']}"
    if len(matches) == compared and compared > 1:
        return "all"
    return matches[0] + (f" +{len(matches) - 1}" if len(matches) > 1 else "")


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, 100, break_long_words=False, break_on_hyphens=False)
