"""What `predict` gives back: what the closed form expects, as a table and a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from initlab.errors import RunError
from initlab.judge.theory import Prediction, Setting
from initlab.options import checked_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Profile:
    """What the closed form expects of a model at init.

    Attributes:
        recipe: id of what the weights are drawn from.
        setting: sizes, mean squares of the weights, statistics of the text.
        expected: everything predicted, by site and block.
        exact: whether every position was followed by itself.
    """

    recipe: str
    setting: Setting
    expected: Prediction
    exact: bool

    @property
    def var(self) -> pd.DataFrame:
        """One row per site and block: `var`, and `grad_var`, the variance of (B·T)·∂loss/∂x of a mean loss."""
        rows = [
            {"layer": layer, "site": site, "var": value, "grad_var": self.expected.grad.get((site, layer), math.nan)}
            for (site, layer), value in self.expected.var.items()
        ]
        return pd.DataFrame(rows).astype({"layer": "Int64"})

    @property
    def growth(self) -> float:
        """Variance of the stream after the last block ÷ that of the embedding."""
        return self.expected.growth

    @property
    def gradient_ratio(self) -> float:
        """Variance of the gradient at the embedding ÷ that after the last block."""
        return self.expected.gradient_ratio

    def plot(self, theme: str = "light") -> Figure:
        """The profile as a matplotlib Figure; it is returned, never shown. Themes: light, dark."""
        from initlab.report.figures.predict import draw_profile

        return draw_profile(self.recipe, self.setting, self.expected, theme)

    def save(self, out: str | Path) -> Path:
        """Write profile.csv, profile.png and profile-dark.png into a folder; returns the folder.

        Raises:
            RunError: the folder can't be written.
        """
        out = checked_path("out", out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            self.var.to_csv(out / "profile.csv", index=False)
            for theme, name in (("light", "profile.png"), ("dark", "profile-dark.png")):
                self.plot(theme).savefig(out / name, dpi=150)
        except OSError as error:
            raise RunError(f"{out} can't be written: {error.strerror or error}; name another folder") from None
        return out

    def __repr__(self) -> str:
        return self._text(color=False)

    def _repr_html_(self) -> str:
        from initlab.report.notebook import of_text

        return of_text(repr(self))

    def _text(self, *, color: bool, width: int | None = None) -> str:
        from initlab.report.predict import profile_text

        return profile_text(self.recipe, self.setting, self.expected, exact=self.exact, width=width, color=color)
