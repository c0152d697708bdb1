"""Runs of kind "confirm" from chosen losses, so that what is said of training has known answers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from synthetic import VOCAB, synthetic_run

from initlab.rundir import Run
from initlab.schema import Tables, table

LN_VOCAB = math.log(VOCAB)
UNIGRAM = 3.35
LOG_EVERY, EVAL_EVERY = 1, 50

Loss = Callable[[str, int, float, int, int], float]


def usual_loss(recipe: str, n_layer: int, lr: float, warmup: int, seed: int) -> float:
    """The shape of facts: torch-default stuck, warmup worth more with depth and rate, noise less with warmup."""
    rng = np.random.default_rng(zlib.crc32(f"{recipe}{n_layer}{lr}{warmup}{seed}".encode()))
    noise = rng.normal(0, 0.01 if warmup else 0.04)
    if recipe == "torch-default":
        return UNIGRAM - 0.02 + noise / 4
    deep, high = math.log2(n_layer / 4), math.log10(lr / 1e-3)
    unscaled = 0.04 * deep if recipe == "nanogpt-no-depth-scale" else 0.0
    without = 0.0 if warmup else 0.05 + 0.15 * deep + 0.3 * max(high, 0)
    return 2.5 + 0.15 * (high - 0.5) ** 2 + unscaled + without + noise


def curve(
    run_id: str, val_loss: float, *, steps: int, lr: float, warmup: int, tokens: int = 512, noise: float = 0.02
) -> list[dict[str, Any]]:
    """Rows of `training` that fall from ln V to a loss; a NaN breaks off in the middle."""
    rng = np.random.default_rng(zlib.crc32(run_id.encode()))
    broken = steps // 2 if math.isnan(val_loss) else None
    end = 3.0 if broken is not None else val_loss
    rows = []
    for step in range(0, steps, LOG_EVERY):
        value = end + (LN_VOCAB - end) * math.exp(-4 * step / steps) + (rng.normal(0, noise) if step else 0.0)
        gone = broken is not None and step >= broken
        rows.append(
            {
                "run_id": run_id,
                "step": step,
                "tokens": step * tokens,
                "lr": lr * min((step + 1) / (warmup + 1), 1.0) * (0.55 + 0.45 * math.cos(math.pi * step / steps)),
                "loss": math.nan if gone else value,
                "val_loss": math.nan if gone or step % EVAL_EVERY else value,
                "grad_norm": math.nan if gone else 1.0 + rng.random() / 5,
                "tokens_per_second": 2e4,
                "mfu": math.nan,
            }
        )
        if gone:
            return rows
    last = {"run_id": run_id, "step": steps, "tokens": steps * tokens, "lr": 0.0, "loss": math.nan}
    return [*rows, {**last, "val_loss": val_loss, "grad_norm": math.nan, "tokens_per_second": 2e4, "mfu": math.nan}]


def trained_run(
    recipes: Sequence[str] = ("nanogpt", "nanogpt-no-depth-scale", "torch-default"),
    depths: Sequence[int] = (4, 16),
    lrs: Sequence[float] = (1e-3, 3e-3, 1e-2),
    warmups: Sequence[int] = (0, 40),
    seeds: int = 3,
    loss: Loss = usual_loss,
    steps: int = 150,
    missing: Callable[[str, int, float, int, int], bool] = lambda *_: False,
    probed: Sequence[str] | None = None,
) -> Run:
    """A confirm run: the probe cells of `synthetic_run` and a training cell per recipe, depth, rate, warmup and seed.

    `loss` gives a run's last validation loss, NaN for one that diverges; runs for which `missing` holds are planned and
    not there; `probed` are the recipes that have probe cells.
    """
    depths = tuple(depths)
    run = synthetic_run(tuple(recipes), depths, seeds=seeds, kind="confirm")
    probes = run.tables
    kept = probes.summary["recipe"].isin(list(recipes if probed is None else probed))
    ids = set(probes.summary.loc[kept, "run_id"])
    probes = Tables(**{name: frame[frame["run_id"].isin(ids)] for name, frame in probes.items()})
    grid = [
        (recipe, n_layer, lr, warmup, seed)
        for recipe in recipes
        for n_layer in depths
        for lr in lrs
        for warmup in warmups
        for seed in range(seeds)
    ]
    parts, planned = [probes], list(run.manifest["cells"])
    for recipe, n_layer, lr, warmup, seed in grid:
        probe = f"{recipe}-L{n_layer}-d384-s{seed}"
        run_id = f"{probe}-lr{lr:g}-w{warmup}"
        planned.append(run_id)
        if missing(recipe, n_layer, lr, warmup, seed):
            continue
        parts.append(_cell(run.tables.of(probe), run_id, loss(recipe, n_layer, lr, warmup, seed), steps, lr, warmup))
    run.manifest["cells"] = planned
    run.manifest["config"] |= {
        "lrs": list(lrs),
        "warmups": list(warmups),
        "steps": steps,
        "schedule": "cosine",
        "batch_size": 8,
    }
    run.manifest["command"] = f"initlab confirm {' '.join(recipes)} --depths {','.join(map(str, depths))}"
    return Run(Tables.concat(parts), run.manifest)


def _cell(probe: Tables, run_id: str, val_loss: float, steps: int, lr: float, warmup: int) -> Tables:
    rows = curve(run_id, val_loss, steps=steps, lr=lr, warmup=warmup)
    done = rows[-1]["step"]
    own = probe.summary.iloc[0]
    keys = {name: own[name] for name in ("recipe", "seed", "n_layer", "n_embd")}
    keys = {name: value if isinstance(value, str) else int(value) for name, value in keys.items()}
    runs = {
        **keys,
        "run_id": run_id,
        "lr": lr,
        "warmup": warmup,
        "steps": steps,
        "steps_done": done,
        "tokens": rows[-1]["tokens"],
        "n_params": int(own["n_params"]),
        "ln_vocab": LN_VOCAB,
        "unigram_loss": UNIGRAM,
        "first_loss": LN_VOCAB + 0.02,
        "val_loss": val_loss,
        "seconds": 3.0,
    }
    known = probe.records["kind"].isin(["activation", "grad"])
    sites = probe.records["site"].isin(["embed", "resid_post", "attn_out", "mlp_out"])
    records = probe.records[known & sites]
    # training moves the stream's scale: here it grows tenfold
    records = records.assign(run_id=run_id, step=done, var=records["var"] * 10, expected_var=math.nan)
    loss = math.nan if math.isnan(val_loss) else val_loss
    summary = probe.summary.assign(run_id=run_id, step=done, loss=loss, expected_loss=math.nan)
    return Tables(records=records, summary=summary, training=table("training", rows), runs=table("runs", [runs]))
