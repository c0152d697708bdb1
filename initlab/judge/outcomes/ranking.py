"""Which probe metrics rank recipes by how well they train: Spearman, with the sign learnt elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from initlab.judge.cache import kept
from initlab.judge.judging import judged
from initlab.judge.outcomes.grading import at_depth
from initlab.judge.outcomes.measures import regrets
from initlab.judge.rules.counting import rows_of
from initlab.judge.rules.fresh import before_training
from initlab.judge.words import listed, plural
from initlab.rundir import Run

FEWEST_RECIPES = 5  # fewer have no interval: it would divide by n − 3 = 1 or 0
PROBE = "errors and warnings"  # the metric that the others are compared with
RESAMPLES = 2000

RANKINGS = ("metric", "spearman", "low", "high", "recipes", "depth", "sign", "behind", "behind_low", "behind_high")
RANKING_DEFINITION = (
    "Spearman's rank correlation over recipes between a probe metric (step 0, mean over seeds) and regret (mean over "
    "warmups) at one depth, times the sign that it has on the other depths: near 1, what was learnt there holds here; "
    "near −1, it turned round. With a single depth there is nothing to learn a sign from, and it is that of `larger "
    "is worse`. 95 % intervals by Fisher's z with the variance of Bonett and Wright (2000), from 5 recipes on. They "
    "are of one metric each: of twelve that predict nothing, one will leave out 0 in almost every second report"
)
BEHIND_DEFINITION = (
    f"Behind: the correlation of `{PROBE}` minus that of the metric, over the recipes that have both, with a paired "
    f"bootstrap's 95 % interval: {RESAMPLES} times, as many recipes are drawn from these, with repetition, the same "
    "for both (the sign stays what it was; what is the same for all that were drawn correlates by 0). That one "
    "correlation leaves out 0 and another doesn't is no difference between the two: only an interval here is"
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that a probe gives of a model, oriented so that larger should be worse."""

    name: str
    meaning: str
    measure: Callable[[Run], pd.Series]  # by recipe, n_layer and seed


@kept
def rankings(run: Run) -> pd.DataFrame:
    """A row per metric of METRICS and held-out depth; also of those that predict nothing. See RANKING_DEFINITION.

    Columns: metric; spearman in −1 … 1 (NaN where the metric is the same for every recipe, or wasn't recorded); low and
    high, 95 % (NaN with fewer than FEWEST_RECIPES); recipes, how many are ranked; depth, the n_layer held out; sign
    that was learnt on the other depths, NaN where there is no other; behind, behind_low and behind_high, see
    BEHIND_DEFINITION (NaN of the probe's own, with fewer than FEWEST_RECIPES, and where spearman is).
    """
    trained = regrets(run)
    complete = trained.pivot_table(index=["recipe", "n_layer"], columns="warmup", values="regret").dropna().mean(axis=1)
    probed = before_training(run)
    measured = {metric.name: metric.measure(probed).groupby(["recipe", "n_layer"]).mean() for metric in METRICS}
    depths = sorted({int(depth) for depth in complete.index.get_level_values("n_layer")})
    rows = []
    oriented: dict[str, dict[int, pd.Series]] = {}
    for name, values in measured.items() if depths else ():
        both = pd.concat({"metric": values, "regret": complete}, axis=1).dropna()
        at = {depth: both[both.index.get_level_values("n_layer") == depth] for depth in depths}
        own = {depth: _spearman(group) for depth, group in at.items()}
        oriented[name] = {}
        for depth in depths:
            others = [rho for other, rho in own.items() if other != depth and math.isfinite(rho)]
            sign = float(np.sign(np.mean(others))) if others else math.nan
            turned = sign if others else 1.0
            rho = math.nan if sign == 0 else own[depth] * turned + 0.0
            oriented[name][depth] = at[depth]["metric"] * (turned if math.isfinite(rho) else math.nan)
            rows.append((name, rho, *interval(rho, len(at[depth])), len(at[depth]), depth, sign))
    compared = [
        (math.nan,) * 3 if name == PROBE else behind(oriented[PROBE][depth], oriented[name][depth], complete)
        for name, *_, depth, _ in rows
    ]
    return pd.DataFrame([(*row, *more) for row, more in zip(rows, compared, strict=True)], columns=list(RANKINGS))


