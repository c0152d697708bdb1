"""Planted faults: which of them initlab sees, where, what it says of them, and whether `fix` mends just that.

    python benchmarks/detection.py [--write] [--bases own-llama gpt2] [--faults "residual*"] [--fix gpt2] [--peers]

Needs the extra `hf`; without it the bases of transformers are left out. A base is a small fresh model as its library or
its author initialises it (`detection_bases.py`); a fault is one change of it (`detection_faults.py` says what a fault
states of itself). Each model is probed with no argument, faults in init code through a function that makes it, in a
process of its own. What is said of it is the findings that the unmutated base (same seed) doesn't draw, or draws at a
lower severity:

- any: one of them is a warning or an error. note: else, there is one.
- located: their text matches the fault's place: a block by name or number where one block is wrong, the role or path of
  the parameters where those of every block are.
- advice: located, and one of the fault's words of cause is in their text. Both are written down with the fault, from
  what was done to the model; initlab's sentences are no part of them.
- mended: after `fix(model).apply()` every parameter that the fault changed has its scale back (root mean square within
  10 % of the unmutated one's; of copies and matrices of low rank: they are none any more), and every other parameter
  and buffer is bit for bit what it was. Only of faults that changed weights, and no benign ones. A fix that raises, or
  proposes nothing, is a no.

A probe that raises counts as nothing seen. Unmutated: every base in its sizes and seeds; any warning or error there is
a false alarm. --write keeps the page and every cell beside this file.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import os
import re
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import detection_inits  # noqa: F401  (it adds to FAULTS)
import detection_wirings  # noqa: F401  (likewise)
import pandas as pd
import torch
from any_model import warm_up
from children import Death, results, short
from detection_bases import BASES, subject
from detection_faults import FAULTS, Fault, NotHere, Planted
from detection_page import line, page
from torch import nn

import initlab

LEVELS = {"info": 0, "warning": 1, "error": 2}
ROOT = Path(__file__).resolve().parent.parent  # which findings name where it isn't below the working directory
NEAR = 1.1  # of root mean squares that count as the same
COLUMNS = (
    "base", "fault", "group", "harm", "planted", "any", "note", "located", "advice", "mended", "codes", "seconds",
    "text",
)  # fmt: skip


@dataclass(frozen=True)
class Healthy:
    """An unmutated base to look at."""

    base: str
    size: tuple[int, int]
    seed: int
    traced: bool = False


@dataclass(frozen=True)
class Cell:
    """A fault in a base; `known` is what the unmutated base draws, code -> severity."""

    base: str
    fault: Fault
    known: dict[str, str]
    fixed: bool = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=[], metavar="BASE", help=", ".join(BASES))
    parser.add_argument("--faults", nargs="+", default=[], metavar="FAULT", help="names, or globs")
    parser.add_argument("--seeds", type=int, default=3, help="of the unmutated models (3)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=240, help="limit of CPU time for one model (240)")
    parser.add_argument(
        "--fix", nargs="*", default=[*BASES], metavar="BASE", help="where `fix` is tried, minutes for each (all); none"
    )
    parser.add_argument("--peers", action="store_true", help="run the peers, too: see detection_peers.py")
    parser.add_argument(
        "--write", nargs="?", type=Path, const=Path(__file__), help="into detection.md and .csv, or a path of that stem"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if unknown := set(options.bases) - set(BASES):
        parser.error(f"unknown base {', '.join(sorted(unknown))}; known: {', '.join(BASES)}")
    bases = options.bases or list(BASES)
    chosen = [each for each in FAULTS if not options.faults or _wanted(each.name, options.faults)]
    warm_up()
    started = time.perf_counter()
    work = {"jobs": options.jobs, "seconds": options.seconds}

    tasks = [Healthy(base, size, seed) for base in bases for size in BASES[base][1] for seed in range(options.seeds)]
    tasks += [Healthy(base, BASES[base][1][0], 0, traced=True) for base in bases]
    unmutated = []
    for task, row in results(tasks, healthy, **work):
        unmutated.append(row if isinstance(row, dict) else died(task, row))
        print(f"unmutated {len(unmutated)}/{len(tasks)}", file=sys.stderr, flush=True)
    cells = [Cell(base, each, known(unmutated, base), base in options.fix) for base in bases for each in chosen]
    measured = []
    for task, row in results(cells, graded, **work):
        measured.append(row if isinstance(row, dict) else died(task, row))
        print(f"{len(measured)}/{len(cells)} {line(measured[-1])}", file=sys.stderr, flush=True)
    order = {name: place for place, name in enumerate([*bases, *(each.name for each in FAULTS)])}
    measured.sort(key=lambda row: (order[row["base"]], order[row["fault"]]))
    table = pd.DataFrame(measured).reindex(columns=COLUMNS)
    seen = None
    if options.peers:
        from detection_peers import compared

        seen = compared(table, chosen, **work)
    text = page(table, pd.DataFrame(unmutated), seen, time.perf_counter() - started)
    if options.write:
        options.write.with_suffix(".md").write_text(text, encoding="utf-8")
        table.to_csv(options.write.with_suffix(".csv"), index=False, float_format="%.3g")
    print(text.split("\n## Missed")[0])


def _wanted(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def died(task: Healthy | Cell, how: Death) -> dict[str, Any]:
    """The row of a process that gave nothing."""
    if isinstance(task, Healthy):
        return {"base": task.base, "size": task.size, "seed": task.seed, "traced": task.traced, "raised": how.how}
    return _named(task) | _unseen(how.how)


def _named(cell: Cell) -> dict[str, Any]:
    return {"base": cell.base, "fault": cell.fault.name, "group": cell.fault.group, "harm": cell.fault.harm}


def _unseen(why: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("any", "note", "located", "advice"), False)
    return {"planted": "yes", "codes": "RAISED", "mended": "", "text": why} | nothing


def healthy(task: Healthy) -> dict[str, Any]:
    """Look at an unmutated model: {code: severity} of what it draws."""
    row = {"base": task.base, "size": task.size, "seed": task.seed, "traced": task.traced, "raised": ""}
    try:
        if task.traced:
            found = initlab.probe(lambda: subject(task.base, task.seed, task.size).model)
        else:
            found = initlab.probe(subject(task.base, task.seed, task.size).model)
        return row | {"found": {each.code: each.severity for each in found.findings if each.status == "fail"}}
    except Exception as error:
        return row | {"raised": short(error), "found": {}}


def known(rows: list[dict[str, Any]], base: str) -> dict[str, str]:
    """What the unmutated base draws at seed 0, in the size that faults are planted in."""
    found: dict[str, str] = {}
    for row in rows:
        if (row["base"], row["seed"], row["size"]) == (base, 0, BASES[base][1][0]):
            for code, severity in row.get("found", {}).items():
                if LEVELS[severity] >= LEVELS[found.get(code, "info")]:
                    found[code] = severity
    return found


def planted(cell: Cell) -> tuple[nn.Module, Planted]:
    """The base with the fault in it, always the same."""
    made = subject(cell.base)
    torch.manual_seed(1)
    return made.model, cell.fault.plant(made)


def graded(cell: Cell) -> dict[str, Any]:
    """One row of the table."""
    row, started = _named(cell), time.process_time()
    try:
        model, fault = planted(cell)
    except NotHere as why:
        return row | {"planted": f"not here {why}".strip()}
    try:
        found = initlab.probe((lambda: planted(cell)[0]) if cell.fault.traced else model)
    except Exception as error:
        return row | _unseen(short(error))
    row |= {"planted": "yes"} | grade(found.findings, cell.known, fault.where, cell.fault.cause)
    row["mended"] = ""
    if cell.fixed and fault.weights and cell.fault.harm != "benign":
        row["mended"] = mended(model, fault, dict(subject(cell.base).model.named_parameters()))
    return row | {"seconds": time.process_time() - started}


def grade(findings: Any, known: dict[str, str], where: str, cause: str) -> dict[str, Any]:
    """What the findings say that the unmutated base doesn't draw.

    Args:
        findings: of the mutated model.
        known: severity by code of what the unmutated one draws.
        where: the fault's place, a regular expression.
        cause: its words of cause, likewise.
    """
    failed = [each for each in findings if each.status == "fail"]
    new = [f for f in failed if f.code not in known or LEVELS[f.severity] > LEVELS[known[f.code]]]
    text = " ".join(f"{each.site} {each.message} {each.advice}" for each in new).replace(f"{ROOT}/", "")
    located = bool(new) and bool(re.search(where, text))
    loud = any(each.severity != "info" for each in new)
    return {
        "any": loud,
        "note": bool(new) and not loud,
        "located": located,
        "advice": located and bool(re.search(cause, text)),
        "codes": " ".join(f"{each.code}:{each.severity[0]}" for each in new),
        "text": text[:600],
    }


def mended(model: nn.Module, fault: Planted, clean: dict[str, nn.Parameter]) -> str:
    """Whether `fix` restores what the fault changed, and nothing else: yes, or why not."""
    before = {name: value.detach().clone() for name, value in _values(model)}
    try:
        proposal = initlab.fix(model)
        if not proposal.changes:
            return "nothing proposed"
        proposal.apply()
    except Exception as error:
        return short(error)
    changed = [name for name, value in _values(model) if not _equal(value, before[name])]
    if more := set(changed) - set(fault.weights):
        return f"also changed {len(more)}: {min(more)}"
    if fault.mended is not None:
        return "yes" if fault.mended(model) else "not restored"
    left = [name for name, value in _values(model) if name in fault.weights and not _near(value, clean[name])]
    return f"{len(left)} not restored: {left[0]}" if left else "yes"


def _values(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    a, b = (float(each.detach().float().square().mean().sqrt()) for each in (one, other))
    return a == b or (a > 0 < b and abs(math.log(a / b)) <= math.log(NEAR))


if __name__ == "__main__":
    main()
