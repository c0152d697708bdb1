"""Does initlab's trainer train as well and as fast as karpathy's own train.py?

    python benchmarks/nanogpt_parity.py --checkout NANOGPT [--work DIR] [--write]

needs a checkout of karpathy/nanoGPT with data/shakespeare_char prepared. Its train.py runs unchanged but for the seed
and a column of CPU time in its log, with the README's flags for a CPU; ours with the same settings, data files and (as
the seed is the same) initial weights. Other batches are drawn, so losses are compared over seeds: by each one's own
estimate, and by evaluating both final models on every window of the validation file. Speed is of short runs in turns,
medians over steps, then over rounds. Everything runs on one thread; what is in --work already isn't run again.

    python benchmarks/nanogpt_parity.py --checkout NANOGPT --device cuda

times GPT-2's 124M instead (batch 16 x 1024, bfloat16, compiled), on random tokens of its vocabulary.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_SIZE, BATCH_SIZE, STEPS = 64, 12, 2000  # the README's
SEED_LINE = "torch.manual_seed(1337 + seed_offset)"
LOG_TIME = "time {dt*1000:.2f}ms,"
FLAGS = {
    "cpu": "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0 --always_save_checkpoint=True",
    "cuda": "--device=cuda --dtype=bfloat16 --compile=True --dataset=random --eval_iters=1 --log_interval=10 "
    "--eval_interval=1000000 --batch_size=16 --block_size=1024 --gradient_accumulation_steps=1 --warmup_iters=100",
}
EVALUATIONS = {250 * i for i in range(9)}  # steps whose time holds an evaluation
LOGGED = re.compile(r"iter (\d+): loss ([\d.]+|nan), time ([\d.]+)ms, cpu ([\d.]+)")
ESTIMATED = re.compile(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)")


def theirs(checkout: Path, folder: Path, device: str, seed: int, steps: int) -> dict[str, Any]:
    """Run train.py from a copy with another seed, and read its log."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.py", "configurator.py"):
        shutil.copy(checkout / name, folder / name)
    shutil.copytree(checkout / "config", folder / "config", dirs_exist_ok=True)
    data = folder / "data" / ("shakespeare_char" if device == "cpu" else "random")
    data.mkdir(parents=True, exist_ok=True)
    if device == "cpu":
        for name in ("train.bin", "val.bin", "meta.pkl"):
            shutil.copy(checkout / "data" / "shakespeare_char" / name, data / name)
    else:
        random_bins(data)
    source = (checkout / "train.py").read_text(encoding="utf-8")
    for line, patched in (
        (SEED_LINE, f"torch.manual_seed({seed} + seed_offset)"),
        (LOG_TIME, f"{LOG_TIME} cpu {{time.process_time():.6f}},"),
    ):
        if source.count(line) != 1:
            raise SystemExit(f"{checkout}/train.py has {line!r} {source.count(line)} times; expected nanoGPT 3adf61e")
        source = source.replace(line, patched)
    (folder / "train.py").write_text(source, encoding="utf-8")
    flags = f"{FLAGS[device]} --max_iters={steps} --lr_decay_iters={steps} --out_dir=out".split()
    log = run([sys.executable, "-u", "train.py", *flags], folder)
    found = [(int(i), float(ms) / 1000, float(cpu)) for i, _, ms, cpu in LOGGED.findall(log)]
    estimates = {int(step): float(loss) for step, loss in ESTIMATED.findall(log)}
    return {"val_losses": estimates, **timed(found)}


