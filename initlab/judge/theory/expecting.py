"""The one door to the theory: the tables of a measured cell in, what the closed form expects of it beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from initlab.judge.theory.forward import STEEP
from initlab.judge.theory.parameters import Measured, setting_of
from initlab.judge.theory.predicting import Prediction, predict
from initlab.judge.theory.settings import TextStatistics
from initlab.recipes import Dims, Recipe
from initlab.schema import Tables, cast
from initlab.wiring import Branch, Norm, Wiring

MOST_WITHOUT_TARGET = 0.1  # share of positions; with more, the gradient isn't the one that the theory follows


def expect(
    tables: Tables,
    wirings: Sequence[Wiring],
    described: Mapping[str, Any],
    targets: NDArray[np.int64] | None,
    *,
    recipe: Recipe | None = None,
    dims: Mapping[str, Dims] | None = None,
    sequences: int | None = None,
) -> None:
    """Fill in `expected_*` of one measured cell, in place, where a closed form covers it; elsewhere nothing changes.

    None covers a model after a step, one whose stream wasn't found, or, without a recipe, weights that aren't finite or
    no init's. Gradients are expected of a loss over next tokens alone. What the wiring doesn't know is taken as it was
    measured, and gets no expectation itself.

    Args:
        tables: of one cell at one step; their `weight` rows are the model's parameters.
        wirings: of the model's stacks, in the order of the pass; none: it isn't known how the model is wired.
        described: of the text that the batch was drawn from, as `Corpus.describe` gives it; `sum_p2` is read.
        targets: of the batch, (B, T), negative where there is none; None without targets.
        recipe: what the model should have been drawn from; None: it is expected to do what its own weights imply.
        dims: what the recipe is asked with, by parameter name; without them it can't be.
        sequences: in the batch, of a model that reads no tokens; None: what it reads is counted in tokens.
    """
    found = _predicted(tables, wirings, described, targets, recipe, dims, sequences)
    if found is None:
        return
    prediction, share = found
    summary = tables.summary.iloc[0]
    tables.records, tables.summary = annotate(tables.records, tables.summary, prediction, with_target=share)
    hidden = _hidden(tables.records, wirings)
    tables.records["expected_var"] = tables.records["expected_var"].mask(hidden)
    if prediction.steep_from is not None:
        note = (
            f"attention of block {prediction.steep_from} is too steep for the closed form (std of its logits "
            f"{np.nanmax(prediction.score_std):.2g}, above {STEEP:g}): nothing is expected of the stream from there on"
        )
        said = {"run_id": summary["run_id"], "kind": "activation", "site": "model", "expected": 0, "fired": 0}
        tables.coverage = cast("coverage", pd.concat([tables.coverage, pd.DataFrame([said | {"note": note}])]))


def implied(
    tables: Tables,
    wirings: Sequence[Wiring],
    described: Mapping[str, Any],
    targets: NDArray[np.int64] | None,
    *,
    recipe: Recipe | None = None,
    dims: Mapping[str, Dims] | None = None,
    sequences: int | None = None,
) -> dict[str, float]:
    """Say what the weights, or a recipe in their place, mean for the model by the closed form.

    Keys: `growth` (variance of the stream after the last block ÷ the embedding's), `logit_std`, `own_logit` (of the
    token just read), `loss` (nats above ln V), `score_std` (of the attention logits, in the block where it is largest).
    What isn't known is left out; nothing is there where no closed form covers the model.

    Args:
        tables: of one cell at one step, as `expect` takes them, and the other arguments.
        wirings: of the model's stacks.
        described: of the text.
        targets: of the batch.
        recipe: what the model should have been drawn from; None: its own weights.
        dims: what the recipe is asked with, by parameter name.
        sequences: in the batch, of a model that reads no tokens.
    """
    found = _predicted(tables, wirings, described, targets, recipe, dims, sequences)
    if found is None:
        return {}
    prediction = found[0]
    scores = [std for std in prediction.score_std if math.isfinite(std)]
    values = {
        "growth": prediction.growth if prediction.steep_from is None else math.nan,
        "logit_std": prediction.logit_std,
        "own_logit": prediction.own_logit,
        "loss": prediction.loss - float(tables.summary.iloc[0]["ln_vocab"]),
        "score_std": max(scores, default=math.nan),
    }
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _predicted(
    tables: Tables,
    wirings: Sequence[Wiring],
    described: Mapping[str, Any],
    targets: NDArray[np.int64] | None,
    recipe: Recipe | None,
    dims: Mapping[str, Dims] | None,
    sequences: int | None,
) -> tuple[Prediction, float] | None:
    """What `expect` fills in, and the share of positions with a target; None where no closed form covers the model."""
    summary = tables.summary.iloc[0]
    parameters = tables.records[tables.records["kind"] == "weight"]
    if not wirings or summary["step"] or not summary["n_embd"]:
        return None
    if recipe is not None and dims is not None:
        parameters = parameters.assign(dims=[dims.get(name) for name in parameters["module"]])
    elif recipe is not None or not _finite(parameters) or not _fresh(parameters, wirings):
        return None
    measured = _measured(tables, wirings, sequences)
    if not all(measured.positions):
        return None
    tokens = summary["block_size"] and summary["vocab_size"] > 1 and not math.isnan(described.get("sum_p2", math.nan))
    text = TextStatistics.of_batch(described, summary, targets) if tokens else None
    share = 0.0 if targets is None or summary["targets"] != "next-token" else float((targets >= 0).mean())
    setting = setting_of(parameters, wirings, text, recipe, measured)
    prediction = predict(setting, backward=share >= 1 - MOST_WITHOUT_TARGET, strict=True)
    return prediction, share


def _measured(tables: Tables, wirings: Sequence[Wiring], sequences: int | None) -> Measured:
    """What a pass showed that the wiring may not know."""
    summary, records = tables.summary.iloc[0], tables.records
    T = int(summary["block_size"])
    rows = records[records["kind"] == "activation"]
    layers = [None if pd.isna(layer) else int(layer) for layer in rows["layer"]]
    found: dict[tuple[str, int | None], list[tuple[float, float]]] = {}
    for site, layer, var, numel in zip(rows["site"], layers, rows["var"], rows["numel"], strict=True):
        found.setdefault((str(site), layer), []).append((float(var), float(numel)))
    alike = rows["together"] if "together" in rows else pd.Series(math.nan, index=rows.index)
    batch = summary["n_tokens"] / T if T else sequences
    positions = []
    for wiring in wirings:
        first = found.get(("resid_post", wiring.blocks[0].layer)) if wiring.blocks else None
        size = first[0][1] / (wiring.n_embd * batch) if first and batch else T
        positions.append(max(1, round(size)) if size else 0)
    embed = rows.loc[rows["site"] == "embed", "mean"]
    heads = tables.heads
    spread = heads.groupby("layer")["logit_std"].max() if len(heads) else {}
    return Measured(
        positions=tuple(positions),
        var={place: seen[0][0] for place, seen in found.items() if len(seen) == 1},
        alike={at: x for at, x in zip(zip(rows["site"], layers, strict=True), alike, strict=True) if not math.isnan(x)},
        together=float(summary.get("embed_together", math.nan)),
        mean=float(embed.iloc[0]) if len(embed) == 1 else 0.0,
        scores={int(layer): float(std) for layer, std in dict(spread).items()},
    )


def _hidden(records: pd.DataFrame, wirings: Sequence[Wiring]) -> pd.Series:
    """Rows that show something else than the theory follows.

    That is a write before the dropout that is counted in, and another stack's final norm than the last one's.
    """
    branches = [(block.layer, branch) for wiring in wirings for block in wiring.blocks for branch in block.branches()]
    dropped: dict[tuple[str, int], Branch] = {
        (branch.site, layer): branch for layer, branch in branches if branch.dropout > 0
    }
    hidden = pd.Series(False, index=records.index)
    if dropped:
        places = zip(records["site"].astype(str), records["layer"].fillna(-1).astype(int), strict=True)
        shown = [branch.module if (branch := dropped.get(place)) else None for place in places]
        hidden |= np.array([name not in (None, module) for name, module in zip(shown, records["module"], strict=True)])
    last = wirings[-1].final_norm
    if len(wirings) > 1 and last is not None:
        hidden |= (records["site"] == "final_norm") & (records["module"] != last.module)
    return hidden & records["kind"].isin(["activation", "grad"])


def annotate(
    records: pd.DataFrame, summary: pd.DataFrame, prediction: Prediction, *, with_target: float = 1.0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Copy the tables of one cell with `expected_*` filled in; rows without a prediction get NaN.

    Args:
        records: table of `initlab.schema`, of cells of one size.
        summary: of the same cells.
        prediction: of their setting.
        with_target: share of the row's n_tokens over which the loss is a mean; the others get no gradient of their own.
    """
    records, summary = records.copy(), summary.copy()
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


def _fresh(parameters: pd.DataFrame, wirings: Sequence[Wiring]) -> bool:
    """Training moves the gains of a norm, which every init has alike."""
    gains = {norm.gain for norm in _norms(tuple(wirings)) if norm.gain is not None}
    return bool((parameters.loc[parameters["module"].isin(gains), "var"] == 0).all())


def _norms(part: Any) -> Iterator[Norm]:
    """Every norm of a wiring, wherever it stands."""
    if isinstance(part, Norm):
        yield part
    elif isinstance(part, tuple):
        for each in part:
            yield from _norms(each)
    elif is_dataclass(part):
        for each in fields(part):
            yield from _norms(getattr(part, each.name))
