"""The figures of a report: an open list. Each says of itself what it needs, where it stands and what it shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from initlab.errors import ConfigError
from initlab.registry import Registry
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OWN = ("watch", "losses", "rates", "transfer", "effects", "train", "scale", "curves", "heatmaps", "dots")
Draw = Callable[[Run, str], "Figure"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureSpec:
    """A figure of the report; see `figure`, which adds one."""

    name: str
    title: str
    question: str
    place: float
    draw: Draw
    words: Callable[[Run], str]
    lacks: Callable[[Run], str] | None = None
    kinds: tuple[str, ...] = ()
    otherwise: str = ""

    def needs(self, run: Run) -> str:
        """Why the figure can't be drawn of this run; empty when it can."""
        if self.kinds and run.manifest.get("kind") not in self.kinds:
            return self.otherwise or f"of runs of kind {' or '.join(self.kinds)}"
        return self._asked(self.lacks, run) if self.lacks else ""

    def drawn(self, run: Run, theme: str) -> Figure:
        """Draw it. Raises ConfigError: its function raised, or returned something else than a Figure."""
        from matplotlib.figure import Figure

        made = self._asked(self.draw, run, theme)
        if not isinstance(made, Figure):
            raise ConfigError(f"figure {self.name!r} returned {type(made).__name__}; expected a matplotlib Figure")
        return made

    def said(self, run: Run) -> str:
        """Say what it shows. Raises ConfigError: its function raised."""
        return self._asked(self.words, run)

    def _asked(self, function: Callable[..., T], *given: Any) -> T:
        try:
            return function(*given)
        except Exception as error:
            raise ConfigError(f"figure {self.name!r} raised {type(error).__name__}: {error}") from error


FIGURES: Registry[FigureSpec] = Registry("figure", modules=tuple(f"{__name__}.{module}" for module in _OWN))


def figure(
    name: str,
    *,
    title: str,
    question: str,
    place: float,
    words: Callable[[Run], str],
    needs: Callable[[Run], str] | None = None,
    kinds: tuple[str, ...] = (),
    otherwise: str = "",
) -> Callable[[Draw], Draw]:
    """Add the figure that the decorated function draws to every report whose run it suits.

    The function takes the run and a theme (`light`, `dark`) and returns a matplotlib Figure, which is never shown. It
    draws within `theme.style(theme)`, whose colours follow the reader's light or dark page. On the page, pointing at
    dots, cells and lines that have a label says their values; `initlab.report.hover` is for other names and words.

    Args:
        name: of the file, of the anchor in the page, and in `Result.plot`; never used again.
        title: a heading of two or three words.
        question: what a reader can answer by looking at it, and how the marks are to be read.
        place: where it stands; initlab's own figures have 10, 20, ... 190.
        words: the same in words, with numbers, for who can't see it.
        needs: why it can't be drawn of a run; empty when it can. Nothing given: it always can.
        kinds: of runs that it is for; nothing given is every kind.
        otherwise: what runs of another kind lack.

    Raises:
        ConfigError: the name is taken, or isn't one of a file.
    """

    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ConfigError(f"a figure is named {name!r}; expected small letters and digits with - between")

    def add(draw: Draw) -> Draw:
        spec = FigureSpec(
            name=name,
            title=title,
            question=question,
            place=place,
            draw=draw,
            words=words,
            lacks=needs,
            kinds=kinds,
            otherwise=otherwise,
        )
        FIGURES.add(name, spec)
        return draw

    return add


def in_order() -> list[FigureSpec]:
    """All figures as they stand on the page; of one place, in the order in which they were added."""
    return sorted(FIGURES, key=lambda spec: spec.place)


def draw(name: str, run: Run, theme: str = "light") -> Figure:
    """Draw one figure.

    Args:
        name: of the figure.
        run: what is shown.
        theme: `light` or `dark`.

    Raises:
        ConfigError: no such figure, or the run doesn't hold what it needs.
    """
    spec = FIGURES.get(name)
    if reason := spec.needs(run):
        raise ConfigError(f"figure {name} can't be drawn: {reason}")
    return spec.drawn(run, theme)
