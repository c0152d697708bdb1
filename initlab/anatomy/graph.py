"""What one pass of a model did: its tensors, the operations between them, and the modules around these.

No tensor is kept: a value remembers its shape, where it came from, its root mean square, and a number if it is one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from initlab.anatomy.operations import Operation, words

Where = Literal["in", "out"]


# after these a feature is a mixture of others: what a skip connection never passes
MIXING = words(
    "linear matmul addmm baddbmm addbmm einsum bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
    "convolution scaled_dot_product_attention lstm gru rnn_tanh rnn_relu fft rfft irfft ifft cumsum grouped_mm "
    "flex_attention opaque avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d embedding_bag tensordot inner "
    "outer multi_dot chain_matmul _grouped_mm"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor was seen: entering (`in`) or leaving (`out`) the call-th use of a module."""

    module: str
    where: Where
    call: int = 0


@dataclass(slots=True, eq=False, repr=False)
class Value:
    """A tensor of the pass.

    Attributes:
        index: its number, in the order of the pass.
        shape: of the tensor.
        floating: whether it holds floating-point or complex numbers.
        op: what gave it; None for a parameter, a buffer, an input, or a constant.
        kind: where it came from if `op` is None.
        name: dotted name of a parameter or buffer.
        output: its place among what `op` gave.
        before: bits of the values it was computed from, itself included.
        flowing: bits of those that its gradient flows back to: not through `detach`, nor out of `no_grad`.
        mixed: bits of those that it was computed from through a MIXING operation.
        number: the one that every element is, of a tensor that no input had a part in; None of learned ones but single
            elements, and of large ones.
        data: an input of the model had a part in it.
        learned: a parameter had a part in it.
        constant: of indices into a table: they are all the same.
        rms: root mean square; NaN where it wasn't taken.
        table: of what no input and nothing that is trained had a part in, and something was multiplied with.
        uneven: of what no input had a part in, added to or taken from something: how much the elements of its last row
            differ, but for those that mask; NaN elsewhere.
    """

    index: int
    shape: tuple[int, ...]
    floating: bool
    op: Op | None = None
    kind: Literal["op", "parameter", "buffer", "input", "constant"] = "constant"
    name: str = ""
    output: int = 0
    before: int = 0
    flowing: int = 0
    mixed: int = 0
    number: float | None = None
    data: bool = False
    learned: bool = False
    constant: bool = False
    rms: float = math.nan
    uneven: float = math.nan
    table: Tensor | None = None

    def __repr__(self) -> str:
        return f"<{self.name or (self.op.name if self.op else self.kind)} {self.index}>"

    def after(self, other: Value) -> bool:
        """Whether it was computed from the other, or is the other."""
        return bool(self.before >> other.index & 1)

    def flows(self, other: Value) -> bool:
        """Whether its gradient flows back to the other."""
        return bool(self.flowing >> other.index & 1)

    def mixes(self, other: Value) -> bool:
        """Whether it was computed from the other through a MIXING operation."""
        return bool(self.mixed >> other.index & 1)

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(slots=True, eq=False, repr=False)
class Op:
    """One operation.

    Attributes:
        name: see `initlab.anatomy.operations.operation_name`.
        function: what was called.
        inputs: every tensor that it was given, in order, lists opened.
        args: positional arguments, with Values for tensors.
        kwargs: keyword arguments, likewise.
        within: the modules around it, outermost first: (dotted name, ordinal of this call of the operation in it).
        outputs: the tensors that it gave.
        training: whether the innermost module is in train mode.
        seen: of an attention: rows of what it sees, see `_visible`.
        whole: the operation that ran, where this is one of the products that it stands for.
    """

    name: str
    function: Any
    inputs: list[Value]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    within: tuple[tuple[str, int], ...]
    outputs: list[Value] = field(default_factory=list)
    training: bool = False
    seen: Seen | None = None
    whole: Op | None = None

    def __repr__(self) -> str:
        return f"<{self.name} in {self.module or 'the model'}>"

    @property
    def module(self) -> str:
        """Dotted name of the innermost module around it."""
        return self.within[-1][0] if self.within else ""

    def gave(self, value: Value, grad: bool) -> None:
        """Note one of its outputs, and what that was computed from.

        Args:
            value: new in the trace.
            grad: whether it has a gradient.
        """
        bits = mixed = flowing = 0
        for each in self.inputs:
            bits |= each.before
            flowing |= each.flowing
            mixed |= each.mixed
            value.data = value.data or each.data
            value.learned = value.learned or each.learned
        value.before |= bits
        value.flowing |= flowing if grad else 0
        value.mixed = mixed | bits if self.name in MIXING else mixed
        self.outputs.append(value)

    def argument(self, place: int, name: str, otherwise: Any = None) -> Any:
        """Get an argument by position or name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, otherwise)

    def tap(self, owners: Collection[str], value: Value | None = None) -> tuple[str, Operation] | None:
        """Tell where to find one of its inputs again, or without one its output: (module, operation).

        Args:
            owners: modules by which a call may be told, as they are used once.
            value: the input.
        """
        around = [each for each in self.within if each[0] in owners]
        if not around:
            return None
        module, ordinal = around[-1]
        whole = self.whole or self
        if value is None:
            return (module, Operation(self.name, ordinal)) if self.outputs[:1] == whole.outputs[:1] else None
        given = [each for each in whole.inputs if each.floating]
        place = next((i for i, each in enumerate(given) if each is value), None)
        return None if place is None else (module, Operation(self.name, ordinal, place))


@dataclass(frozen=True, slots=True)
class Seen:
    """What the rows of an attention see, and whether something that differs from key to key is added to its scores."""

    causal: bool
    whole: bool  # every row sees every key
    window: int | None
    bias: bool


class Trace:
    """Everything that one pass did, in order."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.places: dict[Value, list[Place]] = defaultdict(list)
        self.at: dict[Place, Value] = {}
        self.order: dict[str, int] = {}  # of the first use of each module
        self.outputs: list[Value] = []
        self.strangers: list[Tensor] = []  # trainable, and none of the model's parameters

    def readers(self) -> dict[Value, list[Op]]:
        """List the operations that are given each value."""
        found: dict[Value, list[Op]] = defaultdict(list)
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                found[value].append(op)
        return found
