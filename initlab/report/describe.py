"""A model's init as text: what was found per role, the recipe, and what doesn't fit it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from initlab.judge.matching import best_recipes, coverage, mismatches, same_draws


def describe_text(rows: Sequence[dict[str, Any]], recipes: Sequence[str] | None = None) -> str:
    """The rows as an aligned table of at most 100 columns, then sentences: the recipe, and what doesn't fit it."""
    table = [("role", "stack", "n", "shape", "std found", "drawn", "fits")]
    compared = max((len(row["expected"]) for row in rows), default=0)
    best, left = best_recipes(rows)
    for row in rows:
        shape = "×".join(str(size) for size in row["shape"])
        fits = _fits(row, compared, best) if row["expected"] else "not compared"
        table.append((row["role"], _tail(row["stack"]), str(row["n"]), shape, _spread(row), row["distribution"], fits))
    table = table if len(table) > 1 else []
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    lines = [line.rstrip() if len(line.rstrip()) <= 100 else line[:99] + "…" for line in lines]
    lines += [""] if lines else []
    problems = mismatches(rows, recipes)
    count, total, others = coverage(rows)
    if not problems and best:
        groups = [" = ".join(group) for group in same_draws(rows, best)]
        shown = " or ".join(groups[:3]) + (f" or {len(groups) - 3} more" if len(groups) > 3 else "")
        if left:
            lines += _wrapped(f"Closest: {shown}.")
        elif others:
            lines += _wrapped(f"{count} of {total} parameters compared, and those are initialised as {shown}.")
        else:
            lines += _wrapped(f"Initialised as {shown}: every role fits.")
    for sentence in problems:
        lines += _wrapped(sentence[0].upper() + sentence[1:] + ".")
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        lead = "" if not problems and best and not left else f"{count} of {total} parameters compared. "
        what = "gates, or of no known role"
        lines += _wrapped(f"{lead}Not compared: {', '.join(others[:5])}{more} ({what}).")
    return "\n".join(lines)


def _tail(stack: str) -> str:
    return stack if len(stack) <= 22 else "…" + stack[-21:]


def _spread(row: dict[str, Any]) -> str:
    if row["distribution"] == "constant":
        return f"0 (all {row['mean']:.3g})"
    if f"{row['std_min']:.2g}" == f"{row['std_max']:.2g}":
        return f"{row['std']:.3g}"
    return f"{row['std']:.3g} ({row['std_min']:.2g}–{row['std_max']:.2g})"


def _fits(row: dict[str, Any], compared: int, best: Sequence[str]) -> str:
    """The whole model's recipe where it fits the row, else one of those that do and how many others."""
    matches = row["matches"]
    if not matches:
        far = not row["nearest"] or row["difference"] in (0.0, math.inf)
        return "none" if far else f"none; {row['difference']:.0%} off {row['nearest']}"
    if len(matches) == compared and compared > 1:
        return "all"
    if best and best[0] in matches:
        return best[0]
    return matches[0] + (f" +{len(matches) - 1}" if len(matches) > 1 else "")


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, 100, break_long_words=False, break_on_hyphens=False)
