"""Which changes of an init answer what was found in a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from initlab.judge.remedies import Change, Described, redraw_what_is_off
from initlab.judge.rules import RULES, Finding
from initlab.judge.words import trimmed


def propose(findings: Sequence[Finding], model: Described) -> list[Change]:
    """Propose one change per role and stack, the first that answers a finding; none where no init is at fault.

    A finding without a remedy of its own is often what another one leads to, so it is answered where no other is.

    Args:
        findings: to answer, the worst first.
        model: in which they were found.
    """
    changes: dict[tuple[str, str], Change] = {}
    rules = RULES.items()
    remedies = [(finding, rules[finding.code].remedy if finding.code in rules else None) for finding in findings]
    for finding, remedy in remedies:
        for change in remedy(finding, model) if remedy else ():
            changes.setdefault((change.role, change.stack), change)
    for finding, remedy in remedies if not changes else ():
        for change in redraw_what_is_off(finding, model) if remedy is None else ():
            changes.setdefault((change.role, change.stack), change)
    return list(changes.values())


def merged(changes: Iterable[Change]) -> list[Change]:
    """Merge changes that multiply the same parameters of a role into one; the others stay as they are.

    Args:
        changes: in the order in which they were proposed.
    """
    found: dict[tuple[Any, ...], Change] = {}
    for place, change in enumerate(changes):
        key = (change.role, change.stack, change.names, change.factor is None and place)
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


def toward_the_reference(findings: Sequence[Finding], model: Described) -> tuple[list[Change], list[Change]]:
    """Bring every role that is off the reference to it: those that a finding is about, and the others.

    A change carries the code of the first finding that is about its role; the others that of the first finding.

    Args:
        findings: to answer, the worst first.
        model: compared with the reference.
    """
    rules, about, rest = RULES.items(), [], []
    for change in redraw_what_is_off(findings[0], model):
        own = next((f for f in findings if f.code in rules and change.role in rules[f.code].roles), None)
        if own is not None:
            about.append(replace(change, code=own.code))
        else:
            rest.append(change)
    return about, rest
