"""Training runs from simple formulas: a synthetic run of kind confirm or train, with every training column filled."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from synthetic import BATCH, BLOCK_SIZE, VOCAB, synthetic_run

from initlab.rundir import Run
from initlab.schema import RESIDUAL_SITES, Tables, cast, table

LN_V, UNIGRAM = math.log(VOCAB), 3.31


def _final(recipe: str, n_layer: int, lr: float, warmup: int, seed: int) -> float:
    """A valley over ln(lr) that deepens with warmup; `torch-default` stays on the unigram plateau."""
    if recipe == "torch-default":
        return UNIGRAM + 0.02 * seed
    turn = zlib.crc32(recipe.encode()) % 100 / 1000
    best = math.log10(3e-3 if warmup else 1e-3)
    depth = 0.0 if warmup else 0.05 * math.log2(n_layer)
    return 2.4 + turn + depth + 0.35 * (math.log10(lr) - best) ** 2 + 0.01 * seed


def _training(
    run_id: str, cell: tuple[str, int, float, int, int], steps: int, diverges: bool
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of `training`, and what the row of `runs` says of them."""
    recipe, n_layer, lr, warmup, seed = cell
    rng = np.random.default_rng(zlib.crc32(run_id.encode()))
    final, first, last = _final(*cell), LN_V + 0.05, steps
    rows = []
    for step in range(steps):
        ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
        fall = 1 - math.exp(-7 * step / steps)
        loss = first + (final - first) * fall + float(rng.normal(0, 0.03))
        norm = float(np.exp(rng.normal(0, 0.15))) * (1.5 if warmup else 4.0)
        if diverges and step >= steps // 3:
            loss, norm = (LN_V + 1.5, 80.0) if step == steps // 3 else (math.nan, math.nan)
        evaluated = step % max(1, steps // 5) == 0
        rows.append(
            {
                "run_id": run_id,
                "step": step,
                "tokens": step * BATCH * BLOCK_SIZE,
                "lr": lr * ramp,
                "loss": loss,
                "val_loss": loss + 0.02 if evaluated else math.nan,
                "grad_norm": norm,
                "tokens_per_second": 21_000.0 if step else math.nan,
                "mfu": math.nan,
            }
        )
        if not math.isfinite(loss):
            last = step
            break
    val_loss = math.nan if diverges else final
    if not diverges:
        rows.append({"run_id": run_id, "step": steps, "tokens": steps * BATCH * BLOCK_SIZE, "val_loss": final})
    told = {
        "run_id": run_id,
        "recipe": recipe,
        "seed": seed,
        "n_layer": n_layer,
        "n_embd": 64,
        "lr": lr,
        "warmup": warmup,
        "steps": steps,
        "steps_done": last,
        "tokens": last * BATCH * BLOCK_SIZE,
        "n_params": 12 * n_layer * 64**2,
        "ln_vocab": LN_V,
        "unigram_loss": UNIGRAM,
        "first_loss": first + 0.02,
        "val_loss": val_loss,
        "seconds": 3.0,
    }
    return rows, told


def _measured(probe: Tables, run_id: str, step: int, grows: float, *, dead: bool) -> Tables:
    """What a probe finds after training: the stream is `grows` times as loud, or not finite."""
    parts = {name: frame.assign(run_id=run_id) for name, frame in probe.items() if name not in ("training", "runs")}
    for name in ("records", "summary"):
        parts[name] = parts[name].assign(step=step)
    records = parts["records"]
    keep = records["site"].isin(RESIDUAL_SITES) & records["kind"].isin(["activation", "grad"])
    records = records[keep].assign(expected_var=math.nan)
    records["var"] *= np.where(records["site"] == "embed", 1.0, math.nan if dead else grows)
    parts.update(records=records, heads=parts["heads"].iloc[:0])
    parts["summary"] = parts["summary"].assign(loss=2.5, expected_loss=math.nan)
    return Tables(**{name: cast(name, frame) for name, frame in parts.items()})


def confirm_run(
    recipes: tuple[str, ...] = ("nanogpt", "nanogpt-no-depth-scale", "torch-default"),
    depths: tuple[int, ...] = (2, 4),
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2),
    warmups: tuple[int, ...] = (0, 20),
    seeds: int = 2,
    steps: int = 60,
    diverged: Collection[tuple[str, float]] = (),
    missing: Collection[tuple[str, int]] = (),
    kind: str = "confirm",
) -> Run:
    """Probe cells and training cells of a grid.

    Args:
        diverged: (recipe, lr) whose runs end early, without a val_loss.
        missing: (recipe, n_layer) that were planned and not trained.
        kind: "train" has one cell per recipe, measured at both ends, and no probe cells beside it.
    """
    probe = synthetic_run(recipes, depths, widths=(64,), seeds=seeds, kind=kind)
    parts = [probe.tables] if kind == "confirm" else []
    training: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    planned = list(probe.manifest["cells"]) if kind == "confirm" else []
    grid = [(r, n, lr, w, s) for r in recipes for n in depths for lr in lrs for w in warmups for s in range(seeds)]
    for cell in grid:
        recipe, n_layer, lr, warmup, seed = cell
        source = f"{recipe}-L{n_layer}-d64-s{seed}"
        run_id = f"{source}-lr{lr:g}-w{warmup}"
        planned.append(run_id)
        if (recipe, n_layer) in missing:
            continue
        dies = (recipe, lr) in diverged
        rows, told = _training(run_id, cell, steps, dies)
        training += rows
        runs.append(told)
        found = probe.tables.of(source)
        if kind == "train":
            first = {name: frame.assign(run_id=run_id) for name, frame in found.items() if len(frame)}
            parts.append(Tables(**{name: cast(name, frame) for name, frame in first.items()}))
        parts.append(_measured(found, run_id, told["steps_done"], 30 * lr / 1e-3, dead=dies))
    parts.append(Tables(training=table("training", training), runs=table("runs", runs)))
    config = {
        **{key: value for key, value in probe.manifest["config"].items() if key != "widths"},
        "lrs": list(lrs),
        "warmups": list(warmups),
        "steps": steps,
    }
    manifest = {**probe.manifest, "config": config, "cells": planned, "kind": kind}
    manifest["finished"] = None if missing else manifest["finished"]
    return Run(Tables.concat(parts), manifest)


def frame(run: Run, name: str) -> pd.DataFrame:
    """A table of the run to change in place: `frame(run, "runs").loc[…] = …`."""
    return getattr(run.tables, name)
