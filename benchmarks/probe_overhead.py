"""What a probe costs beside a bare forward and backward pass of the same model: `initlab.probe(model, batch).findings`.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/probe_overhead.py [--write]

Without the extra `hf` the model of transformers is left out.

Every round runs each way once, in an order that turns round every time, in one process; the figure is the median over
rounds of CPU time relative to the bare pass of the same round. --write keeps the result beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import initlab
from initlab import environment
from initlab.drawing.apply import apply_recipe
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import empty_model
from initlab.recipes import registry

# n_layer, n_head, n_embd; sequences and their length
NANOGPT = ((4, 4, 128, 12, 64), (12, 4, 256, 4, 256), (12, 6, 384, 4, 256), (12, 12, 768, 2, 512))
GPT2 = ((12, 4, 256, 4, 256),)


def models() -> Iterator[tuple[str, nn.Module, Any, Callable[[], Tensor]]]:
    """Name, model, batch and loss of each setting."""
    for n_layer, n_head, n_embd, B, T in NANOGPT:
        sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": T}
        model: nn.Module = empty_model(NanoGPTConfig(vocab_size=256, **sizes), "cpu")
        apply_recipe(model, registry.get("nanogpt"), 0)
        idx, targets = torch.randint(256, (2, B, T)).unbind(0)
        yield (
            _name("NanoGPT", n_layer, n_embd, B, T),
            model,
            (idx, targets),
            lambda m=model, i=idx, t=targets: m(i, t)[1],
        )
    for n_layer, n_head, n_embd, B, T in GPT2 if find_spec("transformers") else ():
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "n_positions": T}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=256, bos_token_id=0, eos_token_id=0, **sizes)).train()
        idx = torch.randint(256, (B, T))
        yield (
            _name("GPT-2 of transformers", n_layer, n_embd, B, T),
            model,
            idx,
            lambda m=model, i=idx: m(i, labels=i).loss,
        )


def _name(what: str, n_layer: int, n_embd: int, B: int, T: int) -> str:
    return f"{what}, {n_layer} × {n_embd}, batch {B}×{T}"


def bare(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    torch.autograd.grad(loss(), list(model.parameters()))


def run(rounds: int) -> list[dict[str, object]]:
    rows = []
    for name, model, batch, loss in models():
        ways: dict[str, Callable[[], Any]] = {
            "bare": lambda m=model, of=loss: bare(m, of),
            "light": lambda m=model, b=batch: initlab.probe(m, b, stats="light").findings,
            "full": lambda m=model, b=batch: initlab.probe(m, b, stats="full").findings,
        }
        records = {way: len(initlab.probe(model, batch, stats=way).records) for way in ("light", "full")}
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
