"""Rotary positions, in the layouts that people write, and wrong in the ways that they get wrong."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import initlab

D, HEADS = 32, 2
HS = D // HEADS
WRONG = ("no sine", "halves with neighbours' tables", "both signs", "along the heads", "nothing turns")


def halves(x, cos, sin):
    one, other = x.chunk(2, -1)
    return x * cos + torch.cat([-other, one], -1) * sin


def tables(T: int, how: str):
    angles = torch.arange(T)[:, None] * 100.0 ** (-torch.arange(HS // 2) / (HS // 2))
    if how in ("neighbours", "halves with neighbours' tables"):
        angles = angles.repeat_interleave(2, -1)
    elif how not in ("complex", "parts"):
        angles = torch.cat([angles, angles], -1)
    if how == "nothing turns":
        angles = angles[3:4].expand(T, -1) * 1.0
    return angles.cos(), angles.sin()


def rotated(x, how: str):
    """(B, heads, T, HS)."""
    cos, sin = tables(x.shape[-2], how)
    match how:
        case "neighbours":
            return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sin
        case "complex":
            return torch.view_as_real(
                torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)
            ).flatten(-2)
        case "parts":
            one, other = x.chunk(2, -1)
            return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)
        case "half of the head":
            return torch.cat(
                [halves(x[..., : HS // 2], *(each[..., : HS // 2] for each in quarter(x))), x[..., HS // 2 :]], -1
            )
        case "no sine":
            one, other = x.chunk(2, -1)
            return x * cos + torch.cat([other, one], -1) * sin
        case "both signs":
            one, other = x.chunk(2, -1)
            return x * cos + torch.cat([-other, -one], -1) * sin
        case "along the heads":
            return halves(x.transpose(1, 2), *(each[:HEADS] for each in (cos, sin))).transpose(1, 2)
    return halves(x, cos, sin)


def quarter(x):
    angles = torch.arange(x.shape[-2])[:, None] * 100.0 ** (-torch.arange(HS // 4) / (HS // 4))
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


class Attention(nn.Module):
    def __init__(self, how: str, which: str, fused: bool):
        super().__init__()
        self.how, self.which, self.fused = how, which, fused
        self.q, self.k, self.v, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))

    def forward(self, x):
        q, k, v = (each(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        q, k, v = (
            rotated(each, self.how) if name in self.which else each for each, name in zip((q, k, v), "qkv", strict=True)
        )
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mask = torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1)
            y = (q @ k.mT / math.sqrt(HS) + mask).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, how: str, which: str = "qk", fused: bool = True):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(64, D), nn.LayerNorm(D), nn.Linear(D, 64)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(D), Attention(how, which, fused)) for _ in range(2))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


def turned(*args, **kwargs):
    torch.manual_seed(0)
    found = initlab.probe(Model(*args, **kwargs), torch.randint(64, (2, 24)), progress=False)
    (finding,) = found.judge(select=["WIR010"])
    assert (finding.status == "fail") == bool(set(found.wiring["turned"]) - {""})
    return set(found.wiring["turned"])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("how", ["halves", "neighbours", "complex", "parts", "half of the head"])
def test_rotations_are_right_in_every_layout(how, fused):
    assert turned(how, fused=fused) == {""}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("how", WRONG)
def test_what_is_no_rotation_by_position_is_said(how, fused):
    still = how in ("along the heads", "nothing turns")
    assert turned(how, fused=fused) == {"still" if still else "uneven"}


@pytest.mark.parametrize(("which", "said"), [("q", "queries"), ("k", "keys"), ("qkv", "values"), ("", "")])
def test_one_of_two_or_three_is_said(which, said):
    assert turned("halves", which=which) == {said}
