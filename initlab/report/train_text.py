"""Training runs as terminal text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from initlab.judge.rules.base import Finding
from initlab.report import digest
from initlab.report.console import run_text
from initlab.report.tables import plain_table
from initlab.rundir import Run

if TYPE_CHECKING:
    import pandas as pd


def training_text(run: Run, findings: Sequence[Finding], *, width: int | None = None, color: bool = False) -> str:
    """A row per recipe: what training came to; then the findings about its init."""
    runs = run.tables.runs
    footer = ""
    if len(runs):
        footer = (
            f"losses in nats, val: of the evaluation batches; ln V {runs['ln_vocab'].iloc[0]:.3f}, and "
            f"{runs['unigram_loss'].iloc[0]:.3f} for knowing how frequent tokens are and nothing else; "
            "findings are about the inits, before the first step; NUM001 to NUM004 about the trained model too"
        )
    return run_text(run, findings, _runs_table(run), width, color, footer)


def _runs_table(run: Run) -> Table:
    table = plain_table(
        "recipe", "val loss", "best", "first\n− ln V", "gradient norm\nfirst → peak", "steps", "tokens/s"
    )
    runs, training = run.tables.runs, run.tables.training
    order = [recipe for recipe in digest.recipes_of(run) if recipe in set(runs["recipe"])]
    for recipe in order:
        for row in runs[runs["recipe"] == recipe].itertuples():
            own = training[training["run_id"] == row.run_id].sort_values("step")
            diverged = math.isnan(float(row.val_loss))
            table.add_row(
                recipe,
                "diverged" if diverged else f"{row.val_loss:.4f}",
                _best(own),
                digest.signed(float(row.first_loss) - float(row.ln_vocab), 3),
                _norms(own["grad_norm"]),
                f"{row.steps_done:,}" + (f" of {row.steps:,}" if row.steps_done < row.steps else ""),
                _rate(own["tokens_per_second"]),
            )
    return table


def _best(own: pd.DataFrame) -> str:
    losses = own.loc[own["val_loss"].notna(), ["step", "val_loss"]]
    if losses.empty:
        return "–"
    best = losses.loc[losses["val_loss"].idxmin()]
    return f"{best['val_loss']:.4f} at {int(best['step']):,}"


def _norms(norms: pd.Series) -> str:
    seen = norms.dropna()
    return "–" if seen.empty else f"{digest.number(float(seen.iloc[0]))} → {digest.number(float(seen.max()))}"


def _rate(rates: pd.Series) -> str:
    """The median: evaluations, the first steps and a machine that is shared leave it alone."""
    return "–" if rates.isna().all() else f"{rates.median():,.0f}"
