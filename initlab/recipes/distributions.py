"""What a parameter is drawn from, and numbers that remember their formula."""

from __future__ import annotations

import math
from dataclasses import dataclass


class Formula(float):
    """A number that remembers the expression it was computed from, so that text and value can't drift apart."""

    text: str

    def __new__(cls, value: float, text: str) -> Formula:
        number = super().__new__(cls, value)
        number.text = text
        return number

    def __getnewargs__(self) -> tuple[float, str]:  # type: ignore[override]  # float's own takes no text
        return float(self), self.text


def text_of(value: float) -> str:
    """The formula of a number, or the number."""
    return value.text if isinstance(value, Formula) else f"{value:g}"


@dataclass(frozen=True, slots=True)
class Normal:
    """N(0, std^2)."""

    std: float
    kind = "normal"
    mean = 0.0

    @property
    def formula(self) -> str:
        return f"std = {text_of(self.std)}"


@dataclass(frozen=True, slots=True)
class Uniform:
    """U(-bound, bound); std = bound / sqrt(3)."""

    bound: float
    kind = "uniform"
    mean = 0.0

    @property
    def std(self) -> float:
        return self.bound / math.sqrt(3)

    @property
    def formula(self) -> str:
        return f"bound = {text_of(self.bound)}"


@dataclass(frozen=True, slots=True)
class TruncNormal:
    """N(0, scale^2) cut at +-`cut`, both in the units of the weight, as torch.nn.init.trunc_normal_ does."""

    scale: float
    cut: float
    kind = "truncated normal"
    mean = 0.0

    @property
    def std(self) -> float:
        a = self.cut / self.scale
        if a < 0.01:  # uniform to 1e-5; the formula below would cancel to nothing
            return self.cut / math.sqrt(3)
        inside = math.erf(a / math.sqrt(2))
        density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
        return self.scale * math.sqrt(1 - 2 * a * density / inside)

    @property
    def formula(self) -> str:
        return f"scale = {text_of(self.scale)}, cut at ±{text_of(self.cut)}"


@dataclass(frozen=True, slots=True)
class Constant:
    """Every element the same."""

    value: float
    kind = "constant"
    std = 0.0

    @property
    def mean(self) -> float:
        return self.value

    @property
    def formula(self) -> str:
        return f"value = {text_of(self.value)}"


@dataclass(frozen=True, slots=True)
class Orthogonal:
    """gain times a random (semi-)orthogonal matrix, as torch.nn.init.orthogonal_ draws it.

    Its entries have variance gain^2 / `larger`, the larger of fan_in and fan_out, which the recipe fills in.
    """

    gain: float
    larger: int = 0
    kind = "orthogonal"
    mean = 0.0

    @property
    def std(self) -> float:
        return self.gain / math.sqrt(self.larger) if self.larger else math.nan

    @property
    def formula(self) -> str:
        return f"gain = {text_of(self.gain)}"


Distribution = Normal | Uniform | TruncNormal | Constant | Orthogonal
NUMBERS = {Constant: ("finite", -math.inf), TruncNormal: ("finite, positive", math.ulp(0.0))}


def finite(number: object) -> bool:
    """Finite, and so is its square: variances are what everything else is computed from."""
    try:
        return math.isfinite(number * number)  # type: ignore[operator]  # what a user's recipe put there
    except (TypeError, ValueError, OverflowError):
        return False
