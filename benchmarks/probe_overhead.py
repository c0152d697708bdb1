"""What a probe costs beside a bare forward and backward pass of the same model, and what others do with one.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/probe_overhead.py [--write]

Timed is all of `initlab.probe(model, batch).findings`, and the ways of `overhead_peers.py`. Without the extra `hf` the
model of transformers is left out, and with it the peers that aren't installed.

Every round runs each way once, in an order that turns round every time, in one process; the figure is the median over
rounds of CPU time relative to the bare pass of the same round. Memory is what one more run adds to the process at its
peak, relative to what the bare pass adds (Linux). --write keeps the result in probe_overhead.json and .md.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from overhead_peers import Way, peers
from torch import Tensor, nn

import initlab
from initlab import environment
from initlab.drawing.apply import apply_recipe
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import empty_model
from initlab.recipes import registry

# n_layer, n_head, n_embd; sequences and their length
NANOGPT = ((4, 4, 128, 12, 64), (12, 4, 256, 4, 256), (12, 6, 384, 4, 256), (12, 12, 768, 2, 512))
_LEAST = 0.8
GPT2 = ((12, 4, 256, 4, 256),)


def models(*, largest: bool) -> Iterator[tuple[str, nn.Module, Any, Callable[[], Tensor]]]:
    """Name, model, batch (of a model of transformers its ids alone) and loss of each setting."""
    for n_layer, n_head, n_embd, B, T in NANOGPT if largest else NANOGPT[:-1]:
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


def ways_of(model: nn.Module, batch: Any, loss: Callable[[], Tensor]) -> dict[str, Way]:
    """What is timed, by name; the bare pass first."""

    def bare() -> int:
        torch.autograd.grad(loss(), list(model.parameters()))
        return 0

    def probe(stats: str) -> int:
        found = initlab.probe(model, batch, stats=stats, progress=False)
        assert found.findings
        return len(found.records)

    alone = isinstance(batch, Tensor)
    return {
        "bare": Way(bare),
        "light": Way(lambda: probe("light")),
        "full": Way(lambda: probe("full")),
        **dict(peers(model, batch if alone else batch[0], loss, transformers=alone)),
    }


def added(way: Way) -> float:
    """What a run adds to the process at its peak, MiB; NaN where the system doesn't say."""
    way.before()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what runs before have let go of
        before, _ = _memory()
        way.run()
        return (_memory()[1] - before) / 1024
    except (OSError, AttributeError):
        return math.nan
    finally:
        way.after()


def _memory() -> tuple[int, int]:
    """Now and at most, KiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, most = (int(lines[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, most


def _timed(way: Way) -> tuple[int, float]:
    way.before()
    gc.collect()  # what one way leaves behind isn't another's to collect
    started = time.process_time()
    records = way.run()
    taken = time.process_time() - started
    way.after()
    return records, taken


def run(rounds: int, *, largest: bool) -> list[dict[str, Any]]:
    rows = []
    for name, model, batch, loss in models(largest=largest):
        ways = ways_of(model, batch, loss)
        records = {name: _timed(way)[0] for name, way in ways.items()}  # which warms up, too
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(rounds):
            for way in list(ways)[:: 1 if round_ % 2 else -1]:
                seconds[way].append(_timed(ways[way])[1])
        memory = {way: added(call) for way, call in ways.items()}
        for way in list(ways)[1:]:
            ratios = [spent / of for spent, of in zip(seconds[way], seconds["bare"], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            row = {
                "model": name,
                "way": way,
                "records": records[way],
                "bare_cpu_s": round(statistics.median(seconds["bare"]), 4),
                "cpu_ratio": round(statistics.median(ratios), 3),
                "quartiles": [round(low, 3), round(high, 3)],
                "bare_mib": round(memory["bare"], 1),
                "memory_ratio": round(memory[way] / memory["bare"], 2) if memory["bare"] > 0 else None,
                "rounds": rounds,
            }
            print(row, flush=True)
            rows.append(row)
    return rows


def page(result: dict[str, Any], command: str) -> str:
    """The results as Markdown."""
    machine, rows = result["environment"], result["rows"]
    lines = [
        "# What a probe costs",
        "",
        f"`{command}` · torch {machine['torch']}, {machine['device']}, {machine['threads']} thread, a shared machine. "
        "CPU time and memory ÷ those of a bare forward and backward pass, medians; the quartiles are in "
        "probe_overhead.json. `light` and `full` are `initlab.probe(model, batch, stats=…).findings`; what the others "
        "do is in overhead_peers.py.",
    ]
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        lines += ["", f"## {name}", "", "| way | records | CPU | memory |", "|---|---|---|---|"]
        # what holds a bare pass can't add less than one: the process had memory left over from something else
        told = all((row["memory_ratio"] or 0) > _LEAST for row in own)
        lines += [
            f"| {row['way']} | {row['records']} | {row['cpu_ratio']:.2f}× | "
            + (f"{row['memory_ratio']}× |" if told else "not told |")
            for row in own
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="takes about half a minute each")
    parser.add_argument("--threads", type=int, default=1, help="more than one is noisy on a shared machine")
    parser.add_argument("--quick", action="store_true", help="without the largest model")
    parser.add_argument("--write", action="store_true", help="into probe_overhead.json and .md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    result = {"environment": environment.describe("cpu"), "rows": run(options.rounds, largest=not options.quick)}
    if options.write:
        here, command = Path(__file__), " ".join(["python", "benchmarks/probe_overhead.py", *sys.argv[1:]])
        here.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        here.with_suffix(".md").write_text(page(result, command))


if __name__ == "__main__":
    main()
