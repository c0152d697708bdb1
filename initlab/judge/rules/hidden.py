"""Whether the hidden units work: neither all linear, nor shut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from initlab.judge.remedies import GPT2_STD, Change, Described, rescaled
from initlab.judge.rows import Array, Rows, largest, smallest
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import CELL, called, recorded, seeds, size, table_of
from initlab.judge.words import trimmed
from initlab.recipes import Role
from initlab.recipes.base import INNER, OUTPUTS
from initlab.rundir import Run

_ENTERING = ("mlp_in", "mlp_gate")
_HIDDEN = (*INNER, *OUTPUTS)


def measure_small(run: Run) -> Rows:
    """Per cell, the median over blocks of a pre-activation's mean square.

    Measured (`mlp_pre`) where the layout shows it, else n_embd · std² of the matrices that enter the MLP, which is
    that of an input of rms 1, as norms give it; with the std that would make it 768 · 0.02².
    """
    entering = recorded(run, "activation", "mlp_pre")
    weights = recorded(run, "weight", *_ENTERING)
    weights = weights[(weights["rms"] > 0) & (weights["n_embd"] > 0)]
    stream = recorded(run, "activation", "resid_post")
    measured = _medians(entering, entering["rms"] ** 2)
    drawn = _medians(weights, weights["rms"])
    widths = _medians(stream, stream["numel"] / stream["n_tokens"])
    cells = sorted({*measured, *drawn})
    if not cells:
        return Rows({})
    std, square, width = (
        np.array([known.get(cell, math.nan) for cell in cells]) for known in (drawn, measured, widths)
    )
    found = Rows(dict(zip(CELL, zip(*cells, strict=True), strict=True)))
    width = np.where(np.isnan(width), found["n_embd"], width)
    square = np.where(np.isnan(square), width * std**2, square)
    return found.assign(std=std, width=width, square=square, wanted=0.02 * np.sqrt(768 / width))[square > 0]


def _medians(rows: Rows, values: Array) -> dict[tuple[Any, ...], float]:
    """By cell, in the order of CELL."""
    found = rows.assign(value=values).grouped(CELL, value=("value", "median"))
    return {tuple(row[key] for key in CELL): row["value"] for row in found}


def widen_hidden(finding: Finding, model: Described) -> list[Change]:
    """Draw the blocks' matrices at GPT-2's 0.02·√(768/n_embd); output projections keep their ratio to them."""
    changes = []
    for row in model.of(*_HIDDEN):
        inputs = [each for each in model.of(Role.MLP_IN) if each["stack"] == row["stack"]]
        if inputs and inputs[0]["std"] > 0:
            wanted = GPT2_STD / math.sqrt(row["n_embd"])
            why = f"n_embd·σ² = {GPT2_STD**2:.2f}, as in GPT-2 at 768: "
            why += f"at n_embd {row['n_embd']} that is {trimmed(wanted)}"
            changes += rescaled(row, list(row["stds"]), wanted / inputs[0]["std"], finding, why)
    return changes


@rule(
    code="ACT001",
    question="Init",
    measures="mean square of the MLP's pre-activations, measured or n_embd · std² of the matrices behind a norm",
    needs="matrices with the role mlp_in or mlp_gate that aren't 0",
    limits={"info": 0.06, "warning": 0.003},
    unit="mean square",
    limit="≥ {info}; below {warning} a warning",
    basis="heuristic",
    why="A constant std such as 0.02 is fitted to a width. At a narrow one the pre-activations are near 0, where every "
    "smooth nonlinearity is a line, and attention is near uniform: the model starts as a bag of words.",
    advice="Draw the hidden matrices with std 0.02·√(768/n_embd).",
    false_alarms="Models that scale the pre-activations in the forward pass without showing them. 0.31 (GPT-2 at 768) "
    "and 0.15 (nanoGPT at 384) are fine. What 0.026 costs (0.02 at width 64) depends on the text: it lost 0.05 to 0.5 "
    "nats against the width-matched std on characters (one seed), and won 0.09 to 0.11 with warmup at 4 blocks on "
    "bytes (three and four seeds), so it is a note: confirm it on yours. 0.0004 (0.02/√n_embd) lost 0.26: a "
    "warning.",
    source="24 cells of 150 steps at width 64, one seed each; 27 pairs of them with three seeds "
    "(benchmarks/warning_cost.csv); 288 runs with four (reports/nanogpt-claims); 540 of 300 steps at width 128",
    since="0.1.0",
    evidence="site-map",
    remedy=widen_hidden,
    roles=_HIDDEN,
    measure=measure_small,
)
def hidden_std_too_small(case: Case, rows: Rows) -> Finding:
    """Judge the width with the smallest."""
    by_size = rows.grouped(["width"], square=("square", "median"))
    least = by_size[smallest(by_size["square"])]
    worst = rows[rows["width"] == least["width"]][0]
    value, warning, note = least["square"], case.limits["warning"], case.limits["info"]
    common = {"measured": value, "site": "mlp_pre"}
    text = f"The MLP's pre-activations have a mean square of {trimmed(value, 2)} at n_embd {int(worst['width'])}"
    if value >= note:
        return case.passed(text, **common)
    found = "" if math.isnan(worst["std"]) else f" (std {trimmed(worst['std'])})"
    wanted = f"std 0.02·√(768/{int(worst['width'])}) = {trimmed(worst['wanted'])}"
    return case.failed(
        f"{text}{found}: the nonlinearity is hardly one. GPT-2 has 0.31 at its width",
        severity="warning" if value < warning else "info",
        effect=math.log(note / value),
        advice=f"draw the hidden matrices with {wanted} (recipe nanogpt-width-matched)",
        **seeds(rows["square"] < note, rows["seed"]),
        **common,
    )


def measure_dead(run: Run) -> Rows:
    """Per cell, the share of units ≤ 0 on every token, the largest share of zeros in a block's units; names."""
    units = recorded(run, "activation", "mlp_act").grouped(["run_id", "step"], zeros=("frac_zero", "max"))
    most = dict(zip(zip(units["run_id"], units["step"], strict=True), units["zeros"], strict=True))
    found = table_of(run, "summary")
    found = found.assign(
        zeros=[float(most.get(cell, math.nan)) for cell in zip(found["run_id"], found["step"], strict=True)],
        entering=called(run, found, "the MLP's input matrix", "mlp_in", "mlp_gate"),
    )
    return found[~(np.isnan(found["dead_frac"]) & np.isnan(found["zeros"]))]


