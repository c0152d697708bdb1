"""Whether every parameter can learn."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

from initlab.judge.remedies import Change, Described, drawn
from initlab.judge.rows import Rows, largest, smallest
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import CELL, MATRICES, blocks, recorded, rows_of, seeds, size
from initlab.judge.words import listed, plural, trimmed
from initlab.recipes import Role
from initlab.recipes.base import QKV
from initlab.rundir import Run
from initlab.schema import UNASKED

_NO_GATES = ("bias", "norm_bias")  # zeros that are added shut nothing
_WHY = ("waits", "unasked", "ran", "aside", "shuts")


def measure_zero(run: Run) -> Rows:
    """Every parameter that has a gradient row: is it 0 throughout, and what explains that?

    Columns zero; waits (a further pass gave it a gradient, once zeros before it had moved, or with other branches
    dropped); unasked (its part isn't what this batch or this loss asks for); ran (its module gave an output); aside
    (its role is unknown, or it belongs to a whole sub-module of a branch that gets no gradient while the branch does,
    as top-k indexers don't); shuts (the gain of a norm that hands nothing but zeros to what reads it).
    """
    gradients = recorded(run, "weight_grad")
    zero = gradients["abs_max"] == 0
    if zero.any():
        return Rows.of(_explained(run))
    return gradients.assign(zero=zero, **dict.fromkeys(_WHY, False))


def _explained(run: Run) -> pd.DataFrame:
    gradients = rows_of(run, "weight_grad")
    kept = gradients[["recipe", "run_id", "step", "seed", "layer", "site", "role", "module", "reached"]]
    found = kept.assign(zero=gradients["abs_max"] == 0, **dict.fromkeys(_WHY, False))
    weights, records = rows_of(run, "weight"), run.tables.records
    empty = weights[weights["abs_max"] == 0]
    outputs = records[records["kind"].isin(["activation", "grad"]) & (records["numel"] > 0)]
    for (run_id, step), rows in found[found["zero"]].groupby(["run_id", "step"], observed=True):
        whole, own, seen = (
            table[(table["run_id"] == run_id) & (table["step"] == step)] for table in (found, empty, outputs)
        )
        learning, every = list(whole.loc[~whole["zero"], "module"]), list(whole["module"])
        peak = seen.groupby(["kind", "module"], observed=True)["abs_max"].max()
        forward, backward = (dict(peak.xs(kind)) if kind in peak else {} for kind in ("activation", "grad"))
        owners = _owner(rows["module"])
        own = whole[whole["module"].isin(own["module"]) & ~whole["role"].isin(_NO_GATES)]
        gains = own[own["role"] == "norm_gain"]
        silent = gains[_owner(gains["module"]).map(forward) == 0]
        # its output has a gradient, so what it lacks is an input; a tied head goes by the table's name
        judged = (seen["kind"] == "grad") & (seen["site"] == "logits") & (seen["abs_max"] > 0)
        head = rows["role"].isin(["unembed", "token_embed"]) & judged.any()
        starved = rows[(owners.map(backward) > 0) | head]
        shutting = silent["layer"].fillna(-1).isin(starved["layer"].fillna(-1))
        # a norm that says something for all its gain of 0, as one that adds 1 to it, shuts nothing
        speaking = gains[(_owner(gains["module"]).map(forward) > 0) & ~gains["module"].map(_block).eq(_held(gains))]
        gates = own[~own["zero"] & ~own.index.isin(speaking.index)]
        # behind one that shuts, nothing tells of another
        found.loc[silent.index, "shuts"] = bool(shutting.any())
        found.loc[rows.index, "waits"] = (rows["reached"] == 1) | (rows["reached"].isna() & _behind(rows, gates))
        found.loc[rows.index, "unasked"] = rows["reached"] == UNASKED
        found.loc[rows.index, "ran"] = owners.isin(set(forward))
        unknown = (rows["role"].isna() | (rows["role"] == "other")).to_numpy()
        found.loc[rows.index, "aside"] = unknown | np.array(
            [_helper(module, learning, every) for module in rows["module"]]
        )
    return found


def _behind(rows: pd.DataFrame, gates: pd.DataFrame) -> pd.Series:
    """May wait behind a parameter that is 0: where it wasn't measured, as in a training run, a gate excuses its block.

    A head excuses everything, and a gate in any block what stands outside the blocks.
    """
    if (gates["role"] == "unembed").any():
        return pd.Series(True, rows.index)
    gated = set(gates["module"].map(_block)) - {""}
    return rows["module"].map(_block).isin(gated) | (rows["layer"].isna() & bool(gated))


def _held(parameters: pd.DataFrame) -> pd.Series:
    """Names of the modules that hold them, with the dot: equal to `_block` for what a block holds itself."""
    return _owner(parameters["module"]) + "."


def _owner(parameters: pd.Series) -> pd.Series:
    """Names of the modules that hold them."""
    named: pd.Series = parameters.astype(str).str.replace(r"\.?[^.]*$", "", regex=True)
    return named


def _block(module: str) -> str:
    """`transformer.h.0.` of `transformer.h.0.attn.c_proj.weight`; empty outside the blocks."""
    found = re.match(r".*?\.\d+\.", module)
    return found.group() if found else ""


def _helper(module: str, learning: list[str], every: list[str]) -> bool:
    """A sub-module inside a branch in which nothing learns, while other parts of the branch do.

    It holds modules of its own, however deep in the branch: a matrix alone is no helper.
    """
    block = _block(module)
    parts = module.removeprefix(block).split(".")
    branch = f"{block}{parts[0]}."
    if not block or not any(name.startswith(branch) for name in learning):
        return False
    for deep in range(2, len(parts)):
        part = f"{block}{'.'.join(parts[:deep])}."
        if not any(name.startswith(part) for name in learning):
            return any("." in name.removeprefix(part) for name in every if name.startswith(part))
    return False


def redraw_zeros(finding: Finding, model: Described) -> list[Change]:
    """Draw what is 0 where the reference has something else: nothing else can shut a gradient off."""
    changes = []
    counted = {entry["name"]: entry for entry in model.counted}
    for row in model.rows:
        wanted = model.wanted(row)
        zero = [name for name, std in row.get("stds", {}).items() if std == 0]
        zero = [name for name in zero if counted[name]["mean"] == 0] if counted else zero
        if zero and (counted or row.get("mean") == 0) and (wanted.get("std") or wanted.get("mean")):
            changes.append(drawn(row, zero, 0.0, finding, "0 lets no gradient through", model))
    return changes


@rule(
    code="GRD001",
    question="Gradient",
    measures="parameters whose gradient is 0 in every element",
    needs="a backward pass and trainable parameters",
    unit="without gradient",
    limit="none, but for those that get one once zeros before them have moved",
    basis="derived",
    why="A parameter without gradient doesn't learn: it is unused, detached, or shut off. Behind a zero that learns "
    "itself it only waits: up to four further passes (eight of a model that drops branches by chance) on a copy put "
    "small numbers where a zero has a gradient, move what may be a gate (1 + w is shut at w = -1), and see what gets "
    "one then.",
    advice="Check that the parameter is used in the forward pass.",
    false_alarms="Parameters that only other inputs reach, such as experts that this batch wasn't routed to; parts "
    "that nothing differentiable follows (indexers that feed a top-k). Both are warnings: they are told from a slip by "
    "that their modules never ran, that their role is unknown, or that a whole part of a branch has no gradient while "
    "the branch has. A note only: parts for an argument that the batch leaves out, and what is outside the blocks and "
    "read by another output than the loss's, as a pooler.",
    source="chain rule; zero-initialised projections: Fixup, 1901.09321",
    since="0.1.0",
    about_init=False,
    evidence="gradients",
    remedy=redraw_zeros,
    measure=measure_zero,
)
def zero_gradient_parameter(case: Case, rows: Rows) -> Finding:
    """Name all parameters without gradient that nothing explains, and norms that shut off what reads them."""
    zero, shut = rows[rows["zero"]], rows[rows["shuts"]]
    dead = rows["zero"] & ~rows["waits"] & ~rows["unasked"]
    bad, failing = rows[dead], seeds(dead | rows["shuts"], rows["seed"])
    unasked = zero[zero["unasked"]]
    if zero.empty:
        return case.passed(f"A gradient reaches every one of {len(set(rows['module']))} parameters", measured=0.0)
    if bad.empty and shut.empty and len(unasked):
        names = list(dict.fromkeys(unasked["module"]))
        return case.failed(
            f"This batch, or this loss, doesn't ask for what {listed(names, 3)} {'is' if len(names) == 1 else 'are'} "
            "in, which so has no gradient; nothing is said of that part",
            severity="info",
            site=str(unasked["site"][0]),
            measured=float(len(names)),
            effect=math.log(len(names)),
            advice="pass batch= with the arguments that it is for, to see it; freeze it (requires_grad=False) if it is "
            "never to be used",
            **blocks(unasked["layer"]),
            **seeds(rows["unasked"], rows["seed"]),
        )
    if bad.empty and shut.empty:
        count = len(set(zero["module"]))
        return case.passed(
            f"{plural(count, 'parameter')} without a gradient {'waits' if count == 1 else 'wait'} for a zero to move, "
            "or for a branch that was dropped by chance; a gradient reaches every other one",
            measured=0.0,
        )
    if len(shut):
        starved = len(set(zero["module"]))
        gains = list(dict.fromkeys(shut["module"]))
        return case.failed(
            f"{listed(gains)} {'is' if len(gains) == 1 else 'are'} 0 throughout: what reads such a norm gets no input, "
            f"and {plural(starved, 'parameter')} no gradient",
            severity="error",
            site=str(shut["site"][0]),
            measured=float(starved),
            effect=math.log(len(gains)),
            advice=f"set {listed(gains)} to what makes the norm a plain one: 1, or 0 in a norm that adds 1 itself",
            **blocks(shut["layer"]),
            **failing,
        )
    cut = bad[~bad["aside"]]
    first = cut if len(cut) else bad
    names = list(dict.fromkeys([*first["module"], *bad["module"]]))
    return case.failed(
        f"No gradient reaches {listed(names, 4)}",
        severity="error" if cut["ran"].any() else "warning",
        site=str(first["site"][0]),
        measured=float(len(names)),
        effect=math.log(len(names)),
        advice=f"check that {names[0]} is used in the forward pass and not detached; if it is unused on purpose, "
        "freeze it (requires_grad=False)",
        **blocks(bad["layer"]),
        **failing,
    )


def measure_imbalance(run: Run) -> Rows:
    """Per cell and role of a matrix inside the blocks: rms of the gradient ÷ rms of the weight, over all blocks.

    Queries, keys and values count as one, as in a fused matrix: near-uniform attention hardly depends on the first two.
    """
    weights, gradients = recorded(run, "weight", *MATRICES), recorded(run, "weight_grad", *MATRICES)
    own, beside = weights.matching(gradients, "run_id", "module")
    pairs = weights[own].assign(rms_grad=gradients["rms"][beside])
    pairs = pairs[(pairs["rms"] > 0) & (pairs["rms_grad"] > 0)]
    role = np.where(pairs.among("role", QKV), Role.ATTN_QKV.value, pairs["role"])
    pairs = pairs.assign(role=role, square=(pairs["rms_grad"] / pairs["rms"]) ** 2)
    found = pairs.grouped([*CELL, "role"], square=("square", "mean"))
    return found.assign(relative=np.sqrt(found["square"]))


@rule(
    code="GRD002",
    question="Gradient",
    measures="largest ÷ smallest, over the roles of the blocks' matrices, of rms(gradient) / rms(weight)",
    needs="a backward pass, and two roles of matrices with a gradient",
    limits={"ratio": 1000.0},
    unit="largest / smallest",
    limit="≤ {ratio}",
    basis="heuristic",
    why="With plain gradient descent one rate has to fit all roles, and a clipped norm is that of the largest. Adam "
    "divides the scale out again, but not its epsilon.",
    advice="use per-role learning rates, or Adam with a small epsilon; queries and keys get more gradient with a "
    "larger std of their own",
    false_alarms="Queries and keys of a narrow model with a small std: attention is near uniform and hardly depends on "
    "them. Trains under Adam, hence a note.",
    source="limit above nanoGPT's and transformers' own inits, which have 2 to 61 (benchmarks/rule_false_alarms.py)",
    since="0.1.0",
    evidence="gradient-roles",
    measure=measure_imbalance,
)
def role_gradient_imbalance(case: Case, rows: Rows) -> Finding:
    """Judge the cell with the largest ratio between two roles."""
    cells = rows.grouped(["run_id"], most=("relative", "max"), least=("relative", "min"))
    ratio = cells["most"] / cells["least"]
    worst, limit = largest(ratio), case.limits["ratio"]
    value, own = float(ratio[worst]), rows[rows["run_id"] == cells["run_id"][worst]]
    most, least = (own["role"][find(own["relative"])] for find in (largest, smallest))
    text = f"Relative to their weights, gradients of {most} are {trimmed(value)}× those of {least}"
    if value <= limit:
        return case.passed(text, measured=value)
    return case.failed(
        f"{text}{size(own[0], rows)}",
        severity="info",
        measured=value,
        site=str(least),
        effect=math.log(value / limit),
        **seeds(rows.among("run_id", cells["run_id"][ratio > limit]), rows["seed"]),
    )
