"""What the commands that train give back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd

from initlab import rundir
from initlab.judge import outcomes as judged_training
from initlab.results.result import Result


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
    _judged = ("findings", "_document", "outcomes", "rankings")

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
        return self.document().graded.copy(deep=False)

    @cached_property
    def rankings(self) -> pd.DataFrame:
        """How well each probe metric ranks recipes by regret; see `initlab.judge.outcomes.rankings`."""
        return judged_training.rankings(self.run)

    def report(self, out: str | Path | None = None, *, progress: bool = True) -> Path:
        """Write what `Result.report` writes, and regrets, effects, outcomes and rankings as CSV beside it."""
        names = ("regrets", "effects", "outcomes", "rankings")
        return _with_tables(super().report(out, progress=progress), {name: getattr(self, name) for name in names})


class Transfer(_Trained):
    """Recipes trained at several sizes and rates: does the best rate of the smallest model hold for the largest?"""

    kind = "transfer"

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row per training run; columns of `initlab.judge.outcomes.run_measures`."""
        return judged_training.run_measures(self.run)

    @cached_property
    def optima(self) -> pd.DataFrame:
        """The best rate of each seed at each size; see `initlab.judge.outcomes.optima`."""
        return judged_training.optima(self.run)

    @cached_property
    def transfers(self) -> pd.DataFrame:
        """How the best rate goes with width and depth, with verdict and cost; see `transfers` there."""
        return judged_training.transfers(self.run)

    def report(self, out: str | Path | None = None, *, progress: bool = True) -> Path:
        """Write what `Result.report` writes, and optima and transfers as CSV beside it."""
        return _with_tables(
            super().report(out, progress=progress), {"optima": self.optima, "transfers": self.transfers}
        )


def _with_tables(page: Path, frames: Mapping[str, pd.DataFrame]) -> Path:
    for name, frame in frames.items():
        rundir.write_whole(page.parent / f"{name}.csv", rundir.csv_bytes(frame, header=True))
    return page
