"""Rotations by position, done again on vectors that are alike everywhere: do scores depend on the distance alone?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from initlab.anatomy.graph import Op, Value
from initlab.anatomy.replaying import Again, OtherError
from initlab.anatomy.walking import factor

_MOST = 64  # positions that are looked at
_STILL = 1e-3  # of a cosine, that nothing moves by
_UNEVEN = 0.1  # of all that scores differ by; tables in bfloat16 leave 0.01


def unlike_a_rotation(product: Op, query: tuple[Value, Value], key: tuple[Value, Value]) -> str:
    """Do again what turned queries and keys by their position, with one vector for all queries and one for all keys.

    After a rotation their cosine depends on how far apart two positions are, and on nothing else.

    Args:
        product: of queries and keys: a matrix product, or a fused attention.
        query: as it enters the product, and what was turned.
        key: likewise.

    Returns:
        `uneven` where it depends on more, `still` where it is the same everywhere, empty where it is right or can't be
        told: something else was done to them than turning.
    """
    given = [_Turned(source, seed).of(value) for seed, (value, source) in enumerate((query, key))]
    if any(each is None for each in given):
        return ""
    cosines = _cosines(product, [query[0], key[0]], [each for each in given if each is not None])
    if cosines is None or min(cosines.shape) < 2 or cosines.shape[0] != cosines.shape[1]:
        return ""
    spread = float(cosines.max() - cosines.min())
    if not spread > _STILL:
        return "still"
    n = len(cosines)
    apart = [cosines.diagonal(place) for place in range(2 - n, n - 1)]
    return "uneven" if max(float(each.max() - each.min()) for each in apart) > _UNEVEN * spread else ""


def _cosines(product: Op, values: list[Value], given: list[Tensor]) -> Tensor | None:
    """(T, T) of the first sequence's first head."""
    if product.name == "matmul":
        data = [each for each in product.inputs if each.data][-2:]
        first, second = (given[values.index(each)] for each in data) if set(data) == set(values) else given
        second = second.transpose(-1, -2)
    elif product.name == "scaled_dot_product_attention":
        first, second = given
    else:
        return None
    rows, columns = (each[(0,) * (each.dim() - 2)][:_MOST] for each in (first, second))
    return torch.nn.functional.normalize(rows, dim=-1) @ torch.nn.functional.normalize(columns, dim=-1).T


class _Turned(Again):
    """Does again what was done to a tensor, tables included, with one random vector in the place of each of its own."""

    def __init__(self, source: Value, seed: int):
        generator = torch.Generator().manual_seed(seed)
        vector = torch.randn(source.shape[-1], generator=generator, dtype=torch.float64, device="cpu")
        super().__init__(source, vector, torch.add, numbers=True)

    def _done(self, value: Value) -> Tensor:
        op = value.op
        if value not in self._known and op is not None:
            found = self._turned(op)
            if found is not None:
                self._known[value] = found
        return super()._done(value)

    def _turned(self, op: Op) -> Tensor | None:
        """Products with tables, differences and negatives, which count here."""
        data = [each for each in op.inputs if each.data and each.floating]
        if op.name == "neg":
            return -self._done(data[0])
        if op.name in ("add", "sub") and len(data) == 2 and "alpha" not in op.kwargs:
            one, other = map(self._done, data)
            return one - other if op.name == "sub" else one + other
        times = factor(op)
        if op.name == "mul" and len(data) == 1 and (times is None or times.vector is not None):
            table = next((each.table for each in op.inputs if each.table is not None), None)
            if table is None:
                raise OtherError
            wide: Any = torch.complex128 if table.is_complex() else torch.float64
            return self._done(data[0]) * table.to("cpu", wide)
        return None