def ours(data: Path, folder: Path, device: str, seed: int, steps: int) -> dict[str, Any]:
    """Run this file's --ours in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    if device == "cuda":
        random_bins(data)
    command = [sys.executable, str(Path(__file__).resolve()), "--ours", str(data.resolve()), str(seed), str(steps)]
    log = run([*command, "--device", device], folder)
    return json.loads(log.splitlines()[-1])


def train_ours(data: Path, device: str, seed: int, steps: int) -> dict[str, Any]:
    import torch

    from initlab.models.config import PRESETS
    from initlab.models.nanogpt import NanoGPT
    from initlab.training.config import TrainConfig
    from initlab.training.data import load_split
    from initlab.training.trainer import train

    cpu = device == "cpu"
    shared: dict[str, Any] = {"steps": steps, "seed": seed, "device": device}
    config = (
        TrainConfig(**shared, lr=1e-3, warmup=100, batch_size=BATCH_SIZE, betas=(0.9, 0.99), eval_every=250)
        if cpu
        else TrainConfig(
            **shared, lr=6e-4, warmup=100, batch_size=16, dtype="bfloat16", compile=True, eval_batches=1, log_every=10
        )
    )
    torch.manual_seed(seed)
    model = NanoGPT(PRESETS["shakespeare-cpu" if cpu else "gpt2"])  # the same weights as GPT's, to the bit
    logged: list[tuple[int, float, float]] = []
    at = time.perf_counter()

    def on_row(row: dict[str, Any]) -> None:
        nonlocal at
        now = time.perf_counter()
        logged.append((row["step"], now - at, time.process_time()))
        at = now

    trained = train(model, load_split(data), config, on_row=on_row, checkpoint=Path("ckpt.pt"))
    val_losses = {row["step"]: row["val_loss"] for row in trained.rows if not math.isnan(row["val_loss"])}
    return {"val_losses": val_losses, **timed(logged)}


def timed(logged: list[tuple[int, float, float]]) -> dict[str, Any]:
    """Median seconds a step, wall and CPU, of (step, wall seconds, CPU clock) rows; without warm-up and evaluations."""
    wall, cpu = [], []
    for (before, _, cpu_before), (step, seconds, cpu_now) in itertools.pairwise(logged):
        skipped = EVALUATIONS | {max(logged)[0]}
        if step > 10 and not {before, step} & skipped:
            # nanoGPT logs the time of one step, however many it made since the row before
            wall.append(seconds)
            cpu.append((cpu_now - cpu_before) / (step - before))
    return {"wall_s": statistics.median(wall), "cpu_s": statistics.median(cpu), "timed_steps": len(wall)}


def random_bins(data: Path) -> None:
    """Token files of GPT-2's vocabulary, enough to time a model on."""
    data.mkdir(parents=True, exist_ok=True)
    for name in ("train.bin", "val.bin"):
        np.random.default_rng(0).integers(50257, size=1_000_000, dtype=np.uint16).tofile(data / name)


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def whole_validation_loss(checkpoint: Path, data: Path) -> float:
    """Mean loss over every window of the validation file, side by side, of a checkpoint of either."""
    import torch

    from initlab.models.nanogpt import NanoGPT

    model = NanoGPT.from_checkpoint(checkpoint).eval()
    tokens = torch.from_numpy(np.fromfile(data / "val.bin", dtype=np.uint16).astype(np.int64))
    n = (len(tokens) - 1) // BLOCK_SIZE
    idx = tokens[: n * BLOCK_SIZE].view(n, BLOCK_SIZE)
    targets = tokens[1 : n * BLOCK_SIZE + 1].view(n, BLOCK_SIZE)
    with torch.no_grad():
        losses = [model(x, y)[1] * len(x) for x, y in zip(idx.split(100), targets.split(100), strict=True)]
    return float(sum(losses)) / n