def behind(probe: pd.Series, metric: pd.Series, regret: pd.Series) -> tuple[float, float, float]:
    """How far a metric ranks worse than the probe: difference of Spearman's correlations, and its 95 % interval.

    Args:
        probe: by recipe, larger should be worse.
        metric: the same.
        regret: by recipe; those that lack one of the three are left out.

    Returns:
        Difference, low and high, see BEHIND_DEFINITION; NaN below FEWEST_RECIPES.
    """
    known = pd.concat([probe, metric, regret], axis=1, join="inner").dropna().to_numpy(float).T
    n = known.shape[1]
    if n < FEWEST_RECIPES:
        return math.nan, math.nan, math.nan
    drawn = np.vstack([np.arange(n), np.random.default_rng(0).integers(0, n, (RESAMPLES, n))])
    probed, single, lost = (values[drawn] for values in known)
    differences = _correlations(probed, lost) - _correlations(single, lost)
    low, high = np.quantile(differences[1:], (0.025, 0.975))
    return float(differences[0]), float(low), float(high)


def _correlations(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's correlation of each row; 0 where one of the two is constant."""
    ranks = (pd.DataFrame(values).rank(axis=1).to_numpy() for values in (one, other))
    a, b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    found: NDArray[np.float64] = (a * b).sum(axis=1) / np.where(spread > 0, spread, 1.0)
    return found


def compared_text(ranked: pd.DataFrame) -> str:
    """Say what the intervals of `behind` say; empty where there is none.

    Args:
        ranked: of `rankings`.
    """
    known = ranked[ranked["behind_low"].notna()]
    if known.empty:
        return ""
    better, worse = known["behind_low"] > 0, known["behind_high"] < 0
    unclear = int((~better & ~worse).sum())
    rest = f"; in {unclear} of {plural(len(known), 'comparison')} these recipes can't tell" if unclear else ""
    return (
        f"By these intervals the number of {PROBE} ranks recipes better than {_places(known[better])} and worse than "
        f"{_places(known[worse])}{rest}."
    )


def _places(own: pd.DataFrame) -> str:
    """`logit std (4 blocks), token cosine (4 and 24 blocks)`; `no single metric`."""
    found = own.groupby("metric", sort=False)["depth"]
    told = [f"{metric} ({listed([str(each) for each in depths], 6)} blocks)" for metric, depths in found]
    return ", ".join(told) or "no single metric"


def interval(rho: float, n: int) -> tuple[float, float]:
    """95 % interval of Spearman's correlation over n recipes, without ties; NaN below FEWEST_RECIPES.

    Bonett and Wright 2000 (Psychometrika 65): tanh(artanh ρ ± 1.96 √((1 + ρ²/2)/(n − 3))). ρ goes in steps of
    12/(n(n² − 1)), so that a perfect one is taken as half a step below 1, and not as certainty.
    """
    if n < FEWEST_RECIPES or not math.isfinite(rho):
        return math.nan, math.nan
    most = 1 - 6 / (n * (n * n - 1))
    inner = max(-most, min(most, rho))
    half = 1.959964 * math.sqrt((1 + inner * inner / 2) / (n - 3))
    return math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half)


def _spearman(group: pd.DataFrame) -> float:
    ranks = group.rank()
    if len(group) < 3 or (ranks.nunique() < 2).any():
        return math.nan
    return float(np.corrcoef(ranks["metric"], ranks["regret"])[0, 1])


def _by_cell(frame: pd.DataFrame, values: pd.Series) -> pd.Series:
    keys = [frame["recipe"].astype(str), frame["n_layer"].astype(int), frame["seed"].astype(int)]
    return values.astype(float).groupby(keys).mean()


def _summary(run: Run, column: str) -> pd.Series:
    return _by_cell(run.tables.summary, run.tables.summary[column])


