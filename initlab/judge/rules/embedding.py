"""What enters the first block."""

from __future__ import annotations

import math
from typing import Any

from initlab.judge.rules.base import Finding, Rule
from initlab.schema import Tables

WARNING_BELOW, ERROR_BELOW = 0.1, 0.01


def check_drowned_token(tables: Tables, manifest: dict[str, Any]) -> list[Finding]:
    """One finding per recipe, over its seeds, depths and widths."""
    findings = []
    for recipe, rows in tables.summary[tables.summary["step"] == 0].groupby("recipe", observed=True):
        ratio = float(rows["token_position_ratio"].median())
        common = {"recipe": str(recipe), "site": "embed", "unit": "token / position", "measured": ratio}
        if math.isnan(ratio):
            findings.append(DROWNED_TOKEN.not_applicable("Needs learned position embeddings", **common))
        elif ratio >= WARNING_BELOW:
            message = f"Token embedding is {ratio:.2g}× the position embedding in mean square"
            findings.append(DROWNED_TOKEN.passed(message, **common))
        else:
            by_seed = rows.groupby("seed")["token_position_ratio"].median()
            findings.append(
                DROWNED_TOKEN.failed(
                    f"The token embedding is {ratio:.2g}× the position embedding in mean square: "
                    "the stream says where, hardly what",
                    severity="error" if ratio < ERROR_BELOW else "warning",
                    seeds_failing=int((by_seed < WARNING_BELOW).sum()),
                    seeds_total=len(by_seed),
                    effect=math.log(WARNING_BELOW / ratio) if ratio > 0 else math.inf,
                    advice="draw transformer.wpe.weight with the std of transformer.wte.weight (GPT-2: 0.02 both)",
                    **common,
                )
            )
    return findings


DROWNED_TOKEN = Rule(
    code="EMB001",
    name="token-drowned-by-position",
    question="Embedding",
    measures="E[token embedding²] / E[position embedding²] of the batch that enters block 0",
    needs="learned position embeddings",
    limit=f"≥ {WARNING_BELOW}; below {ERROR_BELOW} an error",
    basis="heuristic",
    why="The first norm rescales the sum, so only the ratio survives: every block reads positions and, far below them, "
    "the tokens. The model has to grow the token embedding before it can learn anything about the text.",
    advice="Give token and position embeddings the same std.",
    false_alarms="Models without learned positions (RoPE, ALiBi) have no ratio. The limits are set between torch's "
    "defaults in nanoGPT (ratio 1/(3·n_embd), 0.3 to 0.5 nats behind after 300 to 2000 steps at width 128) and "
    "GPT-2's (ratio 1); nothing between was trained.",
    source="nanoGPT with its init removed: wpe ~ N(0, 1), tied wte ~ U(±1/√n_embd)",
    since="0.1.0",
    check=check_drowned_token,
)
EMBEDDING_RULES = (DROWNED_TOKEN,)
