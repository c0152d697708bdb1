"""Which recipe a model was drawn from, and what doesn't fit it: verdicts on the rows of `drawing.describe`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from initlab.errors import RecipeError
from initlab.judge.words import trimmed, unlike
from initlab.recipes.base import INNER, OUTPUTS, VECTORS

# Published models of today were pre-trained from these; of several that fit, the first is the reference.
REFERENCES = (
    "nanogpt",
    "hf-llama",
    "torchtitan-llama3",
    "small-init-wang-neox",
    "small-init-wang-litgpt",
    "olmo-mitchell",
    "olmo-full-megatron",
    "olmo-normal",
)
CONFIG = "config"  # id of the recipe that a model's own config makes
TOLERANCE = 0.05  # relative, of a std: "has the value that it would have without depth scaling"
# Of recipes that fit equally many roles, those whose std are likelier by more than four standard errors stand alone.
_CLOSER = 16.0
_ODD_SHOWN = 4  # sentences on rows that differ from the others of their matrix
_UNEXPLAINED = 0.003  # relative error of a std beside sampling: rounding, rows of padding


def best_recipes(rows: Sequence[dict[str, Any]]) -> tuple[list[str], int]:
    """The recipes that fit most roles (weight matrices first), and how many rows they don't fit.

    Of those, the ones with the fewest misfitting parameters, and whose std are as close as chance allows: recipes
    may lie within the tolerance of each other. Empty, unless they fit more than half of the weight matrices' rows.
    """
    described = compared(rows)
    matrices = [row for row in described if row["role"] not in VECTORS]
    scores = {id: _score(id, described) for row in described for id in row["expected"]}
    top = max(scores.values(), default=(0, 0))
    if 2 * top[0] <= len(matrices):
        return [], len(described)
    left = {id: _misfitting(id, described) for id, score in scores.items() if score == top}
    best = [id for id, count in left.items() if count == min(left.values())]
    off = {id: _deviation(id, matrices) for id in best}
    return [id for id in best if off[id] <= min(off.values()) + _CLOSER], len(described) - sum(top)


def compared(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pick the rows that a recipe says anything of: neither gates nor what is of no known role.

    Args:
        rows: of `initlab.drawing.describe.describe`.
    """
    return [row for row in rows if row["expected"]]


def coverage(rows: Sequence[dict[str, Any]]) -> tuple[int, int, list[str]]:
    """Count parameters that were compared, and all; and name those that weren't.

    Args:
        rows: of `initlab.drawing.describe.describe`.
    """
    left = [name for row in rows if not row["expected"] for name in row["stds"]]
    total = sum(row["n"] for row in rows)
    return total - len(left), total, left


def same_draws(rows: Sequence[dict[str, Any]], ids: Sequence[str]) -> list[list[str]]:
    """The ids in groups that would draw this very model alike, in the order of their first member."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for id in ids:
        drawn = [row["expected"].get(id, {}) for row in compared(rows)]
        groups.setdefault(tuple((d.get("kind"), d.get("mean"), d.get("std")) for d in drawn), []).append(id)
    return list(groups.values())


def mismatches(rows: Sequence[dict[str, Any]], recipes: Sequence[str] | None = None) -> list[str]:
    """Say what doesn't fit the recipe that the model was meant to have, in sentences.

    Args:
        rows: of `initlab.drawing.describe.describe`.
        recipes: what was meant, ids among those described; of several the closest. None: the recipe that fits most
            roles, or nanogpt where the model's own code scales by depth and its weights aren't scaled.

    Raises:
        RecipeError: an id that the rows weren't compared with.
    """
    described = compared(rows)
    if recipes is None:
        best, _ = best_recipes(rows)
        if not best:
            return [_nothing_known(described), *_odd("", described)]
        unscaled = "nanogpt-no-depth-scale" in best and "nanogpt" not in best
        if unscaled and described[0]["depth_code"] and "nanogpt" in described[0]["expected"]:
            best = ["nanogpt"]
    else:
        for id in recipes:
            if not any(id in row["expected"] for row in described):
                raise RecipeError(f"recipe {id!r} is not among those that the model was compared with")
        best = sorted(recipes, key=lambda id: _score(id, described), reverse=True)
    return [*_misfits(best[0], described), *_odd(best[0], described)] if best else []


def reference_of(rows: Sequence[dict[str, Any]], closest: str = "") -> str:
    """The recipe that the model is nearest to, among those that models are trained from, and its config's own numbers.

    Without one that fits more than half of the roles it is any other that does, then the config's, else nanogpt.

    Args:
        rows: of `drawing.describe`.
        closest: of all known recipes the one that fits most roles, where one does.
    """
    best, _ = best_recipes(narrowed(rows))
    if not best and closest:
        return closest
    declared = any(CONFIG in row["expected"] for row in rows)
    return next((id for id in (*REFERENCES, CONFIG) if id in best), CONFIG if declared else "nanogpt")


def unscaled(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], list[str]]]:
    """Output projections whose std is closer to the inputs' than to 1/√(2·n_layer) of it, row by row.

    None in a row that fits a recipe which scales by depth, or block by block.
    """
    inputs: dict[str, float] = {}
    for row in rows:
        if row["role"] in INNER:  # of a block that is drawn otherwise the median knows nothing
            usual = median(row["stds"].values()) if row.get("stds") else row["std"]
            inputs[row["stack"]] = max(usual, inputs.get(row["stack"], 0.0))
    whole, _ = best_recipes(rows)  # by itself a std may lie near any of a dozen recipes'
    found = []
    for row in rows:
        beside = inputs.get(row["stack"], 0.0) if row["role"] in OUTPUTS else 0.0
        scaled = any(id in whole and "layer" in row["expected"][id]["text"] for id in row["matches"])
        if beside > 0 and row["n_layer"] > 1 and not scaled:
            limit = beside**2 / math.sqrt(2 * row["n_layer"])
            found.append((row, [name for name, each in row["stds"].items() if each**2 > limit]))
    return found


def outputs_as_drawn(rows: Sequence[dict[str, Any]], declared: Sequence[float] = ()) -> dict[str, Any]:
    """Say for a run's manifest which output projections aren't scaled by depth, and by what that is published.

    Keys: `names` of these parameters, their `stds`; `like`: the recipe nearest to the model, of those that models are
    trained from, or its config where that names the std of all of these, "" where neither does; `so`: whether that
    draws them as they are. A role of which single parameters alone are as wide isn't unscaled: these are odd.

    Args:
        rows: of `drawing.describe`.
        declared: std that the model's config names.
    """
    wide = [(row, names) for row, names in unscaled(rows) if 2 * len(names) > len(row["stds"])]
    found = [(name, row["stds"][name]) for row, names in wide for name in names]
    likely = [id for id in best_recipes(narrowed(rows))[0] if id != CONFIG]
    stds = [std for _, std in found]
    named = stds and all(any(abs(std / each - 1) < TOLERANCE for each in declared) for std in stds)
    like = next((id for id in REFERENCES if id in likely), CONFIG if named else "")
    off = [name for row, _ in wide for name in row["expected"].get(like, {"misfits": []})["misfits"]]
    so = 3 * len(off) <= len(found)
    return {"names": [name for name, _ in found], "stds": stds, "like": like, "so": bool(found and like and so)}


def narrowed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out all comparisons but those with the references.

    Args:
        rows: of `drawing.describe`.
    """
    known = compared(rows)
    kept = (*REFERENCES, CONFIG)
    return [row | {"expected": {id: e for id, e in row["expected"].items() if id in kept}} for row in known]


