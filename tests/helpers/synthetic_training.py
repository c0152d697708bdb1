"""Runs of kind "confirm" from chosen losses, so that what is said of training has known answers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from synthetic import VOCAB, synthetic_run

from initlab.rundir import Run
from initlab.schema import Tables, cast, table

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
    not there; `probed` are the recipes that have probe cells. With none of them nothing else is measured either, and
    curves have their ends alone: enough for statistics, and fast.
    """
    depths, lean = tuple(depths), probed is not None and not probed
    run = synthetic_run(tuple(recipes), depths[:1] if lean else depths, seeds=1 if lean else seeds, kind="confirm")
    whole, stream = run.tables, _stream(run.tables.records)
    grid = [
        (recipe, n_layer, lr, warmup, seed)
        for recipe in recipes
        for n_layer in depths
        for lr in lrs
        for warmup in warmups
        for seed in range(seeds)
    ]
    planned = [f"{recipe}-L{n_layer}-d384-s{seed}" for recipe in recipes for n_layer in depths for seed in range(seeds)]
    summary = whole.summary.set_index(whole.summary["run_id"].astype(str))
    training, runs, records, summaries = [], [], [], []
    for recipe, n_layer, lr, warmup, seed in grid:
        probe = f"{recipe}-L{n_layer}-d384-s{seed}"
        run_id = f"{probe}-lr{lr:g}-w{warmup}"
        planned.append(run_id)
        if missing(recipe, n_layer, lr, warmup, seed):
            continue
        val_loss = loss(recipe, n_layer, lr, warmup, seed)
        rows = curve(run_id, val_loss, steps=steps, lr=lr, warmup=warmup)
        done = rows[-1]["step"]
        training += [rows[0], rows[-1]] if lean else rows
        keys = {"run_id": run_id, "recipe": recipe, "seed": seed, "n_layer": n_layer, "n_embd": 384}
        ends = {"ln_vocab": LN_VOCAB, "unigram_loss": UNIGRAM, "first_loss": LN_VOCAB + 0.02, "val_loss": val_loss}
        plan = {"lr": lr, "warmup": warmup, "steps": steps, "steps_done": done, "tokens": rows[-1]["tokens"]}
        runs.append({**keys, **plan, **ends, "n_params": 10**6 * n_layer, "seconds": 3.0})
        if not lean:
            records.append(stream[stream["run_id"] == probe].assign(run_id=run_id, step=done))
            trained = {"step": done, "loss": val_loss, "expected_loss": math.nan, "run_id": run_id}
            summaries.append({**summary.loc[probe].to_dict(), **trained})
    ids = set() if lean else set(whole.summary.loc[whole.summary["recipe"].isin(list(probed or recipes)), "run_id"])
    kept = {name: frame[frame["run_id"].isin(ids)] for name, frame in whole.items()}
    for name, more in (("records", records), ("summary", [table("summary", summaries)] if summaries else [])):
        if more:
            kept[name] = cast(name, pd.concat([kept[name], *more], ignore_index=True))
    kept |= {"training": table("training", training), "runs": table("runs", runs)}
    run.manifest["cells"] = planned
    run.manifest["config"] |= {
        "depths": list(depths),
        "seeds": seeds,
        "lrs": list(lrs),
        "warmups": list(warmups),
        "steps": steps,
        "schedule": "cosine",
        "batch_size": 8,
    }
    run.manifest["command"] = f"initlab confirm {' '.join(recipes)} --depths {','.join(map(str, depths))}"
    return Run(Tables(**kept), run.manifest)


def _stream(records: pd.DataFrame) -> pd.DataFrame:
    """What is kept of a trained model; training moves the stream's scale, here it grows tenfold."""
    known = records["kind"].isin(["activation", "grad"])
    rows = records[known & records["site"].isin(["embed", "resid_post", "attn_out", "mlp_out"])]
    return rows.assign(var=rows["var"] * 10, expected_var=math.nan)
