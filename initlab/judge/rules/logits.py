"""What the model says before it has seen anything."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from initlab.judge.matching import TOLERANCE
from initlab.judge.remedies import GPT2_STD, Change, Described, rescaled, towards
from initlab.judge.rows import Array, Rows, largest, middle
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import called, large_rows, large_text, seeds, table_of
from initlab.judge.theory import first_loss
from initlab.judge.words import trimmed
from initlab.recipes import Role
from initlab.recipes.base import OUTPUTS
from initlab.rundir import Run

GPT2_EMBEDDING = 0.02
_ERRORS = 3.0  # standard errors of a batch's loss, beyond which no luck explains it
_TOLD = 0.1  # nats between a batch's loss and the average, that are worth a word
_WIDE = 20.0  # std of logits that cost far more than any luck
_HEAD = 0.6  # std of the logits that a head makes of an input of rms 1: GPT-2's 0.55 and nn.Linear's 0.58 are usual


def measure_start(run: Run) -> Rows:
    """First loss above ln V, own-token logit, logit std, and names, per cell that has a loss over a vocabulary.

    A batch of few different tokens loses more or less by the luck of what their logits are: `excess` is what logits of
    that std cost on average, unless the loss is farther from it than three of its standard errors; `seen` is the loss.
    """
    found = table_of(run, "summary")
    found = found[~np.isnan(found["ln_vocab"])]
    columns = ("ln_vocab", "logit_std", "own_logit", "repeat_rate")
    costs = [_usual(*row) for row in zip(*(found[name].tolist() for name in columns), strict=True)]
    usual = found["ln_vocab"] + np.array(costs)
    luck = found["logit_std"] * math.sqrt(float(run.manifest["data"].get("sum_p2") or 0.0))
    lucky = np.abs(found["loss"] - usual) <= _ERRORS * luck
    draws = table_of(run, "draws")
    draws = draws[draws.among("role", ("token_embed", "unembed")) & large_rows(draws)]
    large = {draws["run_id"][place]: draws[place] for place in reversed(range(len(draws)))}
    cells = [large.get(cell) for cell in found["run_id"]]
    return found.assign(
        seen=found["loss"] - found["ln_vocab"],
        excess=np.where(lucky, usual, found["loss"]) - found["ln_vocab"],
        table=called(run, found, "the token embedding", "token_embed"),
        head=called(run, found, "", "unembed"),
        where=_applied_by(run, found["run_id"]),
        outputs=called(run, found, "output projections", *OUTPUTS),
        rows=["" if row is None else large_text(row) for row in cells],
        rest=[math.nan if row is None else row["odd_rest"] for row in cells],
    )


def _applied_by(run: Run, cells: Array) -> list[str]:
    """Name the module that applies each cell's head; empty where none of its own does, or it isn't known."""
    rows = table_of(run, "wiring")
    rows = rows[rows["head"] != ""]
    names = dict(zip(rows["run_id"], rows["head_module"], strict=True))
    return [names.get(cell, "") for cell in cells]


def _usual(ln_vocab: float, std: float, own: float, repeat_rate: float) -> float:
    """What logits of such a std and own-token logit cost on average, nats; NaN where that isn't known."""
    own = 0.0 if math.isnan(own) else own
    if not (math.isfinite(std) and math.isfinite(own)) or std > _WIDE:
        return math.nan
    vocab_size = round(math.exp(ln_vocab))
    spread = max(std**2 - own**2 / vocab_size, 0.0)
    repeated = 0.0 if math.isnan(repeat_rate) else repeat_rate
    return first_loss(vocab_size=vocab_size, spread=spread, own_logit=own, repeat_rate=repeated) - ln_vocab


