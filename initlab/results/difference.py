"""What `diff` gives back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from initlab.errors import ConfigError
from initlab.judge import SEVERITIES, Severity
from initlab.judge.differences import Compared, compared
from initlab.options import checked_path, shown
from initlab.report import notebook
from initlab.report.beside import beside
from initlab.report.diff import diff_text
from initlab.report.document import Document
from initlab.report.formats import SCHEMA_VERSION, json_ready
from initlab.results import Comparison
from initlab.results.result import Result


class Difference:
    """What changed between two inits, A and B.

    Attributes:
        a: the one, of one recipe, at one step.
        b: the other.
        names: what they are called.
    """

    def __init__(self, a: Result, b: Result, names: tuple[str, str] = ("A", "B"), notes: Sequence[str] = ()):
        self.a = a
        self.b = b
        self.names = names
        self._notes = list(notes)

    @cached_property
    def _compared(self) -> Compared:
        runs = self.a.run, self.b.run
        return compared(*runs, self.a.findings, self.b.findings, self.names, self._notes)

    @property
    def parameters(self) -> pd.DataFrame:
        """A row for each pair of parameters; columns in `initlab.judge.differences.parameters.parameters`."""
        return self._compared.parameters

    @property
    def roles(self) -> pd.DataFrame:
        """A row for each role and kind of change; columns in `initlab.judge.differences.roles.roles`."""
        return self._compared.roles

    @property
    def sites(self) -> pd.DataFrame:
        """A row for each site, block and kind; columns in `initlab.judge.differences.sites.sites`."""
        return self._compared.sites

    @property
    def findings(self) -> pd.DataFrame:
        """A row for each finding of either; columns in `initlab.judge.differences.verdicts.findings`."""
        return self._compared.findings

    @property
    def wiring(self) -> pd.DataFrame:
        """A row for each thing that is wired otherwise; columns in `initlab.judge.differences.wirings.wirings`."""
        return self._compared.wiring

    @property
    def notes(self) -> list[str]:
        """How parameters were matched, what was taken of each run, what can't be compared."""
        return self._compared.notes

    @property
    def verdict(self) -> str:
        """One sentence."""
        return self._compared.verdict

    @property
    def differs(self) -> bool:
        """Whether anything does beyond chance."""
        return self._compared.differs

    @property
    def worst_new(self) -> Severity | None:
        """The highest severity among findings that are new or weigh more in B; None without any."""
        rows = self.findings
        found = set(rows.loc[rows["state"].isin(["new", "worse"]), "severity_b"])
        return next((severity for severity in SEVERITIES if severity in found), None)

    def document(self) -> Document:
        """What is said of B; of its findings those count that are new in it, or weigh more."""
        rows = self.findings
        new = set(rows.loc[rows["state"].isin(["new", "worse"]), "code"])
        known = [each for each in self.b.failures if each.code not in new]
        return Document(self.b.run, self.b.findings, known=known)

    def as_dict(self) -> dict[str, Any]:
        """Turn it into JSON-ready values: verdict and counts first, then rows of what differs."""
        found = self._compared
        parameters, sites = found.parameters, found.sites
        rows = {
            "roles": found.roles[found.roles["differs"]],
            "parameters": parameters[parameters["differs"]],
            "sites": sites[sites["differs"]],
            "wiring": found.wiring,
            "findings": found.findings,
        }
        head = {
            "schema_version": SCHEMA_VERSION,
            "a": self.names[0],
            "b": self.names[1],
            "differs": found.differs,
            "verdict": found.verdict,
            "counts": found.counts | {"sites compared": len(sites), "parameters compared": len(parameters)},
            "basis": {"kind": found.basis.kind, "words": found.basis.words},
            "notes": found.notes,
        }
        made: dict[str, Any] = json_ready(
            head | {name: json.loads(frame.to_json(orient="records")) for name, frame in rows.items()}
        )
        return made

    def report(self, out: str | Path, changes: Sequence[str] = ()) -> Path:
        """Write report.html and what belongs to it, A beside B; returns its path.

        Args:
            out: the folder.
            changes: sentences about what was changed in between.

        Raises:
            RunError: it holds another run, or can't be written.
        """
        out = checked_path("out", out)
        if isinstance(changes, str) or not isinstance(changes, Sequence):
            raise ConfigError(f"changes is {shown(changes)}; expected a list of sentences")
        names = self.names
        if names[0] == names[1]:
            names = (f"A {names[0]}", f"B {names[1]}")
        both = Comparison(beside(self._compared, self.a.run, self.b.run, names, changes))
        both.judge(**self.a.run.manifest.get("judging", {}))
        return both.report(out)

    def __repr__(self) -> str:
        return self._text(color=False)

    def _repr_html_(self) -> str:
        return notebook.of_text(repr(self))

    def _text(self, *, color: bool, width: int | None = None) -> str:
        return diff_text(self._compared, width=width, color=color)
