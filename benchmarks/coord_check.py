"""Coord check and depth check of parametrisations.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/coord_check.py [--write]
    OMP_WAIT_POLICY=PASSIVE python benchmarks/coord_check.py --rates --write    # that table alone; six minutes

EleutherAI/nanoGPT-mup's run.sh and CompleteP's depth check made small, on bigram data of 65 symbols; without run.sh's
weight decay of 0.1 and gradients clipped to norm 1. A model is trained on the batch that it is measured on.

Slopes are of mup's l1 = mean |x|; `slope_of_var` is what `initlab scale` prints. --write keeps
the result beside this file: .json, .md, and the pictures. Takes ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import initlab
from initlab import environment
from initlab.judge.slopes import slopes

SYMBOLS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # 65
FLAT = 0.1  # of l1, what mup's README calls flat by eye; as initlab judges it (0.2 of variance)
RECIPES = {"n_embd": ("nanogpt", "mup"), "n_layer": ("nanogpt", "depth-mup", "completep")}
AFTER = {"n_embd": 5, "n_layer": 10}  # steps

# beside what is claimed to be flat: axis -> (kind, site) -> steps
FOLLOWED = {
    "n_embd": {("activation", site): (0, 1, 5) for site in ("q", "mlp_pre", "resid_post", "logits")},
    "n_layer": {
        ("activation", "resid_post"): (0,),
        ("change", "resid_post"): (1, 10),
        ("change", "logits"): (1, 10),
    },
}
# what muP and CompleteP claim to be flat, of activations and of what a step changes
CLAIMED = {
    "n_embd": [("activation", "q"), ("activation", "mlp_pre"), ("activation", "resid_post")],
    "n_layer": [("change", "resid_post"), ("change", "logits")],
}
RATES = (1e-2, 3e-3, 1e-3)  # of muP's width check: that of the table above, and where training begins calmly
WIDTHS = (64, 128, 256, 512)
MOVED = [("effective", "mlp_in"), ("propagating", "mlp_in"), ("effective", "mlp_out"), ("propagating", "mlp_out")]


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
        {"widths": WIDTHS, "depths": (2,), "lr": 1e-2, "steps": 5}
        if axis == "n_embd"
        else {"widths": (64,), "depths": (2, 4, 8, 16, 32), "lr": 1e-3, "steps": 10}
    )
    model = initlab.NanoGPTConfig(n_embd=64, n_head=4, block_size=64)  # heads of 16 at every width
    read, run = initlab.Text(text, "char", batch_size=4), initlab.RunOptions(device="cpu")
    return initlab.scale(list(RECIPES[axis]), model=model, text=read, seeds=seeds, stats="full", run=run, **sizes)


def rows(axis: str, result: initlab.Scaling) -> list[dict[str, object]]:
    """Slopes at init and after steps."""
    of_l1 = slopes(result.records.assign(var=result.records["abs_mean"]))
    found = []
    for recipe in RECIPES[axis]:
        for (kind, site), steps in FOLLOWED[axis].items():
            for step in steps:
                var, l1 = (_row(frame, recipe, axis, kind, site, step) for frame in (result.slopes, of_l1))
                row = {
                    "recipe": recipe,
                    "axis": axis,
                    "tensor": f"{site} − init" if kind == "change" else site,
                    "step": step,
                    **_numbers(l1),
                    "slope_of_var": round(float(var["slope"]), 3),
                }
                print(row)
                found.append(row)
    return found


def flatness(axis: str, result: initlab.Scaling) -> list[dict[str, object]]:
    """Slopes after the last step, of what is claimed to be flat, and of the two parts of each matrix's change."""
    of_l1 = slopes(result.records.assign(var=result.records["abs_mean"]))
    found = []
    for recipe in RECIPES[axis]:
        for kind, site in CLAIMED[axis] + MOVED:
            l1 = _row(of_l1, recipe, axis, kind, site, AFTER[axis])
            numbers = _numbers(l1)
            inside = max(-l1["low"], l1["high"]) <= FLAT
            outside = l1["low"] > FLAT or l1["high"] < -FLAT
            verdict = "flat" if inside else "not flat" if outside else "not separated"
            found.append({"recipe": recipe, "axis": axis, "kind": kind, "site": site, **numbers, "verdict": verdict})
    return found


def by_rate(text: Path, seeds: int) -> list[dict[str, object]]:
    """muP's slopes after five steps at several rates, over all widths and over the larger three."""
    model = initlab.NanoGPTConfig(n_embd=64, n_head=4, block_size=64)
    read, run = initlab.Text(text, "char", batch_size=4), initlab.RunOptions(device="cpu")
    found = []
    for lr in RATES:
        options: dict[str, Any] = {"widths": WIDTHS, "depths": (2,), "seeds": seeds, "stats": "full", "run": run}
        result = initlab.scale("mup", model=model, text=read, lr=lr, steps=5, **options)
        records = result.records.assign(var=result.records["abs_mean"])
        losses = result.summary.groupby(["n_embd", "step"])["loss"].mean().unstack()
        for widths in (WIDTHS, WIDTHS[1:]):
            of_l1 = slopes(records[records["n_embd"].isin(widths)])
            for kind, site in (("activation", "resid_post"), ("effective", "mlp_out")):
                numbers = _numbers(_row(of_l1, "mup", "n_embd", kind, site, 5))
                row = {"lr": lr, "widths": list(widths), "kind": kind, "site": site, **numbers}
                found.append(row | {"loss": [round(float(losses.loc[64, step]), 2) for step in range(6)]})
                print(found[-1])
    return found


