"""What `probe`, `compare`, `scale`, `watch`, `train` and `confirm` give back: tables, findings, pictures.
Torch-free, so a saved run loads anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from initlab import rundir
from initlab.errors import RunError
from initlab.judge import Severity
from initlab.judge import outcomes as judged_training
from initlab.judge.rules import Finding, chosen, evaluate, worst
from initlab.judge.slopes import slopes
from initlab.judge.updates import by_role, update_ratios
from initlab.recipes import Recipe
from initlab.report import console, markdown
from initlab.report.document import Document
from initlab.results.profile import Profile as Profile
from initlab.rundir import Run, RunDir

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Result:
    """Tables and findings of one run.

    Attributes:
        run: the tables and the manifest that run.json stores.
        path: the run's folder, None while it is only in memory.
    """

    kind = "run"
    _judged: tuple[str, ...] = ("findings",)  # what is derived from the rules, and made anew for others

    def __init__(self, run: Run, path: Path | None = None):
        self.run = run
        self.path = path

    @cached_property
    def findings(self) -> list[Finding]:
        """Verdict of every rule on every recipe, failures first; judged when first asked for, and after `judge`."""
        return evaluate(self.run, **self.run.manifest.get("judging", {}))

    def judge(
        self, *, select: Sequence[str] = (), ignore: Sequence[str] = (), limits: Mapping[str, float] | None = None
    ) -> list[Finding]:
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
        for name in self._judged:
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
        """The highest severity among the failed findings; None when every check passed."""
        return worst(self.findings)

    def at(self, site: str, layer: int | None = None, kind: str = "activation") -> pd.DataFrame:
        """The records of one site; a negative layer counts from the last block of each model."""
        rows = self.records[(self.records["site"] == site) & (self.records["kind"] == kind)]
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

    def save(self, out: str | Path) -> Path:
        """Write the tables and run.json into a folder. Raises RunError if it holds another run or can't be written."""
        out = Path(out)
        if self.path is not None and self.path.resolve() == out.resolve():
            return out
        folder = RunDir.open(out, self.run.manifest)
        for run_id in self.summary["run_id"].unique():
            if run_id not in folder.done:
                folder.append(self.run.tables.of(run_id))
        self.path = out
        return out

    def report(self, out: str | Path | None = None) -> Path:
        """Write report.html, report.md, figures/*.png and findings.json beside the tables; returns the page's path.

        `out` may be left away for a run that was loaded from, or measured into, a folder.
        """
        from initlab.report import files

        if out is None and self.path is None:
            raise RunError("this run is only in memory; name a folder: .report('out')")
        folder = self.save(out) if out is not None else self.path
        assert folder is not None
        rundir.note(folder, "judging", self.run.manifest.get("judging"))
        return files.write_report(self.document(), folder)

    def document(self) -> Document:
        """The report as values, which page, terminal and Markdown write."""
        return Document(self.run, self.findings)

    def markdown(self) -> str:
        """The report as Markdown, for an issue or a pull request; its pictures are those that `report` writes."""
        return markdown.text(self.document())

    def __repr__(self) -> str:
        return self._text(color=False)

    def _text(self, *, color: bool, width: int | None = None) -> str:
        return console.text(self.document(), width=width, color=color)


class Probe(Result):
    """One model, measured once."""

    kind = "probe"


class Comparison(Result):
    """Recipes side by side, over depths, widths and seeds.

    Attributes:
        recipes: the recipes by id; empty for a run that was loaded, which holds only what they draw.
    """

    kind = "compare"

    def __init__(self, run: Run, path: Path | None = None):
        super().__init__(run, path)
        self.recipes: dict[str, Recipe] = {}


class Watch(Result):
    """One model, at several steps of its training."""

    kind = "watch"

    @property
    def updates(self) -> pd.DataFrame:
        """How far each watched step moved each parameter, relative to its size: update_rms / weight_rms = `ratio`.

        Columns: see `initlab.judge.updates.update_ratios`.
        """
        return update_ratios(self.records)

    @property
    def updates_by_role(self) -> pd.DataFrame:
        """`updates`, all parameters of a role taken together: step, role, update_rms, weight_rms, ratio."""
        return by_role(self.updates)


