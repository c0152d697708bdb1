"""How the cost of a probe, a report and a prediction grows with blocks, tokens and width.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/growth.py [--write] [--quick] [--axes blocks tokens]

Each size is measured in a process of its own: CPU seconds of a bare forward and backward pass and of
`initlab.probe(model, batch, stats="light").findings`, medians of three, the records it made, and the process's largest
memory. `predict` is the closed form alone; `report` writes the page of the run. --write keeps growth.md beside this
file; --quick leaves out the largest sizes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import initlab
from initlab import environment

# what is varied: its name, sizes, and the model and batch of each
AXES: dict[str, list[dict[str, int]]] = {
    "blocks": [{"n_layer": n, "n_embd": 32, "B": 2, "T": 64} for n in (4, 16, 64, 256, 1000)],
    "tokens": [{"n_layer": 4, "n_embd": 128, "B": b, "T": 256} for b in (1, 4, 16, 64)],
    "width": [{"n_layer": 4, "n_embd": d, "B": 2, "T": 128} for d in (64, 256, 1024, 2048)],
    "predict": [{"n_layer": n, "n_embd": 768} for n in (100, 1000, 10_000)],
    "report": [{"n_layer": n, "n_embd": 32, "B": 2, "T": 64} for n in (4, 64, 256)],
}


def seconds(call: Callable[[], Any], rounds: int = 3, *, warm: bool = False) -> float:
    """Median CPU seconds of a call, after one that isn't counted, unless there was one before."""
    if not warm:
        call()
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def measured(axis: str, size: dict[str, int]) -> dict[str, float]:
    """One row; the process's peak memory in MiB is of everything that it did."""
    torch.set_num_threads(1)
    row: dict[str, float] = {}
    if axis == "predict":
        started = time.process_time()
        initlab.predict("nanogpt", **size)
        row["seconds"] = time.process_time() - started
    else:
        B, T = size["B"], size["T"]
        config = initlab.NanoGPTConfig(
            n_layer=size["n_layer"], n_embd=size["n_embd"], n_head=size["n_embd"] // 32, block_size=T, vocab_size=256
        )
        model = initlab.NanoGPT(config)
        ids, targets = torch.randint(256, (2, B, T), generator=torch.Generator().manual_seed(0)).unbind(0)

        def bare() -> None:
            model(ids, targets)[1].backward()
            model.zero_grad(set_to_none=True)

        def probe() -> initlab.Probe:
            found = initlab.probe(model, (ids, targets), stats="light", progress=False)
            assert found.findings
            return found

        if axis == "report":
            result = probe()
            with tempfile.TemporaryDirectory() as folder:
                row["seconds"] = seconds(lambda: result.report(folder, progress=False), 1)
        else:
            records = len(probe().records)
            row["bare"], row["seconds"] = seconds(bare), seconds(probe, warm=True)
            row["times"] = row["seconds"] / row["bare"]
            row["records"] = records
    row["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


def page(rows: list[dict[str, Any]], command: str) -> str:
    """The results as Markdown."""
    machine = environment.describe("cpu")
    lines = [
        "# How the cost grows",
        "",
        f"`{command}` · torch {machine['torch']}, {machine['device']}, one thread; each row in a process of its own. "
        'CPU seconds of `initlab.probe(model, batch, stats="light").findings` beside a bare forward and backward pass.',
    ]
    for axis in dict.fromkeys(row["axis"] for row in rows):
        own = [row for row in rows if row["axis"] == axis]
        columns = [name for name in ("bare", "seconds", "times", "records", "mib") if name in own[0]]
        names = {"bare": "bare, s", "seconds": "s", "times": "÷ bare", "mib": "MiB at most"}
        lines += ["", f"## {axis}", "", f"| size | {' | '.join(names.get(name, name) for name in columns)} |"]
        lines.append("|---|" + "---|" * len(columns))
        for row in own:
            size = ", ".join(f"{name} {value}" for name, value in row["size"].items())
            lines.append(f"| {size} | {' | '.join(f'{row[name]:.4g}' for name in columns)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="growth.md beside this file")
    parser.add_argument("--quick", action="store_true", help="without the largest size of each")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="only these")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process of its own is given
    options = parser.parse_args()
    if options.one:
        axis, size = json.loads(options.one)
        print(json.dumps(measured(axis, size)))
        return
    rows = []
    for axis in options.axes:
        for size in AXES[axis][: -1 if options.quick else None]:
            command = [sys.executable, __file__, "--one", json.dumps([axis, size])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"axis": axis, "size": size, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], file=sys.stderr, flush=True)
    text = page(rows, " ".join(["python", "benchmarks/growth.py", *sys.argv[1:]]))
    if options.write:
        Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
