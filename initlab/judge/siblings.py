"""Parameters that aren't what their siblings are, and what would make them so.

A sibling is the same parameter of another block; of a gain, every other gain. This is the best evidence that there is:
it needs neither a recipe nor a threshold of what is healthy. What isn't a draw at all (constant, of low rank, a copy)
needs no sibling to be odd, and takes its scale from them where they have one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from initlab.judge.remedies import Change, plain
from initlab.judge.rules.trends import off_trend
from initlab.judge.words import plural, trimmed, unlike
from initlab.recipes import Constant, Normal, Uniform
from initlab.recipes.base import VECTORS
from initlab.wiring import family

ODD = 1.3  # times what its siblings have: as INI003
_BESIDE = 1.03  # in a block where another parameter is odd
_ALIKE = 1.05  # largest over smallest std of parameters that have one scale
_MOST = 2 / 3  # of the siblings agree
_SIGMAS = 5.0
_DRAWN = ("normal", "uniform", "")
_UNDRAWN = ("constant", "low rank")
_ROUND = (*range(20, 101, 10), *(10**n for n in range(3, 10)))  # factors that a slip may have had

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Group:
    """Changes that one observation asks for, so that they are tried together.

    Attributes:
        changes: to make.
        text: what is odd, compared with what.
    """

    changes: tuple[Change, ...]
    text: str


def odd_siblings(counted: Sequence[Entry], wanted: Sequence[Change] = ()) -> list[Group]:
    """Find what differs from its siblings, the surest first.

    Args:
        counted: of `initlab.drawing.census`.
        wanted: draws of a recipe, for what has no sound sibling; without one it stays.

    Returns:
        groups: numbers that aren't finite; matrices that are no draw; copies, of any role; rows inside a matrix;
        scales, by block; gains and biases.
    """
    again = list(_copies([entry for entry in counted if entry["trains"]]))
    trained = [entry for entry in counted if entry["trains"] and entry["role"] != "other"]
    families: dict[tuple[str, tuple[int, ...]], list[Entry]] = {}
    for entry in trained:
        families.setdefault((family(entry["name"]), entry["shape"]), []).append(entry)
    kin = {entry["name"]: group for group in families.values() for entry in group}
    by_recipe = {name: change for change in wanted for name in change.names}
    groups = [*_not_finite(trained, kin, by_recipe), *_undrawn(trained, kin, by_recipe), *again]
    inside = list(_rows(trained, kin))
    taken = {name for group in (*groups, *inside) for change in group.changes for name in change.names}
    found = [*groups, *inside, *_scales(families.values(), taken), *_vectors(trained, kin, taken)]
    return [Group(tuple(_joined(group.changes)), group.text) for group in found]


def _joined(changes: Iterable[Change]) -> Iterator[Change]:
    """What is made alike of several parameters of a role, as one change."""
    alike: dict[tuple[Any, ...], list[Change]] = {}
    for c in changes:
        alike.setdefault((c.role, c.stack, c.factor, c.drawn, c.how, c.recipe, c.only_bad, c.rows), []).append(c)
    for first, *others in alike.values():
        names = tuple(name for change in (first, *others) for name in change.names)
        square = sum(change.found**2 for change in (first, *others)) / len(names)
        more = f"; and {len(others)} more so" if others else ""
        yield replace(first, names=names, found=math.sqrt(square), why=f"{first.why}{more}")


def _sound(entries: Iterable[Entry], but: Entry) -> list[Entry]:
    return [e for e in entries if e is not but and not e["bad"] and e["kind"] in _DRAWN and e["std"] > 0]


def _like(entry: Entry, group: Sequence[Entry]) -> Normal | Uniform | Constant | None:
    """What its siblings were drawn from; None without a sound one."""
    if entry["role"] in VECTORS:
        return _usual([e for e in group if e is not entry and not e["bad"]])
    sound = _sound(group, entry)
    if not sound or 2 * len(sound) < len(group) - 1:
        return None
    std = median(e["std"] for e in sound)
    if sum(e["kind"] == "uniform" for e in sound) * 2 > len(sound):
        return Uniform(std * math.sqrt(3))
    return Normal(std)


def _usual(entries: Sequence[Entry]) -> Constant | None:
    """The value that two thirds of some constants have."""
    values = Counter(_value(entry) for entry in entries)
    if not values:
        return None
    value, count = values.most_common(1)[0]
    return Constant(value) if not math.isnan(value) and count >= _MOST * len(entries) else None


def _value(entry: Entry) -> float:
    """What a constant is throughout; NaN of what varies."""
    if entry["bad"] or entry["kind"] not in ("constant", "zero"):
        return math.nan
    return float(f"{entry['mean']:.5g}")


def _not_finite(entries: Sequence[Entry], kin: dict[str, list[Entry]], recipe: dict[str, Change]) -> Iterator[Group]:
    changes, texts = [], []
    for entry in entries:
        if not entry["bad"]:
            continue
        left = entry["numel"] - entry["bad"]
        own = None
        if left > entry["bad"]:
            own = Constant(entry["mean"]) if entry["kind"] in ("constant", "zero") else Normal(entry["std"])
        drawn = own or _like(entry, kin[entry["name"]])
        text = f"{plural(entry['bad'], 'element')} of {entry['name']} {'is' if entry['bad'] == 1 else 'are'} not finite"
        what = "its other elements" if own else "its siblings"
        if drawn is not None:
            how = f"draw {plural(entry['bad'], 'element')}"
            changes.append(_change(entry, drawn, f"{text}; {what} have std {trimmed(drawn.std)}", how, only_bad=True))
        elif entry["name"] in recipe:
            changes.append(_by_recipe(recipe[entry["name"]], entry, text, math.nan))
        else:
            continue
        texts.append(text)
    if changes:
        yield Group(tuple(changes), "; ".join(texts))


def _undrawn(entries: Sequence[Entry], kin: dict[str, list[Entry]], recipe: dict[str, Change]) -> Iterator[Group]:
    """Matrices that are constant or of low rank, and zeros among siblings that aren't."""
    found: dict[str, list[Change]] = {}  # by what they are: one cause
    for entry in entries:
        if entry["role"] in VECTORS or entry["role"] == "gate" or entry["bad"] or len(entry["shape"]) < 2:
            continue
        like = _like(entry, kin[entry["name"]])
        if entry["kind"] not in _UNDRAWN and not (entry["kind"] == "zero" and like is not None):
            continue
        if entry["again"]:  # equal shards have a low rank: what repeats is drawn, and the first of them stays
            continue
        is_ = {"constant": f"{trimmed(entry['mean'])} throughout", "zero": "0 throughout"}
        what = is_.get(entry["kind"], "of a rank far below its size")
        text = f"{entry['name']} is {what}"
        if like is not None:
            said = f"{text}; its siblings are drawn with std {trimmed(like.std)}"
            change = _change(entry, like, said, f"draw, {like.kind}")
        elif entry["name"] in recipe:
            change = _by_recipe(recipe[entry["name"]], entry, text, entry["std"])
        elif entry["kind"] in _UNDRAWN:
            change = _change(entry, Normal(entry["rms"]), f"{text}; its own scale stays", "draw, normal")
        else:
            continue
        found.setdefault(entry["kind"], []).append(change)
    for changes in found.values():
        yield Group(tuple(changes), changes[0].why)


