"""Coord check and depth check of standard parametrisation, beside slopes measured with another program.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/coord_check.py [--write]

REFERENCE holds slopes measured before with a program of its own: EleutherAI/nanoGPT-mup's run.sh and CompleteP's depth
check made small, on bigram data of 65 symbols, 3 seeds. Of that program the sizes and rates are known, but not its
text, nor whether it followed run.sh in its weight decay of 0.1 and gradients clipped to norm 1, which aren't used here,
nor which batches it read: here a model is trained on the batch that it is measured on. Slopes at init have to agree
within 0.05, those after steps within 0.2 (0.35 was set at first; the first run here differed by 0.13 at most).

Slopes are of mup's l1 = mean |x|, so that they compare; `slope_of_var` is what `initlab scale` prints. --write keeps
the result beside this file. Takes three minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import initlab
from initlab import environment
from initlab.judge.slopes import slopes

SYMBOLS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # 65
TOLERANCE = {0: 0.05}  # by step; of trained models LATER
LATER = 0.2

# (axis, kind, site) -> step -> slope of mean |x|
REFERENCE = {
    ("n_embd", "activation", "q"): {0: 0.50, 1: 0.53, 5: 0.92},
    ("n_embd", "activation", "mlp_pre"): {0: 0.50, 1: 0.53, 5: 0.89},
    ("n_embd", "activation", "resid_post"): {0: 0.81, 1: 1.25, 5: 2.19},
    ("n_embd", "activation", "logits"): {0: 0.48, 1: 0.76, 5: 0.52},
    ("n_layer", "activation", "resid_post"): {0: 0.00},
    ("n_layer", "change", "resid_post"): {1: 0.82, 10: 0.75},
    ("n_layer", "change", "logits"): {1: 0.48, 10: 0.05},
}


def bigram_text(characters: int, seed: int) -> str:
    """A Markov chain over 65 symbols whose rows are Dirichlet(0.1): a few successors for each symbol."""
    rng = np.random.default_rng(seed)
    steps = rng.dirichlet(np.full(len(SYMBOLS), 0.1), size=len(SYMBOLS)).cumsum(1)
    at, text = 0, []
    for draw in rng.random(characters):
        at = min(int(np.searchsorted(steps[at], draw)), len(SYMBOLS) - 1)
        text.append(SYMBOLS[at])
    return SYMBOLS + "".join(text)


def measured(axis: str, text: Path, seeds: int) -> initlab.Scaling:
    sizes = (
        {"widths": (64, 128, 256, 512), "depths": (2,), "lr": 1e-2, "steps": 5}
        if axis == "n_embd"
        else {"widths": (64,), "depths": (2, 4, 8, 16, 32), "lr": 1e-3, "steps": 10}
    )
    model = initlab.NanoGPTConfig(n_embd=64, n_head=4, block_size=64)  # heads of 16 at every width
    read, run = initlab.Text(text, "char", batch_size=4), initlab.RunOptions(device="cpu")
    return initlab.scale("nanogpt", model=model, text=read, seeds=seeds, stats="full", run=run, **sizes)


def rows(axis: str, result: initlab.Scaling) -> list[dict[str, object]]:
    of_var = result.slopes
    of_l1 = slopes(result.records.assign(var=result.records["abs_mean"]))
    found = []
    for (over, kind, site), published in REFERENCE.items():
        for step, reference in published.items() if over == axis else ():
            var, l1 = (_row(frame, axis, kind, site, step) for frame in (of_var, of_l1))
            tolerance = TOLERANCE.get(step, LATER)
            row = {
                "axis": axis,
                "tensor": f"{site} − init" if kind == "change" else site,
                "step": step,
                "reference": reference,
                "slope_of_l1": round(float(l1["slope"]), 3),
                "half_interval": round(float(l1["high"] - l1["slope"]), 3),
                "slope_of_var": round(float(var["slope"]), 3),
                "tolerance": tolerance,
                "within": bool(abs(l1["slope"] - reference) <= tolerance),
            }
            print(row)
            found.append(row)
    return found


def _row(frame: pd.DataFrame, axis: str, kind: str, site: str, step: int) -> pd.Series:
    same = (frame["axis"] == axis) & (frame["kind"] == kind) & (frame["site"] == site) & (frame["step"] == step)
    return frame[same].iloc[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into coord_check.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "bigrams.txt"
        text.write_text(bigram_text(200_000, 0))
        for axis in ("n_embd", "n_layer"):
            found += rows(axis, measured(axis, text, options.seeds))
    result = {
        "environment": environment.describe("cpu"),
        "seconds": round(time.perf_counter() - started, 1),
        "seeds": options.seeds,
        "rows": found,
    }
    print(f"{sum(row['within'] for row in found)} of {len(found)} within tolerance, {result['seconds']} s")
    if options.write:
        Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
