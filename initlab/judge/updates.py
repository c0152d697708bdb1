"""How far a step moves the weights, relative to their size, and how far training has moved them from their init."""

from __future__ import annotations

import numpy as np
import pandas as pd

# A ratio far above means that a step rewrites the weight, one far below that it hardly learns. A rule of thumb for
# Adam-like steps: karpathy, "makemore" part 3 (https://youtu.be/P6sfmUTpUmc), which draws the same line.
RULE_OF_THUMB = 1e-3
VECTORS = ("norm_gain", "norm_bias", "bias", "gate")  # roles of what isn't a matrix


def update_ratios(records: pd.DataFrame) -> pd.DataFrame:
    """One row per parameter and watched step.

    Returns:
        step, layer, role, module, numel, update_rms, weight_rms (before the update), and ratio = update_rms /
        weight_rms: NaN for a weight that is 0 everywhere.
    """
    keys = ["run_id", "step", "module"]
    updates = records.loc[records["kind"] == "update", [*keys, "layer", "role", "numel", "rms"]]
    weights = records.loc[records["kind"] == "weight", [*keys, "rms"]]
    both = updates.merge(weights, on=keys, suffixes=("_update", "_weight"))
    both = both.rename(columns={"rms_update": "update_rms", "rms_weight": "weight_rms"})
    return _with_ratio(both)[["step", "layer", "role", "module", "numel", "update_rms", "weight_rms", "ratio"]]


def by_role(updates: pd.DataFrame) -> pd.DataFrame:
    """Ratios of all parameters of a role taken together: rms over every element of all of them.

    Returns:
        step, role, update_rms, weight_rms, ratio.
    """
    squares = {f"{name}_rms": updates["numel"] * updates[f"{name}_rms"] ** 2 for name in ("update", "weight")}
    sums = updates.assign(**squares).groupby(["step", "role"], observed=True, sort=False)
    totals = sums[["numel", "update_rms", "weight_rms"]].sum(min_count=1).reset_index()
    for name in ("update_rms", "weight_rms"):
        totals[name] = np.sqrt(totals[name] / totals["numel"])
    return _with_ratio(totals).drop(columns="numel")


def matrix_ratios(updates: pd.DataFrame) -> pd.Series:
    """One ratio per step, of all matrices together: vectors are left out, since biases that start at 0 have none."""
    matrices = updates[~updates["role"].isin(VECTORS)]
    return by_role(matrices.assign(role="matrices")).set_index("step")["ratio"]


def drifts(records: pd.DataFrame) -> pd.DataFrame:
    """How far each parameter is from where drift is measured from: one row per parameter and watched step.

    Args:
        records: with rows of drift, see `initlab.watch`; without, the frame is empty.

    Returns:
        step, layer, role, module, numel, drift_rms (of W - W_0), origin_rms (of W_0), weight_rms (of W), distance =
        drift_rms / origin_rms, NaN for a weight that was 0 everywhere, and cosine, of the angle between W and W_0.
    """
    keys = ["run_id", "step", "module"]
    both = records.loc[records["kind"] == "drift", [*keys, "layer", "role", "numel", "rms"]]
    both = both.rename(columns={"rms": "drift_rms"})
    for kind in ("origin", "weight"):
        own = records.loc[records["kind"] == kind, [*keys, "rms"]].rename(columns={"rms": f"{kind}_rms"})
        both = both.merge(own, on=keys)
    return _with_angle(both).drop(columns="run_id")


def drift_by_role(drifted: pd.DataFrame) -> pd.DataFrame:
    """Drift of all parameters of a role taken together, as one vector.

    Args:
        drifted: rows of `drifts`.

    Returns:
        step, role, drift_rms, origin_rms, weight_rms, distance, cosine.
    """
    names = [f"{name}_rms" for name in ("drift", "origin", "weight")]
    squares = {name: drifted["numel"] * drifted[name] ** 2 for name in names}
    sums = drifted.assign(**squares).groupby(["step", "role"], observed=True, sort=False)
    totals = sums[["numel", *names]].sum(min_count=1).reset_index()
    for name in names:
        totals[name] = np.sqrt(totals[name] / totals["numel"])
    return _with_angle(totals).drop(columns="numel")


def _with_angle(frame: pd.DataFrame) -> pd.DataFrame:
    drift, origin, weight = (frame[f"{name}_rms"] for name in ("drift", "origin", "weight"))
    known = (origin > 0) & (weight > 0)
    # |W - W_0|^2 = |W|^2 + |W_0|^2 - 2 <W, W_0>
    cosine = (weight**2 + origin**2 - drift**2) / (2 * weight * origin).where(known)
    return frame.assign(distance=drift / origin.where(origin > 0), cosine=cosine.clip(-1, 1))


def _with_ratio(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(ratio=frame["update_rms"] / frame["weight_rms"].where(frame["weight_rms"] > 0))