def cached(file: Path, make: Callable[[], Any]) -> Any:
    if not file.exists():
        result = make()
        file.write_text(json.dumps(result), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def quality(checkout: Path, work: Path, seeds: list[int]) -> list[dict[str, Any]]:
    rows = []
    data = checkout / "data" / "shakespeare_char"
    for seed in seeds:
        there, here = work / f"nanogpt-{seed}", work / f"initlab-{seed}"
        found = {
            "nanogpt": cached(there / "result.json", partial(theirs, checkout, there, "cpu", seed, STEPS)),
            "initlab": cached(here / "result.json", partial(ours, data, here, "cpu", seed, STEPS)),
        }
        files = {"nanogpt": there / "out" / "ckpt.pt", "initlab": here / "ckpt.pt"}
        row: dict[str, Any] = {"seed": seed}
        for name, result in found.items():
            row[f"{name}_own_estimate"] = round(result["val_losses"][str(STEPS)], 4)
            row[f"{name}_whole_file"] = round(whole_validation_loss(files[name], data), 4)
        rows.append(row)
        print(row, flush=True)
    return rows


def speed(checkout: Path, work: Path, device: str, rounds: int, steps: int) -> dict[str, Any]:
    """Short runs in turns, the order turning round every time."""
    tokens = BATCH_SIZE * BLOCK_SIZE if device == "cpu" else 16 * 1024
    data = checkout / "data" / "shakespeare_char" if device == "cpu" else work / "random"
    ways = {
        "nanogpt": lambda: theirs(checkout, work / "speed-nanogpt", device, 1337, steps),
        "initlab": lambda: ours(data, fresh(work / "speed-initlab"), device, 1337, steps),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for round_ in range(rounds):
        for name in list(ways)[:: 1 if round_ % 2 else -1]:
            found[name].append(ways[name]())
            print(name, found[name][-1]["wall_s"], found[name][-1]["cpu_s"], flush=True)
    result: dict[str, Any] = {"rounds": rounds, "steps": steps}
    for clock in ("cpu_s", "wall_s"):
        medians = {name: statistics.median(turn[clock] for turn in turns) for name, turns in found.items()}
        ratios = [a[clock] / b[clock] for a, b in zip(found["nanogpt"], found["initlab"], strict=True)]
        result[clock] = {name: round(value, 5) for name, value in medians.items()} | {
            "tokens_per_second": {name: round(tokens / value) for name, value in medians.items()},
            "speedup": round(statistics.median(ratios), 3),
            "speedup_by_round": [round(ratio, 3) for ratio in ratios],
        }
    return result


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="karpathy/nanoGPT, data/shakespeare_char prepared")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--work", type=Path, help="keeps runs, so that an interrupted benchmark goes on (temporary)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1337, 1338, 1339])
    parser.add_argument("--rounds", type=int, default=5, help="of the timing")
    parser.add_argument("--write", action="store_true", help="into nanogpt_parity.json")
    parser.add_argument("--ours", nargs=3, metavar=("DATA", "SEED", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        data, seed, steps = options.ours
        print(json.dumps(train_ours(Path(data), options.device, int(seed), int(steps))))
        return
    if options.checkout is None:
        parser.error("--checkout is needed")

    from initlab import environment

    work = options.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "environment": environment.describe(options.device) | {"threads": 1},
        "nanogpt": {
            name: sha256((options.checkout / name).read_bytes()).hexdigest() for name in ("train.py", "model.py")
        },
        "flags": FLAGS[options.device],
    }
    if options.device == "cpu":
        rows = quality(options.checkout, work, options.seeds)
        result["losses"] = rows
        for way in ("own_estimate", "whole_file"):
            gaps = [row[f"initlab_{way}"] - row[f"nanogpt_{way}"] for row in rows]
            means = {name: statistics.mean(row[f"{name}_{way}"] for row in rows) for name in ("nanogpt", "initlab")}
            result[f"mean_{way}"] = {name: round(value, 4) for name, value in means.items()} | {
                "initlab_minus_nanogpt": round(statistics.mean(gaps), 4)
            }
    if options.rounds:
        timing = partial(speed, options.checkout, work, options.device, options.rounds, 120)
        result["speed"] = cached(work / f"speed-{options.device}-{options.rounds}.json", timing)
    print(json.dumps(result, indent=1))
    if options.write:
        name = "nanogpt_parity.json" if options.device == "cpu" else "nanogpt_parity_cuda.json"
        Path(__file__).with_name(name).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
