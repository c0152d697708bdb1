"""The rules as terminal text and as data, from the Rule objects alone."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from initlab.judge.rules import Rule
from initlab.report.recipes import make_table, print_table
from initlab.report.verdict import questions

MOST_COLUMNS = 100


def list_text(rules: Sequence[Rule], *, color: bool = False) -> str:
    """One line per rule, by question: code, name, and the limit with its basis."""
    table = make_table("code", "name", "question", "basis", "limit")
    for question in questions(rules):
        for rule in rules:
            if rule.question == question:
                table.add_row(rule.code, rule.name, rule.question, rule.basis, rule.limit_text(rule.limits))
    return print_table(table, color, MOST_COLUMNS) + (
        "initlab rules CODE explains one; --select, --ignore and --limit CODE=x choose among them.\n"
    )


def rule_text(rule: Rule, *, color: bool = False) -> str:
    """One rule under fixed headings, at most 100 columns."""
    width = min(shutil.get_terminal_size((MOST_COLUMNS, 24)).columns, MOST_COLUMNS)
    title = f"{rule.code} {rule.name}"
    lines = [_bold(title, color) + f"  ({rule.question})", ""]
    for heading, body in sections(rule).items():
        lines += [_bold(heading, color), textwrap.indent(_filled(body, width - 2), "  "), ""]
    return "\n".join(lines[:-1]) + "\n"


def sections(rule: Rule) -> dict[str, str]:
    """Heading -> text, in the order of reading."""
    own = f"{rule.code}.NAME=x" if len(rule.limits) > 1 else f"{rule.code}=x"
    values = ", ".join(f"{name} {value:g}" for name, value in rule.limits.items())
    change = f" Change with --limit {own} ({values}; in {rule.unit})." if rule.limits else ""
    about = " Trained models aren't judged by it." if rule.about_init else ""
    return {
        "What it measures": f"{_sentence(rule.measures)}",
        "Why": rule.why,
        "How it is measured": " ".join((inspect.getdoc(rule.measure) or "").split()),
        "Limit": f"{_sentence(rule.limit_text(rule.limits))} Basis: {rule.basis}.{change}",
        "Advice": _sentence(rule.advice),
        "Known false alarms": _sentence(rule.false_alarms),
        "Needs": _sentence(rule.needs) + about,
        "Source": rule.source,
        "Since": rule.since,
    }


def as_dict(rule: Rule) -> dict[str, Any]:
    """The rule as JSON-ready values."""
    plain = ("code", "name", "question", "measures", "needs", "unit", "basis", "why", "advice", "false_alarms")
    values = {name: getattr(rule, name) for name in (*plain, "source", "since", "about_init")}
    return {**values, "limit": rule.limit_text(rule.limits), "limits": dict(rule.limits)}


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _filled(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _bold(text: str, color: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if color else text
