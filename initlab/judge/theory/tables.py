"""Predictions beside measurements."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from initlab.judge.theory.predicting import Prediction


def annotate(
    records: pd.DataFrame, summary: pd.DataFrame, prediction: Prediction, *, with_target: float = 1.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of one cell with `expected_*` filled in; rows that the theory doesn't cover keep what they have.

    Where attention is too steep for it, that are what attention gives, how alike positions are, and gradients.

    Args:
        with_target: share of the row's n_tokens over which the loss is a mean; the others get no gradient of their own.
    """
    records, summary = records.copy(), summary.copy()
    if prediction.steep:
        prediction = replace(prediction.without("attn_out").without("attn_z"), grad={}, token_cosine=math.nan)
    layers = [None if pd.isna(layer) else int(layer) for layer in records["layer"]]
    places = list(zip(records["site"], layers, strict=True))
    for kind, values in (("activation", prediction.var), ("grad", prediction.grad)):
        expected = pd.Series([values.get(place, math.nan) for place in places], index=records.index)
        if kind == "grad":
            expected /= records["n_tokens"].astype(float) ** 2 * with_target
        rows = records["kind"] == kind
        records.loc[rows, "expected_var"] = expected[rows]
    summary["expected_loss"] = prediction.loss
    summary["expected_logit_std"] = prediction.logit_std
    summary["expected_own_logit"] = prediction.own_logit
    summary["expected_token_cosine"] = prediction.token_cosine
    return records, summary
