"""Which cells of a run are inits: the rules about init look at no others."""

from __future__ import annotations

import pandas as pd

from initlab.judge.cache import kept
from initlab.rundir import Run
from initlab.schema import Tables

TRAINED_BELOW = 0.5  # nats under ln V: no init knows the text that well; batches scatter by a few hundredths


@kept
def before_training(run: Run) -> Run:
    """The run without what was trained: of a confirmation, the cells that were probed."""
    if run.manifest.get("kind") != "confirm" or run.tables.runs.empty:
        return run
    ids = set(run.tables.runs["run_id"].astype(str))
    return Run(Tables(**{name: frame[~frame["run_id"].isin(ids)] for name, frame in run.tables.items()}), run.manifest)


def trained(summary: pd.DataFrame) -> pd.DataFrame:
    """Rows of the summary that are no init: after a step of training, or with a loss well below ln V."""
    return summary[(summary["step"] > 0) | (summary["loss"] < summary["ln_vocab"] - TRAINED_BELOW)]


def only_inits(run: Run) -> Run:
    """The run without trained cells and without steps after the first."""
    summary = run.tables.summary
    known = set(trained(summary[summary["step"] == 0])["run_id"])
    if not known and not any(table["step"].any() for _, table in run.tables.items() if "step" in table):
        return run
    kept = {}
    for name, table in run.tables.items():
        rows = table[~table["run_id"].isin(known)]
        kept[name] = rows[rows["step"] == 0] if "step" in rows else rows
    return Run(Tables(**kept), run.manifest)


@kept
def why_not_init(run: Run, recipe: str) -> str:
    """Why a recipe has no init to judge; empty where it has one."""
    rows = run.tables.summary[run.tables.summary["recipe"] == recipe]
    after = trained(rows)
    if len(after) < len(rows) or rows.empty:
        return ""
    steps = int(rows["step"].max())
    if steps > 0:
        return f"After {steps} steps of training it is no init any more, which this rule is about"
    below = float((after["ln_vocab"] - after["loss"]).min())
    return f"The loss is {below:.2f} nats below ln V: a trained model, and this rule is about inits"
