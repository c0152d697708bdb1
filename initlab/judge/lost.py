"""Draws that a later line of the init code overwrote, and what gives each parameter its own back."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from initlab.judge.remedies import INIT_CODE, Change
from initlab.judge.words import trimmed
from initlab.recipes import Constant, Normal, TruncNormal, Uniform

if TYPE_CHECKING:
    import pandas as pd

CODE = "DRW003"  # the rule that finds them
_NEAR = 0.03  # relative, beside what chance does to a std
_SIGMAS = 5.0


@dataclass(frozen=True, slots=True)
class Lost:
    """One parameter's draw that is lost.

    Attributes:
        name: of the parameter.
        text: the lost distribution, in words.
        place: `file:line` that drew it.
        over: `file:line` that drew over it.
        order: of the lost write.
        drawn: what it was; None where only its numbers say it.
        factor: from what there is now to what was, where both are one kind of draw; NaN otherwise.
        mean, std: of it; NaN where only its numbers say it.
    """

    name: str
    text: str
    place: str
    over: str
    order: int
    drawn: Constant | Normal | Uniform | TruncNormal | None
    factor: float
    mean: float
    std: float


def lost_draws(rows: pd.DataFrame) -> list[Lost]:
    """List the draws that were set apart, or are of one function with such, and were overwritten.

    Args:
        rows: of `initlab.judge.rules.drawing.measure_overwritten`.
    """
    if rows.empty:
        return []
    bad = rows[rows["special"] > 0]
    return [_lost(row) for _, row in bad.iterrows()]


def _lost(row: pd.Series) -> Lost:
    kind, mean, std = str(row["old_kind"]), float(row["old_mean"]), float(row["old_std"])
    same = kind == row["distribution"] and kind in ("normal", "uniform") and mean == row["mean"] == 0 < row["std"]
    return Lost(
        str(row["parameter"]),
        str(row["old_text"]),
        str(row["old"]).partition(" ")[0],
        str(row["new"]).partition(" ")[0],
        int(row["old_order"]),
        _distribution(kind, mean, std, str(row["old"])),
        std / float(row["std"]) if same and std > 0 else math.nan,
        mean,
        std,
    )


def _distribution(kind: str, mean: float, std: float, said: str) -> Constant | Normal | Uniform | TruncNormal | None:
    if kind == "constant" and math.isfinite(mean):
        return Constant(mean)
    if mean != 0 or not std > 0:
        return None
    if kind == "uniform":
        return Uniform(std * math.sqrt(3))
    if kind == "cut normal":  # `trunc_normal_(std=0.02, a=-0.06, b=0.06)`; torch's own cut is at 2
        cut = re.search(r"\bb=([\d.e-]+)", said)
        return TruncNormal(std, float(cut[1]) if cut else 2.0)
    return Normal(std) if kind == "normal" else None


def brought_back(
    lost: Sequence[Lost], counted: Sequence[dict[str, Any]], kept: Mapping[tuple[str, int], float]
) -> Iterator[Change]:
    """Give each parameter its own lost draw, those that share one together.

    Args:
        lost: of `lost_draws`.
        counted: of `drawing.census`.
        kept: std by (parameter, order), of lost writes whose numbers were kept.
    """
    entries = {entry["name"]: entry for entry in counted}
    groups: dict[tuple[Any, ...], list[Lost]] = {}
    for each in lost:
        if (entry := entries.get(each.name)) and (each.drawn is not None or (each.name, each.order) in kept):
            key = (entry["role"], entry["stack"], each.drawn, each.factor if each.factor > 0 else 0.0, each.text)
            groups.setdefault((*key, each.place, each.over), []).append(each)
    for (role, stack, drawn, factor, text, place, over), some in groups.items():
        found = _pooled([entries[each.name]["std"] for each in some])
        wanted = _pooled([kept[each.name, each.order] for each in some]) if drawn is None else float(drawn.std)
        constant = isinstance(drawn, Constant)
        how = f"set to {drawn.value:g}" if constant else "its own numbers again" if drawn is None else f"draw, {text}"
        what = "numbers of its own" if drawn is None else text
        yield Change(
            role,
            stack,
            tuple(each.name for each in some),
            found,
            found * factor if factor else wanted,
            CODE,
            f"{place} gives it {what}, and {over} draws over that",
            f"× {trimmed(factor)}" if factor else how,
            factor or None,
            drawn=None if factor else drawn,
            orders=tuple(each.order for each in some) if drawn is None else (),
            evidence=INIT_CODE,
        )


def _pooled(stds: Sequence[float]) -> float:
    return math.sqrt(sum(std * std for std in stds) / len(stds))


def still_lost(lost: Sequence[Lost], counted: Sequence[dict[str, Any]], back: Collection[str]) -> list[Lost]:
    """Pick the draws that a model's parameters don't show again.

    Args:
        lost: of `lost_draws`.
        counted: of `drawing.census`, of that model.
        back: names of parameters that hold the kept numbers again.
    """
    entries = {entry["name"]: entry for entry in counted}
    return [each for each in lost if each.name not in back and not _shows(each, entries.get(each.name))]


def _shows(lost: Lost, entry: dict[str, Any] | None) -> bool:
    if entry is None or lost.drawn is None or entry["bad"]:
        return False
    std, mean = float(lost.drawn.std), float(lost.drawn.mean) + entry["offset"]
    if isinstance(lost.drawn, Constant):
        return bool(entry["std"] == 0 and math.isclose(entry["mean"], mean, rel_tol=1e-4, abs_tol=1e-8))
    error = _NEAR + _SIGMAS / math.sqrt(2 * entry["numel"])
    return bool(entry["std"] > 0 and abs(math.log(entry["std"] / std)) < error)
