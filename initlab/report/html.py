"""A document as one self-contained page."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from initlab.judge.words import plural, signed
from initlab.report import scale
from initlab.report.document import Document
from initlab.report.theme import DARK, LIGHT, series
from initlab.report.verdict import GLYPHS, measured, where


def page(document: Document) -> str:
    """Write the whole page; it needs no file beside it and asks for none.

    Args:
        document: of a run.
    """
    return template("report.html.j2").render(
        doc=document,
        looks=series(document.recipes),
        glyphs=GLYPHS,
        css=stylesheet(),
        script=script(),
        script_hash=script_hash(),
    )


@cache
def template(name: str) -> Template:
    """Load a template of this folder, which escapes whatever it is given.

    Args:
        name: of its file.
    """
    environment = Environment(
        loader=PackageLoader("initlab.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        signed=signed,
        measured=measured,
        where=where,
        plural=plural,
        slope=lambda fit: scale.slope_text(*fit),
    )
    return environment.get_template(name)


@cache
def script() -> str:
    """What sorts the page's tables; everything else works without it."""
    return resources.files("initlab.report").joinpath("report.js").read_text(encoding="utf-8")


@cache
def script_hash() -> str:
    """Hash by which the page's policy allows this script and no other (CSP level 2, 5.2)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()


@cache
def stylesheet() -> str:
    """Colours of both themes as variables, and the rules of the page."""
    light, dark = (";".join(f"--{token}:{colour}" for token, colour in palette.items()) for palette in (LIGHT, DARK))
    rules = resources.files("initlab.report").joinpath("report.css").read_text(encoding="utf-8")
    # Only screens get dark: paper is white.
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"
