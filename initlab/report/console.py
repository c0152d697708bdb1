"""A document as terminal text. Imports no plotting library."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from initlab.judge.rules import Finding
from initlab.judge.words import plural
from initlab.report.document import Document
from initlab.report.terminal import (
    break_names,
    fact_lines,
    facts_wrapped,
    narrowed,
    natural_width,
    plain_table,
    print_text,
    wrapped,
)
from initlab.report.values import Table, TableCell
from initlab.report.verdict import GLYPHS, where

STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold", "pass": "green", "not_applicable": "dim"}


def text(document: Document, *, width: int | None = None, color: bool = False) -> str:
    """Write what was run, the run in a screenful, the findings, and one sentence that sums up.

    Args:
        document: of a run.
        width: columns; those of the terminal, unless given.
        color: whether escape codes colour it.
    """
    dim = "dim" if color else ""
    brief = document.brief

    def body(console: Console, width: int) -> None:
        console.print(facts_wrapped(document.header, width), style=dim)
        for note in document.shortfall:
            console.print(wrapped(f"! {note}", width, "  "), style="bold yellow")
        for note in document.notes if brief.explained else []:
            console.print(wrapped(note, width, "  "), style=dim)
        for block in brief.blocks:
            console.print()
            _print_block(console, block, width)
        for note in brief.warnings:
            console.print(Text(f"! {note}", style="bold yellow"))
        if brief.footer:
            console.print(fact_lines(brief.footer, width), style=dim)
        console.print()
        for finding in document.failing if brief.explained else []:
            _print_finding(console, finding, document.named(finding.recipe), width)
        hint = " `initlab rules CODE` explains one." if document.failing else ""
        console.print(wrapped(f"{document.counted}{hint}", width))
        if document.inapplicable:
            console.print(_why_not(document.inapplicable, width), style=dim)
        console.print(wrapped(document.verdict, width), style="bold")
        if brief.closing:
            console.print()
            console.print(fact_lines(brief.closing, width), style=dim)

    return print_text(body, width, color)


def _print_block(console: Console, block: Table | str, width: int) -> None:
    if isinstance(block, str):
        console.print(wrapped(block, width))
        return
    if block.title:
        console.print(block.title, style="bold")
    shown = _rich(block)
    if not block.whole:
        shown = narrowed(shown, width)
    elif any(not column.no_wrap for column in shown.columns[1:]):
        # what is wrapped besides the names keeps room for its longest word
        words = [max(map(len, str(cell).split()), default=0) for each in shown.columns[1:] for cell in each.cells]
        fixed = [natural_width(each) + 2 for each in shown.columns[1:] if each.no_wrap]
        break_names(shown, width - sum(fixed) - max(words, default=0) - 2)
        shown.columns[0].no_wrap = True
    console.print(shown)


def _rich(table: Table) -> RichTable:
    shown = plain_table(*table.heads)
    for index, column in enumerate(shown.columns):
        if index in table.words:
            column.justify = "left"
    if table.whole:  # the longest words are wrapped where room is short
        shown.columns[max(table.words, key=lambda index: _longest(table, index))].no_wrap = False
    if table.caption:
        shown.caption, shown.caption_justify = table.caption, "left"
    for row in table.rows:
        shown.add_row(*(_styled(cell) for cell in row))
    return shown


def _longest(table: Table, index: int) -> int:
    return max((len(f"{row[index].marked} {row[index].note}") for row in table.rows), default=0) if index else 0


def _styled(cell: TableCell) -> Any:
    text = Text(cell.marked, style=STYLES.get(cell.status, "bold" if cell.strong else ""))
    if cell.note:
        text.append(f" {cell.note}", style="not bold default" if cell.status else "dim")
    return text


def _why_not(findings: Sequence[Finding], width: int) -> str:
    """In a line, what the checks that didn't apply need: that of the most checks first."""
    reasons: dict[str, set[str]] = {}
    for finding in findings:
        reason = re.split(r"[:;,(] ?", finding.message, maxsplit=1)[0].strip()
        reasons.setdefault(reason[:1].lower() + reason[1:], set()).add(finding.code)
    line = "Not applicable:"
    ordered = sorted(reasons.items(), key=lambda each: -len(each[1]))
    while ordered:
        reason, codes = ordered[0]
        longer = f"{line} {reason} ({plural(len(codes), 'check')});"
        if len(longer) > width:
            break
        line = longer
        ordered.pop(0)
    # what there is no room for has its reason in the page, and in `initlab rules CODE`
    rest = ", ".join(_ranges(sorted({code for _, codes in ordered for code in codes})))
    whole = f"{line} and {rest}" if rest and not line.endswith(":") else f"{line} {rest}" if rest else line.rstrip(";")
    return textwrap.fill(whole, width, subsequent_indent="  ", break_long_words=False)


def _ranges(codes: Sequence[str]) -> list[str]:
    """Write three and more codes that follow each other as one: `BEH001–BEH008`."""
    named = [(code.rstrip("0123456789"), code) for code in codes]
    places = [(family, len(code), int(code[len(family) :]) - place) for place, (family, code) in enumerate(named)]
    following = itertools.groupby(zip(places, codes, strict=True), lambda each: each[0])
    runs = [[code for _, code in own] for _, own in following]
    return [text for run in runs for text in ([f"{run[0]}–{run[-1]}"] if len(run) > 2 else run)]


def _print_finding(console: Console, finding: Finding, owner: str, width: int) -> None:
    head = Text(f"{GLYPHS[finding.severity]} {finding.code}", style=STYLES[finding.severity])
    head.append(f" {finding.name}", style="bold")
    head.append(f"  {owner or 'every recipe'}")
    if finding.seeds_total > 1:
        head.append(f"  ({finding.seeds_failing}/{plural(finding.seeds_total, 'seed')})", style="dim")
    console.print(head)
    limit = f" (limit {finding.limit})" if finding.limit else ""
    lines = [("", f"{finding.message}{limit}"), ("--> ", where(finding)), ("drawn at ", finding.drawn_at)]
    lines += [("help: ", finding.advice)]
    for label, body in lines if finding.severity != "info" else lines[:1]:  # a note asks for nothing
        if body:
            text = textwrap.fill(
                label + body,
                width,
                initial_indent="  ",
                subsequent_indent="  " + " " * len(label),
                break_long_words=False,
                break_on_hyphens=False,
            )
            console.print(text)
    console.print()
