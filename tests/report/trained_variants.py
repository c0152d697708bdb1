"""Runs with training that a report has to survive: whole, partial, broken and single ones."""

from __future__ import annotations

import math
from functools import cache

from synthetic_training import trained_run, usual_loss
from variants import HOSTILE, NINE

from initlab.rundir import Run
from initlab.schema import Tables, cast

TWO, THREE = NINE[:2], NINE[:3]


@cache
def trained_variants() -> dict[str, Run]:
    """Small but for the first. Shared: don't change them."""
    small = {"depths": (2, 4), "steps": 60, "seeds": 2}
    found = {
        "usual": trained_run(depths=(2, 8), steps=150, seeds=3),
        "eight recipes": trained_run(NINE[:8], depths=(2, 4), seeds=2, steps=60, lrs=(1e-3, 1e-2)),
        "one depth": trained_run(THREE, **{**small, "depths": (2,)}),
        "one warmup": trained_run(THREE, **small, warmups=(20,)),
        "no warmup": trained_run(THREE, **small, warmups=(0,)),
        "one rate": trained_run(THREE, **small, lrs=(1e-3,)),
        "one seed": trained_run(THREE, **{**small, "seeds": 1}),
        "one recipe": trained_run(THREE[:1], **small),
        "diverged": trained_run(THREE, **small, loss=_diverging),
        "all diverged": trained_run(THREE, **small, loss=lambda *_: math.nan),
        "missing cells": trained_run(THREE, **small, missing=_missing),
        "nothing trained": trained_run(THREE, **small, missing=lambda *_: True),
        "not probed": trained_run(THREE, **small, probed=THREE[:1]),
        "no records": trained_run(THREE, **small),
        "hostile": trained_run((NINE[0], HOSTILE), **small),
        "train": single_runs(TWO),
        "train, one diverged": single_runs(TWO, loss=_diverging, lr=1e-2),
        "train, eight recipes": single_runs(NINE[:8]),
    }
    for run in (found["missing cells"], found["nothing trained"]):
        run.manifest.update(finished=None)
    last = found["missing cells"].manifest["cells"][-1]
    found["missing cells"].manifest["failed"] = {last: "RuntimeError: out of memory"}
    records = found["no records"].tables.records
    found["no records"].tables.records = records[records["step"] == 0]
    return found


def single_runs(recipes: tuple[str, ...], lr: float = 1e-3, **more: object) -> Run:
    """A run of kind `train`: one cell per recipe, measured at step 0 and at the end."""
    made = {"depths": (4,), "lrs": (lr,), "warmups": (20,), "seeds": 1, "steps": 60}
    run = trained_run(recipes, **made, **more)  # type: ignore[arg-type]
    names = {run_id: f"{run_id}-lr{lr:g}-w20" for run_id in run.tables.summary["run_id"] if "-lr" not in run_id}
    frames = {
        name: frame.assign(run_id=frame["run_id"].astype(str).replace(names)) for name, frame in run.tables.items()
    }
    config = {**run.manifest["config"], "lr": lr, "warmup": 20}
    for plural in ("lrs", "warmups"):
        del config[plural]
    manifest = {**run.manifest, "kind": "train", "config": config, "cells": list(names.values())}
    return Run(Tables(**{name: cast(name, frame) for name, frame in frames.items()}), manifest)


def _diverging(recipe: str, n_layer: int, lr: float, warmup: int, seed: int) -> float:
    """At the highest rate: every seed of one recipe, one seed of another."""
    lost = lr == 1e-2 and (recipe == NINE[1] or (recipe == NINE[0] and seed == 0))
    return math.nan if lost else usual_loss(recipe, n_layer, lr, warmup, seed)


def _missing(recipe: str, n_layer: int, lr: float, warmup: int, seed: int) -> bool:
    """One recipe has no run at one depth, another none at one rate."""
    return (recipe == NINE[2] and n_layer == 4) or (recipe == NINE[1] and lr == 1e-2)
