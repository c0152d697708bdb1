"""What training did, run by run, and what that is worth: loss with a ceiling, regret, flags of instability."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view

from initlab.judge.cache import kept
from initlab.judge.students import Mean
from initlab.rundir import Run

SMOOTHED_OVER = 10  # steps of training loss that `overshoot` averages
SPIKE_FACTOR = 5.0  # gradient norm over its recent median
SPIKE_MEMORY = 20  # logged steps that the median is of
ESCAPE_MARGIN = 0.1  # nats below the unigram loss

DEFINITIONS: dict[str, str] = {
    "loss": "validation loss after the last step, nats, but at most ln V (what a model that knows nothing scores); "
    "ln V for a run that diverged",
    "diverged": "the loss or a gradient norm stopped being finite, which ended the run before its last step",
    "regret": "mean over the swept learning rates of loss, minus the best loss of any recipe at any rate at the same "
    "depth and warmup; per seed, then mean ± 95 % t-interval over seeds. What not knowing the right rate costs",
    "sensitivity": "the same minus the recipe's own best (Wortsman et al. 2023, arXiv 2309.14322). A trap: a recipe "
    "that learns nothing at any rate is equally bad everywhere and scores 0",
    "escaped": f"validation loss at least {ESCAPE_MARGIN:g} nats below that of predicting token frequencies; "
    "necessary for having learned anything, not sufficient",
    "stuck": "neither diverged nor escaped",
    "overshoot": f"highest training loss, as a mean over {SMOOTHED_OVER} steps, minus the first one; 0 if it never "
    "rises",
    "spikes": f"steps whose gradient norm (before clipping) is more than {SPIKE_FACTOR:g}× the median of the "
    f"{SPIKE_MEMORY} logged before; shown, never judged: their number ranks no recipes",
    "grad_norm_peak": "highest gradient norm (before clipping) ÷ the first",
}

REGRET_KEYS = ["recipe", "n_layer", "warmup"]
_REGRETS = (
    *REGRET_KEYS,
    "seeds",
    "regret",
    "low",
    "high",
    "sensitivity",
    "best_lr",
    "best_loss",
    "diverged",
    "stuck",
    "runs",
)


@kept
def run_measures(run: Run) -> pd.DataFrame:
    """A row per training run: the columns of `schema.RUNS`, and what DEFINITIONS says of loss, diverged (bool),
    escaped (bool), overshoot (nats), spikes (int) and grad_norm_peak (ratio).

    Measures of the curve are NaN (spikes 0) for a run that logged none.
    """
    runs = run.tables.runs.reset_index(drop=True)
    curves = {str(run_id): rows for run_id, rows in run.tables.training.groupby("run_id", observed=True)}
    none = run.tables.training.head(0)
    flags = pd.DataFrame(
        [
            _flags(curves.get(str(run_id), none), int(steps))
            for run_id, steps in zip(runs["run_id"], runs["steps"], strict=True)
        ],
        columns=["broke", "overshoot", "spikes", "grad_norm_peak"],
    )
    val_loss, ln_vocab = runs["val_loss"].to_numpy(float), runs["ln_vocab"].to_numpy(float)
    diverged = (runs["steps_done"] < runs["steps"]) | ~np.isfinite(val_loss) | flags["broke"].to_numpy(bool)
    return runs.assign(
        loss=np.where(diverged, ln_vocab, np.fmin(val_loss, ln_vocab)),
        diverged=diverged,
        overshoot=flags["overshoot"].astype(float),
        spikes=flags["spikes"].astype("int64"),
        grad_norm_peak=flags["grad_norm_peak"].astype(float),
        escaped=~diverged & (val_loss < runs["unigram_loss"].to_numpy(float) - ESCAPE_MARGIN),
    )


def curves(run: Run) -> pd.DataFrame:
    """The table `training` with the recipe, n_layer, lr (peak: `peak_lr`), warmup and seed of each run."""
    keys = run.tables.runs[["run_id", "recipe", "n_layer", "warmup", "seed"]].assign(peak_lr=run.tables.runs["lr"])
    keys = keys.assign(run_id=keys["run_id"].astype(str))
    rows = run.tables.training
    return rows.assign(run_id=rows["run_id"].astype(str)).merge(keys, on="run_id", how="inner")


@kept
def regrets(run: Run) -> pd.DataFrame:
    """A row per recipe, depth and warmup; see DEFINITIONS.

    Columns: recipe, n_layer, warmup; seeds behind the means; regret with low and high (95 %; NaN of one seed);
    sensitivity; best_lr and best_loss, the rate with the lowest mean loss over seeds and that mean; diverged, stuck and
    runs, numbers of runs. A seed takes part once its runs at all swept rates are there.
    """
    measured = run_measures(run)
    rows = []
    for (n_layer, warmup), group in measured.groupby(["n_layer", "warmup"], sort=True):
        table = losses(group)
        best = table.groupby("seed").min().min(axis=1)
        for recipe, own in group.groupby("recipe", observed=True, sort=False):
            found = whole(table, str(recipe))
            regret = Mean.of(found.mean(axis=1) - best.loc[found.index])
            by_rate = found.mean()
            rows.append(
                (
                    str(recipe),
                    int(n_layer),
                    int(warmup),
                    len(found),
                    regret.value,
                    *regret.interval(),
                    float((found.mean(axis=1) - found.min(axis=1)).mean()),
                    float(by_rate.idxmin()) if len(found) else math.nan,
                    float(by_rate.min()) if len(found) else math.nan,
                    int(own["diverged"].sum()),
                    int((~own["diverged"] & ~own["escaped"]).sum()),
                    len(own),
                )
            )
    return pd.DataFrame(rows, columns=list(_REGRETS))


def losses(measured: pd.DataFrame) -> pd.DataFrame:
    """Loss by recipe and seed (rows) and learning rate (columns); NaN where a run is missing."""
    plain = measured.assign(recipe=measured["recipe"].astype(str))
    return plain.pivot_table(index=["recipe", "seed"], columns="lr", values="loss", dropna=False, observed=True)


def whole(table: pd.DataFrame, recipe: str) -> pd.DataFrame:
    """Losses of a recipe by seed and rate, out of `losses`: those seeds that have every swept rate."""
    if recipe not in table.index.get_level_values("recipe"):
        return table.head(0).droplevel("recipe")
    return table.xs(recipe, level="recipe").dropna()


def _flags(curve: pd.DataFrame, steps: int) -> tuple[bool, float, int, float]:
    curve = curve[curve["step"] < steps].sort_values("step")  # the last row is an evaluation alone
    if curve.empty:
        return False, math.nan, 0, math.nan
    loss, norm = curve["loss"].to_numpy(float), curve["grad_norm"].to_numpy(float)
    norm = norm[np.isfinite(norm)]  # float16 skips updates whose gradient overflows, and goes on
    peak = float(norm.max() / norm[0]) if len(norm) and norm[0] > 0 else math.nan
    broke = not np.isfinite(loss).all()
    return broke, _overshoot(loss, curve["step"].to_numpy(float)), _spikes(norm), peak


def _overshoot(loss: np.ndarray, step: np.ndarray) -> float:
    if not np.isfinite(loss[0]):
        return math.nan
    every = float(np.median(np.diff(step))) if len(step) > 1 else 1.0
    window = max(1, round(SMOOTHED_OVER / every))
    finite = loss[np.isfinite(loss)]
    if len(finite) < window:
        return 0.0
    return max(0.0, float(sliding_window_view(finite, window).mean(axis=1).max() - loss[0]))


def _spikes(norm: np.ndarray) -> int:
    if len(norm) <= SPIKE_MEMORY:
        return 0
    before = np.median(sliding_window_view(norm[:-1], SPIKE_MEMORY), axis=1)
    return int((norm[SPIKE_MEMORY:] > SPIKE_FACTOR * before).sum())
