"""One drawing, two files: a PNG, and an inline SVG that follows the page's theme and leaks no id or style."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from initlab.report.theme import HEADING, HEADING_HEIGHT, LIGHT, settle, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VARIABLES = {colour: f"var(--{token})" for token, colour in LIGHT.items()}
_COLOURS = re.compile("|".join(_VARIABLES))
_DPI = 144
_TAG = re.compile(r"<[^>]+>")  # text is escaped, so that a recipe id can't look like a tag or an attribute
_LONG = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^")]+)')
_GROUP = re.compile(r"<g([^>]*)>((?:<(?:use|path) [^>]*/>)+)</g>")
_EMPTY = re.compile(r'<path(?: (?!d=)[\w-]+="[^"]*")*/>')  # of an interval that isn't known


def both(figure: Figure, name: str, title: str, description: str) -> tuple[str, bytes]:
    """Turn a figure drawn in theme `light` into an <svg> element that has the colours of the page, and a PNG file.

    Args:
        figure: drawn in the light palette, whose colours become CSS variables; it is drawn as it is laid out.
        name: prefix of every id, unique in the page.
        title: short name for screen readers.
        description: the finding in words, with numbers, also kept in the PNG.

    Returns:
        The element, without the figure's own title and with what pointing at it says, and the bytes of the file.
    """
    from initlab.report.canvas import save_both
    from initlab.report.hover import overlay

    headings = [text for text in figure.texts if text.get_gid() == HEADING]
    height = figure.get_size_inches()[1] - (HEADING_HEIGHT if headings else 0)
    settle(figure)
    with style("light"):  # the hash salt makes ids, and so bytes, deterministic
        text, pixels = save_both(figure, _DPI, headings, height, description)
    return _element(text, name, title, description, overlay(figure, height)), pixels


def _element(text: str, name: str, title: str, description: str, over: str) -> str:
    """What a page can hold of an SVG file, and what lies over it."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Its rule for `*` would reach the whole page; report.css has it, scoped.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    ids = {old: f"{name}-{index}" for index, old in enumerate(dict.fromkeys(_REFERENCE.findall(text)))}
    text = _TAG.sub(lambda match: _tidy(match.group(), ids), text)
    text = re.sub(r">\s+<", "><", text)
    text = re.sub(r"<g/>|<g></g>", "", _EMPTY.sub("", text))
    text = _GROUP.sub(_hoist, text)
    head = f'<svg role="img" aria-labelledby="{name}-title {name}-desc"'
    words = (
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(description)}</desc>'
    )
    end = text.index(">") + 1
    return head + text[4:end] + words + text[end:].rstrip().removesuffix("</svg>") + over + "</svg>"


def _hoist(match: re.Match[str]) -> str:
    """Give the style and the clip that all markers of a line, or all lines of a collection, share to their group."""
    outside, inside = match.groups()
    for name in ("style", "clip-path"):
        found = re.findall(rf' {name}="[^"]*"', inside)
        alike = len(set(found)) == 1 and len(found) == inside.count("<") and f" {name}=" not in outside
        if alike and not re.search(r'[";]opacity:', found[0]):  # which a group has as a whole
            outside, inside = outside + found[0], inside.replace(found[0], "")
    return f"<g{outside}>{inside}</g>"


def _tidy(tag: str, ids: dict[str, str]) -> str:
    if tag.startswith("<svg"):
        return re.sub(r' (?:width|height|version|xmlns\S*)="[^"]*"', "", tag)  # HTML knows the namespace
    tag = _COLOURS.sub(lambda match: _VARIABLES[match.group()], tag)
    tag = re.sub(r' id="([^"]+)"', lambda m: f' id="{ids[m[1]]}"' if m[1] in ids else "", tag)
    tag = _REFERENCE.sub(lambda m: m[0].replace(m[1], ids[m[1]]), tag).replace("xlink:href", "href")
    tag = re.sub(r" font-family: [^;\"]*;", "", tag)
    tag = re.sub(r' style="[^"]*"', lambda m: re.sub(r"([:;]) ", r"\1", m[0]), tag)
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    if not tag.startswith("<image"):
        tag = _LONG.sub(_shortened, tag)
        tag = re.sub(r"\s+", " ", tag)
    if tag.startswith("<path") and not re.search(" [CQz] .* L ", tag):
        tag = tag.replace(" L ", " ")  # pairs that follow a moveto are linetos
    return tag


def _shortened(match: re.Match[str]) -> str:
    """A tenth of a pixel is enough for a place; what is below 1 may be an opacity or a scale."""
    value = float(match[0])
    return f"{value:.{1 if abs(value) >= 1 else 2}f}".rstrip("0").rstrip(".")
