"""What `probe`, `compare`, `scale`, `watch`, `train`, `confirm` and `transfer` give back: tables, findings, pictures.
Torch-free, so a saved run loads anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from initlab import rundir
from initlab.errors import RunError
from initlab.judge.slopes import slopes
from initlab.judge.updates import by_role, drift_by_role, drifts, update_ratios
from initlab.options import checked_path
from initlab.recipes import Recipe
from initlab.report import notebook
from initlab.report.document import Document
from initlab.results.findings import Findings as Findings
from initlab.results.profile import Profile as Profile
from initlab.results.result import Result as Result
from initlab.results.trained import Confirmation, Training, Transfer
from initlab.rundir import Run


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

    @property
    def drift(self) -> pd.DataFrame:
        """How far each parameter is from the weights that `watch(drift=…)` measures from: `distance`, relative to their
        size, and `cosine`. Empty without `drift`.

        Columns: see `initlab.judge.updates.drifts`.
        """
        return drifts(self.records)

    @property
    def drift_by_role(self) -> pd.DataFrame:
        """`drift`, all parameters of a role taken together: step, role, the three rms, distance, cosine."""
        return drift_by_role(self.drift)


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
        if self._document.modules != self.modules:
            self._document = Document(self.run, self.findings, self.modules, self.known)
        return self._document


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

    def _repr_html_(self) -> str:
        return notebook.of_text(self.text)


Loaded = Probe | Comparison | Watch | Scaling | Training | Confirmation | Transfer


def load(path: str | Path) -> Loaded:
    """Read a run that a command, of Python or of the terminal, wrote; torch-free.

    Raises:
        ConfigError: no path.
        RunError: no run in the folder, or not one that this version can read.
    """
    path = checked_path("path", path)
    run = rundir.load(path)
    kinds: dict[str, type[Loaded]] = {
        "probe": Probe,
        "compare": Comparison,
        "confirm": Confirmation,
        "scale": Scaling,
        "watch": Watch,
        "train": Training,
        "transfer": Transfer,
    }
    kind = run.manifest.get("kind")
    if kind not in kinds:
        raise RunError(
            f"{path} holds a run of kind {kind!r}, and this version reads {', '.join(kinds)}; a newer one may: update "
            "initlab"
        )
    if run.tables.summary.empty:
        damage = f" that is whole. {run.notes[0]}" if run.damaged else ""
        again = "" if damage else f"; the same command with -o {path} measures it"
        raise RunError(f"the run in {path} has no finished cell{damage}{again}")
    return kinds[kind](run, path)


def now() -> str:
    """UTC time, to the second, as run.json writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
