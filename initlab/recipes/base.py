"""A recipe is data: what each parameter is drawn from, how the model is wired, and what Adam multiplies by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from initlab.errors import RecipeError
from initlab.options import shown, whole
from initlab.recipes.distributions import (
    NUMBERS,
    Constant,
    Distribution,
    Formula,
    Normal,
    Orthogonal,
    TruncNormal,
    Uniform,
    finite,
)
from initlab.recipes.formulas import evaluated, parsed

__all__ = [
    "Adam",
    "Base",
    "Constant",
    "Dims",
    "Distribution",
    "Formula",
    "Normal",
    "Orthogonal",
    "Recipe",
    "Role",
    "Rule",
    "TruncNormal",
    "Uniform",
]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Dims:
    """Sizes that a recipe may depend on.

    `fan_in` and `fan_out` are those of one matrix: each of q, k and v counts by itself when they are fused. For a
    bias they are those of the matrix it belongs to. `tied`: the head is the token embedding. `base_layer`,
    `base_embd` and `base_head` are sizes of the model that the rates were tuned on (see `Base`), which a recipe fills
    in.
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
    base_layer: int = 0
    base_embd: int = 0
    base_head: float = 0

    def __call__(self, text: str) -> Formula:
        """Evaluate an expression over these sizes, as in `dims("0.02 / sqrt(2 * n_layer)")`.

        Numbers, names, + - * / // **, comparisons, `a if b else c`, sqrt, log, min and max; see
        `initlab.recipes.formulas`.

        Raises:
            RecipeError: the expression doesn't evaluate to a number.
        """
        try:
            tree, used = parsed(text)
            names = {name: getattr(self, name) for name in used if name in self.__slots__}
            if not all(names.get(name, 1) for name in _BASES):
                raise RecipeError(f"formula {text!r} is relative to a base, and the recipe has none: base=Base(…)")
            value = float(evaluated(tree, names))
        except RecipeError:
            raise
        except Exception as error:
            known = ", ".join(self.__slots__)
            raise RecipeError(f"formula {text!r} can't be evaluated: {error}; names: {known}") from None
        return Formula(value, text)


_BASES = ("base_layer", "base_embd", "base_head")


