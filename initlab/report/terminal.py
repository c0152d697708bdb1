"""Tables and paragraphs as terminal text of a given width."""

from __future__ import annotations

import io
import re
import shutil
import textwrap
from collections.abc import Callable

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from initlab.judge.words import plural

_HELD = "\xa0"  # a space that isn't a place to break a line at
_PARTS = re.compile(r"[^-._/ ]*[-._/ ]*")
LAST = ("checks", "verdict")  # heads of last columns that a narrow terminal keeps


def print_text(body: Callable[[Console, int], None], width: int | None, color: bool) -> str:
    """What `body` prints to a console of so many columns; the terminal's, unless given."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
        force_jupyter=False,  # in a notebook rich would display what is asked for as text
    )
    body(console, width)
    # rich pads lines to the width of the table; nobody wants to copy that
    return "\n".join(line.rstrip() for line in harmless(buffer.getvalue(), color).splitlines()) + "\n"


# Colours and weights as rich writes them. What else begins with ESC moves the cursor, hides text, sets a window's title
# or opens a link; bidirectional marks show a text in another order than it has (CVE-2021-42574).
_STYLES = r"\x1b\[(?:[0-4]|3[0-7]|9[0-7])(?:;(?:[0-4]|3[0-7]|9[0-7]))*m"
_CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
_HARMFUL = {True: re.compile(rf"({_STYLES})|{_CONTROLS}"), False: re.compile(rf"()(?:{_CONTROLS})")}


def harmless(text: str, styled: bool = False) -> str:
    """Take out what a terminal acts on; names of modules, classes and recipes may come from anybody's file.

    Args:
        text: that is shown.
        styled: leave colours and weights in it.
    """
    return _HARMFUL[styled].sub(lambda found: found[1] or "", text)


def one_line(text: str) -> str:
    """Put a text on one line, without what a terminal acts on.

    Args:
        text: with names of anybody's.
    """
    return harmless(" ".join(text.splitlines()))


def wrapped(text: str, width: int, indent: str = "") -> str:
    """Text broken into lines at spaces alone."""
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def facts_wrapped(text: str, width: int) -> str:
    """Facts with a dot between them, none of which goes over a line's end where it needn't."""
    parts = text.split(" · ")
    whole = (part.replace(" ", _HELD) if len(part) < width else part for part in parts)
    return wrapped(" · ".join(whole), width).replace(_HELD, " ")


def fact_lines(text: str, width: int) -> str:
    """A line for every fact of a text that has semicolons between them; those within brackets stay together."""
    facts, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == ";" and depth == 0:
            facts.append("")
        else:
            facts[-1] += sign
    return "\n".join(wrapped(fact.strip(), width, "  ") for fact in facts)


def plain_table(*heads: str) -> Table:
    """A table without lines: the first column of words, the others of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    for index, head in enumerate(heads):
        left = index == 0
        table.add_column(
            head,
            justify="left" if left else "right",
            no_wrap=not left,
            overflow="fold",
            vertical="bottom",
        )
    return table


def narrowed(table: Table, width: int) -> Table:
    """The table without the columns that the terminal has no room for: from the right, but for a verdict at the end.

    Names in the first column are broken after signs alone, so that each part can still be read and searched for.
    """
    columns = [*table.columns]
    widths = [natural_width(column) + 2 for column in columns]
    first = min(widths[0], max(width // 3, 12, _longest_part(columns[0]) + 2))
    verdict = str(columns[-1].header).startswith(LAST)
    dropped: list[str] = []
    while len(columns) > 2 + verdict and first + sum(widths[1:]) - 2 > width:
        place = len(columns) - 1 - verdict
        dropped.insert(0, " ".join(str(columns[place].header).split()))
        del columns[place], widths[place]
    break_names(table, max(first - 2, width - sum(widths[1:])))
    if dropped:
        for place, column in enumerate(columns):  # the last one has no room behind it
            column._index = place
        table.columns = columns
        note = f"left out at {plural(width, 'column')}: {', '.join(dropped)}"
        table.caption, table.caption_justify = "; ".join(filter(None, (str(table.caption or ""), note))), "left"
    return table


def natural_width(column: Column) -> int:
    """Columns of the terminal that a table's column takes if none of its lines is broken."""
    return max(cell_len(line) for cell in (column.header, *column.cells) for line in str(cell).split("\n"))


def break_names(table: Table, room: int) -> None:
    """Break what is longer in the first column, after a sign; a part that is still longer stays whole."""
    column = table.columns[0]
    column._cells = [_broken(cell, room) if cell_len(str(cell)) > room else cell for cell in column.cells]


def _longest_part(column: Column) -> int:
    return max(cell_len(part.rstrip()) for cell in (column.header, *column.cells) for part in _PARTS.findall(str(cell)))


def _broken(cell: object, room: int) -> Text:
    """A name as lines that end after a sign, where it is longer than there is room."""
    text = cell if isinstance(cell, Text) else Text(str(cell))
    ends, start, end = [], 0, 0
    for match in _PARTS.finditer(text.plain):
        if cell_len(text.plain[start : match.end()].rstrip()) > room and end > start:
            ends.append(end)
            start = end
        end = match.end()
    return Text("\n").join(text.divide(ends))
