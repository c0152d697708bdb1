"""Whether every parameter can learn."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from initlab.judge.rules.base import Finding, Rule
from initlab.schema import Tables


def check_zero_gradient(tables: Tables, manifest: dict[str, Any]) -> list[Finding]:
    """One finding per recipe."""
    findings = []
    for recipe, rows in tables.records.groupby("recipe", observed=True):
        gradients = rows[rows["kind"] == "weight_grad"]
        common = {"recipe": str(recipe), "unit": "without gradient"}
        if gradients.empty:
            findings.append(ZERO_GRADIENT.not_applicable("Needs a backward pass and trainable parameters", **common))
            continue
        zero = gradients[gradients["abs_max"] == 0]
        closed = _behind_zero_projection(rows, zero)
        if zero.empty:
            message = f"A gradient reaches every one of {gradients['module'].nunique()} parameters"
            findings.append(ZERO_GRADIENT.passed(message, measured=0.0, **common))
            continue
        if closed:
            message = (
                f"{zero['module'].nunique()} parameters stand behind an output projection that is 0 and wait one step "
                "for their gradient; it reaches every other one"
            )
            findings.append(ZERO_GRADIENT.passed(message, measured=0.0, **common))
            continue
        names = list(dict.fromkeys(zero["module"]))
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        layers = zero["layer"].dropna()
        findings.append(
            ZERO_GRADIENT.failed(
                f"No gradient reaches {shown}",
                severity="error" if _was_used(rows, zero) else "warning",
                site=str(zero["site"].iloc[0]),
                layer_first=int(layers.min()) if len(layers) else None,
                layer_last=int(layers.max()) if len(layers) else None,
                measured=float(len(names)),
                seeds_failing=int(zero["seed"].nunique()),
                seeds_total=int(gradients["seed"].nunique()),
                effect=math.log(len(names)),
                advice=f"check that {names[0]} is used in the forward pass and not detached",
                **common,
            )
        )
    return findings


def _was_used(rows: pd.DataFrame, zero: pd.DataFrame) -> bool:
    """A module that holds one of the parameters gave an output, so that something after it cut the gradient off.

    Modules that never ran, such as experts that this batch wasn't routed to, may yet learn from another batch.
    """
    ran = set(rows.loc[(rows["kind"] == "activation") & (rows["numel"] > 0), "module"])
    return any(module.rpartition(".")[0] in ran for module in zero["module"])


def _behind_zero_projection(rows: pd.DataFrame, zero: pd.DataFrame) -> bool:
    """Every zero gradient is of a block whose own output projection is exactly 0."""
    weights = rows[(rows["kind"] == "weight") & (rows["abs_max"] == 0)]
    shut = {
        (run, layer, branch)
        for run, layer, branch in zip(weights["run_id"], weights["layer"], weights["role"], strict=True)
    }
    for run, layer, module in zip(zero["run_id"], zero["layer"], zero["module"], strict=True):
        branch = "attn_out" if any(part in module for part in (".attn.", ".ln_1.")) else "mlp_out"
        # the projection itself, zero or not, gets a gradient as soon as anything enters it
        if ".c_proj." in module or (run, layer, branch) not in shut:
            return False
    return True


ZERO_GRADIENT = Rule(
    code="GRD001",
    name="zero-gradient-parameter",
    question="Gradient",
    measures="parameters whose gradient is 0 in every element",
    needs="a backward pass",
    limit="none, but for those behind a zero-initialised output projection",
    basis="derived",
    why="A parameter without gradient doesn't learn: it is unused, detached, or shut off by a zero after it.",
    advice="Check that the parameter is used in the forward pass.",
    false_alarms="Parameters that only other inputs reach, such as experts that this batch wasn't routed to: a "
    "warning.",
    source="chain rule; zero-initialised projections: Fixup, 1901.09321",
    since="0.1.0",
    check=check_zero_gradient,
)
GRADIENT_RULES = (ZERO_GRADIENT,)
