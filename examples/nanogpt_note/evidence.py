"""What the claims are judged by: runs, and the few numbers that are read off them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from initlab.judge.students import Mean
from initlab.results import Comparison, Confirmation

Verdict = Literal["holds", "holds with a condition", "does not hold", "undecided"]
Kind = Literal["code fact", "init statistic", "training outcome"]

NANOGPT = "karpathy/nanoGPT model.py@3adf61e"
SAME = 0.03  # relative: two stds are the same number; the smallest matrix has 16 000 weights, a standard error of 0.6 %
SMALL = 0.05  # nats of validation loss that nobody would change an init for at this size
OUTPUTS = ("attn_out", "mlp_out")


@dataclass(frozen=True)
class Evidence:
    """Runs that the claims are judged by; see `nanogpt_claims.py`."""

    narrow: Comparison
    wide: Comparison
    activations: dict[str, Comparison]
    trained: Confirmation | None = None
    trained_activations: dict[str, Confirmation] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A statement and what became of it."""

    statement: str
    kind: Kind
    tested: str
    measured: str
    verdict: Verdict
    confidence: str
    answer: str
    figure: str = ""
    source: str = ""


def untrained(statement: str, tested: str) -> Claim:
    return Claim(
        statement,
        "training outcome",
        tested,
        "not trained in this run (--quick)",
        "undecided",
        "none",
        "Only training can say; this run measured inits alone.",
    )


def stds(run: Comparison, recipe: str, role: str) -> pd.DataFrame:
    """n_layer, n_embd -> std found in the weights of a role, all blocks and seeds together."""
    rows = run.records[
        (run.records["kind"] == "weight") & (run.records["recipe"] == recipe) & (run.records["role"] == role)
    ]
    found = rows.groupby(["n_layer", "n_embd"])["var"].mean().pow(0.5).rename("std")
    return found.reset_index()


def nanogpt_std(evidence: Evidence, role: str) -> pd.DataFrame:
    """Of nanogpt, at every size that was measured."""
    return pd.concat([stds(run, "nanogpt", role) for run in (evidence.narrow, evidence.wide)])


def all_near(values: pd.Series, expected: pd.Series | float) -> bool:
    return bool(((values / expected - 1).abs() < SAME).all())


def shown_range(values: pd.Series) -> str:
    low, high = f"{values.min():.4f}", f"{values.max():.4f}"
    return low if low == high else f"{low} to {high}"


def widths(frame: pd.DataFrame) -> str:
    return " and ".join(map(str, sorted(frame["n_embd"].unique())))


def growth(run: Comparison) -> pd.DataFrame:
    """recipe, n_layer, n_embd, seed -> variance after the last block ÷ of the embedding, measured and predicted."""
    records = run.records[run.records["kind"] == "activation"]
    keys = ["recipe", "n_layer", "n_embd", "seed"]
    first = records[records["site"] == "embed"].set_index(keys)[["var", "expected_var"]]
    last = records[(records["site"] == "resid_post") & (records["layer"] == records["n_layer"] - 1)]
    return (last.set_index(keys)[["var", "expected_var"]] / first).reset_index()


def excess(run: Comparison) -> pd.Series:
    """First loss − ln V by recipe, mean over depths and seeds."""
    return (run.summary["loss"] - run.summary["ln_vocab"]).groupby(run.summary["recipe"], observed=True).mean()


@dataclass(frozen=True)
class Paired:
    """A mean of differences over seeds, with its 95 % t-interval."""

    mean: float
    low: float
    high: float

    @property
    def text(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def interval(differences: pd.Series) -> Paired:
    """One value per seed."""
    mean = Mean.of(differences)
    return Paired(mean.value, *mean.interval())


def paired(runs: pd.DataFrame, versus: pd.DataFrame, keys: list[str]) -> Paired:
    both = runs.merge(versus, on=keys, suffixes=("", "_versus"))
    return interval((both["loss"] - both["loss_versus"]).groupby(both["seed"]).mean())


def gain_of(runs: pd.DataFrame) -> Paired:
    """Loss without warmup − with, paired by seed."""
    return paired(runs[runs["warmup"] == 0], runs[runs["warmup"] > 0], ["seed", "lr", "n_layer"])


def warmup_gains(runs: pd.DataFrame) -> pd.DataFrame:
    """recipe, n_layer, lr -> mean, low, high of the gain."""
    rows: list[dict[str, Any]] = []
    for (recipe, n_layer, lr), own in runs.groupby(["recipe", "n_layer", "lr"], observed=True):
        gain = gain_of(own)
        rows.append(
            {"recipe": recipe, "n_layer": n_layer, "lr": lr, "mean": gain.mean, "low": gain.low, "high": gain.high}
        )
    return pd.DataFrame(rows)


def effects_text(evidence: Evidence, recipe: str) -> str:
    """Loss of a recipe − nanogpt's over the rates, at every depth, with and without warmup."""
    if evidence.trained is None:
        return f"{recipe}: not trained in this run."
    found = evidence.trained.effects
    found = found[(found["question"] == "recipe") & (found["recipe"] == recipe)]
    parts = []
    for row in found.itertuples():
        needed = "over 100" if math.isinf(row.seeds_needed) else f"{row.seeds_needed:.0f}"
        seeds = f", would need {needed} seeds" if row.verdict == "not separated" else ""
        warm = "with warmup" if row.warmup else "without"
        parts.append(f"{row.n_layer} blocks {warm} {row.difference:+.3f} ({row.verdict}{seeds})")
    return f"{recipe} − nanogpt, nats: {'; '.join(parts)}."
