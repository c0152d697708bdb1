"""The claims as one self-contained page, which opens with what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import initlab
from initlab.judge.words import listed, plural
from initlab.report.html import stylesheet
from nanogpt_note.evidence import Claim

GLYPHS = {"holds": "✓", "holds with a condition": "◐", "does not hold": "✗", "undecided": "?"}
_SEVERAL = {
    "holds": "hold",
    "holds with a condition": "hold with a condition",
    "does not hold": "do not hold",
    "undecided": "are undecided",
}


def answer(found: Sequence[Claim]) -> str:
    """Say in a sentence how many statements hold, and how many don't."""
    counts = Counter(claim.verdict for claim in found)
    parts = []
    for verdict, several in _SEVERAL.items():
        if count := counts[verdict]:
            one = "is undecided" if verdict == "undecided" else verdict
            parts.append(f"{count} {one if count == 1 else several}")
    return f"Of {plural(len(found), 'statement')} about nanoGPT's init, {listed(parts, len(parts))}."


def page_text(found: Sequence[Claim], pictures: Mapping[str, str], **about: Any) -> str:
    """Write the page.

    Args:
        found: the claims, in their order.
        pictures: <svg> elements by name.
        about: what was run: `environment`, `commit`, `models`, `trainings`, `seconds`.
    """
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("page.html.j2").render(
        answer=answer(found),
        claims=found,
        pictures=pictures,
        first_of={name: next(claim.statement for claim in found if claim.figure == name) for name in pictures},
        glyphs=GLYPHS,
        css=stylesheet(),
        version=initlab.__version__,
        **about,
    )
