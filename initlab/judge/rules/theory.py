"""Whether the model is what it was declared to be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from initlab.judge.rules.base import Finding, Rule
from initlab.schema import Tables

WEIGHT_SLACK = 0.05  # of the std, beside five standard errors of the sample
STREAM_LIMIT = 2.0  # factor


def check_not_applied(tables: Tables, manifest: dict[str, Any]) -> list[Finding]:
    """One finding per recipe: the role farthest from what it should have been drawn from."""
    findings = []
    weights = tables.records[(tables.records["kind"] == "weight") & (tables.records["step"] == 0)]
    for recipe, rows in weights.groupby("recipe", observed=True):
        rows = rows[rows["expected_var"].notna()]
        common: dict[str, Any] = {"recipe": str(recipe), "unit": "× declared std"}
        if rows.empty:
            findings.append(NOT_APPLIED.not_applicable("Needs a declared recipe: --recipe NAME", **common))
            continue
        expected, found = np.sqrt(rows["expected_var"]), rows["std"]
        # The std of n normal draws scatters by 1/√(2n); constants (gains, zero biases) have none to scatter.
        limit = WEIGHT_SLACK + 5 / np.sqrt(2 * rows["numel"])
        ratio = (found / expected).where(expected > 0, np.where(found > 0, math.inf, 1.0))
        off = np.abs(np.log(ratio.where(ratio > 0, 1e-300))) / limit
        bad = rows[off > 1]
        if bad.empty:
            message = f"all {rows['module'].nunique()} parameters have the std that {recipe} draws"
            findings.append(NOT_APPLIED.passed(message.capitalize(), measured=float(ratio[off.idxmax()]), **common))
            continue
        worst = rows.loc[off.idxmax()]
        roles = list(dict.fromkeys(bad["role"]))
        layers = bad["layer"].dropna()
        findings.append(
            NOT_APPLIED.failed(
                f"{worst['module']} has std {worst['std']:.3g}, {recipe} draws {worst['expected_var'] ** 0.5:.3g}; "
                f"{bad['module'].nunique()} of {rows['module'].nunique()} parameters are off ({', '.join(roles)})",
                severity="error",
                site=str(worst["site"]),
                layer_first=int(layers.min()) if len(layers) else None,
                layer_last=int(layers.max()) if len(layers) else None,
                measured=float(ratio[off.idxmax()]),
                seeds_failing=int(bad["seed"].nunique()),
                seeds_total=int(rows["seed"].nunique()),
                effect=float(min(off.max(), 1e6)),
                advice=f"draw {worst['module']} as the recipe says (initlab.apply_recipe(model, {str(recipe)!r})), or "
                "name the recipe that was meant",
                **common,
            )
        )
    return findings


def check_off_theory(tables: Tables, manifest: dict[str, Any]) -> list[Finding]:
    """One finding per recipe: the block whose stream is farthest from the closed form."""
    findings = []
    records = tables.records
    start = tables.summary[tables.summary["step"] == 0]
    trained = set(start.loc[start["loss"] < start["ln_vocab"] - 0.5, "run_id"])
    stream = records[
        (records["kind"] == "activation") & (records["step"] == 0) & records["site"].isin(["embed", "resid_post"])
    ]
    for recipe, rows in stream.groupby("recipe", observed=True):
        common: dict[str, Any] = {"recipe": str(recipe), "site": "resid_post", "unit": "× closed form"}
        rows = rows[(rows["expected_var"] > 0) & ~rows["run_id"].isin(trained)]
        if rows.empty:
            reason = "The loss is below ln V: a trained model" if trained else "Needs nanoGPT's layout"
            findings.append(OFF_THEORY.not_applicable(f"{reason}, which the closed form isn't about", **common))
            continue
        place = [rows["n_layer"], rows["n_embd"], rows["layer"].fillna(-1)]
        ratio = (rows["var"] / rows["expected_var"]).groupby(place).mean()
        off = np.abs(np.log(ratio.where(ratio > 0, 1e-300)))
        (n_layer, _, layer), value = tuple(off.idxmax()), float(ratio[off.idxmax()])
        name = "the embedding" if layer < 0 else f"block {int(layer)} of {n_layer}"
        common |= {"measured": value, "layer_first": None if layer < 0 else int(layer)}
        text = f"The stream's variance is at most {value:.3g}× its closed form, after {name}"
        if not 1 / STREAM_LIMIT <= value <= STREAM_LIMIT:
            seeds = _off_by_seed(rows)
            findings.append(
                OFF_THEORY.failed(
                    f"The stream's variance is {value:.3g}× its closed form after {name}",
                    severity="warning",
                    seeds_failing=sum(seeds),
                    seeds_total=len(seeds),
                    effect=abs(math.log(value)) if value > 0 else math.inf,
                    advice="look for what the closed form doesn't know: a weight drawn differently, a scale in the "
                    "forward pass, weights that training has changed",
                    **common,
                )
            )
        else:
            findings.append(OFF_THEORY.passed(text, **common))
    return findings


def _off_by_seed(rows: pd.DataFrame) -> list[bool]:
    ratio = np.abs(np.log((rows["var"] / rows["expected_var"]).clip(lower=1e-300)))
    return [bool(worst > math.log(STREAM_LIMIT)) for worst in ratio.groupby(rows["seed"]).max()]


NOT_APPLIED = Rule(
    code="INI001",
    name="init-not-applied",
    question="Init",
    measures="std of every parameter ÷ the std that the declared recipe draws for its role",
    needs="a declared recipe",
    limit="within 5 % and 5 standard errors of the sample",
    basis="derived",
    why="Inits are lost silently: a condition on a parameter's name that never matches, a later module's default, a "
    "tie in the wrong order. Hugging Face shipped GPT-2 without its depth scaling in this way.",
    advice="Draw the named parameter as the recipe says.",
    false_alarms="Models that have been trained, and embeddings with a row of zeros for padding.",
    source="huggingface/transformers#47458",
    since="0.1.0",
    check=check_not_applied,
)
OFF_THEORY = Rule(
    code="RES002",
    name="off-theory-stream",
    question="Depth",
    measures="variance of the residual stream ÷ its closed form, at the embedding and after every block",
    needs="nanoGPT's layout, before training",
    limit=f"between ÷{STREAM_LIMIT:g} and ×{STREAM_LIMIT:g}",
    basis="derived",
    why="The closed form knows the weights' scale (or the recipe's), norms, dropout and sizes. A stream elsewhere "
    "means that the model does something else, or that its weights aren't independent draws any more.",
    advice="Look for what the closed form doesn't know.",
    false_alarms="Widths below 64; attention logits of variance 1 and above; models that have been trained.",
    source="initlab.judge.theory",
    since="0.1.0",
    check=check_off_theory,
)
THEORY_RULES = (NOT_APPLIED, OFF_THEORY)