def _excess(run: Run) -> pd.Series:
    summary = run.tables.summary
    return _by_cell(summary, (summary["loss"] - summary["ln_vocab"]).abs())


def _own_logit(run: Run) -> pd.Series:
    return _by_cell(run.tables.summary, run.tables.summary["own_logit"].abs())


def _positions(run: Run) -> pd.Series:
    return _by_cell(run.tables.summary, -_log(run.tables.summary["token_position_ratio"]))


def _ends(run: Run, kind: str) -> pd.Series:
    """|ln(variance after the last block / variance at the embedding)|."""
    rows = rows_of(run, kind, "embed", "resid_post")
    last = rows[(rows["site"] == "resid_post") & (rows["layer"] == rows["n_layer"] - 1)]
    first = rows[rows["site"] == "embed"]
    return (_by_cell(last, _log(last["var"])) - _by_cell(first, _log(first["var"]))).abs()


def _mlp_pre(run: Run) -> pd.Series:
    rows = rows_of(run, "activation", "mlp_pre")
    return _by_cell(rows, _log(rows["var"])).abs()


def _writes(run: Run) -> pd.Series:
    """The largest share that one write has of the stream it is added to, ln of the variances' ratio."""
    rows = rows_of(run, "activation", "attn_out", "mlp_out", "resid_pre", "resid_mid")
    keys = ["recipe", "n_layer", "seed", "layer"]
    wide = rows.pivot_table(index=keys, columns="site", values="var", observed=True)
    pairs = [("attn_out", "resid_pre"), ("mlp_out", "resid_mid")]
    found = [_log(wide[write] / wide[stream]) for write, stream in pairs if {write, stream} <= set(wide.columns)]
    if not found:
        return _by_cell(rows.head(0), rows["var"].head(0))
    worst = pd.concat(found).groupby(level=keys[:3], observed=True).max().reset_index()
    return _by_cell(worst, worst.iloc[:, -1])


def _entropy(run: Run) -> pd.Series:
    return _by_cell(run.tables.heads, 1 - run.tables.heads["entropy_frac"])


def _complaints(run: Run) -> pd.Series:
    """Errors and warnings on the cells of a depth, those of trends over the depths among them."""
    counted, everywhere = [], judged(run)
    for n_layer in run.tables.summary["n_layer"].unique():
        found = at_depth(run, int(n_layer), everywhere)
        for recipe in dict.fromkeys(each.recipe for each in found):
            own = [each for each in found if each.recipe == recipe and each.status == "fail"]
            counted.append((recipe, n_layer, 0, sum(each.severity in ("error", "warning") for each in own)))
    frame = pd.DataFrame(counted, columns=["recipe", "n_layer", "seed", "count"])
    return _by_cell(frame, frame["count"])


def _log(values: pd.Series) -> pd.Series:
    """Natural log; NaN of what is zero, negative or not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values.astype(float))
    return logs.where(np.isfinite(logs))


METRICS: tuple[Metric, ...] = (
    Metric("excess first loss", "|loss − ln V|, nats", _excess),
    Metric("logit std", "std of the logits", partial(_summary, column="logit_std")),
    Metric("own-token logit", "|mean logit of the token just read|", _own_logit),
    Metric(
        "stream growth", "|ln(variance after the last block / at the embedding)|", partial(_ends, kind="activation")
    ),
    Metric(
        "gradient growth",
        "|ln(gradient variance after the last block / at the embedding)|",
        partial(_ends, kind="grad"),
    ),
    Metric("position / token", "−ln(E[token embedding²] / E[position embedding²])", _positions),
    Metric(
        "token cosine", "mean cosine between positions in the last stream", partial(_summary, column="token_cosine")
    ),
    Metric("dead units", "share of MLP units that are off on every token", partial(_summary, column="dead_frac")),
    Metric("mlp_pre variance", "|mean over blocks of ln variance|", _mlp_pre),
    Metric("largest write", "largest ln(variance of a write / of the stream it enters)", _writes),
    Metric("attention sharpness", "1 − mean entropy of attention / its largest", _entropy),
    Metric(PROBE, "number of rules broken at that depth, or over the depths", _complaints),
)
