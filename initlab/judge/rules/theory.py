"""Whether the signal is where the closed form says."""

from __future__ import annotations

import math

import numpy as np

from initlab.judge.rows import Array, Rows, largest
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import recorded, seeds
from initlab.judge.words import trimmed
from initlab.rundir import Run

_ADVICE = (
    "look for what the closed form doesn't know: a weight drawn differently, a scale in the forward pass, a branch "
    "that is wired differently"
)
NARROW = 64  # features
_ERRORS = 4.0  # standard errors
_BRANCH_NAMES = {"attn_out": "attention", "mlp_out": "the MLP"}


def measure_stream(run: Run) -> Rows:
    """Variance ÷ closed form of the stream, at the embedding and after every block that has one."""
    return _ratios(recorded(run, "activation", "embed", "resid_post"))


def measure_branch(run: Run) -> Rows:
    """Variance ÷ closed form of what attention and MLP write, in every block that has one.

    Attention of less than 64 features isn't judged: what positions have in common is one vector, which so few turn into
    half or twice of its size in a single draw.
    """
    rows = recorded(run, "activation", *_BRANCH_NAMES)
    found = _ratios(rows[(rows["n_embd"] >= NARROW) | (rows["site"] != "attn_out")])
    # that vector's square through two matrices of independent entries
    return found.assign(error=np.where(found["site"] == "attn_out", 2 / np.sqrt(found["n_embd"]), 0.0))


def _ratios(rows: Rows) -> Rows:
    rows = rows[rows["expected_var"] > 0]
    before = np.where(np.isnan(rows["layer"]), -1, rows["layer"])  # the embedding
    return rows.assign(ratio=rows["var"] / rows["expected_var"], layer=before, error=0.0)


@rule(
    code="RES002",
    question="Depth",
    measures="variance of the residual stream ÷ its closed form, at the embedding and after every block",
    needs="a model that the closed form covers",
    limits={"factor": 2.0},
    unit="× closed form",
    limit="between ÷{factor} and ×{factor}",
    basis="derived",
    why="The closed form knows the weights' scale (or the recipe's), norms, dropout and sizes. A stream elsewhere "
    "means that the model does something else, or that its weights aren't independent draws.",
    advice=_ADVICE,
    false_alarms="Widths below 64; attention logits of std 2 and above.",
    source="initlab.judge.theory",
    since="0.1.0",
    evidence="residual",
    measure=measure_stream,
)
def off_theory_stream(case: Case, rows: Rows) -> Finding:
    """Judge the block, of the means over seeds, whose stream is farthest off."""
    (n_layer, layer, _), value = _farthest(rows, case.limits["factor"])
    name = "the embedding" if layer < 0 else f"block {layer} of {n_layer}"
    return _judge(case, rows, value, f"after {name}", "The stream's variance", None if layer < 0 else layer)


@rule(
    code="RES003",
    question="Depth",
    measures="variance of what attention and MLP write ÷ its closed form, in every block",
    needs="a model that the closed form covers",
    limits={"factor": 2.0},
    unit="× closed form",
    limit="between ÷{factor} and ×{factor}; of attention also within 4 standard errors of its draw, 2/√n_embd",
    basis="derived",
    why="A stream sums up all blocks and all branches, so that one branch may be far off before the stream is; "
    "attention writes a few hundredths of what an MLP does and could be missing without a trace in the stream.",
    advice=_ADVICE,
    false_alarms="MLPs of widths below 64. Attention isn't judged at these, nor where its logits' std is above 1.2 by "
    "the closed form: the softmax is no small perturbation of a uniform one then.",
    source="initlab.judge.theory",
    since="0.1.0",
    evidence="site-map",
    measure=measure_branch,
)
def off_theory_branch(case: Case, rows: Rows) -> Finding:
    """Judge the block and branch, of the means over seeds, that writes farthest off."""
    (n_layer, layer, site), value = _farthest(rows, case.limits["factor"])
    what = f"The variance that {_BRANCH_NAMES[site]} writes"
    return _judge(case, rows, value, f"in block {layer} of {n_layer}", what, layer, site)


def _farthest(rows: Rows, factor: float) -> tuple[tuple[int, int, str], float]:
    slack = rows.assign(slack=_slack(rows["error"], factor))
    found = slack.grouped(["n_layer", "n_embd", "layer", "site"], ratio=("ratio", "mean"), slack=("slack", "first"))
    worst = found[largest(_distance(found["ratio"]) - found["slack"])]
    return (int(worst["n_layer"]), int(worst["layer"]), worst["site"]), worst["ratio"]


def _slack(error: Array, factor: float) -> Array:
    """What of a distance may be luck beyond the limit, a factor."""
    return np.maximum(_ERRORS * error - math.log(factor), 0)


def _distance(ratio: Array) -> Array:
    """How far from 1, as a logarithm; a zero or a NaN is as far as can be."""
    return np.asarray(np.abs(np.log(np.where(ratio > 0, ratio, 1e-300))))


def _judge(
    case: Case, rows: Rows, value: float, where: str, what: str, layer: int | None, site: str = "resid_post"
) -> Finding:
    there = (rows["layer"] == (-1 if layer is None else layer)) & (rows["site"] == site)
    factor = case.limits["factor"]
    factor *= math.exp(_slack(rows["error"][there], factor).max()) if there.any() else 1.0
    common = {"measured": value, "site": site, "layer_first": layer}
    if 1 / factor <= value <= factor:
        return case.passed(f"{what} is {trimmed(value)}× its closed form where it is farthest off, {where}", **common)
    return case.failed(
        f"{what} is {trimmed(value)}× its closed form {where}",
        severity="warning",
        effect=abs(math.log(value)) if value > 0 else math.inf,
        **seeds(_distance(rows["ratio"]) > math.log(factor), rows["seed"]),
        **common,
    )
