"""A figure of one run: drawn at most once, whatever is made of it."""

from __future__ import annotations

import re
from functools import cached_property

from initlab.report.figures import FigureSpec
from initlab.report.svg import both
from initlab.rundir import Run

_FIRST = re.compile(r"[:.] ")


class Drawing:
    """A figure as it stands in a report.

    Args:
        spec: of the figure.
        run: which it can be drawn of.
    """

    def __init__(self, spec: FigureSpec, run: Run):
        self.name, self.title, self.question = spec.name, spec.title, spec.question
        self._spec, self._run = spec, run

    @cached_property
    def words(self) -> str:
        """The same in words, with numbers."""
        return self._spec.said(self._run)

    @property
    def gist(self) -> str:
        """The words without what they begin with if that says what is measured; a page cuts them where a line ends."""
        head, _, rest = _FIRST.sub("\n", self.words, count=1).partition("\n")
        return rest if rest and head.count(" ") > 2 else self.words  # a recipe's name stays

    @cached_property
    def _files(self) -> tuple[str, bytes]:
        figure = self._spec.drawn(self._run, "light")
        return both(figure, self.name, self.title, self.words)

    @property
    def svg(self) -> str:
        """An <svg> element in the colours of the page around it."""
        return self._files[0]

    @property
    def png(self) -> bytes:
        """A PNG file, light."""
        return self._files[1]
