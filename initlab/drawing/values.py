"""What a tensor holds by what was done to it: a distribution that follows through scaling, shifting and copying."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

_SHOWN = 4  # digits


@dataclass(frozen=True, slots=True)
class Value:
    """How the elements of a tensor were made.

    Attributes:
        kind: normal, cut normal, uniform, constant, empty (memory that nothing wrote), given (from outside: a file, an
            array, a tensor made before), computed, or another distribution by torch's name.
        mean, std: of an element; NaN where the kind has none. Of a cut normal those of the whole one.
    """

    kind: str
    mean: float = math.nan
    std: float = math.nan

    @property
    def drawn(self) -> bool:
        """Whether its kind and numbers are all that there is to know: another draw of them is as good."""
        centred = self.kind in ("normal", "cut normal", "uniform") and self.mean == 0 and math.isfinite(self.std)
        return centred or self.kind in ("constant", "empty")

    @property
    def text(self) -> str:
        """`normal(0, 0.02)`, `uniform(-0.1, 0.1)`, `0.5` of a constant, else the kind."""
        if self.kind == "uniform":
            half = self.std * math.sqrt(3)
            return f"uniform({short(self.mean - half)}, {short(self.mean + half)})"
        if self.kind == "constant":
            return short(self.mean)
        return self.kind if math.isnan(self.std) else f"{self.kind}({short(self.mean)}, {short(self.std)})"

    def scaled(self, factor: float) -> Value:
        """Every element times a number."""
        return replace(self, mean=self.mean * factor, std=self.std * abs(factor))

    def shifted(self, by: float) -> Value:
        """A number added to every element."""
        return replace(self, mean=self.mean + by)


EMPTY, GIVEN, COMPUTED = Value("empty"), Value("given"), Value("computed")
_MOVED = frozenset(("clone", "_to_copy", "lift_fresh", "view_copy", "expand_copy", "repeat", "contiguous"))
_CONSTANTS = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "zero": 0.0}
_CONSTANTS |= {"ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}
_OTHERS = frozenset(("exponential", "log_normal", "cauchy", "geometric", "bernoulli", "random", "randint", "randperm"))


def constant(value: float) -> Value:
    """Every element the same."""
    return Value("constant", value, 0.0)


def uniform(low: float, high: float) -> Value:
    """Between two bounds."""
    return Value("uniform", (low + high) / 2, (high - low) / math.sqrt(12))


def short(number: float) -> str:
    """A number of few digits; never -0."""
    return f"{number + 0.0:.{_SHOWN}g}" if math.isfinite(number) else str(number)


def result(operation: str, numbers: Sequence[float | None], values: Sequence[Value]) -> Value:
    """What an operation leaves.

    Args:
        operation: of torch, by name, without the _ of one in place.
        numbers: its arguments by place; None for what is neither a number nor a tensor of one.
        values: of its tensors of more than a number, in order.
    """
    plain = [number for number in numbers if number is not None]
    if operation.startswith(("empty", "new_empty")):
        return EMPTY
    if operation in _CONSTANTS:
        return constant(_CONSTANTS[operation])
    if operation in ("full", "full_like", "new_full", "fill"):
        return constant(plain[-1]) if plain else COMPUTED
    if operation in ("randn", "randn_like"):
        return Value("normal", 0.0, 1.0)
    if operation in ("rand", "rand_like"):
        return uniform(0.0, 1.0)
    if operation == "normal":
        return Value("normal", *(plain + [0.0, 1.0][len(plain) :])[:2])
    if operation == "uniform":
        return uniform(*(plain + [0.0, 1.0][len(plain) :])[:2])
    if operation in _OTHERS:
        return Value(operation)
    if operation == "copy":
        return constant(plain[-1]) if plain else values[-1]
    if operation == "where" and len(values) == 3 and values[1] == values[2]:
        return values[1]  # drawn again where it was too large
    if operation in ("cat", "stack") and len(set(values)) == 1:
        return values[0]
    return _changed(operation, numbers, values[0]) if len(values) == 1 else COMPUTED


def _changed(operation: str, numbers: Sequence[float | None], value: Value) -> Value:
    """What is left of one tensor's distribution."""
    factor = scale(operation, numbers)
    plain = [number for number in numbers if number is not None]
    if factor is not None:
        return value.scaled(factor)
    if value.kind == "empty":
        return value if operation in (*_MOVED, "mul", "div", "add", "sub", "clamp", "erfinv") else COMPUTED
    if operation in _MOVED:
        return value
    if operation in ("add", "sub") and plain:
        return value.shifted(plain[0] if operation == "add" else -plain[0])
    if operation in ("clamp", "clip") and value.kind in ("normal", "cut normal"):
        return replace(value, kind="cut normal")
    if operation == "erfinv" and value.kind == "uniform":
        return Value("cut normal", 0.0, math.sqrt(0.5))  # a normal's quantiles, up to a scale
    return COMPUTED


def scale(operation: str, numbers: Sequence[float | None]) -> float | None:
    """Give the number that an operation multiplies every element with, None where it does something else.

    Args:
        operation: of torch, by name, without the _ of one in place.
        numbers: its arguments by place.
    """
    if operation == "neg":
        return -1.0
    plain = [number for number in numbers if number is not None]
    if operation not in ("mul", "div", "multiply", "divide") or len(plain) != 1:
        return None
    by_number = numbers[0] is None
    if operation in ("mul", "multiply"):
        return plain[0]
    return 1 / plain[0] if by_number and plain[0] else None