class Scaling(Result):
    """Models of several widths or depths, before and after a few optimizer steps.

    Attributes:
        slopes: exponents of variance over n_embd and n_layer with intervals and verdicts; see `initlab.judge.slopes`.
        modules: glob of the sites and modules that the text shows; None for a selection.
    """

    kind = "scale"

    def __init__(self, run: Run, path: Path | None = None):
        super().__init__(run, path)
        self.slopes = slopes(run.tables.records)
        self.modules: str | None = None

    def document(self) -> Document:
        """The report as values; its brief shows the sites and modules that `modules` names."""
        return Document(self.run, self.findings, self.modules)


class _Trained(Result):
    """A run that trained something."""

    @cached_property
    def curves(self) -> pd.DataFrame:
        """A row per logged step: columns of `initlab.schema.TRAINING`, and its run's recipe, n_layer, peak_lr, warmup
        and seed."""
        return judged_training.curves(self.run)


class Training(_Trained):
    """Recipes trained, one run each, and measured before the first and after the last step.

    `findings` are about the inits; NUM001 to NUM004 are about the trained models too.
    """

    kind = "train"

    @property
    def runs(self) -> pd.DataFrame:
        """One row per recipe, with its last val_loss; columns in `initlab.schema.RUNS`."""
        return self.run.tables.runs


class Confirmation(_Trained):
    """Recipes that were probed and then trained; what the probe said stands beside what training did.

    What is derived from the tables is made when it is asked for, and once.
    """

    kind = "confirm"
    _judged = ("findings", "outcomes", "rankings")

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row per training run; columns of `initlab.judge.outcomes.run_measures`."""
        return judged_training.run_measures(self.run)

    @cached_property
    def regrets(self) -> pd.DataFrame:
        """A row per recipe, depth and warmup; see `initlab.judge.outcomes.regrets`."""
        return judged_training.regrets(self.run)

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Every comparison, with interval and verdict; see `initlab.judge.outcomes.effects`."""
        return judged_training.effects(self.run)

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """Prediction beside outcome, a row per recipe and depth; see `initlab.judge.outcomes.outcomes`."""
        return judged_training.outcomes(self.run, self.findings)

    @cached_property
    def rankings(self) -> pd.DataFrame:
        """How well each probe metric ranks recipes by regret; see `initlab.judge.outcomes.rankings`."""
        return judged_training.rankings(self.run)

    def report(self, out: str | Path | None = None) -> Path:
        """Write what `Result.report` writes, and regrets, effects, outcomes and rankings as CSV beside it."""
        page = super().report(out)
        for name in ("regrets", "effects", "outcomes", "rankings"):
            frame: pd.DataFrame = getattr(self, name)
            text = frame.to_csv(index=False, float_format="%.9g", lineterminator="\n")
            rundir.write_whole(page.parent / f"{name}.csv", text.encode())
        return page


@dataclass(frozen=True, slots=True)
class Description:
    """What a model was initialised with.

    Attributes:
        rows: per role and stack of blocks, the std found and the recipes that draw it.
        mismatches: a sentence for everything that doesn't fit the recipe that fits best.
        text: both, as a table.
    """

    rows: list[dict[str, Any]]
    mismatches: list[str]
    text: str

    def __repr__(self) -> str:
        return self.text


Loaded = Probe | Comparison | Watch | Scaling | Training | Confirmation


def load(path: str | Path) -> Loaded:
    """Read a run that `probe`, `compare`, `scale`, `watch`, `train`, `confirm` or the command line wrote; torch-free.

    Raises:
        RunError: no run in the folder, or not one that this version can read.
    """
    run = rundir.load(path)
    kinds: dict[str, type[Loaded]] = {
        "probe": Probe,
        "compare": Comparison,
        "confirm": Confirmation,
        "scale": Scaling,
        "watch": Watch,
        "train": Training,
    }
    kind = run.manifest.get("kind")
    if kind not in kinds:
        raise RunError(f"{path} holds a run of kind {kind!r}; this version reads {', '.join(kinds)}")
    if run.tables.summary.empty:
        raise RunError(f"the run in {path} has no finished cell; the same command with -o {path} measures it")
    return kinds[kind](run, Path(path))


def now() -> str:
    """UTC time, to the second, as run.json writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def json_ready(value: Any) -> Any:
    """NaN and infinity as None: run.json is strict JSON."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
