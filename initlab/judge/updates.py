"""How far a step moves the weights, relative to their size."""

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


def _with_ratio(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(ratio=frame["update_rms"] / frame["weight_rms"].where(frame["weight_rms"] > 0))