def _copies(entries: Iterable[Entry]) -> Iterator[Group]:
    """Matrices that repeat others, as one cause; and rows that repeat others of their matrix, by kind of matrix."""
    found: dict[str, list[Change]] = {}
    for entry in entries:
        for each in [] if entry["bad"] else entry["again"]:
            std = each["std"]
            kind = Uniform(std * math.sqrt(3)) if entry["kind"] == "uniform" else Normal(std)
            text = f"the numbers of {each['which']} are those of {each['like']}"
            change = replace(_change(entry, kind, text, f"draw, {kind.kind}"), found=std, rows=each["rows"])
            inside = family(entry["name"]) if each["rows"] and len(entry["shape"]) == 2 else ""
            found.setdefault(inside, []).append(change)
    for changes in found.values():
        yield Group(tuple(changes), changes[0].why)


def _rows(entries: Sequence[Entry], kin: dict[str, list[Entry]]) -> Iterator[Group]:
    """Rows of a matrix that differ from its others, and don't in its siblings."""
    changes = []
    for entry in entries:
        usual = [(odd["part"], odd["rows"]) for e in kin[entry["name"]] if e is not entry for odd in e["odd"]]
        for odd in entry["odd"]:
            if (odd["part"], odd["rows"]) in usual or odd["rms"] == 0:
                continue
            factor = plain(odd["rest"] / odd["rms"], 0.02, *_ROUND)
            text = unlike(odd["which"], odd["rms"], odd["rest"])
            changes.append(_scaled(entry, factor, text, found=odd["rms"], rows=odd["rows"]))
    if changes:
        yield Group(tuple(changes), "; ".join(change.why for change in changes))


def _scales(families: Iterable[Sequence[Entry]], taken: set[str]) -> Iterator[Group]:
    """By block: matrices whose std isn't what the same matrix of the other blocks lets expect."""
    off: dict[int | None, list[tuple[Entry, float, float, int]]] = {}
    for group in families:
        sound = [e for e in group if e["layer"] is not None and e["role"] not in VECTORS and e["kind"] in _DRAWN]
        sound = [e for e in sound if not e["bad"] and e["std"] > 0]
        for entry, factor, error in _off(sound):
            off.setdefault(entry["layer"], []).append((entry, factor, error, len(sound)))
    for block in off.values():
        odd = [one for one in block if abs(math.log(one[1])) > math.log(ODD) + _SIGMAS * one[2]]
        odd = [one for one in odd if one[0]["name"] not in taken]
        if not odd:
            continue
        beside = [one for one in block if one not in odd and one[0]["name"] not in taken]
        odd += [one for one in beside if abs(math.log(one[1])) > math.log(_BESIDE) + _SIGMAS * one[2]]
        changes = []
        for entry, factor, error, count in _common(odd):
            factor = plain(factor, 3 * error, *_ROUND)
            others = f"{trimmed(entry['std'] * factor)} in the other {count - 1} blocks"
            changes.append(_scaled(entry, factor, f"{entry['name']} has std {trimmed(entry['std'])}, {others}"))
        yield Group(tuple(changes), "; ".join(change.why for change in changes))


