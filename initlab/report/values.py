"""What a report is made of: tables of cells. A renderer writes them, and derives nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

_MOST_OPEN = 8  # rows of a table that isn't folded


@dataclass(frozen=True, slots=True)
class TableCell:
    """One cell of a table.

    `status` is a key of `verdict.GLYPHS`, and says how it is coloured; `glyph` stands before the text, `note` behind it
    and lower.
    """

    text: str
    status: str = ""
    note: str = ""
    glyph: str = ""
    strong: bool = False

    @property
    def marked(self) -> str:
        """The text with its glyph."""
        return f"{self.glyph} {self.text}" if self.glyph else self.text


@dataclass(frozen=True, slots=True)
class Table:
    """A table; a head may hold a line break.

    `words` are the columns of words, which start at the left; of a `whole` table no column is left out where room is
    short: its words are wrapped instead. `note` says what is shown, above it, and `summary` what is in it, in a line.
    """

    heads: tuple[str, ...]
    rows: list[list[TableCell]] = field(default_factory=list)
    title: str = ""
    note: str = ""
    summary: str = ""
    caption: str = ""
    words: frozenset[int] = frozenset({0})
    whole: bool = False

    @property
    def folded(self) -> bool:
        """Whether a page shows its summary first."""
        return len(self.rows) > _MOST_OPEN

    def add(self, *cells: str | TableCell) -> None:
        """Add a row; a text is a cell without a status."""
        self.rows.append([cell if isinstance(cell, TableCell) else TableCell(cell) for cell in cells])


@dataclass(frozen=True, slots=True)
class Brief:
    """A run in a screenful: what stands between what was run and the verdict.

    Attributes:
        blocks: tables and sentences, in order.
        warnings: what the tables leave out.
        footer: what their heads mean.
        closing: the same, at the very end.
        explained: whether the findings are spelled out.
    """

    blocks: list[Table | str]
    warnings: list[str] = field(default_factory=list)
    footer: str = ""
    closing: str = ""
    explained: bool = True
