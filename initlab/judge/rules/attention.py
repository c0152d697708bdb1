"""Where attention looks before it has learned anything."""

from __future__ import annotations

import math

import numpy as np

from initlab.judge.matching import TOLERANCE
from initlab.judge.remedies import Change, Described, rescaled
from initlab.judge.rows import Row, Rows, largest, smallest
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import CELL, heads_of, seeds, size
from initlab.judge.words import trimmed
from initlab.recipes import Role
from initlab.rundir import Run

_NOWHERE = "Attention is finite in no block, or has a bias that one sequence doesn't tell from the rest"
_NEEDS = "attention that was found, and --stats full"


def measure_heads(run: Run) -> Rows:
    """Mean over the heads of every block: entropy as a share of its largest, and std of the attention logits.

    Of what the input makes of them, where something is added to the scores.
    """
    return heads_of(run).grouped(
        [*CELL, "layer"], entropy_frac=("entropy_frac", "mean"), logit_std=("logit_std", "mean")
    )


def calm_attention(finding: Finding, model: Described) -> list[Change]:
    """Bring queries and keys to what the reference draws, where that is less; fused, the values shrink with them."""
    changes: list[Change] = []
    for row in model.of(Role.ATTN_QKV, Role.ATTN_Q, Role.ATTN_K):
        wanted = model.wanted(row).get("std", 0.0)
        if 0 < wanted < row["std"] * (1 - TOLERANCE):
            why = f"attention logits grow with the square of it; {model.reference} has {trimmed(wanted)}"
            changes += rescaled(row, list(row["stds"]), wanted / row["std"], finding, why)
    return changes


@rule(
    code="ATT001",
    question="Attention",
    measures="entropy of the attention pattern / ln(visible keys), mean over a block's heads; where a bias is added to "
    "the scores, of the scores without what all sequences have in common",
    needs=_NEEDS,
    limits={"warning": 0.5, "error": 0.2},
    unit="of uniform",
    limit="≥ {warning}; below {error} an error",
    basis="heuristic",
    why="A pattern on few tokens is a choice that nothing justifies yet, and its softmax is saturated: little gradient "
    "reaches the queries and keys to change it.",
    advice="draw the queries' and keys' matrices with a smaller std, or normalise them (QK-norm)",
    false_alarms="None known at init: q and k of unit variance leave 0.8 to 0.9. A std of 0.5 at width 64 (logits of "
    "std 16) lost 0.4 to 0.9 nats at the usual rates and won only at 0.03.",
    source="stability grid at width 64: std 0.1 trains as well as any, 0.5 doesn't; limits between",
    since="0.1.0",
    evidence="attention",
    remedy=calm_attention,
    roles=(Role.ATTN_QKV, Role.ATTN_Q, Role.ATTN_K),
    measure=measure_heads,
)
def attention_collapse(case: Case, rows: Rows) -> Finding:
    """Judge the block, of the means over seeds, that looks most narrowly."""
    rows = rows[~np.isnan(rows["entropy_frac"])]
    if rows.empty:
        return case.not_applicable(_NOWHERE)
    worst, value = _extreme(rows, "entropy_frac", lowest=True)
    warning, error = case.limits["warning"], case.limits["error"]
    common = {"measured": value, "site": "attn_pattern", "layer_first": int(worst["layer"])}
    text = f"Attention has {value:.0%} of a uniform pattern's entropy at its narrowest, in block {int(worst['layer'])}"
    if value >= warning:
        return case.passed(text, **common)
    return case.failed(
        f"{text}{size(worst, rows)}: each position already looks at few tokens, chosen at random",
        severity="error" if value < error else "warning",
        effect=math.log(warning / value) if value > 0 else math.inf,
        **seeds(rows["entropy_frac"] < warning, rows["seed"]),
        **common,
    )


@rule(
    code="ATT002",
    question="Attention",
    measures="std of the visible attention logits within a row, mean over a block's heads; where a bias is added to "
    "them, without what all sequences have in common",
    needs=_NEEDS,
    limits={"std": 2.5},
    unit="std of logits",
    limit="≤ {std}",
    basis="heuristic",
    why="Gaussian logits of std s cost the softmax s²/2 nats of entropy. Large logits at init grow further in "
    "training, which is a known way to diverge.",
    advice="draw the queries' and keys' matrices with a smaller std, use 1/√d_head (or 1/d_head), or QK-norm",
    false_alarms="He's init of queries and keys has 2.0 by itself, unit variance 1.0; both are below the limit.",
    source="Dehghani et al. 2023, 2302.05442, section 3; Wortsman et al. 2023, 2309.14322",
    since="0.1.0",
    evidence="attention",
    remedy=calm_attention,
    roles=(Role.ATTN_QKV, Role.ATTN_Q, Role.ATTN_K),
    measure=measure_heads,
)
def attention_logit_scale(case: Case, rows: Rows) -> Finding:
    """Judge the block, of the means over seeds, with the largest logits."""
    rows = rows[~np.isnan(rows["logit_std"])]
    if rows.empty:
        return case.not_applicable(_NOWHERE)
    worst, value = _extreme(rows, "logit_std", lowest=False)
    limit = case.limits["std"]
    common = {"measured": value, "site": "attn_logits", "layer_first": int(worst["layer"])}
    text = f"Attention logits have std {trimmed(value, 2)} at most, in block {int(worst['layer'])}"
    if value <= limit:
        return case.passed(text, **common)
    return case.failed(
        f"{text}{size(worst, rows)}: the softmax loses about std²/2 = {value**2 / 2:.1f} nats of entropy to chance",
        severity="warning",
        effect=math.log(value / limit),
        **seeds(rows["logit_std"] > limit, rows["seed"]),
        **common,
    )


def _extreme(rows: Rows, column: str, *, lowest: bool) -> tuple[Row, float]:
    keys = ("n_layer", "n_embd", "layer")
    values = rows.grouped(keys, value=(column, "mean"))["value"]
    place = (smallest if lowest else largest)(values)
    return rows[int(rows.groups(*keys)[place][0])], float(values[place])