@rule(
    code="ACT002",
    question="Gradient",
    measures="share of MLP units that are ≤ 0 on every token; share of exact zeros among a block's activations",
    needs="MLPs whose units were found, and --stats full",
    limits={"dead": 0.25, "zeros": 0.9},
    unit="of the units",
    limit="≤ {dead} dead, ≤ {zeros} of a block's values 0 (a ReLU has 0.5 by itself)",
    basis="heuristic",
    why="A unit that is off on every token passes no signal and, behind a ReLU, no gradient: it stays off.",
    advice="Lower the std or the bias of the MLP's input matrix, or find what makes all tokens alike (see RES007).",
    false_alarms="Smooth nonlinearities (GELU, SiLU) pass a gradient below 0 too. Small batches leave rare units off: "
    "use a thousand tokens.",
    source="limits far above what GELU and ReLU show at init (below 0.01, and 0.5)",
    since="0.1.0",
    about_init=False,
    measure=measure_dead,
)
def dead_units(case: Case, rows: Rows) -> Finding:
    """Judge the cell with most of either."""
    dead, zeros = np.nan_to_num(rows["dead_frac"]), np.nan_to_num(rows["zeros"])
    bad = (dead > case.limits["dead"]) | (zeros > case.limits["zeros"])
    place = largest(np.maximum(dead / case.limits["dead"], zeros / case.limits["zeros"]))
    worst, share = rows[place], float(dead[place])
    text = f"{share:.1%} of the MLP's units are ≤ 0 on every token, {zeros[place]:.1%} of a block's values are 0"
    common = {"measured": share, "site": "mlp_act"}
    if not bad.any():
        return case.passed(text, **common)
    return case.failed(
        f"{text}{size(worst, rows)}",
        severity="warning",
        effect=max(share / case.limits["dead"] - 1, 0.0),
        advice=f"lower the std of {worst['entering']} or the bias added to it, or find what makes all tokens alike "
        "(see RES007)",
        **seeds(bad, rows["seed"]),
        **common,
    )