def _off(group: Sequence[Entry]) -> Iterator[tuple[Entry, float, float]]:
    """Factor to what the others have, and its standard error, of each that stands out or may."""
    if len(group) < 3:
        return
    stds = np.array([e["std"] for e in group])
    noise = math.sqrt(1 / (2 * group[0]["numel"]))
    usual = float(np.median(stds))
    plain = np.abs(np.log(stds / usual)) <= math.log(_ALIKE) + _SIGMAS * noise
    if 2 * plain.sum() > len(group):  # no trend over the blocks: the mean of those that agree is surer
        target = math.sqrt(float(np.mean(stds[plain] ** 2)))
        logs = np.log(stds / target)
    else:
        logs = off_trend(np.array([float(e["layer"]) for e in group]), stds)
    for entry, log in zip(group, logs, strict=True):
        if log and math.isfinite(log):
            yield entry, math.exp(-float(log)), noise * math.sqrt(1 + 1 / max(1, int(plain.sum())))


def _common(
    odd: Sequence[tuple[Entry, float, float, int]],
) -> Iterator[tuple[Entry, float, float, int]]:
    """Where all parameters of a block are off by one factor, that factor: it is surer than that of each."""
    weights = [1 / error**2 for _, _, error, _ in odd]
    mean = sum(w * math.log(f) for w, (_, f, _, _) in zip(weights, odd, strict=True)) / sum(weights)
    error = 1 / math.sqrt(sum(weights))
    same = all(abs(math.log(f) - mean) < _SIGMAS * e for _, f, e, _ in odd)
    for entry, factor, own, count in odd:
        yield (entry, math.exp(mean), error, count) if same else (entry, factor, own, count)


def _vectors(entries: Sequence[Entry], kin: dict[str, list[Entry]], taken: set[str]) -> Iterator[Group]:
    """Gains and biases that aren't what the same ones of the other blocks are, or what most gains are."""
    changes = []
    for entry in entries:
        if entry["role"] not in VECTORS or entry["name"] in taken or entry["bad"] or entry["as_made"]:
            continue
        own = kin[entry["name"]]
        all_of_role = [e for e in entries if e["role"] == entry["role"]]
        usual = _usual(own) if len(own) > 2 else None
        named = "of the other blocks"
        if usual is None or usual.value == _value(entry):
            usual, named = _usual(all_of_role), f"of {len(all_of_role) - 1} others"
        value = _value(entry)
        if usual is None or math.isclose(value, usual.value, rel_tol=0.01, abs_tol=1e-8):
            continue
        found = f"is {trimmed(value)}" if not math.isnan(value) else f"has mean {trimmed(entry['mean'])}"
        text = f"{entry['name']} {found}, those {named} {trimmed(usual.value)}"
        changes.append(_change(entry, usual, text, f"set to {usual.value:g}"))
    if changes:
        yield Group(tuple(changes), "; ".join(change.why for change in changes))


def _scaled(
    entry: Entry, factor: float, why: str, found: float | None = None, rows: tuple[int, int, int] | None = None
) -> Change:
    std = entry["std"] if found is None else found
    return Change(
        entry["role"],
        entry["stack"],
        (entry["name"],),
        std,
        std * factor,
        "",
        why,
        f"× {trimmed(factor)}",
        factor,
        evidence="siblings",
        rows=rows,
    )


def _change(entry: Entry, drawn: Normal | Uniform | Constant, why: str, how: str, *, only_bad: bool = False) -> Change:
    found = math.nan if entry["bad"] else entry["std"]
    name = (entry["name"],)
    return Change(
        entry["role"],
        entry["stack"],
        name,
        found,
        float(drawn.std),
        "",
        why,
        how,
        drawn=drawn,
        only_bad=only_bad,
        evidence="siblings",
    )


def _by_recipe(change: Change, entry: Entry, text: str, found: float) -> Change:
    return Change(
        entry["role"],
        entry["stack"],
        (entry["name"],),
        found,
        change.proposed,
        "",
        f"{text}; {change.recipe} draws std {trimmed(change.proposed)}",
        change.how,
        recipe=change.recipe,
        only_bad=bool(entry["bad"]),
        evidence="recipe",
    )
