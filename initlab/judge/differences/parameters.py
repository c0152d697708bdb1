"""What differs between two parameters beyond the chance of their draws: scale, mean, shape of the draw, structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from initlab.judge.differences.pairing import Held, Pair
from initlab.judge.words import plural, trimmed

ERRORS = 4.0  # standard errors: a false alarm in 16,000 draws
_SAME = 1e-5  # relative, of statistics of the very same numbers, summed in another order
_UNIFORM = -1.2  # excess kurtosis
_KNOWN = 0.1  # of a kurtosis, that makes no other distribution
_WIDE = 32  # rows and columns from which a stable rank tells an orthogonal matrix from a normal one
_RANK = 1.6  # times; of normal draws of that size it differs by 1.35 at the most
_COPIED = 0.9  # correlation of copies, as rule INI006 has it

COLUMNS = (
    *("role", "layer", "name_a", "name_b", "matched", "numel_a", "numel_b", "shape_a", "shape_b"),
    *("mean_a", "mean_b", "std_a", "std_b", "ratio", "chance", "distribution_a", "distribution_b"),
    *("identical", "differs", "what", "detail"),
)


def parameters(pairs: Sequence[Pair]) -> pd.DataFrame:
    """Make a row for each pair.

    Columns: role, layer; name, numel, shape, mean, std and distribution of both; matched (how); ratio (std of B ÷ A);
    chance (by how much a ratio may be off 1 by the draws alone, a share); identical (the very same numbers, as far as
    their statistics tell); differs; what (in words: std, mean, distribution, …, with commas between); detail (a phrase
    for each of these that isn't a number).

    Args:
        pairs: of both models.
    """
    frame = pd.DataFrame([_row(pair) for pair in pairs], columns=list(COLUMNS))
    return frame.astype({"layer": "Int64", "numel_a": "Int64", "numel_b": "Int64"})


def _row(pair: Pair) -> dict[str, Any]:
    a, b = pair.a, pair.b
    one = a or b
    assert one is not None
    row: dict[str, Any] = {"role": one.role, "layer": one.layer, "matched": pair.how, "identical": False}
    row |= {"ratio": math.nan, "chance": math.nan}
    for side, each in (("a", a), ("b", b)):
        row |= {
            f"name_{side}": each.name if each else "",
            f"numel_{side}": each.numel if each else None,
            f"shape_{side}": _shape(each) if each else "",
            f"mean_{side}": each.moments["mean"] if each else math.nan,
            f"std_{side}": each.std if each else math.nan,
            f"distribution_{side}": distribution(each) if each else "",
        }
    if a is None or b is None:
        return row | {"differs": True, "what": f"only in {'A' if b is None else 'B'}", "detail": ""}
    return row | _compared(a, b)


def _compared(a: Held, b: Held) -> dict[str, Any]:
    ratio = b.std / a.std if a.std > 0 else 1.0 if a.std == b.std else math.inf
    off = ERRORS * math.hypot(_std_error(a, b), _std_error(b, a))
    found: dict[str, str] = {}
    identical = _identical(a, b)
    if _broken(a) != _broken(b):
        found["not finite"] = f"not finite in {'A' if _broken(a) else 'B'}"
    elif not identical and not _broken(a):
        found |= _parts_moved(a, b, ratio, off)
        apart = bool(found)  # then the whole is a mixture, whose own scale and tails say nothing new
        if abs(log_of(ratio)) > off and not apart:
            found["std"] = ""
        if _mean_moved(a, b):
            found["mean"] = f"mean {trimmed(a.moments['mean'])} → {trimmed(b.moments['mean'])}"
        if (kinds := _kinds(a, b)) and not apart:
            found["distribution"] = kinds
    if a.role != b.role:
        found["role"] = f"role {a.role} → {b.role}"
    if a.numel != b.numel:
        found["shape"] = f"shape {_shape(a)} → {_shape(b)}"
    found |= _structure(a, b)
    return {
        "ratio": ratio,
        "chance": math.expm1(off),
        "identical": identical,
        "differs": bool(found),
        "what": ", ".join(found),
        "detail": "; ".join(filter(None, found.values())),
    }


def distribution(one: Held) -> str:
    """Name what it looks drawn from by its excess kurtosis: normal, uniform, cut normal (between), heavy tails.

    `constant 1` of equal numbers; empty where too few numbers, or no kurtosis, tell nothing.

    Args:
        one: a parameter.
    """
    mean, kurtosis = one.moments["mean"], one.moments["kurtosis"]
    if _broken(one):
        return "not finite"
    if one.std <= 1e-6 * abs(mean) or one.std == 0:
        return f"constant {trimmed(mean)}"
    error = _kurtosis_error(one)
    if math.isnan(kurtosis) or error > 0.3:  # a normal and a uniform draw are 1.2 apart
        return ""
    if abs(kurtosis) <= _KNOWN + ERRORS * error:
        return "normal"
    if kurtosis > 0:
        return "heavy tails"
    return "uniform" if abs(kurtosis - _UNIFORM) <= _KNOWN + ERRORS * error else "cut normal"


def _kinds(a: Held, b: Held) -> str:
    """`normal → uniform`, where they are told apart; else nothing."""
    kinds = distribution(a), distribution(b)
    fixed = [kind.startswith("constant") for kind in kinds]
    if fixed[0] and fixed[1]:
        return ""  # their means tell them apart
    if fixed[0] or fixed[1]:
        return " → ".join(kind or "drawn" for kind in kinds)
    if kinds[0] == kinds[1] or not all(kinds):
        return ""
    apart = abs(a.moments["kurtosis"] - b.moments["kurtosis"])  # more than two sides of one border
    told = apart > _KNOWN + ERRORS * math.hypot(_kurtosis_error(a), _kurtosis_error(b))
    return " → ".join(kinds) if told else ""


def _parts_moved(a: Held, b: Held, ratio: float, off: float) -> dict[str, str]:
    """Parts of a fused matrix whose scale moves otherwise than the whole's."""
    parts = [each.parts for each in (a, b)]
    if [part.role for part in parts[0]] != [part.role for part in parts[1]]:
        return {}
    moved, uneven = {}, False
    for x, y in zip(*parts, strict=True):
        log = log_of(y.std / x.std) if x.std > 0 else 0.0 if x.std == y.std else math.inf
        error = ERRORS * math.hypot(_std_error(x, y), _std_error(y, x))
        uneven |= abs(log - log_of(ratio)) > error + off
        if abs(log) > error:
            moved[f"rows {x.role}"] = f"its {x.role} rows: std {trimmed(x.std)} → {trimmed(y.std)}"
    return moved if uneven else {}


def _kurtosis_error(one: Held) -> float:
    return math.sqrt(24 / (one.numel * one.draws))


def _std_error(one: Held, other: Held) -> float:
    """Of the logarithm of a std of n draws: √((2 + excess kurtosis) / 4n), which is 1/√(2n) of a normal."""
    if one.std == 0:
        return 0.0
    tails = max(0.0, *(x for x in (one.moments["kurtosis"], other.moments["kurtosis"]) if not math.isnan(x)), 0.0)
    return math.sqrt((2 + tails) / (4 * one.numel * one.draws))


def _mean_moved(a: Held, b: Held) -> bool:
    apart = abs(b.moments["mean"] - a.moments["mean"])
    error = math.hypot(a.std / math.sqrt(a.numel * a.draws), b.std / math.sqrt(b.numel * b.draws))
    size = max(abs(a.moments["mean"]), abs(b.moments["mean"]))
    return apart > ERRORS * error and apart > _SAME * size


def _identical(a: Held, b: Held) -> bool:
    """Whether they hold the very same numbers: three statistics of continuous draws agree by nothing else."""
    if a.numel != b.numel or a.draws != b.draws:
        return False
    known = [(a.std, b.std)] + [(a.moments[name], b.moments[name]) for name in ("mean", "abs_max")]
    scale = max(a.std, abs(a.moments["mean"]))
    return all(abs(x - y) <= _SAME * scale for x, y in known)  # a NaN is no such


def _structure(a: Held, b: Held) -> dict[str, str]:
    """Differences that no moment shows: what repeats, what is shared between blocks, of what rank it is."""
    one, other = a.structure, b.structure
    found: dict[str, str] = {}
    if not one or not other:
        return found
    said: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
        "row copies": ("rows {} in {} alone", lambda held: held.get("row_which") or ""),
        "column copies": ("columns {} in {} alone", lambda held: held.get("column_which") or ""),
        "copy": ("a copy of {} in {} alone", _like),
        "odd rows": ("{} of another scale in {} alone", lambda held: held.get("odd") or ""),
    }
    for what, (text, of) in said.items():
        mine, theirs = of(one), of(other)
        if bool(mine) != bool(theirs):
            found[what] = text.format(mine or theirs, "A" if mine else "B")
    shared = [int(each["shared"]) if not pd.isna(each.get("shared")) else 1 for each in (one, other)]
    if shared[0] != shared[1]:
        found["tie"] = f"in {plural(shared[0], 'block')} → in {shared[1]}"
    ranks = [each.get("stable_rank") for each in (one, other)]
    small = min(int(each[name]) for each in (one, other) for name in ("rows", "columns")) < _WIDE
    if (
        not small
        and all(rank is not None and rank > 0 for rank in ranks)
        and abs(
            log_of(ranks[1] / ranks[0])  # type: ignore[operator]
        )
        > math.log(_RANK)
    ):
        found["rank"] = f"stable rank {trimmed(ranks[0])} → {trimmed(ranks[1])}"  # type: ignore[arg-type]
    return found


def _like(structure: dict[str, Any]) -> str:
    likeness = structure.get("likeness")
    return str(structure.get("like") or "") if likeness is not None and likeness >= _COPIED else ""


def _shape(one: Held) -> str:
    rows, columns = one.structure.get("rows"), one.structure.get("columns")
    if rows is None or int(rows) * int(columns) != one.numel:  # type: ignore[arg-type]
        return str(one.numel)
    return f"{int(rows)}×{int(columns)}"  # type: ignore[arg-type]


def _broken(one: Held) -> bool:
    return one.moments["frac_nonfinite"] > 0 or not math.isfinite(one.std)


def log_of(ratio: float) -> float:
    """Take the logarithm of a ratio that may be 0 or infinite.

    Args:
        ratio: not negative.
    """
    return math.log(ratio) if 0 < ratio < math.inf else math.inf if ratio else -math.inf