def calm_head(finding: Finding, model: Described) -> list[Change]:
    """Shrink the logits: an untied head; a tied one too, or let the blocks outweigh the embedding."""
    std, own = float(model.summary["logit_std"]), float(model.summary["own_logit"])
    tied = not model.of(Role.UNEMBED)
    heads = model.of(Role.TOKEN_EMBED if tied else Role.UNEMBED)
    trapped = tied and own > 2 * std  # by the token just read, which a tied head sees in the stream
    changes: list[Change] = []
    for row in heads:
        wanted = model.wanted(row).get("std", 0.0)
        large = trapped or row["std"] * math.sqrt(row["n_embd"]) > _HEAD  # else what it reads is
        if large and 0 < wanted < row["std"] * (1 - TOLERANCE):
            why = f"logits of std {trimmed(std)}; {model.reference}'s head has {trimmed(wanted)}"
            changes += towards(row, wanted, finding, why, model)
    if trapped and not changes:
        for row in model.of(*OUTPUTS):
            wanted = model.wanted(row).get("std", 0.0)
            if row["std"] < wanted * (1 - TOLERANCE):
                why = (
                    f"blocks that write so little leave the token just read a logit of {trimmed(own)} in the tied head"
                )
                changes += towards(row, wanted, finding, why, model)
    for row in heads if not changes else []:
        if trapped and row["std"] > GPT2_EMBEDDING:
            why = f"n_embd·σ²/√variance is the logit of the token just read, {trimmed(own)}; "
            why += f"GPT-2's σ is {GPT2_EMBEDDING}"
            changes += towards(row, GPT2_EMBEDDING, finding, why, model)
        elif not trapped and std > GPT2_STD and row["std"] * math.sqrt(row["n_embd"]) > _HEAD:
            why = f"logits of std {trimmed(std)} cost about std²/2 nats; GPT-2's have {GPT2_STD:.2f}"
            changes += rescaled(row, list(row["stds"]), GPT2_STD / std, finding, why)
    return changes


@rule(
    code="LOG001",
    question="Logits",
    measures="first loss − ln V, nats, as it is on average where the batch's luck explains the difference",
    needs="a loss over a vocabulary",
    limits={"warning": 0.6, "error": 2.0, "own_warning": 1.0, "own_token": 8.0},
    unit="nats above ln V",
    limit="≤ {warning} nats, an error above {error}; where only the token just read is overrated a note above "
    "{own_warning}, an error above {own_token}",
    basis="heuristic",
    why="A model that knows nothing should say so and lose ln V. Logits of std s cost s²/2; a tied head adds a "
    "logit of n_embd·σ²/√(stream variance) for the token just read, which is rarely the next one. The first steps are "
    "then spent on unlearning, with large gradients.",
    advice="Shrink the head, untie it, or let the blocks outweigh the embedding before the last norm.",
    false_alarms="What a tied head says of the token just read is unlearned in a few steps: modded-nanogpt's record of "
    "2024-10-14 starts 5.2 nats above, torchtitan's Llama 3 with a tied head 3.6 and trains as well as GPT-2's init "
    "(reports/fresh-ground), sinusoids beside tokens times √n_embd 2.9 and lose 0.04 in 600 steps: a note from 1 to 8. "
    "GPT-2's own init starts 0.15 nats above at 124M and 0.32 at 1.5B. Heads of std 1/√n_embd behind a norm (T5's, "
    "OLMo's, muP's) have logits of std 1, which cost 0.5: the limit is that of 10 % more. The luck of a batch, "
    "std·√Σp² nats for tokens of frequencies p, would otherwise decide about them. Text whose next token often repeats "
    "the current one is cheaper than predicted by std²/2. A tiny config of a model whose multipliers are meant for its "
    "full width may start badly where the full model doesn't.",
    source="derived: E[logsumexp] of Gaussian logits; karpathy/nanoGPT 43b37fd for the tied head's bug",
    since="0.1.0",
    evidence="first-loss",
    remedy=calm_head,
    roles=(Role.TOKEN_EMBED, Role.UNEMBED),
    measure=measure_start,
)
def overconfident_start(case: Case, rows: Rows) -> Finding:
    """Judge the depth and width where it starts worst."""
    by_size = rows.grouped(["n_layer", "n_embd"], excess=("excess", "median"))
    if np.isnan(by_size["excess"]).any():
        return case.not_applicable("Needs a finite loss", site="logits")
    n_layer, n_embd, value = by_size[largest(by_size["excess"])].values()
    common: dict[str, Any] = {"site": "logits", "measured": value}
    worst = rows[(rows["n_layer"] == n_layer) & (rows["n_embd"] == n_embd)]
    own, std = middle(worst["own_logit"]), middle(worst["logit_std"])
    own_token = own > 2 * std
    warning = case.limits["own_warning" if own_token else "warning"]
    if value <= warning:
        return case.passed(f"The first loss is ln V {value:+.2f} nats at its worst ({n_layer} layers)", **common)
    table, head, where, outputs = (str(worst[name][0]) for name in ("table", "head", "where", "outputs"))
    tied = f"{where}, which is tied to {table}," if where else "the tied head"
    error = case.limits["own_token" if own_token else "error"]
    seen = middle(worst["seen"])
    beside = "" if abs(seen - value) < _TOLD else f" on average ({_nats(seen)} in this batch)"
    cause = (
        f"{tied} gives the token just read a logit of {own:.1f}"
        if own_token
        else f"the logits have std {trimmed(std, 2)}" + (", which costs about std²/2" if std < 2 else "")
    )
    advice = (
        f"untie {where or 'the head'} from {table}, draw it with a smaller std, "
        f"or let the blocks write more than the embedding (larger {outputs})"
        if own_token
        else f"draw {head or f'{table}, which the head is tied to,'} with a smaller std"
    )
    if worst["rows"][0]:  # whatever the logits are, it is these rows that make them
        cause = str(worst["rows"][0])
        advice = f"draw these rows as the others, with std {trimmed(float(worst['rest'][0]), 2)}"
    return case.failed(
        f"The first loss is {_nats(value)} nats above ln V{beside} at {n_layer} layers: {cause}",
        severity="error" if value > error else "info" if own_token and not worst["rows"][0] else "warning",
        effect=math.log(value / warning) if warning > 0 else value,
        advice=advice,
        **seeds(worst["excess"] > warning, worst["seed"]),
        **common,
    )


