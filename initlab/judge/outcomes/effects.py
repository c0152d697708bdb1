"""What differs, and what can't be told apart: paired differences over seeds, with intervals and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from initlab.judge.cache import kept
from initlab.judge.outcomes.measures import losses, run_measures, whole
from initlab.judge.students import LEVEL, Mean, holm
from initlab.rundir import Run

EFFECTS = (
    "question",
    "recipe",
    "versus",
    "n_layer",
    "warmup",
    "seeds",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "verdict",
    "seeds_needed",
)
QUESTIONS: dict[str, str] = {
    "recipe": "loss of a recipe minus that of the baseline (the first recipe), mean over the learning rates",
    "best rate": "the same, each at its own best rate (lowest mean over seeds), which was picked on these "
    "very runs: its interval is a little too narrow",
    "warmup": "what warmup gains: loss of a recipe without warmup minus that with it, mean over the learning rates",
}
# The comparisons that answer a question together: which recipes differ from the baseline at this depth and warmup. All
# of a run as one family would need effects that three seeds rarely separate: without warmup (sd .1) a recipe .6 nats
# worse is found in 86 % of runs of 5 recipes and 2 depths like this, and in 47 % with one family for each question.
FAMILY = ("question", "n_layer", "warmup")
EFFECT_DEFINITION = (
    "Differences are paired: the same seed is the same data order and the same draw of the weights. Intervals are "
    "Student's t over seeds. Comparisons of one question at one depth and warmup are a family; Holm's procedure keeps "
    f"the chance of any false verdict in a family below {LEVEL:.0%} (a run of many families has that chance in each), "
    "and each interval is shown at the level that it held the comparison to, so that a verdict is given exactly where "
    "the interval leaves out 0. Seeds needed: the fewest at which this mean and scatter would be separated at that "
    "level"
)


@kept
def effects(run: Run) -> pd.DataFrame:
    """Every comparison of the run: a row per question (see QUESTIONS), recipe, depth and warmup.

    Columns: versus, what it is compared with (the baseline, or `warmup 0`); warmup, in steps; seeds with both;
    difference in nats, of loss as in `measures.DEFINITIONS`; low and high, see EFFECT_DEFINITION; p; p_holm; verdict,
    of the recipe (or of warmup): `better`, `worse` or `not separated`; seeds_needed, NaN where it is separated or there
    is one seed, inf above 100.
    """
    measured = run_measures(run)
    planned = [str(recipe) for recipe in run.manifest["config"].get("recipes", [])]
    present = [str(recipe) for recipe in measured["recipe"].unique()]
    recipes = [r for r in dict.fromkeys([*planned, *present]) if r in present]
    tables = {
        (int(n_layer), int(warmup)): losses(group)
        for (n_layer, warmup), group in measured.groupby(["n_layer", "warmup"])
    }
    rows = []
    # without the runs of the baseline there is nothing to compare with: another recipe isn't put in its place
    baseline = planned[0] if planned else (recipes[0] if recipes else "")
    for (n_layer, warmup), table in tables.items():
        for recipe in recipes:
            if recipe != baseline:
                one, other = whole(table, recipe), whole(table, baseline)
                rows.append(("recipe", recipe, baseline, n_layer, warmup, over_rates(one, other)))
                rows.append(("best rate", recipe, baseline, n_layer, warmup, at_best(one, other)))
    for recipe, n_layer, warmup, gain in _gains(tables, recipes):
        rows.append(("warmup", recipe, "warmup 0", n_layer, warmup, gain))
    found = [(*keys, mean) for *keys, mean in rows if mean.n]
    return judged(pd.DataFrame(found, columns=[*EFFECTS[:5], "mean"]), list(FAMILY))


def judged(found: pd.DataFrame, family: list[str]) -> pd.DataFrame:
    """Rows with a `mean` of differences, judged by Holm's procedure within each family; columns as `effects`."""
    found = found.reset_index(drop=True)
    means: list[Mean] = list(found["mean"])
    p = np.array([mean.p for mean in means], dtype=float)
    adjusted, levels = np.full(len(found), math.nan), np.full(len(found), math.nan)
    for _, group in found.groupby(family, sort=False) if len(found) else ():
        place = group.index.to_numpy()
        adjusted[place], levels[place] = holm(p[place])
    intervals = [m.interval(level) if m.n > 1 else (math.nan, math.nan) for m, level in zip(means, levels, strict=True)]
    separated = adjusted <= LEVEL
    gains = (found["question"] == "warmup").to_numpy(bool)
    return (
        found.drop(columns="mean")
        .assign(
            seeds=[mean.n for mean in means],
            difference=[mean.value for mean in means],
            low=[low for low, _ in intervals],
            high=[high for _, high in intervals],
            p=p,
            p_holm=adjusted,
            verdict=[
                ("better" if (mean.value > 0) == gain else "worse") if sure else "not separated"
                for mean, sure, gain in zip(means, separated, gains, strict=True)
            ],
            seeds_needed=[
                math.nan if sure else mean.seeds_needed(level)
                for mean, level, sure in zip(means, levels, separated, strict=True)
            ],
        )
        .astype({"seeds": "int64", "difference": float, "low": float, "high": float, "seeds_needed": float})
    )


def over_rates(one: pd.DataFrame, other: pd.DataFrame) -> Mean:
    """Of the paired differences of the mean over the rates that both have."""
    rates = one.columns.intersection(other.columns)
    return Mean.of((one[rates].mean(axis=1) - other[rates].mean(axis=1)).dropna()) if len(rates) else Mean.of([])


def at_best(one: pd.DataFrame, other: pd.DataFrame) -> Mean:
    """Of the paired differences between each one's best rate."""
    if one.empty or other.empty:
        return Mean.of([])
    return Mean.of((one[one.mean().idxmin()] - other[other.mean().idxmin()]).dropna())


def _gains(tables: dict[tuple[int, int], pd.DataFrame], recipes: list[str]) -> Iterator[tuple[str, int, int, Mean]]:
    for (n_layer, warmup), table in tables.items():
        if warmup and (n_layer, 0) in tables:
            for recipe in recipes:
                gain = over_rates(whole(tables[n_layer, 0], recipe), whole(table, recipe))
                yield recipe, n_layer, warmup, gain