def _numbers(l1: pd.Series) -> dict[str, float]:
    return {"slope_of_l1": round(float(l1["slope"]), 3), "half_interval": round(float(l1["high"] - l1["slope"]), 3)}


def _row(frame: pd.DataFrame, recipe: str, axis: str, kind: str, site: str, step: int) -> pd.Series:
    keys = {"recipe": recipe, "axis": axis, "kind": kind, "site": site, "step": step}
    for name, value in keys.items():
        frame = frame[frame[name] == value]
    return frame.iloc[0]


def page(result: dict[str, Any]) -> str:
    """What was found, as Markdown."""
    seconds, seeds, cpu = result["seconds"], result["seeds"], result["environment"].get("device")
    lines = [
        "# Coord check and depth check of parametrisations",
        "",
        f"`python benchmarks/coord_check.py --write`, {cpu}, one thread, {seconds:.0f} s: NanoGPT with heads of 16, "
        f"sequences of 64 of bigram text, {seeds} seeds. Over width: 64 to 512 at 2 blocks, AdamW at 0.01, 5 steps. "
        "Over depth: 2 to 32 blocks of 64, AdamW at 0.001, 10 steps. The base is the smallest model. Slopes are of "
        "mup's l1 = mean |x|, ± half the 95 % interval over seeds; flat: the interval is within ±0.1. ΔW·x: what a "
        "matrix's own updates changed in its output; W·Δx: what the change of its input did (Haas et al. 2025, "
        "2505.22491).",
        "",
        "![Coord check over width](coord_check/coord.png)",
        "",
        "![Depth check](coord_check/coord-depth.png)",
        "",
    ]
    for axis, recipes in RECIPES.items():
        lines += [f"## Over {axis}, after {AFTER[axis]} steps", "", f"| | {' | '.join(recipes)} |"]
        lines.append("|---|" + "---|" * len(recipes))
        own = [row for row in result["flat"] if row["axis"] == axis]
        for kind, site in dict.fromkeys((row["kind"], row["site"]) for row in own):
            cells = [
                f"{row['slope_of_l1']:+.2f} ±{row['half_interval']:.2f} {row['verdict']}"
                for row in own
                if (row["kind"], row["site"]) == (kind, site)
            ]
            name = {"change": "{} − init", "effective": "{}: ΔW·x", "propagating": "{}: W·Δx"}.get(kind, "{}")
            lines.append(f"| {name.format(site)} | {' | '.join(cells)} |")
        lines.append("")
    lines += _rates_page(result.get("rates", []))
    lines += [
        "## From the init on",
        "",
        "| recipe | over | tensor | step | slope |",
        "|---|---|---|---|---|",
        *(
            f"| {row['recipe']} | {row['axis']} | {row['tensor']} | {row['step']} | "
            f"{row['slope_of_l1']:+.2f} ±{row['half_interval']:.2f} |"
            for row in result["rows"]
        ),
    ]
    return "\n".join(lines) + "\n"


def _rates_page(rates: list[dict[str, Any]]) -> list[str]:
    if not rates:
        return []
    lines = [
        "## muP over n_embd, at other rates",
        "",
        "`python benchmarks/coord_check.py --rates --write`: as above, after 5 steps. The loss is that of the 64 "
        "features, before and after each step. The stream falls at 0.01, large on purpose, and with a wide scatter; "
        "at a third of that rate and less it is flat. What mlp_out's own updates do in its output falls at every rate.",
        "",
        "| lr | resid_post, 64 to 512 | 128 to 512 | mlp_out: ΔW·x, 64 to 512 | 128 to 512 | loss |",
        "|---|---|---|---|---|---|",
    ]
    for lr in dict.fromkeys(row["lr"] for row in rates):
        own = [row for row in rates if row["lr"] == lr]
        own.sort(key=lambda row: (row["site"] != "resid_post", len(row["widths"]) < len(WIDTHS)))
        cells = [f"{row['slope_of_l1']:+.2f} ±{row['half_interval']:.2f}" for row in own]
        lines.append(f"| {lr:g} | {' | '.join(cells)} | {', '.join(f'{loss:.2f}' for loss in own[0]['loss'])} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="into coord_check.json, .md and pictures")
    parser.add_argument("--rates", action="store_true", help="muP at several rates alone; the rest as it is written")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found, flat, started = [], [], time.perf_counter()
    pictures = Path(__file__).with_suffix("")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "bigrams.txt"
        text.write_text(bigram_text(200_000, 0))
        if options.rates:
            kept = json.loads(Path(__file__).with_suffix(".json").read_text())
            _write(kept | {"rates": by_rate(text, options.seeds)}, options.write)
            return
        for axis, name in (("n_embd", "coord"), ("n_layer", "coord-depth")):
            result = measured(axis, text, options.seeds)
            found += rows(axis, result)
            flat += flatness(axis, result)
            if options.write:
                pictures.mkdir(exist_ok=True)
                result.plot(name).savefig(pictures / f"{name}.png", dpi=150)
        rates = by_rate(text, options.seeds)
    whole = {
        "environment": environment.describe("cpu"),
        "seconds": round(time.perf_counter() - started, 1),
        "seeds": options.seeds,
        "rows": found,
        "flat": flat,
        "rates": rates,
    }
    print(f"{whole['seconds']} s")
    _write(whole, options.write)


def _write(whole: dict[str, Any], write: bool) -> None:
    if write:
        Path(__file__).with_suffix(".json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
        Path(__file__).with_suffix(".md").write_text(page(whole))


if __name__ == "__main__":
    main()
