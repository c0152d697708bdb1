"""Runs with training that a report has to survive: whole, partial, broken and single ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from synthetic_training import trained_run, usual_loss
from variants import HOSTILE, NINE

from initlab.rundir import Run
from initlab.schema import Tables, cast

THREE = NINE[:3]
_SMALL = {"depths": (2, 4), "steps": 60, "seeds": 2}
CASES: dict[str, Callable[[], Run]] = {
    "usual": lambda: trained_run(depths=(2, 8), steps=150),
    "eight recipes": lambda: trained_run(NINE[:8], **{**_SMALL, "lrs": (1e-3, 1e-2), "seeds": 1}),
    "one depth": lambda: trained_run(THREE, **{**_SMALL, "depths": (2,)}),
    "one warmup": lambda: trained_run(THREE, **_SMALL, warmups=(20,)),
    "no warmup": lambda: trained_run(THREE, **_SMALL, warmups=(0,)),
    "one rate": lambda: trained_run(THREE, **_SMALL, lrs=(1e-3,)),
    "one seed": lambda: trained_run(THREE, **{**_SMALL, "seeds": 1}),
    "one recipe": lambda: trained_run(THREE[:1], **_SMALL),
    "diverged": lambda: trained_run(THREE, **_SMALL, loss=_diverging),
    "all diverged": lambda: trained_run(THREE, **_SMALL, loss=lambda *_: math.nan),
    "missing cells": lambda: _unfinished(trained_run(THREE, **_SMALL, missing=_missing)),
    "nothing trained": lambda: _unfinished(trained_run(THREE, **_SMALL, missing=lambda *_: True)),
    "not probed": lambda: trained_run(THREE, **_SMALL, probed=THREE[:1]),
    "no records": lambda: _without_records(trained_run(THREE, **_SMALL)),
    "hostile": lambda: trained_run((NINE[0], HOSTILE), **_SMALL),
    "train": lambda: single_runs(THREE[:2]),
    "train, one diverged": lambda: single_runs(THREE[:2], loss=_diverging, lr=1e-2),
    "train, eight recipes": lambda: single_runs(NINE[:8]),
}


@cache
def trained(case: str) -> Run:
    """One of CASES, made once: don't change it."""
    return CASES[case]()


def _unfinished(run: Run) -> Run:
    run.manifest.update(finished=None, failed={run.manifest["cells"][-1]: "RuntimeError: out of memory"})
    return run


def _without_records(run: Run) -> Run:
    """As `no records` of the trained models: training that nobody measured."""
    run.tables.records = run.tables.records[run.tables.records["step"] == 0]
    return run


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
