"""Results as cells of a notebook show them: one piece of HTML without a script, dark and light."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources

from initlab.judge.rules import Finding
from initlab.judge.words import plural
from initlab.report.document import Document, cards_of
from initlab.report.html import template
from initlab.report.theme import DARK, LIGHT
from initlab.report.verdict import GLYPHS, failing

MOST = 60 * 1024  # bytes of a cell's output: a notebook keeps them all, and diffs show them
_ROOMS = (1000, 100, 30, 10, 3, 1)  # findings, cases of one, and rows of a table that are tried, until it fits

# what notebooks say of their theme; where they say nothing, the system's own counts
# (a high contrast that is light is said beside the other, and comes after it)
_SAID = {
    "dark": ('[data-jp-theme-light="false"]', ".vscode-dark", ".vscode-high-contrast", '[theme="dark"]'),
    "light": ('[data-jp-theme-light="true"]', ".vscode-light", ".vscode-high-contrast-light", '[theme="light"]'),
}


def of_document(document: Document) -> str:
    """Show the verdict, the run in a screenful, and the failures.

    Args:
        document: of a run.
    """
    return _fitting(lambda room: _page(doc=document, cards=document.cards, counted=document.counted, room=room))


def of_findings(findings: Sequence[Finding]) -> str:
    """Show failures in full, and the other checks by name.

    Args:
        findings: of any status.
    """
    failed = failing(findings)
    counted = f"{plural(len(failed), 'failure')} among {plural(len(findings), 'finding')}."
    others = [each for each in findings if each.status != "fail"]
    return _fitting(lambda room: _page(cards=cards_of(failed, set()), others=others, counted=counted, room=room))


def of_text(text: str) -> str:
    """Show what a terminal prints.

    Args:
        text: of a result.
    """
    lines = text.splitlines()
    return _fitting(lambda room: _page(text="\n".join(lines[: 10 * room]), left=max(0, len(lines) - 10 * room)))


def _page(**shown: object) -> str:
    nothing: dict[str, object] = {"doc": None, "cards": [], "others": [], "counted": "", "text": "", "left": 0}
    nothing |= {"room": _ROOMS[0], "css": _stylesheet(), "glyphs": GLYPHS}
    return template("notebook.html.j2").render(nothing | shown)


def _fitting(render: Callable[[int], str]) -> str:
    """The first that fits; a single finding's text that doesn't is cut, as nothing that a rule says is that long."""
    for room in _ROOMS:
        text = render(room)
        if len(text.encode()) <= MOST:
            return text
    return _page(counted="This is too long for a notebook: print it, or write .report('out').")


@cache
def _stylesheet() -> str:
    colours = {
        name: f"{{color-scheme:{name};{';'.join(f'--{token}:{colour}' for token, colour in palette.items())}}}"
        for name, palette in (("light", LIGHT), ("dark", DARK))
    }
    said = [f"{','.join(f'{where} .initlab' for where in places)}{colours[name]}" for name, places in _SAID.items()]
    rules = resources.files("initlab.report").joinpath("notebook.css").read_text(encoding="utf-8").strip()
    dark = f"@media (prefers-color-scheme:dark){{.initlab{colours['dark']}}}"
    return "\n".join([f".initlab{colours['light']}", dark, *said, rules])
