"""Runs of kind "transfer" from chosen losses, so that what is said of the best rate has known answers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from synthetic import VOCAB, synthetic_run
from synthetic_training import LN_VOCAB, UNIGRAM, curve

from initlab.rundir import Run
from initlab.schema import Tables, cast, table

RATES = tuple(2.0**-k for k in range(11, 3, -1))
Loss = Callable[[str, int, int, float, int], float]  # recipe, n_layer, n_embd, lr, seed


def valley(drift: float, *, noise: float = 0.0, at: float = 2**-8, depth_drift: float = 0.0) -> Loss:
    """A parabola over log2 of the rate, whose lowest point goes with size^drift from 2 blocks of 64 features."""

    def loss(recipe: str, n_layer: int, n_embd: int, lr: float, seed: int) -> float:
        rng = np.random.default_rng(zlib.crc32(f"{recipe} {n_layer} {n_embd} {seed}".encode()))
        best = math.log2(at) + drift * math.log2(n_embd / 64) + depth_drift * math.log2(n_layer / 2)
        return 2.5 + 0.05 * (math.log2(lr) - best - rng.normal(0, noise)) ** 2

    return loss


def transfer_run(
    recipes: Sequence[str] = ("nanogpt", "mup"),
    loss: Loss | None = None,
    *,
    widths: Sequence[int] = (64, 128, 256),
    depths: Sequence[int] = (2,),
    lrs: Sequence[float] = RATES,
    seeds: int = 3,
    missing: Callable[[str, int, int, float, int], bool] = lambda *_: False,
) -> Run:
    """A training cell per recipe, size, rate and seed, none of them probed. By default nanogpt drifts as 1/width.

    `loss` gives a run's last validation loss, NaN for one that diverges; runs for which `missing` holds are planned
    and not there.
    """
    falling, level = valley(-1.0, noise=0.2), valley(0.0, noise=0.2)
    loss = loss or (lambda recipe, *place: (falling if recipe == "nanogpt" else level)(recipe, *place))
    sizes = [(min(depths), d) for d in sorted(widths)] + [(n, min(widths)) for n in sorted(depths) if n != min(depths)]
    planned, runs, training, summaries = [], [], [], []
    run = synthetic_run(tuple(recipes), (2,), seeds=1, kind="transfer")
    likeness = run.tables.summary.iloc[0].to_dict()
    for n_layer, n_embd in sizes:
        for recipe, lr, seed in [(r, lr, s) for r in recipes for lr in lrs for s in range(seeds)]:
            run_id = f"{recipe}-L{n_layer}-d{n_embd}-s{seed}-lr{lr:g}-w10"
            planned.append(run_id)
            if missing(recipe, n_layer, n_embd, lr, seed):
                continue
            val_loss = loss(recipe, n_layer, n_embd, lr, seed)
            rows = curve(run_id, val_loss, steps=50, lr=lr, warmup=10)
            training += [rows[0], rows[-1]]
            keys = {"run_id": run_id, "recipe": recipe, "seed": seed, "n_layer": n_layer, "n_embd": n_embd}
            ends = {"ln_vocab": LN_VOCAB, "unigram_loss": UNIGRAM, "first_loss": LN_VOCAB, "val_loss": val_loss}
            plan = {"lr": lr, "warmup": 10, "steps": 50, "steps_done": rows[-1]["step"], "tokens": 50 * 512}
            runs.append({**keys, **plan, **ends, "n_params": n_embd**2, "seconds": 3.0})
            summaries.append({**likeness, **keys, "step": 50, "vocab_size": VOCAB, "loss": val_loss})
    run.manifest["cells"] = planned
    run.manifest["config"] |= {"widths": list(widths), "depths": list(depths), "lrs": list(lrs), "warmups": [10]}
    run.manifest["config"] |= {"seeds": seeds, "steps": 50, "batch_size": 8}
    run.manifest["command"] = f"initlab transfer {' '.join(recipes)}"
    summary = cast("summary", pd.DataFrame(summaries)) if summaries else table("summary", [])
    return Run(Tables(runs=table("runs", runs), training=table("training", training), summary=summary), run.manifest)