def _score(id: str, described: Sequence[dict[str, Any]]) -> tuple[int, int]:
    fitting = [row for row in described if id in row["matches"]]
    matrices = sum(row["role"] not in VECTORS for row in fitting)
    return matrices, len(fitting) - matrices


def _misfitting(id: str, described: Sequence[dict[str, Any]]) -> int:
    return sum(len(row["expected"][id]["misfits"]) for row in described if id in row["expected"])


def _deviation(id: str, matrices: Sequence[dict[str, Any]]) -> float:
    """Squared distance of the fitting rows' std from the recipe's, in their standard errors."""
    total = 0.0
    for row in matrices:
        wanted = row["expected"].get(id, {"std": 0.0})["std"]
        if id in row["matches"] and wanted > 0 and row["std"] > 0:
            total += math.log(row["std"] / wanted) ** 2 / (1 / (2 * row["numel"]) + _UNEXPLAINED**2)
    return total


def _nothing_known(described: Sequence[dict[str, Any]]) -> str:
    if not described:
        return "no known recipe: nothing to compare"
    known = [row["role"] for row in described if row["matches"] and row["role"] not in VECTORS]
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


def _odd(id: str, described: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of one matrix that differ from its others; whole parts of a fused one only where no recipe explains them."""
    shown = []
    for row in described:
        misfits = row["expected"].get(id, {"misfits": list(row["stds"])})["misfits"]
        for odd in row["odd"]:
            if odd["name"] in misfits or not odd["part"]:
                shown.append(unlike(odd["which"], odd["rms"], odd["rest"], 2))
    more = len(shown) - _ODD_SHOWN
    held = "1 more matrix holds" if more == 1 else f"{more} more matrices hold"
    return shown[:_ODD_SHOWN] + ([f"{held} such rows"] if more > 0 else [])


def _found_text(wanted: dict[str, Any]) -> str:
    mean, std = wanted["misfit_mean"], wanted["misfit_std"]
    if std <= 1e-6 * abs(mean) or std == 0:
        return f"the value {trimmed(mean)}"
    return f"std {trimmed(std, 2)}" + (f" and mean {trimmed(mean, 2)}" if abs(mean) > std / 5 else "")


def _wanted_text(wanted: dict[str, Any]) -> str:
    value = f"{trimmed(wanted['mean' if wanted['kind'] == 'constant' else 'std'], 2)}"
    text = wanted["text"].replace(" / ", "/").replace("2 * n_layer", "2*n_layer")
    if wanted["kind"] not in ("normal", "constant"):
        return f"{value} ({wanted['kind']}, {text})"
    return value if text == value else f"{text} = {value}"


def _reason(row: dict[str, Any], wanted: dict[str, Any]) -> str:
    plain = row["expected"].get("nanogpt-no-depth-scale", {"std": 0.0})["std"]
    if (
        row["role"] not in OUTPUTS
        or "n_layer" not in wanted["text"]
        or abs(wanted["misfit_std"] - plain) > TOLERANCE * plain
    ):
        return ""
    return ": not depth-scaled" + (f", though {row['depth_code']} says so" if row["depth_code"] else "")


def _name(id: str) -> str:
    return "nanogpt (GPT-2's init)" if id == "nanogpt" else id


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
