"""A recipe is data: a role and the sizes of its matrix go in, a distribution comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from initlab.errors import RecipeError


class Role(StrEnum):
    """What a parameter does in the model. A tied matrix is `token_embed`."""

    TOKEN_EMBED = "token_embed"
    POS_EMBED = "pos_embed"
    ATTN_QKV = "attn_qkv"  # q, k and v fused, or any of the three
    ATTN_OUT = "attn_out"
    MLP_IN = "mlp_in"
    MLP_GATE = "mlp_gate"
    MLP_OUT = "mlp_out"
    ROUTER = "router"  # scores the experts of a mixture; its outputs are a softmax's input, no features
    UNEMBED = "unembed"
    NORM_GAIN = "norm_gain"
    NORM_BIAS = "norm_bias"
    BIAS = "bias"


class Formula(float):
    """A number that remembers the expression it was computed from, so that text and value can't drift apart."""

    text: str

    def __new__(cls, value: float, text: str) -> Formula:
        number = super().__new__(cls, value)
        number.text = text
        return number


@dataclass(frozen=True, kw_only=True, slots=True)
class Dims:
    """Sizes that a recipe may depend on.

    `fan_in` and `fan_out` are those of one matrix: each of q, k and v counts by itself when they are fused. For a
    bias they are those of the matrix it belongs to. `tied`: the head is the token embedding.
    """

    n_layer: int
    n_embd: int
    n_head: int
    block_size: int
    vocab_size: int
    fan_in: int
    fan_out: int
    layer: int = 0  # 0-based block; 0 outside the blocks
    tied: bool = True

    def __call__(self, text: str) -> Formula:
        """Evaluate an expression over these sizes, as in `dims("0.02 / sqrt(2 * n_layer)")`.

        Raises:
            RecipeError: the expression doesn't evaluate to a number.
        """
        names = {name: getattr(self, name) for name in self.__slots__}
        try:
            value = float(eval(text, {"__builtins__": {}, "sqrt": math.sqrt, "log": math.log}, names))
        except Exception as error:
            raise RecipeError(f"formula {text!r} can't be evaluated: {error}; names: {', '.join(names)}") from error
        return Formula(value, text)


def _text(value: float) -> str:
    return value.text if isinstance(value, Formula) else f"{value:g}"


@dataclass(frozen=True, slots=True)
class Normal:
    """N(0, std^2)."""

    std: float
    kind = "normal"
    mean = 0.0

    @property
    def formula(self) -> str:
        return f"std = {_text(self.std)}"


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
        return f"bound = {_text(self.bound)}"


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
        return f"scale = {_text(self.scale)}, cut at ±{_text(self.cut)}"


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
        return f"value = {_text(self.value)}"


Distribution = Normal | Uniform | TruncNormal | Constant
Rule = Callable[[Role, Dims], Distribution]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """An init scheme: pure data, testable without a model.

    `id` names its source where sources disagree; `source` is where the numbers were read.
    """

    id: str
    family: str
    summary: str
    source: str
    rule: Rule

    def __call__(self, role: Role, dims: Dims) -> Distribution:
        """What a parameter of this role is drawn from.

        Raises:
            RecipeError: the recipe has no answer for the role, or its answer isn't a finite distribution.
        """
        try:
            value = self.rule(role, dims)
        except RecipeError:
            raise
        except Exception as error:
            raise RecipeError(f"recipe {self.id} failed on role {role}: {type(error).__name__}: {error}") from error
        if not isinstance(value, Distribution):
            raise RecipeError(
                f"recipe {self.id} returned {value!r} for role {role}; "
                "expected Normal, Uniform, TruncNormal or Constant from initlab.recipes"
            )
        numbers = [getattr(value, name) for name in value.__slots__]
        expected = {Constant: "finite", TruncNormal: "finite, positive"}.get(type(value), "finite, non-negative")
        lowest = {Constant: -math.inf, TruncNormal: math.ulp(0.0)}.get(type(value), 0.0)
        if not all(_finite(number) and number >= lowest for number in numbers):
            raise RecipeError(f"recipe {self.id} returned {value!r} for role {role}; expected {expected} numbers")
        return value


def _finite(number: object) -> bool:
    try:
        return math.isfinite(number)  # type: ignore[arg-type]  # what a user's recipe put there
    except (TypeError, ValueError, OverflowError):
        return False
