"""Numbers and counts in sentences: one way to write them, wherever they are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float | None, digits: int = 2) -> str:
    """A number with few digits, as a person would write it."""
    if value is None or math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e5:
        shown = float(f"{value:.{digits}g}")
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(shown))))
        return f"{value:.{decimals}f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def trimmed(value: float, digits: int = 3) -> str:
    """A number without zeros at its end."""
    text = number(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def unlike(which: str, std: float, rest: float, digits: int = 3) -> str:
    """`rows 240–255 of tok.weight have std 0.99, the others 0.02`; a row or an expert `has`."""
    have = "has" if which.startswith(("row ", "expert ")) else "have"
    return f"{which} {have} std {trimmed(std, digits)}, the others {trimmed(rest, digits)}"


def signed(value: float | None, decimals: int = 2) -> str:
    """A signed number; rounds first, so that it never reads -0.00."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def plural(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(words: Sequence[str], most: int = 3) -> str:
    """`a, b and c`; long lists end in `and 5 more`."""
    words = list(words)
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
