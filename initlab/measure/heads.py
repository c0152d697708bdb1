"""The heads of a model's attentions, from what its modules and operations give."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from initlab.anatomy.operations import Operation
from initlab.anatomy.sites import HeadTap, SiteMap
from initlab.anatomy.tensors import floats
from initlab.measure.attention import (
    ROWS,
    SEQUENCES,
    Found,
    WrittenOut,
    by_input,
    call_statistics,
    flex_statistics,
    head_statistics,
    sequences_in,
    softmax_statistics,
    weight_statistics,
)
from initlab.measure.hearing import Heard, Hearing, tensor_of
from initlab.measure.statistics.taking import Measurements


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of one attention: which, the query rows looked at, and (5, nh): those of `attention.Found`, and of
    `attention.by_input`."""

    tap: HeadTap
    number: int  # of the tap among the model's
    n_rows: int
    per_head: Tensor


class HeadReader:
    """Reads every attention that a model's sites name.

    Args:
        sites: of the model.
        moments: takes statistics of a user's own.
        found: takes what was found of each call of an attention, with the dtype of its tensors.

    Attributes:
        seen: of the first call of each.
        unread: attention that couldn't be read: module -> why.
        hearing: hears the model's operations.
    """

    def __init__(
        self, sites: SiteMap, moments: Measurements, found: Callable[[HeadTap, Found, torch.dtype], None]
    ) -> None:
        self.seen: list[Heads] = []
        self.unread: dict[str, str] = {}
        self.hearing: Hearing | None = None
        self._sites = sites
        self._moments = moments
        self._found = found
        self._calls: Counter[int] = Counter()
        self._written_out: dict[int, WrittenOut] = {}
        self._scores: dict[int, Tensor | None] = {}  # of attention whose weights are still to come

    def wanted(self) -> list[tuple[str, Operation, Heard]]:
        """List the operations that show heads: within a call of which module, and who gets it."""
        return [
            (tap.module, operation, partial(self._hear, number, tap))
            for number, tap in enumerate(self._sites.heads)
            if tap.operation is not None
            for operation in dict.fromkeys(tap.operations)
        ]

    def fused(self) -> list[tuple[str, Callable[[Any], None]]]:
        """List the modules whose output is q, k and v side by side, and who gets it."""
        taps = enumerate(self._sites.heads)
        return [(tap.module, partial(self._take_fused, number, tap)) for number, tap in taps if tap.operation is None]

    def settle(self) -> None:
        """Take the statistics of attention whose values never came."""
        for written in self._written_out.values():
            written.settle()

    def _take_fused(self, number: int, tap: HeadTap, output: Any) -> None:
        qkv = next(floats(output), None)
        if qkv is None or qkv.dim() != 3 or qkv.shape[1] < 2:
            return
        per_head, logits, pattern = head_statistics(qkv, tap.n_head or self._sites.n_head, self._also(number, tap))
        n_rows = min(ROWS, qkv.shape[1] - 1) * min(SEQUENCES, qkv.shape[0])
        self._note(number, tap, Found(per_head, logits, pattern, n_rows=n_rows), qkv.dtype)

    def _also(self, number: int, tap: HeadTap) -> Any:
        """What takes statistics of a user's own, of the first call."""
        return None if self._calls[number] else self._moments.add_heads(number, tap.module)

    def _hear(
        self,
        number: int,
        tap: HeadTap,
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        try:
            if tap.pattern is not None:
                self._weigh(number, tap, operation, tensor_of(operation, args, kwargs, output))
            elif operation == tap.operation:
                self._read(number, tap, args, kwargs, output)
            else:
                self._meet(number, tap, operation, tensor_of(operation, args, kwargs, output))
        except Exception as error:  # of a call that can't be followed; the model's pass goes on
            self.unread[tap.module] = f"{type(error).__name__}: {error}"

    def _read(self, number: int, tap: HeadTap, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Statistics of the operation that is the attention."""
        assert tap.operation is not None
        n_head = tap.n_head or (self.hearing.n_head if self.hearing is not None else 0)
        first = next(floats((*args, *kwargs.values())))
        if tap.operation.name == "flex_attention":
            found = flex_statistics(*args, also=self._also(number, tap), **kwargs)
        elif tap.operation.name != "softmax":
            found = call_statistics(args, kwargs, n_head, self._also(number, tap))
        else:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            found = softmax_statistics(first, output, -1 if dim is None else dim, n_head)
            written = self._written(number, tap)
            if found is not None and written is not None:
                written.meet_softmax(found, sequences_in(first, n_head))
        if found is not None:
            self._note(number, tap, found, first.dtype)

    def _weigh(self, number: int, tap: HeadTap, operation: Operation, x: Tensor | None) -> None:
        """Statistics of scores, and of the weights that come after them."""
        if operation == tap.operation:
            self._scores[number] = x
        scores = self._scores.get(number)
        if operation == tap.pattern and x is not None and scores is not None:
            del self._scores[number]
            found = weight_statistics(scores, x)
            if found is not None:
                self._note(number, tap, found, x.dtype)

    def _meet(self, number: int, tap: HeadTap, operation: Operation, x: Tensor | None) -> None:
        written = self._written(number, tap)
        if x is not None and written is not None:
            written.meet("q" if operation == tap.query else "k" if operation == tap.key else "v", x)

    def _written(self, number: int, tap: HeadTap) -> WrittenOut | None:
        """What waits for the parts of one attention; None where nobody asks for them."""
        also = self._also(number, tap)
        if also is not None and number not in self._written_out:
            self._written_out[number] = WrittenOut(also, tap.value is not None)
        return self._written_out.get(number)

    def _note(self, number: int, tap: HeadTap, found: Found, dtype: torch.dtype) -> None:
        if not self._calls[number]:
            own = by_input(found) if tap.biased else torch.full_like(found.per_head[:2], math.nan)
            self.seen.append(Heads(tap, number, found.n_rows, torch.cat([found.per_head, own])))
        self._calls[number] += 1
        self._found(tap, found, dtype)
