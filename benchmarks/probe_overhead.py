"""What a probe costs beside a bare forward and backward pass of the same model: `initlab.probe(model, batch).findings`.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/probe_overhead.py [--write]

Every round runs each way once, in an order that turns round every time, in one process; the figure is the median over
rounds of CPU time relative to the bare pass of the same round. --write keeps the result beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import initlab
from initlab import environment
from initlab.drawing.apply import apply_recipe
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import empty_model
from initlab.recipes import registry

SETTINGS = {
    "4 × 128, batch 12×64": ({"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}, 12),
    "12 × 384, batch 4×256": ({"n_layer": 12, "n_head": 6, "n_embd": 384, "block_size": 256}, 4),
    "12 × 768, batch 2×512": ({"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 512}, 2),
}


def bare(model: torch.nn.Module, idx: torch.Tensor, targets: torch.Tensor) -> None:
    _, loss = model(idx, targets)
    torch.autograd.grad(loss, list(model.parameters()))


def run(rounds: int) -> list[dict[str, object]]:
    rows = []
    for name, (sizes, batch_size) in SETTINGS.items():
        model = empty_model(NanoGPTConfig(vocab_size=256, **sizes), "cpu")
        apply_recipe(model, registry.get("nanogpt"), 0)
        idx, targets = torch.randint(256, (2, batch_size, sizes["block_size"])).unbind(0)
        ways = {
            "bare": lambda m=model, i=idx, t=targets: bare(m, i, t),
            "light": lambda m=model, i=idx, t=targets: initlab.probe(m, (i, t), stats="light").findings,
            "full": lambda m=model, i=idx, t=targets: initlab.probe(m, (i, t), stats="full").findings,
        }
        records = {way: len(initlab.probe(model, (idx, targets), stats=way).records) for way in ("light", "full")}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(rounds + 1):
            for way in list(ways)[:: 1 if round_ % 2 else -1]:
                started = time.process_time()
                ways[way]()
                if round_:  # the first round warms up
                    seconds[way].append(time.process_time() - started)
        for way in ("light", "full"):
            ratios = [spent / of for spent, of in zip(seconds[way], seconds["bare"], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            row = {
                "model": name,
                "preset": way,
                "records": records[way],
                "bare_cpu_s": round(statistics.median(seconds["bare"]), 4),
                "cpu_ratio": round(statistics.median(ratios), 3),
                "quartiles": [round(low, 3), round(high, 3)],
                "rounds": rounds,
            }
            print(row)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="takes about half a minute each")
    parser.add_argument("--threads", type=int, default=1, help="more than one is noisy on a shared machine")
    parser.add_argument("--write", action="store_true", help="into probe_overhead.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    result = {"environment": environment.describe("cpu"), "rows": run(options.rounds)}
    if options.write:
        Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
