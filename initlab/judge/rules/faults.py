"""What the rules about wiring share: which blocks no pattern explains, and a verdict from sentences."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from initlab.judge import SEVERITIES, Severity
from initlab.judge.cache import kept
from initlab.judge.rows import Rows
from initlab.judge.rules.base import Case, Finding
from initlab.judge.rules.counting import seeds, table_of
from initlab.rundir import Run

_SHOWN = 3  # faults, in a message


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wired wrongly.

    Attributes:
        run_id: of the cell.
        text: a sentence without its full stop, with names of the model's modules.
        advice: the line to change.
        severity: of it.
        layers: blocks, by number.
        site: of what it is about.
        measured: a number, where there is one.
    """

    run_id: str
    text: str
    advice: str
    severity: Severity
    layers: tuple[int, ...] = ()
    site: str = ""
    measured: float | None = None


@kept
def measure_wiring(run: Run) -> Rows:
    """Every branch of every block, as the table `wiring` has it, its own module, and what the loss is taken against."""
    rows, targets = table_of(run, "wiring"), targets_of(run)
    return rows.assign(targets=[targets.get(run_id) for run_id in rows["run_id"]], inside=inside(rows))


def targets_of(run: Run) -> dict[str, str]:
    """Read what the loss of each cell was taken against first.

    Args:
        run: of any kind.
    """
    summary = table_of(run, "summary").grouped(["run_id"], targets=("targets", "first"))
    return dict(zip(summary["run_id"], summary["targets"], strict=True))


def inside(rows: Rows) -> list[str]:
    """Name the attention or MLP of each branch: of one with a norm after it, what holds its weights.

    Args:
        rows: of the table `wiring`.
    """
    names = []
    columns = (rows[name] for name in ("block", "module", "post_norm", "up", "query"))
    for block, module, post_norm, up, query in zip(*columns, strict=True):
        owner = (up or query).rpartition(".")[0].rpartition(".")[0]
        own = owner if post_norm and owner.startswith(f"{block}.") else module
        names.append(own or block or "the model itself")
    return names


def stacks(rows: Rows) -> Iterator[tuple[str, Rows]]:
    """List the stacks of every cell: (run_id, rows).

    Args:
        rows: of the table `wiring`, of one recipe.
    """
    for group in rows.parts("run_id", "stack"):
        yield group["run_id"][0], group


def unexplained(odd: Collection[int], count: int) -> bool:
    """Tell whether blocks are the exception among their siblings, and no pattern of an architecture.

    A pattern is the first blocks, several last ones, or every n-th; a third of the blocks is no exception any more.

    Args:
        odd: places of those that differ, from 0.
        count: of all blocks.
    """
    places = sorted(odd)
    if not places or count < 3 or 3 * len(places) > count or places == list(range(len(places))):
        return False
    if len(places) == 1:
        return True
    last = places == list(range(count - len(places), count))
    return not last and not any(places == list(range(places[0], count, step)) for step in range(2, count))


def anywhere(name: str) -> str:
    """`layers.N.norm` of `layers.2.norm`: the module of every block.

    Args:
        name: dotted.
    """
    return re.sub(r"\.\d+(?=\.|$)", ".N", name)


def layers_of(rows: Rows) -> tuple[int, ...]:
    """List the blocks of some branches, by number.

    Args:
        rows: of the table `wiring`.
    """
    return tuple(int(layer) for layer in rows["layer"])


def verdict(case: Case, rows: Rows, faults: Sequence[Fault], passed: str) -> Finding:
    """Make one finding of the faults of all cells: of the worst severity, said of the first cell that has it.

    Args:
        case: the recipe before the rule.
        rows: what was judged, with run_id and seed.
        faults: what was found.
        passed: the message without any.
    """
    if not faults:
        return case.passed(passed)
    severity = min((fault.severity for fault in faults), key=SEVERITIES.index)
    worst = [fault for fault in faults if fault.severity == severity]
    said = [fault for fault in worst if fault.run_id == worst[0].run_id]
    texts = list(dict.fromkeys(fault.text for fault in said))
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    layers = [layer for fault in said for layer in fault.layers]
    cells = rows.grouped(["run_id"], seed=("seed", "first"))
    return case.failed(
        "; ".join(texts[:_SHOWN]) + more,
        severity=severity,
        advice="; ".join(list(dict.fromkeys(fault.advice for fault in said))[:_SHOWN]),
        site=said[0].site,
        measured=said[0].measured,
        layer_first=min(layers, default=None),
        layer_last=max(layers, default=None),
        effect=float(len(texts)),
        **seeds(cells.among("run_id", {fault.run_id for fault in worst}), cells["seed"]),
    )
