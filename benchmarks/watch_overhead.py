"""What a watch costs in a training loop: on unwatched steps, and on watched ones.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/watch_overhead.py [--write]

Every round trains each way for a few steps (AdamW, one batch), in an order that turns round every time, in one
process: bare; under a watch, on steps that it only counts; and on watched steps, in both presets, with their tables
built but not written. The figures are medians over rounds of CPU time a step relative to the bare steps of the same
round, and for the counter, which is far below the noise of a step, of its own CPU time over 10000 calls. --write keeps
the result beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from initlab import environment
from initlab.drawing.apply import apply_recipe
from initlab.measure.watch.steps import StepRecorder
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import empty_model
from initlab.recipes import registry

SETTINGS = {
    "4 × 128, batch 12×64": ({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}, 12, 8),
    "12 × 384, batch 4×256": ({"n_layer": 12, "n_head": 6, "n_embd": 384, "block_size": 256}, 4, 2),
}
CALLS = 10_000


def loop(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor, steps: int) -> Callable:
    """The time of `steps` steps of training, with a recorder or without."""

    def run(recorder: StepRecorder | None) -> float:
        started = time.process_time()
        for _ in range(steps):
            model(*batch)[1].backward()
            optimizer.step()
            optimizer.zero_grad()
            if recorder is not None:
                recorder.step()
        return (time.process_time() - started) / steps

    return run


def counter(model: torch.nn.Module) -> float:
    """Microseconds of one step() that isn't watched."""
    recorder = StepRecorder(model, 10 * CALLS, start_step=1)
    started = time.process_time()
    for _ in range(CALLS):
        recorder.step()
    return (time.process_time() - started) / CALLS * 1e6


def run(rounds: int) -> list[dict[str, object]]:
    rows = []
    for name, (sizes, batch_size, steps) in SETTINGS.items():
        model = empty_model(NanoGPTConfig(vocab_size=256, **sizes), "cpu")
        apply_recipe(model, registry.get("nanogpt"), 0)
        batch = torch.randint(256, (2, batch_size, sizes["block_size"]))
        train = loop(model, torch.optim.AdamW(model.parameters(), lr=1e-4), batch, steps)
        makers: dict[str, Callable[[], StepRecorder | None]] = {
            "bare": lambda: None,
            "unwatched": lambda m=model: StepRecorder(m, 100, start_step=1),
            "light": lambda m=model: StepRecorder(m, 1, preset="light"),
            "full": lambda m=model: StepRecorder(m, 1, preset="full"),
        }
        seconds: dict[str, list[float]] = {way: [] for way in makers}
        for round_ in range(rounds + 1):
            for way in list(makers)[:: 1 if round_ % 2 else -1]:
                recorder = makers[way]()
                spent = train(recorder)
                if recorder is not None:
                    recorder.close()
                if round_:  # the first round warms up
                    seconds[way].append(spent)
        copy = sum(p.numel() * p.element_size() for p in model.parameters())
        for way in ("unwatched", "light", "full"):
            ratios = [spent / of for spent, of in zip(seconds[way], seconds["bare"], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            row: dict[str, object] = {
                "model": name,
                "step": "not watched" if way == "unwatched" else f"watched, {way}",
                "bare_cpu_s": round(statistics.median(seconds["bare"]), 4),
                "cpu_ratio": round(statistics.median(ratios), 3),
                "quartiles": [round(low, 3), round(high, 3)],
                "rounds": rounds,
            }
            if way == "unwatched":
                row["counter_us"] = round(statistics.median(counter(model) for _ in range(rounds)), 2)
            else:
                row["weights_copied_mib"] = round(copy / 2**20, 2)
            print(row)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="takes about half a minute each")
    parser.add_argument("--threads", type=int, default=1, help="more than one is noisy on a shared machine")
    parser.add_argument("--write", action="store_true", help="into watch_overhead.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    result = {"environment": environment.describe("cpu"), "rows": run(options.rounds)}
    if options.write:
        Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
