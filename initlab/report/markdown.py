"""A document as Markdown: for an issue, a pull request, a notebook's notes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from initlab.judge.rules import Finding
from initlab.judge.words import plural
from initlab.report.document import Card, Document
from initlab.report.values import Table, TableCell
from initlab.report.verdict import GLYPHS, measured, where

_SPECIAL = re.compile(r"([\\`*\[\]<>|~#]|(?<!\w)_|_(?!\w))")  # n_layer is a word


def text(document: Document) -> str:
    """Write the verdict, the run in a screenful, scoreboard, findings and figures; pictures are those beside it.

    Args:
        document: of a run.
    """
    brief = document.brief
    parts = [f"# {_plain(document.verdict)}", _plain(document.header)]
    parts += [f"> ! {_plain(note)}" for note in document.shortfall]
    parts += [_plain(note) for note in document.notes]
    for block in brief.blocks:
        parts += [_plain(block)] if isinstance(block, str) else _table(block)
    parts += [f"! {_plain(note)}" for note in brief.warnings]
    if document.changed:
        names = "A is {}, B is {}.".format(*document.changed.names)
        parts += ["## What changed", _plain(f"{names} {document.changed.verdict}")]
        parts += [_plain(note) for note in document.changed.notes]
        for table in document.changes:
            parts += _table(table)
    parts += [_plain(words) for words in (brief.footer, brief.closing) if words]
    if document.trained:
        parts += ["## What training says", _plain(document.trained.sentence)]
        for table in document.trained.tables:
            parts += _table(table)
    if document.questions:
        parts += ["## Scoreboard", *_table(_scoreboard(document))]
    parts += ["## Findings", _plain(document.counted)]
    for card in document.cards:
        parts += _card(document, card)
    if document.drawings:
        parts.append("## Figures")
    for drawing in document.drawings:
        parts += [
            f"### {_plain(drawing.title)}",
            _plain(drawing.question),
            f"![{_plain(drawing.title)}](figures/{drawing.name}.png)",
            _plain(drawing.words),
        ]
    if document.undrawn:
        parts += ["## Not here", "\n".join(f"- {_plain(f'{title}: {reason}')}." for title, reason in document.undrawn)]
    if document.command:
        parts += ["## Command", f"```sh\n{document.command}\n```"]
    return "\n\n".join(parts) + "\n"


def _scoreboard(document: Document) -> Table:
    table = Table(("recipe", *document.questions), words=frozenset(range(len(document.questions) + 1)))
    for recipe, squares in document.scoreboard:
        name = TableCell(document.named(recipe), note="(baseline)" if recipe == document.baseline else "")
        table.add(name, *(TableCell(each.text, each.status, each.detail, each.glyph) for each in squares))
    return table


def _card(document: Document, card: Card) -> list[str]:
    lead = card.lead
    lines = []
    for finding in card.findings:
        own = f"; do: **{_plain(finding.advice)}**" if finding.advice and not card.advice else ""
        lines.append(f"- {_case(finding, document.named(finding.recipe), len(card.findings) > 1)}{own}")
    said = [("measured", measured(lead) if len(card.findings) == 1 else ""), ("limit", lead.limit), ("why", lead.why)]
    said.insert(0, ("do", f"**{_plain(card.advice)}**" if card.advice else ""))
    said += [("false alarms", card.false_alarms), ("basis", lead.basis)]
    lines += [f"- {label}: {words if label == 'do' else _plain(words)}" for label, words in said if words]
    severity = "note" if lead.severity == "info" else lead.severity
    return [f"### {GLYPHS[lead.severity]} {severity} {lead.code} {_plain(lead.name)}", "\n".join(lines)]


def _case(finding: Finding, owner: str, several: bool) -> str:
    seeds = plural(finding.seeds_total, "seed")
    about = [
        f"{finding.seeds_failing}/{seeds}" if finding.seeds_total > 1 else "",
        where(finding),
        measured(finding) if several else "",
    ]
    known = "; ".join(filter(None, about))
    name = f"**{_plain(owner or 'every recipe')}**" + (f" ({_plain(known)})" if known else "")
    drawn = f" Drawn at {_plain(finding.drawn_at)}." if finding.drawn_at else ""
    return f"{name}: {_plain(finding.message)}{'.' * bool(drawn)}{drawn}"


def _table(table: Table) -> list[str]:
    if not table.rows:
        return []
    rules = [":--" if index in table.words else "--:" for index in range(len(table.heads))]
    lines = [_row([head.replace("\n", " ") for head in table.heads]), f"| {' | '.join(rules)} |"]
    lines += [_row([f"{cell.marked} {cell.note}".strip() for cell in row]) for row in table.rows]
    shown = [f"**{_plain(table.title)}**"] if table.title else []
    shown += [_plain(table.note)] if table.note else []
    return [*shown, "\n".join(lines), *([_plain(table.caption)] if table.caption else [])]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(words: str) -> str:
    """The words as they are: a recipe's name may hold what Markdown takes for markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(words.split()))
