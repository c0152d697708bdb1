"""Which changes of an init answer what was found in a model, the surest evidence first.

What the init code drew and lost again; what differs from its siblings; a role that differs from the recipe that the
others fit, or from the model's own config; only then what the rule that fails knows as a remedy. A change is no more
than a proposal: `fix` tries it on a copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from initlab.judge import lost, matching
from initlab.judge.remedies import INIT_CODE, Change, Described, as_wanted, leave, redraw_what_is_off
from initlab.judge.rules import RULES, Finding
from initlab.judge.rules.gradient import redraw_zeros
from initlab.judge.siblings import Group, odd_siblings
from initlab.judge.words import trimmed
from initlab.recipes import Role
from initlab.recipes.base import OUTPUTS, VECTORS

_SIGMAS = 4.0
_INVERSE = math.log(1.15)  # of the product of two factors that should be 1
_OWN = "its own config or init code"
_OFF_THEORY = ("RES002", "RES003")
Stage = Callable[[Sequence[Finding], Described], list[Group]]


def stages(findings: Sequence[Finding]) -> list[Stage]:
    """List where changes come from, in order.

    In a model that is wired wrongly no check says what its weights should be: only they themselves do.

    Args:
        findings: that fail.
    """
    by_evidence: list[Stage] = [from_init_code, from_siblings, from_recipe, from_config]
    return by_evidence if wired_wrongly(findings) else [*by_evidence, from_one_factor, from_remedies, from_nearest]


def wired_wrongly(findings: Iterable[Finding]) -> list[Finding]:
    """Pick the findings whose cause is no weight.

    Args:
        findings: that fail.
    """
    rules = RULES.items()
    return [each for each in findings if each.code in rules and rules[each.code].remedy is leave]


def from_init_code(findings: Sequence[Finding], model: Described) -> list[Group]:
    """Give every parameter the draw back that the init code made and then drew over: one slip, one group.

    Args:
        findings: to answer.
        model: that was made while its init was heard.
    """
    changes = tuple(model.restored) if any(finding.code == lost.CODE for finding in findings) else ()
    return [Group(changes, changes[0].why)] if changes else []


def from_siblings(findings: Sequence[Finding], model: Described) -> list[Group]:
    """Bring back what isn't as its siblings, see `initlab.judge.siblings`.

    Args:
        findings: to answer.
        model: in which they were found.
    """
    wanted = [change for row in model.rows for change in _drawn(row, findings[0], model)]
    return [_coded(group, findings) for group in odd_siblings(model.counted, wanted)]


def from_recipe(findings: Sequence[Finding], model: Described) -> list[Group]:
    """Bring the roles that are off the recipe which more than half of them fit to it.

    Args:
        findings: to answer.
        model: compared with recipes.
    """
    if model.reference not in matching.best_recipes(model.rows)[0] and not model.strict:
        return []
    fits = _OWN if model.reference == matching.CONFIG else f"{model.reference}, which the other roles fit,"
    return _off(findings, model, f"{model.reference} was meant:" if model.strict else f"{fits}")


def from_config(findings: Sequence[Finding], model: Described) -> list[Group]:
    """Bring what is off the std that the model's config, or else its init code, names to it, where some role has it.

    Args:
        findings: to answer.
        model: compared with its config.
    """
    used = any(matching.CONFIG in row["matches"] for row in model.rows if row["role"] not in VECTORS)
    if not used or model.strict:
        return []
    return _off(findings, replace(model, reference=matching.CONFIG), _OWN)


def from_one_factor(findings: Sequence[Finding], model: Described) -> list[Group]:
    """Bring all matrices to the reference, where every one is off it by about the same factor.

    Args:
        findings: to answer.
        model: compared with recipes.
    """
    factors = []
    for row in matching.compared(model.rows):
        goal = model.wanted(row).get("std", 0.0)
        if row["role"] not in VECTORS and goal > 0 and row["std"] > 0:
            depth = math.sqrt(2 * row["n_layer"]) if row["role"] in OUTPUTS else 1.0
            factors.append((math.log(row["std"] / goal), math.log(depth)))
    offs = [off for off, _ in factors]
    if len(offs) < 3 or abs(min(offs, key=abs)) < math.log(3) or min(offs) * max(offs) <= 0:
        return []
    usual = sorted(offs)[len(offs) // 2]
    if any(min(abs(off - usual), abs(off - depth - usual)) > math.log(1.5) for off, depth in factors):
        return []
    found = _off(findings, model, f"every matrix is {trimmed(math.exp(usual), 2)}× {model.reference}, which")
    changes = [change for group in found for change in group.changes]
    if not changes:
        return []
    return [Group((*changes, *_alike(changes, model)), found[0].text)]


def _alike(changes: Sequence[Change], model: Described) -> Iterator[Change]:
    """What is of no known role and has the std that most of what changes has: the same cause, and the same factor."""
    scaled = sorted((change for change in changes if change.factor), key=lambda change: change.found)
    first = scaled[len(scaled) // 2] if scaled else None
    for entry in model.counted if first else ():
        drawn = entry["role"] == Role.OTHER and entry["trains"] and len(entry["shape"]) > 1 and entry["std"] > 0
        error = matching.TOLERANCE + _SIGMAS / math.sqrt(2 * entry["numel"])
        if first and first.factor and drawn and abs(math.log(entry["std"] / first.found)) < error:
            yield replace(
                first,
                role=entry["role"],
                stack=entry["stack"],
                names=(entry["name"],),
                found=entry["std"],
                proposed=entry["std"] * first.factor,
                why=f"{first.why}; it has the std of those",
            )


def from_remedies(findings: Sequence[Finding], model: Described) -> list[Group]:
    """Answer each finding by the remedy of its rule; one change per role and stack.

    Args:
        findings: to answer, the worst first.
        model: in which they were found.
    """
    groups: list[Group] = []
    taken: set[tuple[str, str]] = set()
    rules = RULES.items()
    for finding in findings:
        remedy = rules[finding.code].remedy if finding.code in rules else None
        if remedy is None or remedy in (leave, redraw_what_is_off):
            continue
        found = [change for change in remedy(finding, model) if (change.role, change.stack) not in taken]
        found = [change for change in found if not _meant(change, findings, model, finding.code)]
        taken |= {(change.role, change.stack) for change in found}
        if found:
            groups.append(Group(tuple(found), found[0].why))
    return groups


def from_nearest(findings: Sequence[Finding], model: Described) -> list[Group]:
    """Bring what is off the nearest recipe to it, unless the model fits one that is no reference of ours.

    The closed form takes the weights' scale as found: where it alone is missed, by the stream or a branch, other blocks
    than those it names have no part in it.

    Args:
        findings: to answer, the worst first.
        model: compared with recipes.
    """
    if model.reference not in (*matching.REFERENCES, matching.CONFIG):
        return []
    found = _off(findings, model, f"{model.reference}, the nearest recipe,")
    if any(finding.code not in _OFF_THEORY for finding in findings):
        return found
    layers = {finding.layer_first for finding in findings} - {None}
    named = {entry["name"] for entry in model.counted if entry["layer"] in layers}
    changes = [[_only(change, named) for change in group.changes] for group in found]
    kept = [tuple(change for change in some if change.names) for some in changes]
    return [Group(some, group.text) for some, group in zip(kept, found, strict=True) if some]


def _only(change: Change, named: set[str]) -> Change:
    return replace(change, names=tuple(name for name in change.names if name in named))


def _off(findings: Sequence[Finding], model: Described, lead: str) -> list[Group]:
    """What is off the reference, in groups that are off alike."""
    groups: dict[tuple[Any, ...], list[Change]] = {}
    whole = _undrawn_stacks(model)
    for row in model.rows:
        wanted = model.wanted(row)
        if not wanted.get("misfits"):
            continue
        why = f"{lead} draws {wanted['text']}"
        for change in as_wanted(row, wanted["misfits"], findings[0], why, model):
            change = replace(change, code=_code(change, findings), evidence="recipe")
            if not _meant(change, findings, model):
                alike = None if change.factor is None else round(math.log(change.factor), 1)
                vector = row["role"] if row["role"] in VECTORS else ""
                together = row["stack"] in whole and not vector
                key = (row["stack"],) if together else (vector, wanted["text"], alike)
                groups.setdefault(key, []).append(change)
    return [Group(tuple(changes), changes[0].why) for changes in _swapped(list(groups.values()))]


def _swapped(groups: list[list[Change]]) -> list[list[Change]]:
    """Join what lacks a factor with what has it too much, in one stack: it was put on the wrong one, one slip."""
    for place, some in enumerate(groups):
        for other in groups[:place]:
            one, two = some[0].factor, other[0].factor
            inverse = one is not None and two is not None and abs(math.log(one * two)) < _INVERSE
            if inverse and some[0].stack == other[0].stack != "":
                rest = [each for each in groups if each is not some and each is not other]
                return _swapped([[*other, *some], *rest])
    return groups


def _undrawn_stacks(model: Described) -> set[str]:
    """Stacks of blocks in which no matrix fits the reference: they have one cause."""
    inside = [row for row in model.rows if row["stack"] and row["role"] not in VECTORS and model.wanted(row)]
    fitting = {row["stack"] for row in inside if not model.wanted(row)["misfits"]}
    return {row["stack"] for row in inside} - fitting


def _drawn(row: dict[str, Any], finding: Finding, model: Described) -> Iterator[Change]:
    wanted = model.wanted(row)
    broken = {e["name"] for e in model.counted if e["bad"] or e["kind"] in ("constant", "low rank")}
    names = [name for name in row["stds"] if name in broken]
    if wanted and names:
        for change in as_wanted(row, names, finding, "", model):
            yield change if change.factor is None else replace(change, factor=None, recipe=model.reference, how="draw")


def _meant(change: Change, findings: Sequence[Finding], model: Described, code: str = "") -> bool:
    """Whether what would change is so on purpose: frozen, made so by its own module, zero by design, declared."""
    counted = [entry for entry in model.counted if entry["name"] in change.names]
    if not counted or model.strict or change.evidence == INIT_CODE:  # the code says what was meant
        return False
    if any(not entry["trains"] or entry["role"] == "gate" for entry in counted):
        return True
    if all(entry["role"] in VECTORS and entry["as_made"] for entry in counted):
        return True
    rules = RULES.items()
    shut = any(each.code in rules and rules[each.code].remedy is redraw_zeros for each in findings)
    if not shut and change.role not in VECTORS and all(entry["rms"] == 0 for entry in counted):
        return True
    scaled = change.role in OUTPUTS  # a config's number is that before the scaling by depth
    stds = [entry["std"] for entry in counted]
    said = [std for std in model.declared if all(abs(each / std - 1) < matching.TOLERANCE for each in stds)]
    return bool(said) and not scaled and model.reference != matching.CONFIG


def _coded(group: Group, findings: Sequence[Finding]) -> Group:
    return Group(tuple(replace(change, code=_code(change, findings)) for change in group.changes), group.text)


def _code(change: Change, findings: Sequence[Finding]) -> str:
    """Of the finding that is likeliest about it: one about weights themselves, then one that judges its role."""
    rules = RULES.items()
    first = "NUM" if change.only_bad else "INI"
    direct = [f for f in findings if f.code.startswith(first) and any(name in f.message for name in change.names)]
    direct += [f for f in findings if f.code.startswith(first) and change.evidence == "siblings"]
    about = [f for f in findings if f.code in rules and change.role in rules[f.code].roles]
    return (direct or about or list(findings))[0].code


def merged(changes: Iterable[Change]) -> list[Change]:
    """Merge changes that multiply the same parameters of a role into one, and those of a role that are made alike.

    Args:
        changes: in the order in which they were proposed.
    """
    found: dict[tuple[Any, ...], Change] = {}
    for place, change in enumerate(changes):
        key = (change.role, change.stack, change.names, change.rows, place if change.factor is None else None)
        if (old := found.get(key)) and old.factor is not None and change.factor is not None:
            factor = old.factor * change.factor
            change = replace(
                old,
                proposed=change.proposed,
                code=f"{old.code}, {change.code}",
                why=f"{old.why}; {change.why}",
                how=f"× {trimmed(factor)}",
                factor=factor,
            )
        found[key] = change
    return list(found.values())
