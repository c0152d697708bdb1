"""Whether the gains of norms begin as one number."""

from __future__ import annotations

import numpy as np

from initlab.judge.remedies import Change, Described, drawn
from initlab.judge.rows import Rows
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import blocks, seeds, table_of
from initlab.judge.words import listed, trimmed
from initlab.recipes import Role
from initlab.rundir import Run


def measure_gains(run: Run) -> Rows:
    """Mean of each norm's gain, and its std over the channels."""
    rows = table_of(run, "draws")
    return rows[rows["role"] == Role.NORM_GAIN]


def set_to_one(finding: Finding, model: Described) -> list[Change]:
    """Give every norm the gain that the reference gives it."""
    why = "a norm's gain begins as one number"
    rows = [row for row in model.of(Role.NORM_GAIN) if model.wanted(row)]
    return [drawn(row, list(row["stds"]), row["std"], finding, why, model) for row in rows if row["std_max"] > 0]


@rule(
    code="INI011",
    question="Init",
    measures="std of a norm's gain over its channels ÷ the size of its mean, what its module adds counted in",
    needs="norms with gains, in a model that was probed or compared before any step",
    limits={"spread": 0.1},
    unit="of the mean",
    limit="≤ {spread}",
    basis="reference-code",
    why="Norms begin with one gain for all channels, 1 in most models (stored as 0 where the module adds 1). Gains "
    "that differ are memory that nothing was written into (torch.empty, to_empty), or a draw meant for matrices: "
    "they weigh the channels by chance, and near 0 they shut the branch.",
    advice="Set the gains to 1.",
    false_alarms="Trained norms, in a model whose loss doesn't say that it is trained.",
    source="mosaicml/llm-foundry#1745, every norm of torch.nn",
    since="0.1.0",
    roles=(Role.NORM_GAIN,),
    remedy=set_to_one,
    measure=measure_gains,
)
def uneven_gains(case: Case, rows: Rows) -> Finding:
    """Judge the norm whose gains differ most."""
    spread = rows["spread"] / np.where(rows["mean"] != 0, np.abs(rows["mean"]), 1e-30)
    uneven = (spread > case.limits["spread"]) | ~(rows["spread"] < float("inf"))
    bad = rows[uneven]
    if bad.empty:
        return case.passed(f"The gains of {len(set(rows['module']))} norms are one number each")
    first = bad[0]
    names = [str(each) for each in bad["module"]]
    return case.failed(
        f"The gains of {len(bad)} of {len(rows)} norms differ from channel to channel: {first['module']} has mean "
        f"{trimmed(first['mean'])} and std {trimmed(first['spread'])}",
        severity="warning",
        site="norm_gain",
        measured=float(spread[uneven][0]),
        effect=float(len(bad)),
        advice=f"set {listed(names)} to 1 (nn.init.ones_; zeros where the norm adds 1 to it), and keep the draw of the "
        "matrices away from them",
        **blocks(bad["layer"]),
        **seeds(uneven, rows["seed"]),
    )
