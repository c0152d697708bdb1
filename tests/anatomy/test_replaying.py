"""Which features of a fused matrix are queries, keys and values, however they are cut, put together and rotated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initlab
from initlab.api.looking import passed
from initlab.recipes import Constant, Dims, Distribution, Normal, Role
from initlab.wiring import Attention

V, C, H, S = 50, 24, 3, 8


def side_by_side(x: Tensor) -> list[Tensor]:
    return [each.unflatten(-1, (H, S)) for each in x.split(C, -1)]


def by_head(x: Tensor) -> list[Tensor]:
    return list(x.view(*x.shape[:2], H, 3 * S).chunk(3, -1))


def by_head_and_part(x: Tensor) -> list[Tensor]:
    return list(x.view(*x.shape[:2], H, 3, S).unbind(3))


def by_part(x: Tensor) -> list[Tensor]:
    return list(x.view(*x.shape[:2], 3, H, S).permute(2, 0, 1, 3, 4))


def values_first(x: Tensor) -> list[Tensor]:
    v, k, q = x.chunk(3, -1)
    return [each.reshape(*x.shape[:2], H, S) for each in (q, k, v)]


def halves(x: Tensor) -> Tensor:
    one, other = x.chunk(2, -1)
    angle = torch.arange(x.shape[1])[:, None, None] * torch.linspace(1, 0.1, S // 2)
    turned = torch.cat([-other, one], -1)
    return x * torch.cat([angle.cos()] * 2, -1) + turned * torch.cat([angle.sin()] * 2, -1)


def complex_(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[1])[:, None, None] * torch.linspace(1, 0.1, S // 2)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(3)


def partly(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[1])[:, None, None] * torch.linspace(1, 0.1, S // 2)
    one, other = x[..., ::2][..., :2], x[..., 1::2][..., :2]
    cos, sin = angle.cos()[..., :2], angle.sin()[..., :2]
    turned = torch.stack([one * cos - other * sin, one * sin + other * cos], -1).flatten(3)
    return torch.cat([turned, x[..., 4:]], -1)


class Model(nn.Module):
    def __init__(self, cut: Callable[[Tensor], list[Tensor]], turn: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.turn = cut, turn
        self.embed, self.head = nn.Embedding(V, C), nn.Linear(C, V, bias=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(C), "mix": nn.Linear(C, 3 * C), "out": nn.Linear(C, C)})
            for _ in range(2)
        )

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            q, k, v = self.cut(block["mix"](block["norm"](x)))
            if self.turn is not None:
                q, k = self.turn(q), self.turn(k)
            z = F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), is_causal=True)
            x = x + block["out"](z.transpose(1, 2).flatten(2))
        return self.head(x)


WOVEN = [[(3 * S * head + S * part, 3 * S * head + S * (part + 1)) for head in range(H)] for part in range(3)]
TOGETHER = [[(part * C, (part + 1) * C)] for part in range(3)]


@pytest.mark.parametrize("turn", [None, halves, complex_, partly])
@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (side_by_side, TOGETHER),
        (by_part, TOGETHER),
        (by_head, WOVEN),
        (by_head_and_part, WOVEN),
        (values_first, TOGETHER[::-1]),
    ],
)
def test_the_rows_of_each_part_are_found(
    cut: Callable[[Tensor], list[Tensor]],
    expected: list[list[tuple[int, int]]],
    turn: Callable[[Tensor], Tensor] | None,
) -> None:
    model = Model(cut, turn)
    (wiring,) = passed(model).wirings
    bodies = [branch.body for branch in wiring.branches()]
    assert len(bodies) == 2
    for body in bodies:
        assert isinstance(body, Attention)
        assert [list(each.places) for each in (body.query, body.key, body.value)] == expected


@pytest.mark.parametrize(("cut", "expected"), [(by_head, WOVEN), (values_first, TOGETHER[::-1])])
def test_a_recipe_is_drawn_into_the_rows_that_are_queries(
    cut: Callable[[Tensor], list[Tensor]], expected: list[list[tuple[int, int]]]
) -> None:
    def mine(role: Role, dims: Dims) -> Distribution:
        return Constant(0.0) if role == Role.ATTN_Q else Normal(0.1)

    model = Model(cut, halves)
    initlab.apply_recipe(model, mine)
    weight = model.get_parameter("blocks.1.mix.weight").detach()
    zero = torch.zeros(3 * C, dtype=torch.bool)
    for first, end in expected[0]:
        zero[first:end] = True
    assert torch.equal((weight == 0).all(1), zero)