@dataclass(frozen=True, slots=True)
class Adam:
    """What Adam's settings for one parameter are multiplied with; 1 where they are the run's own.

    Attributes:
        lr: of the learning rate.
        weight_decay: of AdamW's decay, which is multiplied with the learning rate once more as it is applied.
        eps: of the number that is added to the root of the second moment.
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """Sizes of the model that rates were tuned on: there, a recipe's multipliers are 1.

    Attributes:
        n_layer: blocks.
        n_embd: width.
        head_size: features of a head. None: those of the model itself, whose heads don't grow with its width.
    """

    n_layer: int
    n_embd: int
    head_size: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "head_size" and value is None:
                continue
            if not whole(value) or value < 1:
                raise RecipeError(f"the base's {field.name} is {shown(value)}; expected a whole number from 1 on")
            object.__setattr__(self, field.name, int(value))


Rule = Callable[[Role, Dims], Distribution]
Wire = Callable[[Dims], Mapping[str, Any]]
Optimizer = Callable[[Role, Dims], Adam]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """An init scheme in up to three parts: pure data, testable without a model.

    Attributes:
        id: names its source where sources disagree.
        family: under which it is listed.
        summary: one sentence.
        source: where the numbers were read.
        rule: what a parameter of a role and size is drawn from.
        wiring: options of the model that belong to it, by name of NanoGPTConfig's, for sizes whose `layer` is a block;
            one that differs from block to block is an option of each. None: any wiring.
        optimizer: what Adam's settings for a parameter of a role and size are multiplied with. None: nothing.
        base: what its formulas are relative to, where they are. None: the model itself.
        note: what of the source is left out, or written in an equivalent way.
    """

    id: str
    family: str
    summary: str
    source: str
    rule: Rule
    wiring: Wire | None = None
    optimizer: Optimizer | None = None
    base: Base | None = None
    note: str = ""

    def __call__(self, role: Role, dims: Dims) -> Distribution:
        """What a parameter of this role is drawn from; `attn_q`, `attn_k`, `attn_v` as `attn_qkv` unless told apart.

        Raises:
            RecipeError: an unknown role, the recipe has no answer for it, or its answer isn't a finite distribution.
        """
        if role not in _ROLES:
            raise RecipeError(f"unknown role {role!r}; expected one of {', '.join(Role)}")
        dims = self.based(dims)
        if role in QKV and not self.knows(role, dims):
            role = Role.ATTN_QKV
        try:
            value = self.rule(Role(role), dims)
        except RecipeError:
            raise
        except (Exception, SystemExit) as error:
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
        expected, lowest = NUMBERS.get(type(value), ("finite, non-negative", 0.0))
        if not all(finite(number) and number >= lowest for number in numbers):
            raise RecipeError(f"recipe {self.id} returned {value!r} for role {role}; expected {expected} numbers")
        return value

    def at(self, base: Base | None) -> Recipe:
        """Take the recipe relative to another base; as it is where it is relative to none.

        Args:
            base: None: its own.

        Raises:
            RecipeError: it is no Base.
        """
        if not isinstance(base, Base | None):
            raise RecipeError(f"base is {shown(base)}; expected initlab.recipes.Base(n_layer=…, n_embd=…)")
        return self if base is None or self.base is None else replace(self, base=base)

    def based(self, dims: Dims) -> Dims:
        """Fill in the base, where the recipe has one.

        Args:
            dims: any.
        """
        if self.base is None:
            return dims
        base, own = self.base, dims.n_embd / max(dims.n_head, 1)
        head = own if base.head_size is None else base.head_size
        return replace(dims, base_layer=base.n_layer, base_embd=base.n_embd, base_head=head)

    def adam(self, role: Role, dims: Dims) -> Adam:
        """Say what Adam's settings for a parameter of this role are multiplied with.

        Args:
            role: of the parameter.
            dims: its sizes.

        Raises:
            RecipeError: the recipe has no answer, or one that isn't made of finite numbers from 0 on.
        """
        if self.optimizer is None:
            return Adam()
        try:
            found = self.optimizer(Role(role), self.based(dims))
        except RecipeError:
            raise
        except (Exception, SystemExit) as error:
            raise RecipeError(
                f"the optimizer part of {self.id} failed on role {role}: {type(error).__name__}: {error}"
            ) from error
        numbers = [getattr(found, field.name) for field in fields(Adam)] if isinstance(found, Adam) else [math.nan]
        if not all(finite(number) and number >= 0 for number in numbers):
            raise RecipeError(
                f"the optimizer part of {self.id} returned {found!r} for role {role}; expected Adam(lr=…) of finite "
                "numbers from 0 on"
            )
        return found

    def wired(self, dims: Dims, blocks: int | None = None) -> dict[str, Any]:
        """Evaluate the wiring: a value by option, or a tuple of one for each block where they differ.

        Args:
            dims: sizes of the model.
            blocks: how many of the first to evaluate; None: all.

        Raises:
            RecipeError: it fails, or isn't the same options for every block.
        """
        if self.wiring is None:
            return {}
        layers = range(max(dims.n_layer if blocks is None else blocks, 1))
        try:
            found = [self.wiring(self.based(replace(dims, layer=layer))) for layer in layers]
            return {name: _same(tuple(block[name] for block in found)) for name in found[0]}
        except RecipeError:
            raise
        except (Exception, SystemExit) as error:
            raise RecipeError(f"the wiring of {self.id} failed: {type(error).__name__}: {error}") from error

    def knows(self, role: Role, dims: Dims) -> bool:
        """Tell whether the rule has an answer for this role that isn't the one for whatever it never heard of.

        Args:
            role: asked for.
            dims: asked with.
        """
        own, unheard = (self._tried(each, dims) for each in (Role(role), Role.OTHER))
        if isinstance(own, Exception | SystemExit):  # of this role alone: a mistake in what it says of it, to be shown
            return not isinstance(unheard, Exception | SystemExit) and unheard is not None
        return own is not None and own != unheard

    def splits(self, dims: Dims) -> bool:
        """Tell whether the rule tells q, k and v apart.

        Args:
            dims: asked with.
        """
        return len({self(role, dims) for role in QKV}) > 1

    def _tried(self, role: Role, dims: Dims) -> Distribution | Exception | SystemExit | None:
        try:
            return self.rule(role, self.based(dims))
        except (Exception, SystemExit) as error:
            return error


def _same(values: tuple[Any, ...]) -> Any:
    return values[0] if all(value == values[0] for value in values) else values
