"""What every command gives back: tables, findings, pictures. Torch-free, so a saved run loads anywhere."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pandas as pd

from initlab import rundir
from initlab.errors import ConfigError, RunError
from initlab.judge import Severity
from initlab.judge.baseline import known_among
from initlab.judge.differences import one_recipe
from initlab.judge.judging import judged
from initlab.judge.rules import Finding, chosen, worst
from initlab.options import checked_path, shown, whole
from initlab.recipes import Role
from initlab.report import console, markdown, notebook
from initlab.report.document import Document
from initlab.report.waiting import waiting
from initlab.results.findings import Findings
from initlab.rundir import Run, RunDir
from initlab.schema import SITES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result:
    """Tables and findings of one run.

    Attributes:
        run: the tables and the manifest that run.json stores.
        path: the run's folder, None while it is only in memory.
    """

    kind = "run"
    known: Sequence[Finding] = ()  # failures that a baseline has too; see `against`
    _judged: tuple[str, ...] = ("findings", "_document")  # what is derived from the rules, and made anew for others

    def __init__(self, run: Run, path: Path | None = None):
        self.run = run
        self.path = path

    @cached_property
    def findings(self) -> Findings:
        """Verdict of every rule on every recipe, passed ones too, failures first; `failures` are what is wrong."""
        return Findings(judged(self.run))

    @property
    def failures(self) -> Findings:
        """Checks that failed, errors first; those that the baseline has too aren't among them (see `against`)."""
        known = set(map(id, self.known))
        return Findings(each for each in self.findings if each.status == "fail" and id(each) not in known)

    def against(self, baseline: str | Path) -> Findings:
        """Count only what is new since another judgement; `known` then holds the others.

        Args:
            baseline: findings.json, what `--format json` printed, or the folder of a run with a report. A finding is
                known if it failed there for the same recipe and site, and at least as severely.

        Returns:
            The new failures, errors first.

        Raises:
            ConfigError: it can't be read, or holds no findings.
        """
        return self._count_out(known_among(self.findings, checked_path("baseline", baseline)))

    def _count_out(self, known: Sequence[Finding]) -> Findings:
        """Count some of `findings` out, as `against` does with those of a baseline; returns the other failures."""
        self.known = known
        self.__dict__.pop("_document", None)
        return self.failures

    def judge(
        self, *, select: Sequence[str] = (), ignore: Sequence[str] = (), limits: Mapping[str, float] | None = None
    ) -> Findings:
        """Judge again by other rules or limits, without measuring again; also what `report` and `save` then write.

        Args:
            select: codes or prefixes of codes (`GRD`); nothing selected is every rule.
            ignore: codes or prefixes of those to leave out.
            limits: by code (`{"EMB001": 0.05}`, its first limit) or code and name (`{"EMB001.error": 0.001}`); see
                `initlab rules CODE`. What isn't given is as the rule has it, whatever was given before.

        Returns:
            The findings, failures first.

        Raises:
            ConfigError: an unknown code, or a limit that is none.
        """
        overrides = chosen(select, ignore, limits).overrides
        self.run.manifest.pop("judging", None)
        if overrides:
            self.run.manifest["judging"] = overrides
        for name in (*self._judged, "known"):
            self.__dict__.pop(name, None)
        return self.findings

    @property
    def records(self) -> pd.DataFrame:
        """One row per tensor, site, kind, step and seed; columns in `initlab.schema.RECORDS`."""
        return self.run.tables.records

    @property
    def heads(self) -> pd.DataFrame:
        """One row per attention head; columns in `initlab.schema.HEADS`."""
        return self.run.tables.heads

    @property
    def summary(self) -> pd.DataFrame:
        """One row per model and step; columns in `initlab.schema.SUMMARY`."""
        return self.run.tables.summary

    @property
    def coverage(self) -> pd.DataFrame:
        """Tensors expected and measured, by site and kind; columns in `initlab.schema.COVERAGE`."""
        return self.run.tables.coverage

    @property
    def wiring(self) -> pd.DataFrame:
        """How the model is wired, one row per branch of each block; columns in `initlab.schema.WIRING`."""
        return self.run.tables.wiring

    @property
    def behaviour(self) -> pd.DataFrame:
        """What moves when tokens are changed, one row per check; columns in `initlab.schema.BEHAVIOUR`."""
        return self.run.tables.behaviour

    @property
    def draws(self) -> pd.DataFrame:
        """How each matrix was drawn beside its scale, one row each; columns in `initlab.schema.DRAWS`."""
        return self.run.tables.draws

    @property
    def declared(self) -> pd.DataFrame:
        """What the model's configs say of its init, and what is so; columns in `initlab.schema.DECLARED`."""
        return self.run.tables.declared

    @property
    def worst(self) -> Severity | None:
        """The highest severity among the failures; None when there is none."""
        return worst(self.failures)

    def at(self, site: str, layer: int | None = None, kind: str = "activation") -> pd.DataFrame:
        """The records of one site; a negative layer counts from the last block of each model.

        Args:
            site: as in the table `records`; one that this run could hold and doesn't gives no rows.
            layer: of a block; None: of all, and of what stands outside them.
            kind: activation, grad, weight, weight_grad or update.

        Raises:
            ConfigError: an argument that is no name, or no block's number; a site that neither this run has nor any
                could.
        """
        for name, value in (("site", site), ("kind", kind)):
            if not isinstance(value, str):
                raise ConfigError(f"{name} is {shown(value)}; expected a name, as in initlab.schema")
        if layer is not None and not whole(layer):
            raise ConfigError(f"layer is {shown(layer)}; expected a block's number, or None for all")
        own = self.records["site"].astype(str)
        if site not in (known := {*own.unique(), *SITES, *Role}):
            close = difflib.get_close_matches(site, sorted(map(str, known)), n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise ConfigError(f"there is no site {site!r}; {hint}This run has {', '.join(own.unique())}")
        rows = self.records[(own == site) & (self.records["kind"] == kind)]
        if layer is None:
            return rows
        return rows[rows["layer"] == (rows["n_layer"] + layer if layer < 0 else layer)]

    def plot(self, name: str, theme: str = "light") -> Figure:
        """One figure of the report by name, as a matplotlib Figure; it is returned, never shown.

        Raises:
            ConfigError: no figure of that name; the message lists them.
        """
        from initlab.report import figures

        return figures.draw(name, self.run, theme)

    def only(self, recipe: str) -> Self:
        """Take one recipe of several, as a result of its own that is in memory alone.

        Args:
            recipe: its id.

        Raises:
            ConfigError: there is no such recipe in it.
        """
        return type(self)(one_recipe(self.run, recipe, str(self.path or f"this {self.kind}")))

    def save(self, out: str | Path) -> Path:
        """Write the tables and run.json into a folder. Raises RunError if it holds another run or can't be written."""
        out = checked_path("out", out)
        if self.path is not None and self.path.resolve() == out.resolve():
            return out
        with RunDir.open(out, self.run.manifest) as folder:
            for run_id in self.summary["run_id"].unique():
                if run_id not in folder.done:
                    folder.append(self.run.tables.of(run_id))
        self.path = out
        return out

    def report(self, out: str | Path | None = None, *, progress: bool = True) -> Path:
        """Write report.html, report.md, figures/*.png and findings.json beside the tables; returns the page's path.

        Args:
            out: folder; may be left away for a run that was loaded from, or measured into, one.
            progress: whether a bar is drawn, after two seconds, on a terminal or in a notebook.

        Raises:
            RunError: no folder, or one that holds another run or can't be written.
        """
        from initlab.report import files

        if out is None and self.path is None:
            raise RunError("this run is only in memory; name a folder: .report('out')")
        folder = self.save(out) if out is not None else self.path
        assert folder is not None
        rundir.note(folder, "judging", self.run.manifest.get("judging"))
        with waiting("report", progress):
            return files.write_report(self.document(), folder)

    def document(self) -> Document:
        """The report as values, which page, terminal and Markdown write; made once, and again after `judge`."""
        return self._document

    @cached_property
    def _document(self) -> Document:
        return Document(self.run, self.findings, known=self.known)

    def markdown(self) -> str:
        """The report as Markdown, for an issue or a pull request; its pictures are those that `report` writes."""
        return markdown.text(self.document())

    def __repr__(self) -> str:
        return self._text(color=False)

    def _repr_html_(self) -> str:
        return notebook.of_document(self.document())

    def _text(self, *, color: bool, width: int | None = None) -> str:
        return console.text(self.document(), width=width, color=color)
