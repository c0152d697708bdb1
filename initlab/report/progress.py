"""How far a run is, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_QUIET_SECONDS = 30.0  # between lines where there is no terminal to redraw


class ProgressBar:
    """How far a run is and how long it will take, on stderr so that stdout stays clean.

    On a terminal a bar that vanishes when done; elsewhere a line every half minute.
    """

    def __init__(self, total_work: float, label: str, stream: TextIO | None = None):
        self._total = max(total_work, 1e-12)
        self._label = label
        self._stream = stream or sys.stderr
        self._done = 0.0
        self._started = self._spoke = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        if self._stream.isatty():
            self._bar = self._make_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, work: float, text: str = "") -> None:
        """Count work as done; `text` says what comes or came."""
        self._done += work
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=work, note=text)
            return
        now = time.monotonic()
        if now - self._spoke >= _QUIET_SECONDS:
            self._spoke = now
            share = min(self._done / self._total, 1.0)
            left = (now - self._started) * (1 - share) / share if share > 0 else 0.0
            line = f"{self._label}: {share:.0%}, about {left:.0f} s left  {text}".rstrip()
            print(line, file=self._stream, flush=True)

    def _make_bar(self) -> RichProgress:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns: list[Any] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[note]}", markup=False),
        ]
        console = Console(file=self._stream, highlight=False, emoji=False, force_jupyter=False)
        return Progress(*columns, console=console, transient=True)
