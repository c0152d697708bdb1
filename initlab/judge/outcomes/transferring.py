"""Whether the best learning rate of a small model holds for a large one, and what it costs where it doesn't."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from initlab.judge.cache import kept
from initlab.judge.outcomes.measures import run_measures
from initlab.judge.slopes import AXES, along
from initlab.judge.students import LEVEL, Mean, t_quantile
from initlab.rundir import Run

# Half of what theory has the best rate of Adam drift by where it does: as 1/n_embd in the standard parametrisation
# (Tensor Programs V, 2203.03466, table 3), as 1/sqrt(n_layer) where the size of updates isn't held (Tensor Programs VI,
# 2310.02244). An interval inside tells «holds» from that.
TELLS = {"n_embd": 0.5, "n_layer": 0.25}
MOST_SEEDS = 100

OPTIMA = ("recipe", "axis", "size", "seed", "best_lr", "best_loss", "edge")
TRANSFERS = (
    "recipe",
    "axis",
    "sizes",
    "seeds",
    "drift",
    "low",
    "high",
    "verdict",
    "seeds_needed",
    "small_lr",
    "large_lr",
    "small_edge",
    "large_edge",
    "cost",
    "cost_low",
    "cost_high",
    "why",
)
DEFINITIONS: dict[str, str] = {
    "best rate": "of one seed at one size: vertex of the parabola through the lowest loss over the logarithm of the "
    "rate and its two neighbours; the lowest or highest swept rate itself where the loss is lowest there",
    "drift": "exponent x of best rate ∝ size^x, fitted over all sizes and seeds, each seed with a level of its own; 95 "
    "% interval of the fit's residuals (Student's t)",
    "holds": "the interval holds 0 and lies within ±"
    + " and ±".join(f"{TELLS[axis]:g} over {axis}" for axis in AXES)
    + ": half of what theory has the standard parametrisation drift by",
    "drifts": "the interval leaves out 0",
    "not resolved": "neither; or the lowest loss is at the end of the swept rates, so that the best may lie beyond",
    "cost": "loss of the largest model at the best rate of the smallest, minus that at its own best rate (means over "
    "seeds), interpolated over the logarithm of the rate; paired over seeds, mean ± 95 % t-interval",
    "seeds needed": "with which an interval of this scatter would be narrow enough to tell",
}


@kept
def optima(run: Run) -> pd.DataFrame:
    """A row per recipe, axis, size and seed: best_lr, best_loss at a swept rate, and edge.

    edge is -1 or 1 where the lowest or highest swept rate is the best, else 0. A seed takes part at a size once its
    runs at all swept rates are there.
    """
    rows: list[tuple[Any, ...]] = []
    for axis, recipe, size, table in _tables(run):
        for seed, losses in table.iterrows():
            rate, edge = best_rate(table.columns.to_numpy(float), losses.to_numpy(float))
            rows.append((recipe, axis, size, int(seed), rate, float(losses.min()), edge))
    return pd.DataFrame(rows, columns=list(OPTIMA))


def best_rate(rates: np.ndarray, losses: np.ndarray) -> tuple[float, int]:
    """Find the rate of the lowest loss between the swept ones.

    Args:
        rates: swept, ascending.
        losses: one at each, finite.

    Returns:
        the rate, and -1 or 1 where it is the first or the last of them, else 0.
    """
    at = int(np.argmin(losses))
    if at in (0, len(rates) - 1):
        return float(rates[at]), -1 if at == 0 else 1
    x, y = np.log2(rates[at - 1 : at + 2]), losses[at - 1 : at + 2]
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    if left == right:  # a level: all three are the lowest
        return float(rates[at]), 0
    # where the slope, which goes in a line from the middle of one gap to that of the other, is 0
    middle = (x[0] + x[1]) / 2
    vertex = middle - left * (x[2] - x[0]) / 2 / (right - left)
    return float(2 ** min(max(vertex, x[0]), x[2])), 0


@kept
def transfers(run: Run) -> pd.DataFrame:
    """A row per recipe and axis (n_embd, n_layer): does the best rate hold? See DEFINITIONS.

    Columns: sizes and seeds that take part; drift with low and high; verdict: `holds`, `drifts` or `not resolved`;
    seeds_needed, NaN where it is resolved; small_lr and large_lr, geometric means over seeds of the best rate at the
    smallest and the largest size; small_edge and large_edge, -1 or 1 where that is of seeds whose best is at an end of
    the swept rates, so that it may lie beyond; cost in nats with cost_low and cost_high; why, a sentence.
    """
    found, tables = optima(run), {(axis, recipe, size): table for axis, recipe, size, table in _tables(run)}
    rows = []
    for (recipe, axis), own in found.groupby(["recipe", "axis"], sort=False):
        sizes = sorted(int(size) for size in own["size"].unique())
        if len(sizes) < 2:
            continue
        drift, low, high, freedom = drift_of(own)
        small, large = (
            float(2 ** np.log2(own.loc[own["size"] == size, "best_lr"]).mean()) for size in (sizes[0], sizes[-1])
        )
        cost = _cost(tables[axis, recipe, sizes[-1]], small, large)
        verdict, why = _judged(own, sizes, str(axis), low, high)
        needed = _needed(own, str(axis), drift, low, high, freedom) if verdict == "not resolved" else math.nan
        edges = [int(np.sign(own.loc[own["size"] == size, "edge"].sum())) for size in (sizes[0], sizes[-1])]
        row = (recipe, axis, len(sizes), own["seed"].nunique(), drift, low, high, verdict, needed, small, large, *edges)
        rows.append((*row, cost.value, *cost.interval(), why))
    return pd.DataFrame(rows, columns=list(TRANSFERS))


@kept
def _tables(run: Run) -> list[tuple[str, str, int, pd.DataFrame]]:
    """Loss by seed (rows) and rate (columns), for every axis, recipe and size."""
    measured = run_measures(run)
    measured = measured.assign(recipe=measured["recipe"].astype(str))
    found, rates = [], sorted(measured["lr"].unique())
    order = {str(recipe): place for place, recipe in enumerate(run.manifest["config"].get("recipes", []))}
    for axis in AXES:
        if measured.empty or measured[axis].nunique() < 2:
            continue
        groups = list(along(measured, axis).groupby(["recipe", axis], sort=False))
        # with several jobs, runs lie in the order in which they ended
        for (recipe, size), own in sorted(groups, key=lambda group: (order.get(group[0][0], len(order)), group[0][1])):
            table = own.pivot_table(index="seed", columns="lr", values="loss", dropna=False)
            table = table.reindex(columns=rates).dropna()
            if len(table):
                found.append((axis, str(recipe), int(size), table))
    return found


def drift_of(own: pd.DataFrame) -> tuple[float, float, float, int]:
    """Fit best_lr ∝ size^x. Seeds share draws and batches over sizes, so each has a level of its own.

    Args:
        own: rows of `optima`, of one recipe and axis.

    Returns:
        exponent, low and high of its 95 % interval, degrees of freedom; NaN and 0 where it can't be fitted.
    """
    x, y = np.log2(own["size"].to_numpy(float)), np.log2(own["best_lr"].to_numpy(float))
    seeds = own["seed"].to_numpy()
    for seed in np.unique(seeds):
        x[seeds == seed] -= x[seeds == seed].mean()
        y[seeds == seed] -= y[seeds == seed].mean()
    if not float(x @ x):
        return math.nan, math.nan, math.nan, 0
    slope = float(x @ y / (x @ x))
    freedom = len(x) - len(np.unique(seeds)) - 1
    if freedom < 1:
        return slope, math.nan, math.nan, 0
    rest = y - slope * x
    half = t_quantile(freedom) * math.sqrt(float(rest @ rest) / freedom / float(x @ x))
    return slope, slope - half, slope + half, freedom


def _cost(table: pd.DataFrame, small: float, large: float) -> Mean:
    rates = np.log2(table.columns.to_numpy(float))
    lost = [
        float(np.interp(math.log2(small), rates, losses) - np.interp(math.log2(large), rates, losses))
        for losses in table.to_numpy(float)
    ]
    return Mean.of(lost)


def _judged(own: pd.DataFrame, sizes: list[int], axis: str, low: float, high: float) -> tuple[str, str]:
    if not math.isfinite(low):
        return "not resolved", "an interval needs two seeds, or three sizes"
    edges = {size: own.loc[own["size"] == size, "edge"] for size in sizes}
    first, last = edges[sizes[0]].sum(), edges[sizes[-1]].sum()
    cut = [size for size, edge in edges.items() if edge.any()]
    if cut:
        # the true best lies beyond the swept rates: that can only make a drift in that direction larger
        further = (high < 0 and first >= 0 >= last) or (low > 0 and first <= 0 <= last)
        where = " and ".join(str(size) for size in cut)
        ends = ((-1, "lowest"), (1, "highest"))
        end = " or ".join(word for sign, word in ends if any((edge == sign).any() for edge in edges.values()))
        if not further or any(edges[size].any() for size in sizes[1:-1]):
            return "not resolved", f"at {axis} {where} the {end} swept rate is the best of a seed: sweep further"
        return "drifts", f"at least so: at {axis} {where} the best is at the end of the swept rates"
    if low > 0 or high < 0:
        return "drifts", "the interval leaves out 0"
    if max(-low, high) <= TELLS[axis]:
        return "holds", f"the interval holds 0 and is within ±{TELLS[axis]:g}"
    return "not resolved", f"the interval holds 0 and reaches beyond ±{TELLS[axis]:g}"


def _needed(own: pd.DataFrame, axis: str, drift: float, low: float, high: float, freedom: int) -> float:
    """Seeds at which half the interval, by this scatter, leaves out 0 or keeps within the limit."""
    if not math.isfinite(low) or own["edge"].any():
        return math.nan
    scatter = (high - low) / 2 / t_quantile(freedom)
    seeds, sizes = own["seed"].nunique(), own["size"].nunique()
    room = max(abs(drift), TELLS[axis] - abs(drift))
    for count in range(seeds + 1, MOST_SEEDS + 1):
        if t_quantile(count * (sizes - 1) - 1, LEVEL) * scatter * math.sqrt(seeds / count) < room:
            return float(count)
    return math.inf
