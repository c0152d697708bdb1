"""One drawing, two files: a PNG, and an inline SVG that follows the page's theme and leaks no id or style."""

from __future__ import annotations

import html
import io
import re
from typing import TYPE_CHECKING

from initlab.report.theme import HEADING, HEADING_HEIGHT, LIGHT, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VARIABLES = {colour: f"var(--{token})" for token, colour in LIGHT.items()}
_COLOURS = re.compile("|".join(_VARIABLES))
_PNG_DPI = 144
_IMAGE_DPI = 150  # of what a drawing holds as pixels
_TAG = re.compile(r"<[^>]+>")  # text is escaped, so that a recipe id can't look like a tag or an attribute
_LONG = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r'(?:url\(#|href="#)([^")]+)')
_MARKERS = re.compile(r"<g([^>]*)>((?:<use [^>]*/>)+)</g>")


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Turn a figure drawn in theme `light` into an <svg> element that has the colours of the page around it.

    Args:
        figure: drawn in the light palette, whose colours become CSS variables.
        name: prefix of every id, unique in the page.
        title: short name for screen readers.
        description: the finding in words, with numbers.
    """
    from matplotlib.transforms import Bbox

    headings = [text for text in figure.texts if text.get_gid() == HEADING]
    width, height = figure.get_size_inches()
    drawing = Bbox.from_extents(0, 0, width, height - (HEADING_HEIGHT if headings else 0))
    buffer = io.StringIO()
    with style("light"):  # the hash salt makes ids, and so bytes, deterministic
        for heading in headings:
            heading.set_visible(False)
        figure.savefig(
            buffer, format="svg", facecolor="none", metadata={"Date": None}, bbox_inches=drawing, dpi=_IMAGE_DPI
        )
        for heading in headings:
            heading.set_visible(True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Its rule for `*` would reach the whole page; report.css has it, scoped.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    ids = {old: f"{name}-{index}" for index, old in enumerate(dict.fromkeys(_REFERENCE.findall(text)))}
    text = _TAG.sub(lambda match: _tidy(match.group(), ids), text)
    text = re.sub(r">\s+<", "><", text)
    text = _MARKERS.sub(_hoist, text)
    head = f'<svg role="img" aria-labelledby="{name}-title {name}-desc"'
    words = (
        f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-desc">{html.escape(description)}</desc>'
    )
    end = text.index(">") + 1
    return head + text[4:end] + words + text[end:].rstrip()


def png(figure: Figure, description: str) -> bytes:
    """Turn a figure into the bytes of a PNG file.

    Args:
        figure: drawn in any theme.
        description: the finding in words, kept in the file.
    """
    buffer = io.BytesIO()
    with style("light"):
        figure.savefig(buffer, format="png", dpi=_PNG_DPI, metadata={"Description": description})
    return buffer.getvalue()


def _hoist(match: re.Match[str]) -> str:
    """Give the style that all markers of a line share to their group."""
    styles = set(re.findall(r' style="[^"]*"', match[2]))
    if len(styles) != 1:
        return match[0]
    (shared,) = styles
    return f"<g{match[1]}{shared}>{match[2].replace(shared, '')}</g>"


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
