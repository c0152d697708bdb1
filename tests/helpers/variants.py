"""Runs that a report has to survive: whole, partial, broken and hostile ones."""

from __future__ import annotations

import math
from functools import cache

from synthetic import synthetic_run

from initlab.rundir import Run

NINE = (
    "nanogpt",
    "nanogpt-no-depth-scale",
    "torch-default",
    "torchtitan-llama3",
    "olmo-mitchell",
    "small-init",
    "kaiming",
    "tlens-gpt2",
    "gpt-neox-wang",
)


@cache
def variants() -> dict[str, Run]:
    """Runs that a report has to survive: whole, partial and broken ones, mostly small. Shared: don't change them."""
    three = _SMALL
    found = {
        "usual": synthetic_run(),
        "nine recipes": synthetic_run(NINE, depths=(2, 4), seeds=1),
        "five recipes, one depth": synthetic_run(NINE[:5], depths=(2,), seeds=2),
        "two widths": synthetic_run(three, depths=(2, 4), widths=(64, 128), seeds=2),
        "probe": synthetic_run(three[:1], depths=(3,), seeds=1, kind="probe"),
        "deep probe": synthetic_run(three[:1], depths=(40,), seeds=1, kind="probe"),
        "one block": synthetic_run(three[:1], depths=(1,), seeds=1),
        "no expectation": synthetic_run(three, depths=(2,), seeds=1),
        "as found": synthetic_run(("as-found",), depths=(2,), seeds=1, kind="probe"),
        "not finite": synthetic_run(three, depths=(2, 4), seeds=1),
        "nothing finite": synthetic_run(three[:1], depths=(2, 4), seeds=1),
        "zero init": synthetic_run(three, depths=(2, 4), seeds=1),
        "light": synthetic_run(three, depths=(2,), seeds=1),
        "incomplete": synthetic_run(three, depths=(2,), seeds=2),
        "nothing measured": synthetic_run(three, depths=(2,), seeds=1),
        "hostile": synthetic_run(("nanogpt", HOSTILE), depths=(2,), seeds=1),
    }
    found["no expectation"].tables.records["expected_var"] = math.nan
    found["as found"].manifest.update(recipes={}, git=None, data={}, config={"recipes": ["as-found"]})
    _overflow(found["not finite"], recipe="torch-default")
    _overflow(found["nothing finite"], recipe="nanogpt", from_layer=-1)
    _silence_branches(found["zero init"], "nanogpt")
    found["light"].tables.heads = found["light"].tables.heads.iloc[:0]
    found["light"].tables.records[["kurtosis", "abs_mean", "frac_zero"]] = math.nan
    _keep(found["incomplete"], cells=4)
    _keep(found["nothing measured"], cells=0)
    return found


HOSTILE = '<script>alert(\'$x$ & "y"\')</script> {{ 7 * 7 }} #0a0007 id="z"'
_SMALL = ("nanogpt", "nanogpt-no-depth-scale", "torch-default")


def _overflow(run: Run, recipe: str, from_layer: int = 1) -> None:
    """Infinity in one block, NaN in what comes after it."""
    records, summary = run.tables.records, run.tables.summary
    own = (records["recipe"] == recipe) & records["kind"].isin(["activation", "grad"])
    layer = records["layer"].fillna(99 if from_layer >= 0 else 0)
    values = ["mean", "std", "var", "rms", "abs_mean", "abs_max"]
    records.loc[own & (layer == from_layer), values] = math.inf
    records.loc[own & (layer > from_layer), values] = math.nan
    records.loc[own & (layer >= from_layer), "frac_nonfinite"] = 1.0
    summary.loc[summary["recipe"] == recipe, "loss"] = math.nan


def _silence_branches(run: Run, recipe: str) -> None:
    """Output projections that start at zero, and what follows from it."""
    records = run.tables.records
    own = records["recipe"] == recipe
    writes = own & records["site"].isin(["attn_out", "mlp_out"])
    zero = writes & records["kind"].isin(["activation", "weight"])
    records.loc[zero, ["std", "var", "rms", "abs_mean", "abs_max", "expected_var"]] = 0.0
    inner = own & records["role"].isin(["attn_qkv", "mlp_in"]) & (records["kind"] == "weight_grad")
    records.loc[inner, ["std", "var", "rms", "abs_mean", "abs_max"]] = 0.0


def _keep(run: Run, cells: int) -> None:
    planned = run.manifest["cells"]
    done = set(planned[:cells])
    for name, frame in run.tables.items():
        setattr(run.tables, name, frame[frame["run_id"].isin(done)].reset_index(drop=True))
    run.manifest.update(finished=None, failed={planned[-1]: "RuntimeError: out of memory"})
