"""What enters the first block."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from initlab.judge.remedies import Change, Described, towards
from initlab.judge.rows import Rows
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import called, recorded, seeds, table_of
from initlab.judge.words import trimmed
from initlab.recipes import Role
from initlab.rundir import Run


def measure_drowned(run: Run) -> Rows:
    """Token / position ratio per cell, whether positions are fixed (a sinusoid, or frozen), and what both are called.

    Positions that aren't a table count as fixed: only a trained one has a gradient.
    """
    summary = table_of(run, "summary")
    trains_it = set(recorded(run, "weight_grad", "pos_embed")["run_id"])
    trains = set(recorded(run, "weight_grad")["run_id"])
    found = summary[~np.isnan(summary["token_position_ratio"])]
    return found.assign(
        ratio=found["token_position_ratio"],
        fixed=found.among("run_id", trains - trains_it),
        token=called(run, found, "the token embedding", "token_embed"),
        position=called(run, found, "the position embedding", "pos_embed"),
    )


def match_embeddings(finding: Finding, model: Described) -> list[Change]:
    """Give position and token embedding one std: move whichever is farther from the reference.

    Beside a fixed table neither moves: it is the sum that lacks a factor.
    """
    tokens, positions = model.of(Role.TOKEN_EMBED), [row for row in model.of(Role.POS_EMBED) if model.trains(row)]
    if not tokens or not positions:
        return []
    token = max(tokens, key=lambda row: row["numel"])

    def off(row: dict[str, Any]) -> float:
        wanted = model.wanted(row).get("std", 0.0)
        return abs(math.log(row["std"] / wanted)) if row["std"] > 0 and wanted > 0 else math.inf

    changes: list[Change] = []
    for position in positions:
        if off(token) > off(position):
            why = f"the position embedding's std, {trimmed(position['std'])}"
            return towards(token, position["std"], finding, why, model)
        why = f"the token embedding's std, {trimmed(token['std'])}: what is read weighs as much as where"
        changes += towards(position, token["std"], finding, why, model)
    return changes


@rule(
    code="EMB001",
    question="Embedding",
    measures="E[token embedding²] / E[position embedding²] of the batch, as they enter their sum",
    needs="position embeddings that are added to the tokens'",
    limits={"warning": 0.1, "error": 0.01},
    unit="token / position",
    limit="≥ {warning}; below {error} an error",
    basis="heuristic",
    why="The first norm rescales the sum, so only the ratio survives: every block reads positions and, far below them, "
    "the tokens. The model has to grow the token embedding before it can learn anything about the text.",
    advice="Draw the position embedding with the std of the token embedding (GPT-2: 0.02 both).",
    false_alarms="Models without added positions (RoPE, ALiBi) have no ratio. The limits are set between torch's "
    "defaults in nanoGPT (ratio 1/(3·n_embd), 0.3 to 0.5 nats behind after 300 to 2000 steps at width 128) and "
    "GPT-2's (ratio 1); nothing between was trained. A fixed table (sinusoids) is part of the architecture, and no "
    "run of ours shows what it costs: a warning at most. A norm between the two embeddings and the stream hides by "
    "how much the model scales them; then they count where the operations show it, and else aren't judged.",
    source="nanoGPT with its init removed: wpe ~ N(0, 1), tied wte ~ U(±1/√n_embd)",
    since="0.1.0",
    evidence="residual",
    remedy=match_embeddings,
    roles=(Role.TOKEN_EMBED, Role.POS_EMBED),
    measure=measure_drowned,
)
def token_drowned_by_position(case: Case, rows: Rows) -> Finding:
    """Judge the median over seeds, depths and widths."""
    ratio, fixed = float(np.median(rows["ratio"])), bool(rows["fixed"].all())
    token, position = str(rows["token"][0]), str(rows["position"][0])
    common = {"site": "embed", "measured": ratio}
    warning, error = case.limits["warning"], case.limits["error"]
    if ratio >= warning:
        return case.passed(f"Token embedding is {trimmed(ratio, 2)}× the position embedding in mean square", **common)
    return case.failed(
        f"The token embedding is {trimmed(ratio, 2)}× the {'fixed ' if fixed else ''}position embedding in mean "
        "square: the stream says where, hardly what",
        severity="error" if ratio < error and not fixed else "warning",
        effect=math.log(warning / ratio) if ratio > 0 else math.inf,
        advice=f"multiply what {token} gives with √n_embd before the sum, as Vaswani et al. 2017 do for their "
        "sinusoids, or draw it with the positions' rms"
        if fixed
        else f"draw {position} with the std of {token} (GPT-2: 0.02 both)",
        **seeds(rows["ratio"] < warning, rows["seed"]),
        **common,
    )
