"""Whether a learning rate transfers, in a screenful and as tables of the page."""

from __future__ import annotations

import math
from typing import Any

from initlab.judge.outcomes import TRANSFER_DEFINITIONS, transfers
from initlab.judge.words import listed, number, plural, signed
from initlab.report.facts import progress
from initlab.report.values import Brief, Table, TableCell
from initlab.report.verdict import GLYPHS
from initlab.report.view import recipes_of
from initlab.rundir import Run

_AXES = {"n_embd": "width", "n_layer": "depth"}
_STATUS = {"holds": "pass", "drifts": "warning", "not resolved": "not_applicable"}


def brief(run: Run) -> Brief:
    """Make a table per axis: the best rate at both ends, how it drifts, and what that costs.

    Args:
        run: of kind `transfer`.
    """
    found = transfers(run)
    blocks: list[Table | str] = [table(run, axis) for axis in _AXES if (found["axis"] == axis).any()]
    blocks += [
        f"{row['recipe']} over {_AXES[row['axis']]}: {row['why']}{_seeds(row)}."
        for row in found.to_dict("records")
        if row["verdict"] == "not resolved"
    ]
    closing = (
        "drift: exponent x of best rate ∝ size^x, ± half its 95 % interval; cost: loss of the largest model at the "
        "smallest one's best rate, minus that at its own, nats ± 95 % over seeds; holds: "
        f"{TRANSFER_DEFINITIONS['holds']}."
    )
    return Brief(blocks or ["No recipe is finished at every rate of two sizes."], closing=closing)


def table(run: Run, axis: str) -> Table:
    """Make the table of one axis, recipes in the run's order.

    Args:
        run: of kind `transfer`.
        axis: n_embd or n_layer.
    """
    found = transfers(run)
    rows = {row["recipe"]: row for row in found[found["axis"] == axis].to_dict("records")}
    sizes = sorted(int(size) for size in run.tables.runs[axis].unique())
    heads = ("recipe", f"best rate at\n{axis} {sizes[0]}", f"\nat {sizes[-1]}", "drift", "verdict", "cost, nats")
    made = Table(
        heads,
        title=f"Over {_AXES[axis]}: {axis} {', '.join(map(str, sizes))}",
        note=f"{_defined('best rate')} {_defined('drift')} {_defined('cost')}",
        summary=plural(len(rows), "recipe"),
        words=frozenset({0, 4}),
    )
    for recipe in [each for each in recipes_of(run) if each in rows]:
        row = rows[recipe]
        status = _STATUS[row["verdict"]]
        verdict = TableCell(row["verdict"], status, glyph=GLYPHS[status])
        open_ended = row["verdict"] == "not resolved" and (row["small_edge"] or row["large_edge"])
        said = ("–", verdict, "–") if open_ended else (drift_text(row), verdict, _cost(row))
        made.add(recipe, _rate(row, "small"), _rate(row, "large"), *said)
    return made


def _rate(row: dict[str, Any], end: str) -> str:
    """`≥0.016` where the best of a seed is the highest swept rate."""
    return {-1: "≤", 0: "", 1: "≥"}[row[f"{end}_edge"]] + number(row[f"{end}_lr"])


def drift_text(row: dict[str, Any]) -> str:
    """`n_embd^-0.82 ±0.21`; without the interval where there is none.

    Args:
        row: of `transfers`.
    """
    half = f" ±{(row['high'] - row['low']) / 2:.2f}" if math.isfinite(row["low"]) else ""
    return f"{row['axis']}^{signed(row['drift'], 2)}{half}"


def verdict(run: Run) -> str:
    """Say in a sentence for which recipes the best rate holds, and what it costs where it doesn't.

    Args:
        run: of kind `transfer`.
    """
    found, (done, planned) = transfers(run), progress(run)
    before = "" if done == planned else f"So far, {done} of {planned} cells: "
    if found.empty:
        return f"{before}No recipe is finished at every rate of two sizes, so that nothing can be said of transfer."
    parts = []
    for axis, word in _AXES.items():
        own = found[found["axis"] == axis]
        for outcome in _STATUS:
            rows = own[own["verdict"] == outcome].to_dict("records")
            if rows:
                parts.append(f"{listed([_said(row) for row in rows], 6)} {_verb(outcome, len(rows))} over {word}")
    return f"{before}The best rate of {'; of '.join(parts)}."


def _said(row: dict[str, Any]) -> str:
    if row["verdict"] != "drifts":
        return str(row["recipe"])
    cost = f", which costs {_cost(row)} nats" if math.isfinite(row["cost"]) else ""
    return f"{row['recipe']} ({drift_text(row)}{cost})"


def _verb(outcome: str, count: int) -> str:
    return {"not resolved": "isn't resolved"}.get(outcome, outcome)


def _cost(row: dict[str, Any]) -> str:
    half = (row["cost_high"] - row["cost_low"]) / 2
    return signed(row["cost"], 3) + (f" ±{half:.3f}" if math.isfinite(half) else "")


def _seeds(row: dict[str, Any]) -> str:
    needed = row["seeds_needed"]
    if math.isnan(needed):
        return ""
    return f"; it would take {'more than 100' if math.isinf(needed) else f'{needed:.0f}'} seeds"


def _defined(word: str) -> str:
    text = TRANSFER_DEFINITIONS[word]
    return f"{word[:1].upper()}{word[1:]}: {text}."
