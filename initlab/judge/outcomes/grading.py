"""Prediction x outcome: what the probe said before training, what training did, and whether the two agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from initlab.judge.cache import kept
from initlab.judge.judging import judged
from initlab.judge.outcomes.measures import ESCAPE_MARGIN, losses, run_measures, whole
from initlab.judge.outcomes.pairs import PAIRS_DEFINITION, Pair, pairs
from initlab.judge.rules import Finding
from initlab.judge.rules.fresh import before_training
from initlab.judge.students import Mean
from initlab.judge.words import listed, plural
from initlab.rundir import Run

WORSE = 0.05  # nats of regret beyond another recipe's that count as training worse

OUTCOMES = ("recipe", "n_layer", "predicted", "codes", "outcome", "grade", "why")
OUTCOME_DEFINITIONS: dict[str, str] = {
    "diverges": "half of its runs or more diverged",
    "stuck": "at no rate did most seeds escape the unigram plateau, while those of another recipe did",
    "trains worse": f"its regret is higher than another recipe's by {WORSE:g} nats or more, and the difference is "
    f"separated from 0. {PAIRS_DEFINITION}",
    "undecided": f"{WORSE:g} nats or more above another recipe's, and from none such separated: these seeds can't tell "
    "it from noise; or no recipe escaped the plateau at that depth, so that the runs are too short, or at the wrong "
    "rates, to tell",
    "trains": "everything else",
}
GRADE_DEFINITIONS: dict[str, str] = {
    "agreed": "an error or a telling warning, and it diverges, is stuck or trains worse; or neither error nor warning, "
    "and it trains",
    "missed": "no error and no telling warning, and it diverges, is stuck or trains worse",
    "false alarm": "an error or a telling warning, and it trains as well as the best here",
    "undecided": "training's outcome is undecided, or one of the two is missing; or its warnings tell nothing, and it "
    "trains, or no other recipe trains well",
    "telling": "a warning that not every other recipe draws that trains well at that depth (where none does: not every "
    "other one). What all of them share may cost all of them alike; only a recipe without it would show that",
}
OUTCOME_SCOPE = (
    "Outcomes are of the runs with warmup (the longest swept) where there are any, else of those without: training "
    "without warmup is a harder question, with an answer of its own in the table of effects"
)
_BAD = ("diverges", "stuck", "trains worse")
_NONE = (
    "No other recipe here trains well without {codes}, so that these runs don't show what that costs: add one without."
)
_ALL = "Every recipe that trains well here draws {codes} too."


def outcomes(run: Run, findings: Sequence[Finding]) -> pd.DataFrame:
    """A row per recipe and depth: the probe's verdict beside training's.

    Columns: predicted, the highest severity among errors and warnings, `healthy` without one, `not probed` without a
    probed cell; codes of those errors and warnings, separated by spaces; outcome (OUTCOME_DEFINITIONS, or
    `not trained`); grade (GRADE_DEFINITIONS); why, a sentence with the numbers.

    The prediction for a depth is made of its own probed cells, and of those `findings` (of the whole run) whose rule
    needs several depths.
    """
    measured = run_measures(run)
    rows = []
    for n_layer in _depths(run):
        predictions = predicted(run, n_layer, findings)
        results = _results(measured[measured["n_layer"] == n_layer])
        for recipe in _recipes(run):
            prediction, codes = predictions.get(recipe, ("not probed", ""))
            outcome, why = results.get(recipe, ("not trained", "No seed of it is finished at every rate."))
            grade = graded(prediction, outcome)
            others = {name: result for name, (result, _) in results.items() if name != recipe and name in predictions}
            well = [name for name, result in others.items() if result == "trains"]
            beside = [set(predictions[name][1].split()) for name in well or others]
            if prediction == "warning" and grade != "undecided" and not _telling(set(codes.split()), beside):
                missed = bool(well) and outcome in _BAD
                grade, said = ("missed", _ALL) if missed else ("undecided", _NONE)
                why += f" {said.format(codes=listed(codes.split()))}"
            rows.append((recipe, n_layer, prediction, codes, outcome, grade, why))
    return pd.DataFrame(rows, columns=list(OUTCOMES))


def graded(prediction: str, outcome: str) -> str:
    """The grade of a prediction whose warnings tell something, see GRADE_DEFINITIONS."""
    if outcome in ("undecided", "not trained") or prediction == "not probed":
        return "undecided"
    trouble, bad = prediction in ("error", "warning"), outcome in _BAD
    return "agreed" if trouble == bad else ("missed" if bad else "false alarm")


def _telling(codes: set[str], beside: list[set[str]]) -> bool:
    """Whether one of a recipe's warnings isn't drawn by all that it is compared with."""
    return any(code not in other for other in beside for code in codes)


def predicted(run: Run, n_layer: int, findings: Sequence[Finding]) -> dict[str, tuple[str, str]]:
    """By recipe, the severity word and the codes that its probed cells of one depth draw."""
    found = at_depth(run, n_layer, findings)
    verdicts = {}
    for recipe in dict.fromkeys(each.recipe for each in found):
        own = [each for each in found if each.recipe == recipe and each.status == "fail" and each.severity != "info"]
        errors = [each for each in own if each.severity == "error"]
        codes = " ".join(dict.fromkeys(each.code for each in [*errors, *own]))
        verdicts[recipe] = ("error" if errors else "warning" if own else "healthy", codes)
    return verdicts


def at_depth(run: Run, n_layer: int, findings: Sequence[Finding]) -> list[Finding]:
    """The verdicts on the probed cells of one depth; where a rule needs several, that on the whole run."""
    alone = _alone(before_training(run), n_layer)
    known = {each.recipe for each in alone}
    open_ = {(each.code, each.recipe) for each in alone if each.status == "not_applicable"}
    trends = [each for each in findings if (each.code, each.recipe) in open_ and each.recipe in known]
    answered = {(each.code, each.recipe) for each in trends}
    return [*trends, *(each for each in alone if (each.code, each.recipe) not in answered)]


@kept
def _alone(run: Run, n_layer: int) -> Sequence[Finding]:
    summary = run.tables.summary
    ids = set(summary.loc[summary["n_layer"] == n_layer, "run_id"])
    return judged(Run(run.tables.of(*ids), run.manifest))


def _results(measured: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """By recipe, the outcome at one depth and why."""
    if measured.empty:
        return {}
    warmup = int(measured["warmup"].max())
    runs = measured[measured["warmup"] == warmup]
    table = losses(runs)
    recipes = [str(recipe) for recipe in runs["recipe"].unique()]
    tables = {recipe: found for recipe in recipes if len(found := whole(table, recipe))}
    if not tables:
        return {}
    best_of_all = table.groupby("seed").min().min(axis=1)
    mean = {recipe: Mean.of(found.mean(axis=1) - best_of_all.loc[found.index]) for recipe, found in tables.items()}
    best = min(mean, key=lambda recipe: mean[recipe].value)
    compared = pairs(pd.DataFrame({recipe: found.mean(axis=1) for recipe, found in tables.items()}))
    said = trained_text(runs)
    learned = any(map(_escapes, (own for _, own in runs.groupby("recipe", observed=True))))
    if not learned:
        said += (
            f"; no recipe came {ESCAPE_MARGIN:g} nats below the {float(runs['unigram_loss'].median()):.2f} of token "
            "frequencies: too short, or rates that don't train"
        )
    return {
        recipe: _result(runs[runs["recipe"] == recipe], recipe, mean, best, compared, said, learned)
        for recipe in tables
    }


def _escapes(runs: pd.DataFrame) -> bool:
    """Whether at some rate most seeds of a recipe escaped the plateau."""
    return bool((runs.groupby("lr")["escaped"].mean() > 0.5).any())


def _result(
    runs: pd.DataFrame, recipe: str, mean: dict[str, Mean], best: str, compared: list[Pair], said: str, learned: bool
) -> tuple[str, str]:
    diverged, total = int(runs["diverged"].sum()), len(runs)
    stuck = int((~runs["diverged"] & ~runs["escaped"]).sum())
    behind = [pair for pair in compared if pair.worse == recipe and pair.difference.value >= WORSE]
    # the surest pair speaks; without a second seed there is none, and the largest does
    clearest = min(behind, key=lambda pair: (_known(pair.p_holm), -pair.difference.value), default=None)
    regret = f"regret {_pm(mean[recipe])}"
    regret += ", the lowest here" if recipe == best else f", {best}'s is {_pm(mean[best])}"
    flags = [f"{count} of {total} runs {word}" for count, word in ((diverged, "diverged"), (stuck, "stuck")) if count]
    told = [_pair_text(clearest, len(compared))] if clearest else []
    why = f"{'; '.join([regret, *told, *flags])}; {said}"
    why = f"{why[0].upper()}{why[1:]}."
    if 2 * diverged >= total:
        return "diverges", why
    if not _escapes(runs):
        return ("stuck" if learned else "undecided"), why
    if clearest is None:
        return "trains", why
    return ("trains worse" if clearest.separated else "undecided"), why


def _known(p: float) -> float:
    return 1.0 if math.isnan(p) else p


def _pair_text(pair: Pair, count: int) -> str:
    """`0.263 more than other's (p 0.025, Holm over 36 pairs)`; where not separated, with the seeds it would take."""
    text = f"{pair.difference.value:.3f} more than {pair.better}'s"
    if math.isnan(pair.p_holm):
        return f"{text}, of a single seed"
    more = "" if pair.separated else f": not separated, {_seeds(pair.seeds_needed)} would tell"
    p = f"p {pair.p_holm:.2g}" if pair.p_holm >= 1e-4 else "p < 0.0001"
    return f"{text} ({p}, Holm over {plural(count, 'pair')}{more})"


def _seeds(needed: float) -> str:
    return "not even 100 seeds" if math.isinf(needed) else plural(int(needed), "seed")


def trained_text(runs: pd.DataFrame) -> str:
    """`150 steps at 3 rates (0.001 to 0.01), 40 steps of warmup, 3 seeds`: what the runs have in common."""
    rates, warmups = sorted(runs["lr"].unique()), sorted(int(each) for each in runs["warmup"].unique())
    at = f"{len(rates)} rates ({rates[0]:g} to {rates[-1]:g})" if len(rates) > 1 else f"rate {rates[0]:g}"
    warm = " and ".join(f"{each} steps of warmup" if each else "no warmup" for each in warmups)
    seeds = runs["seed"].nunique()
    return f"{int(runs['steps'].max())} steps at {at}, {warm}, {seeds} seed{'s' if seeds > 1 else ''}"


def _pm(mean: Mean) -> str:
    low, high = mean.interval()
    return f"{mean.value:.3f} ± {(high - low) / 2:.3f}" if math.isfinite(low) else f"{mean.value:.3f}"


def _recipes(run: Run) -> list[str]:
    planned = [str(recipe) for recipe in run.manifest["config"].get("recipes", [])]
    tables = run.tables
    seen = [str(recipe) for frame in (tables.summary, tables.runs) for recipe in frame["recipe"].dropna().unique()]
    return list(dict.fromkeys([*planned, *seen]))


def _depths(run: Run) -> list[int]:
    return sorted({int(each) for frame in (run.tables.summary, run.tables.runs) for each in frame["n_layer"].unique()})
