"""How a variance goes with width or depth: fitted exponents with intervals, and a verdict on each."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

from initlab.judge.students import t_quantile

AXES = ("n_embd", "n_layer")
FLAT = 0.2  # |exponent of variance| that counts as flat: 0.1 in mup's l1, which goes as its square root

COLUMNS = (
    "recipe",
    "axis",
    "kind",
    "site",
    "module",
    "step",
    "slope",
    "stderr",
    "low",
    "high",
    "n",
    "sizes",
    "seeds",
    "expected",
    "verdict",
    "bend",
    "bent",
)


def slopes(records: pd.DataFrame, *, flat: float = FLAT) -> pd.DataFrame:
    """Exponents of variance over n_embd and n_layer: var ∝ n_embd^slope.

    mup's coord check plots l1 = mean |x|, which goes as the square root of the variance as long as a distribution
    keeps its shape: half of a slope here is one of l1.

    A row per recipe, axis, kind (activation; change: x at a step minus x at step 0; effective and propagating:
    what moved a matrix's output, see `schema.RECORDS`), site and step. Width slopes
    are of the models of the smallest depth, depth slopes of those of the smallest width. Of a site that every block
    has, a point is the mean over the blocks of ln var, but for resid_post, which is the last block's. The layers of
    models whose sites have no name are told apart by `module`, a block's number in it replaced by *.

    Columns: slope; stderr; low and high, the 95 % interval; n points in the fit (sizes × seeds; values that are zero or
    not finite take no part); sizes; seeds; expected, the same slope of expected_var (closed form, at step 0); verdict:
    `flat` (the interval is within ±flat), `grows` or `shrinks` (it is beyond), else `not separated`; bend: by how much
    the exponent changes from the smallest size to the largest, of a parabola through the points (NaN of two sizes);
    bent: that is more than `flat` and its interval is apart from 0. One exponent doesn't describe the points then, and
    the slope's interval doesn't tell: it holds scatter over seeds, no lack of fit.

    With several seeds the slope is the mean of the slopes of each (draws are paired over sizes), and the interval
    Student's t of their scatter. With one seed it is that of the fit's residuals; of two sizes and one seed it is NaN,
    and nothing is separated.
    """
    found = points(records)
    rows = []
    for axis in AXES:
        for keys, group in along(found, axis).groupby(
            ["recipe", "kind", "site", "module", "step"], observed=True, sort=False
        ):
            if group[axis].nunique() < 2:
                continue
            recipe, kind, site, module, step = keys
            fit = _fit(group, axis, "log_var")
            expected = _fit(group, axis, "log_expected")[0]
            low, high = _interval(*fit[:3])
            finite = group[np.isfinite(group["log_var"])]
            sizes, seeds = finite[axis].nunique(), finite["seed"].nunique()
            row = (recipe, axis, kind, site, module, step, *fit[:2], low, high, len(finite), sizes, seeds)
            curve = _fit(group, axis, "log_var", degree=2)
            least, most = _interval(*curve)
            bend, bent = curve[0], abs(curve[0]) > flat and (least > 0 or most < 0)
            rows.append((*row, expected, verdict(low, high, flat), bend, bent))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def diverged(summary: pd.DataFrame) -> pd.DataFrame:
    """Models whose loss stopped being finite: recipe, n_layer, n_embd, the first such step, seeds of how many."""
    keys = ["recipe", "n_layer", "n_embd"]
    seeds = summary.groupby(keys, observed=True)["seed"].nunique()
    broken = summary[~np.isfinite(summary["loss"])]
    found = broken.groupby(keys, observed=True).agg(step=("step", "min"), seeds=("seed", "nunique"))
    return found.join(seeds.rename("of"), how="left").reset_index()


def along(found: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Points of the models that differ along an axis alone: those of the smallest depth, or of the smallest width."""
    other = AXES[1 - AXES.index(axis)]
    return found[found[other] == found.groupby("recipe", observed=True)[other].transform("min")]


def points(records: pd.DataFrame) -> pd.DataFrame:
    """Logs of var and expected_var, a row per model, step and site; NaN where a block's is zero or not finite."""
    rows = records[records["kind"].isin(["activation", "change", "effective", "propagating"])]
    numbered = rows["layer"].notna()
    last = rows.groupby(["run_id", "step"], observed=True)["layer"].transform("max")
    stream = rows["site"] == "resid_post"
    rows = rows[~stream | (rows["layer"] == last)]
    names = rows["module"].where(rows["site"] == "module", "")
    named = [_starred(name) if block else name for name, block in zip(names, numbered[rows.index], strict=True)]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {"log_var": np.log(rows["var"]), "log_expected": np.log(rows["expected_var"])}
    rows = rows.assign(module=named, **logs)
    keys = ["recipe", "kind", "site", "module", "step", "n_embd", "n_layer", "seed"]
    rows = rows.replace({"log_var": {math.inf: math.nan, -math.inf: math.nan}, "log_expected": {-math.inf: math.nan}})
    return rows.groupby(keys, observed=True, sort=False)[list(logs)].agg(_mean).reset_index()


def _mean(values: pd.Series) -> float:
    return float(np.mean(values.to_numpy(float)))  # NaN as soon as one is


def _starred(module: str) -> str:
    """`h.3.mlp.0` -> `h.*.mlp.0`: the first number is the block's."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", module, count=1)


def _fit(group: pd.DataFrame, axis: str, column: str, degree: int = 1) -> tuple[float, float, int]:
    """Slope, its standard error, and the error's degrees of freedom; NaN where they can't be estimated.

    Of degree 2 the bend: by how much the slope changes from the smallest size to the largest.
    """
    usable = group[np.isfinite(group[column])]
    fits = [
        _one_fit(np.log(rows[axis].to_numpy(float)), rows[column].to_numpy(float), degree)
        for _, rows in usable.groupby("seed")
        if rows[axis].nunique() > degree
    ]
    if not fits:
        return math.nan, math.nan, 0
    if len(fits) == 1:
        return fits[0]
    each = np.array([value for value, _, _ in fits])
    return float(each.mean()), float(each.std(ddof=1) / math.sqrt(len(each))), len(each) - 1


def _one_fit(x: np.ndarray, logs: np.ndarray, degree: int) -> tuple[float, float, int]:
    """Of a single seed: the error is that of the residuals."""
    powers = np.vander(x - x.mean(), degree + 1)
    solved = np.linalg.pinv(powers)
    by = solved[0] * (1.0 if degree == 1 else 2 * np.ptp(x))  # the highest power's
    value, freedom = float(by @ logs), len(x) - degree - 1
    if freedom < 1:
        return value, math.nan, freedom
    rest = logs - powers @ (solved @ logs)
    return value, math.sqrt(float(rest @ rest) / freedom * float(by @ by)), freedom


def _interval(slope: float, stderr: float, freedom: int) -> tuple[float, float]:
    if freedom < 1 or not math.isfinite(stderr):
        return math.nan, math.nan
    half = t_quantile(freedom) * stderr
    return slope - half, slope + half


def verdict(low: float, high: float, flat: float) -> str:
    """`grows`, `shrinks`, `flat`: an interval of exponents beyond, or within, ±flat; else `not separated`."""
    if low > flat:
        return "grows"
    if high < -flat:
        return "shrinks"
    return "flat" if low >= -flat and high <= flat else "not separated"
