"""Whether every parameter can learn."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

from initlab.judge.remedies import Change, Described, drawn
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import CELL, MATRICES, blocks, rows_of, seeds, size
from initlab.judge.words import trimmed
from initlab.rundir import Run

_NO_GATES = ("bias", "norm_bias")  # zeros that are added shut nothing


def measure_zero(run: Run) -> pd.DataFrame:
    """Every parameter that has a gradient row: is it 0 throughout, and what explains that?

    Columns zero; waits (a parameter that is exactly 0, but has a gradient itself, shuts it off for one step); ran (its
    module gave an output); aside (its role is unknown, or it belongs to a whole sub-module of a branch that gets no
    gradient while the branch does, as top-k indexers don't).
    """
    gradients = rows_of(run, "weight_grad")
    if gradients.empty:
        return pd.DataFrame()
    kept = gradients[["recipe", "run_id", "step", "seed", "layer", "site", "role", "module"]]
    found = kept.assign(zero=gradients["abs_max"] == 0, waits=False, ran=False, aside=False)
    weights = rows_of(run, "weight")
    shut = weights[(weights["abs_max"] == 0) & ~weights["role"].isin(_NO_GATES)]
    outputs = run.tables.records[(run.tables.records["kind"] == "activation") & (run.tables.records["numel"] > 0)]
    for (run_id, step), rows in found[found["zero"]].groupby(["run_id", "step"], observed=True):
        whole = found[(found["run_id"] == run_id) & (found["step"] == step)]
        learning = list(whole.loc[~whole["zero"], "module"])
        own = shut[(shut["run_id"] == run_id) & (shut["step"] == step)]
        names = set(learning)
        gates = [m for m in own["module"] if m in names and not m.endswith("bias")]
        everything = bool(set(own.loc[own["role"] == "unembed", "module"]) & names)
        # what feeds all blocks through gates, beside the stream: another table learns if this isn't the stream's own
        everywhere = _gated_throughout(gates, whole["module"])
        tables = set(whole.loc[(whole["role"] == "token_embed") & ~whole["zero"], "module"])
        ran = set(outputs.loc[outputs["run_id"] == run_id, "module"])
        modules = rows["module"]
        found.loc[rows.index, "waits"] = [
            everything
            or any(_shuts(gate, module) for gate in gates)
            or (everywhere and bool(tables) and not _block(module))
            for module in modules
        ]
        found.loc[rows.index, "ran"] = [module.rpartition(".")[0] in ran for module in modules]
        unknown = rows["role"].isna().to_numpy()
        found.loc[rows.index, "aside"] = unknown | np.array([_helper(module, learning) for module in modules])
    return found


def _block(module: str) -> str:
    """`transformer.h.0.` of `transformer.h.0.attn.c_proj.weight`; empty outside the blocks."""
    found = re.match(r".*?\.\d+\.", module)
    return found.group() if found else ""


def _gated_throughout(gates: list[str], modules: pd.Series) -> bool:
    """Every block of some stack holds a gate."""
    gated = {_block(gate) for gate in gates} - {""}
    stacks = {block.rsplit(".", 2)[0] for block in gated}
    return bool(gated) and all(
        block in gated for block in map(_block, modules) if block and block.rsplit(".", 2)[0] in stacks
    )


def _shuts(gate: str, module: str) -> bool:
    """Gate and parameter are of one block, and of one branch of it unless either is held by the block itself."""
    block = _block(gate)
    if not block or not module.startswith(block):
        return False
    of_gate, of_module = (name.removeprefix(block).split(".") for name in (gate, module))
    return len(of_gate) < 3 or len(of_module) < 3 or of_gate[0] == of_module[0]


def _helper(module: str, learning: list[str]) -> bool:
    """A sub-module inside a branch in which nothing learns, while other parts of the branch do."""
    block = _block(module)
    parts = module.removeprefix(block).split(".")
    if not block or len(parts) < 4:
        return False
    branch, part = f"{block}{parts[0]}.", f"{block}{parts[0]}.{parts[1]}."
    inside = [name for name in learning if name.startswith(branch)]
    return bool(inside) and not any(name.startswith(part) for name in inside)


def redraw_zeros(finding: Finding, model: Described) -> list[Change]:
    """Draw what is 0 where the reference has something else: nothing else can shut a gradient off."""
    changes = []
    for row in model.rows:
        wanted = model.wanted(row) if row["role"] else {}
        zero = [name for name, std in row.get("stds", {}).items() if std == 0]
        if zero and row.get("mean") == 0 and (wanted.get("std") or wanted.get("mean")):
            changes.append(drawn(row, zero, 0.0, finding, "0 lets no gradient through", model))
    return changes


@rule(
    code="GRD001",
    question="Gradient",
    measures="parameters whose gradient is 0 in every element",
    needs="a backward pass and trainable parameters",
    unit="without gradient",
    limit="none, but for those behind a parameter that is 0 and has a gradient itself",
    basis="derived",
    why="A parameter without gradient doesn't learn: it is unused, detached, or shut off by a zero after it.",
    advice="Check that the parameter is used in the forward pass.",
    false_alarms="Parameters that only other inputs reach, such as experts that this batch wasn't routed to; parts "
    "that nothing differentiable follows (indexers that feed a top-k, an unused pooler). Both are warnings: they are "
    "told from a slip by that their modules never ran, that their role is unknown, or that a whole part of a branch "
    "has no gradient while the branch has.",
    source="chain rule; zero-initialised projections: Fixup, 1901.09321",
    since="0.1.0",
    about_init=False,
    evidence="gradients",
    remedy=redraw_zeros,
    measure=measure_zero,
)
def zero_gradient_parameter(case: Case, rows: pd.DataFrame) -> Finding:
    """Name all parameters without gradient that nothing explains."""
    zero = rows[rows["zero"]]
    bad = zero[~zero["waits"]]
    if zero.empty:
        return case.passed(f"A gradient reaches every one of {rows['module'].nunique()} parameters", measured=0.0)
    if bad.empty:
        return case.passed(
            f"{zero['module'].nunique()} parameters stand behind one that is 0 and wait one step for their gradient; "
            "it reaches every other one",
            measured=0.0,
        )
    cut = bad[~bad["aside"]]
    first = cut if len(cut) else bad
    names = list(dict.fromkeys([*first["module"], *bad["module"]]))
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return case.failed(
        f"No gradient reaches {shown}",
        severity="error" if cut["ran"].any() else "warning",
        site=str(first["site"].iloc[0]),
        measured=float(len(names)),
        effect=math.log(len(names)),
        advice=f"check that {names[0]} is used in the forward pass and not detached; if it is unused on purpose, "
        "freeze it (requires_grad=False)",
        **blocks(bad["layer"]),
        **seeds(rows["zero"] & ~rows["waits"], rows["seed"]),
    )


def measure_imbalance(run: Run) -> pd.DataFrame:
    """Per cell and role of a matrix inside the blocks: rms of the gradient ÷ rms of the weight, over all blocks."""
    weights = rows_of(run, "weight", *MATRICES)[[*CELL, "role", "module", "rms"]]
    gradients = rows_of(run, "weight_grad", *MATRICES)[["run_id", "module", "rms"]]
    pairs = weights.merge(gradients, on=["run_id", "module"], suffixes=("", "_grad"))
    pairs = pairs[(pairs["rms"] > 0) & (pairs["rms_grad"] > 0)]
    pairs = pairs.assign(square=(pairs["rms_grad"] / pairs["rms"]) ** 2)
    found = pairs.groupby([*CELL, "role"], observed=True)["square"].mean().reset_index()
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
def role_gradient_imbalance(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge the cell with the largest ratio between two roles."""
    grouped = rows.groupby("run_id", observed=True)["relative"]
    ratio = grouped.max() / grouped.min()
    run_id, value, limit = ratio.idxmax(), float(ratio.max()), case.limits["ratio"]
    own = rows[rows["run_id"] == run_id].set_index("role")["relative"]
    text = f"Relative to their weights, gradients of {own.idxmax()} are {trimmed(value)}× those of {own.idxmin()}"
    if value <= limit:
        return case.passed(text, measured=value)
    first = rows[rows["run_id"] == run_id].iloc[0]
    return case.failed(
        f"{text}{size(first, rows)}",
        severity="info",
        measured=value,
        site=str(own.idxmin()),
        effect=math.log(value / limit),
        **seeds(rows["run_id"].map(ratio).astype(float) > limit, rows["seed"]),
    )
