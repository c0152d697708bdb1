"""The one door to the theory: the tables of a measured cell in, what the closed form expects of it beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from initlab.judge.theory.parameters import setting_of
from initlab.judge.theory.predicting import Prediction, predict
from initlab.judge.theory.settings import TextStatistics, Wiring
from initlab.recipes import Dims, Recipe
from initlab.schema import Tables

MOST_WITHOUT_TARGET = 0.1  # share of positions; with more, the gradient isn't the one that the theory follows


def expect(
    tables: Tables,
    wiring: Wiring | None,
    described: Mapping[str, Any],
    targets: NDArray[np.int64] | None,
    *,
    recipe: Recipe | None = None,
    dims: Mapping[str, Dims] | None = None,
    discovered: bool = False,
) -> None:
    """Fill in `expected_*` of one measured cell, in place, where a closed form covers it; elsewhere nothing changes.

    None covers a model after a step, one that isn't a known pre-norm decoder, one whose stream wasn't found, or,
    without a recipe, weights that aren't finite. Gradients are expected of a loss over next tokens alone.

    Args:
        tables: of one cell at one step; their `weight` rows are the model's parameters.
        wiring: what the weights don't show; None: the model isn't known to be such a decoder.
        described: of the text that the batch was drawn from, as `Corpus.describe` gives it; `sum_p2` is read.
        targets: of the batch, (B, T), negative where there is none; None without targets.
        recipe: what the model should have been drawn from; None: it is expected to do what its own weights imply.
        dims: what the recipe is asked with, by parameter name; without them it can't be.
        discovered: the stream was found by following the numbers, and isn't nanoGPT's own. Then what is written to it
            was measured before its dropout, which the theory counts in, and weights count only if they are an init's.
    """
    summary = tables.summary.iloc[0]
    parameters = tables.records[tables.records["kind"] == "weight"]
    if wiring is None or summary["step"] or not summary["n_embd"]:
        return
    if recipe is not None and dims is not None:
        parameters = parameters.assign(dims=[dims.get(name) for name in parameters["module"]])
    elif recipe is not None or not _finite(parameters) or (discovered and not _fresh(parameters)):
        return
    text = TextStatistics.of_batch(described, summary, targets)
    share = 0.0 if targets is None or summary["targets"] != "next-token" else float((targets >= 0).mean())
    setting = setting_of(parameters, wiring, text, recipe)
    prediction = predict(setting, backward=share >= 1 - MOST_WITHOUT_TARGET)
    if discovered and wiring.dropout > 0:
        prediction = prediction.without("attn_out").without("mlp_out")
    tables.records, tables.summary = annotate(tables.records, tables.summary, prediction, with_target=share)


def annotate(
    records: pd.DataFrame, summary: pd.DataFrame, prediction: Prediction, *, with_target: float = 1.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Copy the tables of one cell with `expected_*` filled in; rows without a prediction get NaN.

    Where attention is too steep for the theory, that are what attention gives, how alike positions are, and gradients.

    Args:
        records: table of `initlab.schema`, of cells of one size.
        summary: of the same cells.
        prediction: of their setting.
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


def _finite(parameters: pd.DataFrame) -> bool:
    """Nothing follows from a NaN."""
    return bool((parameters["frac_nonfinite"] == 0).all())


def _fresh(parameters: pd.DataFrame) -> bool:
    """Training moves the gains of a norm, which every init has alike."""
    return bool((parameters.loc[parameters["role"] == "norm_gain", "var"] == 0).all())