def _nats(value: float) -> str:
    return f"{value:.2f}" if value < 1e5 else trimmed(value)


def measure_prediction(run: Run) -> Rows:
    """First loss minus its closed form, per cell that has one; and the std of a batch's mean target logit.

    Targets repeat, so that std is logit_std·√Σp², however many tokens the batch has.
    """
    found = table_of(run, "summary")
    sum_p2 = float(run.manifest["data"].get("sum_p2") or 0.0)
    off = found["loss"] - found["expected_loss"]
    std = np.where(np.isnan(found["logit_std"]), 0.0, found["logit_std"])
    return found.assign(off=off, error=std * math.sqrt(sum_p2))[~np.isnan(off)]


@rule(
    code="LOG002",
    question="Logits",
    measures="first loss − its closed form, mean over seeds, nats",
    needs="a model and a recipe that the closed form covers",
    limits={"slack": 0.1},
    unit="nats off the closed form",
    limit="{slack} nats + 3 standard errors of the batch",
    basis="derived",
    why="The closed form follows from the weights alone. A loss elsewhere means that the model isn't wired, drawn or "
    "tied as declared.",
    advice="Compare the weight rows' std with the recipe's table.",
    false_alarms="Widths below about 64, where the neglected 1/n_embd terms are larger than the slack.",
    source="initlab.judge.theory.first_loss",
    since="0.1.0",
    evidence="first-loss",
    measure=measure_prediction,
)
def first_loss_off_prediction(case: Case, rows: Rows) -> Finding:
    """Judge the depth and width farthest from the closed form."""
    by_size = rows.grouped(["n_layer", "n_embd"], off=("off", "mean"))
    n_layer, n_embd, value = by_size[largest(np.abs(by_size["off"]))].values()
    judged = rows[(rows["n_layer"] == n_layer) & (rows["n_embd"] == n_embd)]
    count = len(set(judged["seed"]))
    slack, error = case.limits["slack"], middle(judged["error"])
    limit = slack + 3 * error / math.sqrt(count)
    common = {"site": "logits", "measured": value, "limit": f"|loss − closed form| ≤ {limit:.2f} nats"}
    text = f"The first loss is {value:+.2f} nats off its closed form at {n_layer} layers"
    if abs(value) <= limit:
        return case.passed(text, **common)
    return case.failed(
        text,
        severity="warning",
        effect=math.log(abs(value) / limit) if limit > 0 else abs(value),
        advice="compare the weight rows' std with the recipe's table: a matrix is drawn differently, tied differently, "
        "or scaled in the forward pass",
        **seeds(np.abs(judged["off"]) > slack + 3 * error, judged["seed"]),
        **common,
    )
