"""How what the blocks write depends on how many blocks there are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from initlab.judge.rules.base import Finding, Rule
from initlab.schema import Tables

BRANCHES = ("attn_out", "mlp_out")


def depth_exponents(records: pd.DataFrame) -> pd.DataFrame:
    """Exponent of branch-write variance over n_layer: var ∝ n_layer^slope.

    One row per recipe, width and branch (attn_out, mlp_out) that was measured at two depths or more and writes
    something: slope, its standard error (NaN from two points), n points; a point is the mean over the blocks of one
    cell at step 0. Least squares on logs.
    """
    rows = []
    for (recipe, n_embd, site), group in writes(records).groupby(["recipe", "n_embd", "site"], observed=True):
        group = group[(group["var"] > 0) & (group["var"] < math.inf)]  # zero projections, or an overflow
        if group["n_layer"].nunique() < 2:
            continue
        slope, stderr = _fit(np.log(group["n_layer"].to_numpy(float)), np.log(group["var"].to_numpy(float)))
        rows.append((recipe, n_embd, site, slope, stderr, len(group)))
    return pd.DataFrame(rows, columns=["recipe", "n_embd", "site", "slope", "stderr", "n"])


def writes(records: pd.DataFrame) -> pd.DataFrame:
    """Mean over the blocks of what each branch writes, at step 0: recipe, n_embd, site, n_layer, seed, var."""
    rows = records[(records["kind"] == "activation") & (records["step"] == 0) & records["site"].isin(BRANCHES)]
    keys = ["recipe", "n_embd", "site", "n_layer", "seed"]
    return rows.groupby(keys, observed=True)["var"].mean().reset_index()


def _fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * y).sum()) / spread
    residual = y - y.mean() - slope * (x - x.mean())
    stderr = math.sqrt(float((residual**2).sum()) / (len(x) - 2) / spread) if len(x) > 2 else math.nan
    return slope, stderr


def check_unscaled_writes(tables: Tables, manifest: dict[str, Any]) -> list[Finding]:
    """One finding per recipe and width."""
    exponents = depth_exponents(tables.records)
    mean_writes = writes(tables.records)
    embed = tables.records[(tables.records["site"] == "embed") & (tables.records["kind"] == "activation")]
    findings = []
    for (recipe, n_embd), group in mean_writes.groupby(["recipe", "n_embd"], observed=True):
        fits = exponents[(exponents["recipe"] == recipe) & (exponents["n_embd"] == n_embd)].set_index("site")
        common = {"recipe": str(recipe), "site": "mlp_out"}
        where = f" at n_embd {n_embd}" if mean_writes["n_embd"].nunique() > 1 else ""
        if group["n_layer"].nunique() < 2:
            findings.append(UNSCALED_WRITES.not_applicable("Needs two depths or more: --depths 4,8,16", **common))
            continue
        if "mlp_out" not in fits.index:
            message = f"The branches write nothing{where}, so nothing grows with depth"
            findings.append(UNSCALED_WRITES.passed(message, **common))
            continue
        slope, stderr = float(fits.loc["mlp_out", "slope"]), float(fits.loc["mlp_out", "stderr"])
        deepest = int(group["n_layer"].max())
        total = float(group[group["n_layer"] == deepest].groupby("site", observed=True)["var"].mean().sum() * deepest)
        start = float(embed[(embed["recipe"] == recipe) & (embed["n_embd"] == n_embd)]["var"].mean())
        share = total / start
        # a sum of writes below the embedding's own variance leaves the stream's scale to the embedding
        failing = slope > -0.5 and share > 1
        measured = {"measured": slope, "uncertainty": stderr, "unit": "exponent of n_layer", **common}
        text = f"What each MLP writes goes as n_layer^{slope:+.2f}{where}"
        if not failing:
            note = (
                "" if slope <= -0.5 else f"; all {deepest} blocks together write {share:.2g}× the embedding's variance"
            )
            findings.append(UNSCALED_WRITES.passed(text + note, **measured))
            continue
        std = _projection_std(tables.records, str(recipe), int(n_embd), deepest)
        seeds = int(group["seed"].nunique())
        findings.append(
            UNSCALED_WRITES.failed(
                f"{text}, not ^-1: at {deepest} layers the blocks write {share:.3g}× the embedding's variance, "
                "and twice that at twice the depth",
                severity="warning",
                seeds_failing=seeds,
                seeds_total=seeds,
                effect=math.log(share),
                advice=f"draw attn.c_proj.weight and mlp.c_proj.weight with their std divided by √(2·n_layer): "
                f"at {deepest} layers {std:.3g} → {std / math.sqrt(2 * deepest):.3g}",
                **measured,
            )
        )
    return findings


def _projection_std(records: pd.DataFrame, recipe: str, n_embd: int, n_layer: int) -> float:
    rows = records[
        (records["kind"] == "weight")
        & (records["role"] == "mlp_out")
        & (records["recipe"] == recipe)
        & (records["n_embd"] == n_embd)
        & (records["n_layer"] == n_layer)
    ]
    return float(rows["std"].mean())


UNSCALED_WRITES = Rule(
    code="RES001",
    name="unscaled-branch-writes",
    question="Depth",
    measures="least-squares slope of ln(mean over blocks of var(mlp_out)) on ln(n_layer)",
    needs="two depths or more",
    limit="exponent ≤ -0.5, or writes that sum to less than the embedding's variance",
    basis="derived",
    why="Each block adds variance to the residual stream. With 1/√(2·n_layer) on both output projections the sum over "
    "the blocks is the same at every depth (exponent -1); without it the stream, and the gradient on the way back, "
    "grow with every block (exponent 0). -0.5 is half way. Measured at the MLP, whose input is normalised; what "
    "attention writes also grows with the correlation between positions.",
    advice="Divide the std of attn.c_proj.weight and mlp.c_proj.weight by √(2·n_layer).",
    false_alarms="Models that scale the branch in the forward pass (LayerScale, ReZero, residual multipliers) write "
    "scaled values anyway and pass. Unscaled models train: the measured cost with warmup is 0.004, 0.044 and 0.085 "
    "nats at 6, 24 and 48 layers of width 128, hence a warning.",
    source="Radford et al. 2019, section 2.3; nanoGPT model.py@3adf61e lines 143-145",
    since="0.1.0",
    check=check_unscaled_writes,
)
DEPTH_RULES = (UNSCALED_WRITES,)
