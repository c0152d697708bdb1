"""A bar that draws itself when a call of Python takes longer than two seconds: on a terminal, or in a notebook."""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from initlab import options

PATIENCE = 2.0  # seconds
_OFTEN = 0.25  # seconds between pictures in a notebook, each of which is a message to the browser
P = ParamSpec("P")
T = TypeVar("T")


class _Bar(Protocol):
    def show(self, share: float | None, text: str) -> None:
        """Draw how much is done (None: not known), and what is under way."""

    def close(self) -> None:
        """Leave nothing behind."""


class Waiting:
    """Counts the work of a call, and draws it once the call has taken a while. Told as `options.Progress` is.

    Args:
        label: name of the call.
        make: the bar.
    """

    def __init__(self, label: str, make: Callable[[str], _Bar]):
        self._label = label
        self._make = make
        self._total = 0.0
        self._done = 0.0
        self._text = ""
        self._bar: _Bar | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(PATIENCE, self._begin)
        self._timer.daemon = True
        self._timer.start()

    def start(self, work: float, cells: int, seconds: float) -> None:
        """Take note of all work.

        Args:
            work: in any unit.
            cells: it is of.
            seconds: an estimate.
        """
        self._total, self._done = work, 0.0
        self._show()

    def advance(self, work: float, text: str) -> None:
        """Count work as done.

        Args:
            work: in the same unit.
            text: what came or comes.
        """
        self._done += work
        self._text = text
        self._show()

    def close(self) -> None:
        """Take the bar away."""
        self._timer.cancel()
        with self._lock, suppress(Exception):
            self._closed = True
            if self._bar is not None:
                self._bar.close()

    def _begin(self) -> None:
        with self._lock, suppress(Exception):  # a bar that can't be drawn is no reason to lose a run
            if not self._closed:
                self._bar = self._make(self._label)
        self._show()

    def _show(self) -> None:
        with self._lock, suppress(Exception):
            if self._bar is not None and not self._closed:
                self._bar.show(min(self._done / self._total, 1.0) if self._total > 0 else None, self._text)


class TerminalBar:
    """Of rich, on stderr.

    Args:
        label: name of the call.
    """

    def __init__(self, label: str):
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        ]
        console = Console(file=sys.stderr, highlight=False, emoji=False, force_jupyter=False)
        self._rich = Progress(*columns, console=console, transient=True)
        self._task = self._rich.add_task(label, total=None, note="")
        self._started = time.monotonic()
        self._rich.start()

    def show(self, share: float | None, text: str) -> None:
        """Draw.

        Args:
            share: of the work.
            text: what is under way.
        """
        note = "  ".join(filter(None, (_said(share, self._started), text)))
        self._rich.update(self._task, total=None if share is None else 1.0, completed=share or 0.0, note=note)

    def close(self) -> None:
        """Clear the line."""
        self._rich.stop()


class NotebookBar:
    """HTML in the cell, without a script or a widget.

    Args:
        label: name of the call.
    """

    def __init__(self, label: str):
        from IPython.display import display

        self._label = label
        self._started = time.monotonic()
        self._drawn = 0.0
        self._shown = display(self._data(None, ""), raw=True, display_id=True)

    def show(self, share: float | None, text: str) -> None:
        """Draw, though not more often than an eye sees.

        Args:
            share: of the work.
            text: what is under way.
        """
        if time.monotonic() - self._drawn >= _OFTEN:
            self._drawn = time.monotonic()
            self._shown.update(self._data(share, text), raw=True)

    def close(self) -> None:
        """Empty the output."""
        self._shown.update({"text/html": "", "text/plain": ""}, raw=True)

    def _data(self, share: float | None, text: str) -> dict[str, str]:
        value = "" if share is None else f' value="{share:.3f}"'  # without one the browser shows that it is under way
        words = "  ".join(filter(None, (self._label, _said(share, self._started), text)))
        bar = f'<progress max="1"{value} style="width:16em;vertical-align:middle"></progress>'
        return {"text/html": f"{bar} <small>{html.escape(words)}</small>", "text/plain": words}


def _said(share: float | None, started: float) -> str:
    if not share:
        return ""
    left = (time.monotonic() - started + PATIENCE) * (1 - share) / share
    return f"{share:.0%}, about {left:.0f} s left"


def place() -> Callable[[str], _Bar] | None:
    """Where a bar would be seen: in a notebook, on a terminal, or nowhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        return NotebookBar
    return TerminalBar if sys.stderr is not None and sys.stderr.isatty() else None


_active: Waiting | None = None


@contextmanager
def waiting(label: str, progress: object = None) -> Iterator[None]:
    """Draw a bar while something goes on for long; what it calls tells the same bar, and draws none of its own.

    Args:
        label: name of the call.
        progress: None or True; False draws nothing, and so does one that is told of the work itself.
    """
    global _active
    make = place() if progress is None or progress is True else None
    if make is None or _active is not None:
        yield
        return
    own = _active = Waiting(label, make)  # by its own name: a call in another thread may begin at the same moment
    try:
        yield
    finally:
        own.close()
        if _active is own:
            _active = None


def heard(progress: options.Progress | bool | None) -> options.Progress | None:
    """Give what is to be told of the work: the caller's own, or the bar of the call that is under way.

    Args:
        progress: of RunOptions.
    """
    if progress is None or progress is True:
        return _active
    return None if progress is False else progress


def drawn(call: Callable[P, T]) -> Callable[P, T]:
    """Draw a bar while a public function goes on, unless its `progress`, or that of its `run`, says otherwise.

    Args:
        call: the function.
    """

    @wraps(call)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        given: Any = kwargs.get("progress", getattr(kwargs.get("run"), "progress", None))
        with waiting(call.__name__, given):
            return call(*args, **kwargs)

    return wrapped
