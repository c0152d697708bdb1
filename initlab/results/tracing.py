"""What `trace_init` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from initlab import __version__
from initlab.judge.rules import evaluate
from initlab.report import notebook
from initlab.report.document import Document
from initlab.report.trace import trace_text
from initlab.results.findings import Findings
from initlab.rundir import Run
from initlab.schema import Tables

CODES = ("DRW",)  # rules that need nothing but the writes


@dataclass(frozen=True)
class InitTrace:
    """A model, and what its init code did.

    Attributes:
        model: as the function returned it.
        writes: a row for each write to each parameter and buffer; columns in `initlab.schema.WRITES`.
        notes: what couldn't be seen.
    """

    model: Any
    writes: pd.DataFrame
    notes: list[str]

    @cached_property
    def findings(self) -> Findings:
        """Verdict of every rule about writes, failures first."""
        return Findings(evaluate(self._run, select=CODES))

    @property
    def _run(self) -> Run:
        config = {"model": type(self.model).__name__}
        return Run(Tables(writes=self.writes), {"kind": "trace", "initlab_version": __version__, "config": config})

    def document(self) -> Document:
        """What is said of it, as other programs read it."""
        return Document(self._run, self.findings)

    def __repr__(self) -> str:
        return trace_text(type(self.model).__name__, self._run, self.findings, self.notes)

    def _repr_html_(self) -> str:
        return notebook.of_text(repr(self))
