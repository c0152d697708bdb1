"""What the model says before it has seen anything."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from initlab.judge.rules.base import Finding, Rule
from initlab.schema import Tables

WARNING_ABOVE, ERROR_ABOVE = 0.5, 2.0  # nats
SLACK = 0.1  # nats: what the closed form neglects, at the widths it was checked


def check_overconfident_start(tables: Tables, manifest: dict[str, Any]) -> list[Finding]:
    """One finding per recipe: the depth and width where it starts worst."""
    findings = []
    for recipe, rows in _at_start(tables).groupby("recipe", observed=True):
        excess = rows["loss"] - rows["ln_vocab"]
        by_size = excess.groupby([rows["n_layer"], rows["n_embd"]]).median()
        common: dict[str, Any] = {"recipe": str(recipe), "site": "logits", "unit": "nats above ln V"}
        if by_size.isna().any():
            findings.append(OVERCONFIDENT.not_applicable("Needs a finite loss", **common))
            continue
        (n_layer, n_embd), value = tuple(by_size.idxmax()), float(by_size.max())
        common["measured"] = value
        if value <= WARNING_ABOVE:
            message = f"The first loss is ln V {value:+.2f} nats at its worst ({n_layer} layers)"
            findings.append(OVERCONFIDENT.passed(message, **common))
            continue
        worst = rows[(rows["n_layer"] == n_layer) & (rows["n_embd"] == n_embd)]
        own, std = float(worst["own_logit"].median()), float(worst["logit_std"].median())
        own_token = own > 2 * std
        cause = (
            f"the tied head gives the token just read a logit of {own:.1f}"
            if own_token
            else f"the logits have std {std:.2g}" + (", which costs about std²/2" if std < 2 else "")
        )
        by_seed = excess[worst.index].groupby(worst["seed"]).median()
        findings.append(
            OVERCONFIDENT.failed(
                f"The first loss is {value:.2f} nats above ln V at {n_layer} layers: {cause}",
                severity="error" if value > ERROR_ABOVE else "warning",
                seeds_failing=int((by_seed > WARNING_ABOVE).sum()),
                seeds_total=len(by_seed),
                effect=math.log(value / WARNING_ABOVE),
                advice="untie lm_head, or let the blocks write more than the embedding (larger c_proj.weight)"
                if own_token
                else "draw lm_head.weight (or the tied wte.weight) with a smaller std",
                **common,
            )
        )
    return findings


def check_off_prediction(tables: Tables, manifest: dict[str, Any]) -> list[Finding]:
    """One finding per recipe: the depth and width farthest from the closed form."""
    findings = []
    sum_p2 = float(manifest["data"].get("sum_p2") or 0.0)
    for recipe, rows in _at_start(tables).groupby("recipe", observed=True):
        common: dict[str, Any] = {"recipe": str(recipe), "site": "logits", "unit": "nats off the closed form"}
        if (rows["loss"] < rows["ln_vocab"] - WARNING_ABOVE).any():
            findings.append(
                OFF_PREDICTION.not_applicable("The loss is below ln V: a trained model, not an init", **common)
            )
            continue
        off = rows["loss"] - rows["expected_loss"]
        if off.isna().any():
            findings.append(
                OFF_PREDICTION.not_applicable("Needs a model and a recipe that the theory covers", **common)
            )
            continue
        by_size = off.groupby([rows["n_layer"], rows["n_embd"]]).mean()
        (n_layer, n_embd), value = tuple(by_size.abs().idxmax()), float(by_size.loc[by_size.abs().idxmax()])
        judged = rows[(rows["n_layer"] == n_layer) & (rows["n_embd"] == n_embd)]
        # Targets repeat, so the mean target logit of a batch has std logit_std·√Σp², however many tokens it has.
        seeds = int(judged["seed"].nunique())
        error = float(judged["logit_std"].median()) * math.sqrt(sum_p2)
        limit = SLACK + 3 * error / math.sqrt(seeds)
        common |= {"measured": value, "limit": f"|loss − closed form| ≤ {limit:.2f} nats"}
        text = f"The first loss is {value:+.2f} nats off its closed form at {n_layer} layers"
        if abs(value) <= limit:
            findings.append(OFF_PREDICTION.passed(text, **common))
        else:
            findings.append(
                OFF_PREDICTION.failed(
                    text,
                    severity="warning",
                    seeds_failing=int((off[judged.index].abs() > SLACK + 3 * error).sum()) or 1,
                    seeds_total=seeds,
                    effect=math.log(abs(value) / limit),
                    advice="compare the weight rows' std with the recipe's table: a matrix is drawn differently, "
                    "tied differently, or scaled in the forward pass",
                    **common,
                )
            )
    return findings


def _at_start(tables: Tables) -> pd.DataFrame:
    return tables.summary[tables.summary["step"] == 0]


OVERCONFIDENT = Rule(
    code="LOG001",
    name="overconfident-start",
    question="Logits",
    measures="first loss − ln V, nats",
    needs="a loss",
    limit=f"≤ {WARNING_ABOVE} nats; above {ERROR_ABOVE} an error",
    basis="heuristic",
    why="A model that knows nothing should say so and lose ln V. Logits of std s cost s²/2; a tied head adds a "
    "logit of n_embd·σ²/√(stream variance) for the token just read, which is rarely the next one. The first steps are "
    "then spent on unlearning, with large gradients.",
    advice="Shrink the head, untie it, or let the blocks outweigh the embedding before the last norm.",
    false_alarms="GPT-2's own init starts 0.15 nats above at 124M and 0.32 at 1.5B, so the limit is above both. "
    "Text whose next token often repeats the current one is cheaper than predicted by std²/2.",
    source="derived: E[logsumexp] of Gaussian logits; karpathy/nanoGPT 43b37fd for the tied head's bug",
    since="0.1.0",
    check=check_overconfident_start,
)
OFF_PREDICTION = Rule(
    code="LOG002",
    name="first-loss-off-prediction",
    question="Logits",
    measures="first loss − its closed form, mean over seeds, nats",
    needs="a recipe or weights that the theory covers",
    limit=f"{SLACK} nats + 3 standard errors of the batch",
    basis="derived",
    why="The closed form follows from the weights alone. A loss elsewhere means that the model isn't wired, drawn or "
    "tied as declared.",
    advice="Compare the weight rows' std with the recipe's table.",
    false_alarms="Widths below about 64, where the neglected 1/n_embd terms are larger than the slack.",
    source="initlab.judge.theory.first_loss",
    since="0.1.0",
    check=check_off_prediction,
)
LOGIT_RULES = (OVERCONFIDENT, OFF_PREDICTION)
