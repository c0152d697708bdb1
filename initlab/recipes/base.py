"""A recipe is data: a role and the sizes of its matrix go in, a distribution comes out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from types import CodeType

from initlab.errors import RecipeError


class Role(StrEnum):
    """What a parameter does in the model. A tied matrix is `token_embed`."""

    TOKEN_EMBED = "token_embed"
    POS_EMBED = "pos_embed"
    ATTN_QKV = "attn_qkv"  # several of q, k and v in one matrix; or one of them, and not known which
    ATTN_Q = "attn_q"
    ATTN_K = "attn_k"
    ATTN_V = "attn_v"
    ATTN_OUT = "attn_out"
    MLP_IN = "mlp_in"
    MLP_GATE = "mlp_gate"
    MLP_OUT = "mlp_out"
    ROUTER = "router"  # scores the experts of a mixture; its outputs are a softmax's input, no features
    UNEMBED = "unembed"
    NORM_GAIN = "norm_gain"
    NORM_BIAS = "norm_bias"
    BIAS = "bias"
    GATE = "gate"  # multiplies what a branch gives, by channel or as a whole: LayerScale, ReZero
    OTHER = "other"  # none of these, or not known which


_ROLES = frozenset(Role)
QKV = (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)
INNER = (Role.ATTN_QKV, *QKV, Role.MLP_IN, Role.MLP_GATE)  # what reads the stream in attention and MLPs
OUTPUTS = (Role.ATTN_OUT, Role.MLP_OUT)  # what writes into the residual stream
VECTORS = (Role.NORM_GAIN, Role.NORM_BIAS, Role.BIAS)  # ones and zeros in most recipes: they tell little apart


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
        """Evaluate an expression over these sizes, as in `dims("0.02 / sqrt(2 * n_layer)")`; sqrt, log and min work.

        Raises:
            RecipeError: the expression doesn't evaluate to a number.
        """
        try:
            code = _compiled(text)
            names = {name: getattr(self, name) for name in code.co_names if name in self.__slots__}
            value = float(eval(code, dict(_SCOPE), names))
        except Exception as error:
            known = ", ".join(self.__slots__)
            raise RecipeError(f"formula {text!r} can't be evaluated: {error}; names: {known}") from None
        return Formula(value, text)


_SCOPE = {"__builtins__": {}, "sqrt": math.sqrt, "log": math.log, "min": min}


@functools.lru_cache(maxsize=1024)
def _compiled(text: str) -> CodeType:
    """A model has thousands of parameters and the catalogue dozens of recipes, with a few formulas between them."""
    return compile(text, "<formula>", "eval")


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
        return f"gain = {_text(self.gain)}"


Distribution = Normal | Uniform | TruncNormal | Constant | Orthogonal
_NUMBERS = {Constant: ("finite", -math.inf), TruncNormal: ("finite, positive", math.ulp(0.0))}
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
        """What a parameter of this role is drawn from; `attn_q`, `attn_k`, `attn_v` as `attn_qkv` unless told apart.

        Raises:
            RecipeError: an unknown role, the recipe has no answer for it, or its answer isn't a finite distribution.
        """
        if role not in _ROLES:
            raise RecipeError(f"unknown role {role!r}; expected one of {', '.join(Role)}")
        if role in QKV and not self.knows(role, dims):
            role = Role.ATTN_QKV
        try:
            value = self.rule(Role(role), dims)
        except RecipeError:
            raise
        except Exception as error:
            # of a role that isn't there, Python before 3.12 says no more than its name
            absent = isinstance(error, AttributeError) and (str(error).isupper() or "'Role'" in str(error))
            hint = f"; the roles are {', '.join(Role.__members__)}" if absent else ""
            if self.family == "user" and isinstance(error, TypeError):
                hint = "; a recipe is a function (role, dims), one that makes models takes n_layer, n_embd or nothing"
            failed = f"recipe {self.id} failed on role {role}: {type(error).__name__}: {error}{hint}"
            raise RecipeError(failed) from error
        if not isinstance(value, Distribution):
            raise RecipeError(
                f"recipe {self.id} returned {value!r} for role {role}; "
                "expected Normal, Uniform, TruncNormal, Orthogonal or Constant from initlab.recipes"
            )
        if isinstance(value, Orthogonal):
            if role in VECTORS:
                raise RecipeError(
                    f"recipe {self.id} returned {value!r} for role {role}, whose parameters are vectors; "
                    "only a matrix can be orthogonal"
                )
            value = replace(value, larger=max(dims.fan_in, dims.fan_out))
        numbers = [getattr(value, name) for name in value.__slots__]
        expected, lowest = _NUMBERS.get(type(value), ("finite, non-negative", 0.0))
        if not all(_finite(number) and number >= lowest for number in numbers):
            raise RecipeError(f"recipe {self.id} returned {value!r} for role {role}; expected {expected} numbers")
        return value

    def knows(self, role: Role, dims: Dims) -> bool:
        """Tell whether the rule has an answer for this role that isn't the one for whatever it never heard of.

        Args:
            role: asked for.
            dims: asked with.
        """
        own, unheard = (self._tried(each, dims) for each in (Role(role), Role.OTHER))
        if isinstance(own, Exception):  # of this role alone: a mistake in what it says of it, to be shown
            return not isinstance(unheard, Exception) and unheard is not None
        return own is not None and own != unheard

    def splits(self, dims: Dims) -> bool:
        """Tell whether the rule tells q, k and v apart.

        Args:
            dims: asked with.
        """
        return len({self(role, dims) for role in QKV}) > 1

    def _tried(self, role: Role, dims: Dims) -> Distribution | Exception | None:
        try:
            return self.rule(role, dims)
        except Exception as error:
            return error


def _finite(number: object) -> bool:
    """Finite, and so is its square: variances are what everything else is computed from."""
    try:
        return math.isfinite(number * number)  # type: ignore[operator]  # what a user's recipe put there
    except (TypeError, ValueError, OverflowError):
        return False
