"""Transformers written by hand, small, in the layouts that people write: what `any_model.py` looks at.

Each is what a user might bring; none knows of initlab. `CASES` says of each what it has, so that what wasn't found
counts as missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

D, HEADS, T, V, LAYERS = 128, 4, 64, 256, 3
HEAD = D // HEADS


@dataclass(frozen=True, slots=True)
class Case:
    """One model of the benchmark.

    Attributes:
        group: of the table.
        name: within its group.
        make: builds it, from torch's random state.
        attention: blocks with attention, over all stacks; 0 for none.
        mlp: blocks with an MLP.
        stream: whether its blocks add what they make to one stream.
        plain: whether blocks are attention and MLP, in any norm placement.
        why: what it is, where that isn't plain.
        train: measured in training mode.
    """

    group: str
    name: str
    make: Callable[[], nn.Module]
    attention: int = LAYERS
    mlp: int = LAYERS
    stream: bool = True
    plain: bool = True
    why: str = ""
    train: bool = False


class RMSNorm(nn.Module):
    def __init__(self, d: int = D):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class UnitOffsetNorm(nn.Module):
    """Gain 1 + w, as Gemma's: its weight is 0 at init, and nothing is closed."""

    def __init__(self, d: int = D):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.w)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions, on halves of a head."""
    one, two = x.chunk(2, -1)
    cos, sin = angles[: x.shape[-2]].cos(), angles[: x.shape[-2]].sin()
    return torch.cat([one * cos - two * sin, one * sin + two * cos], -1)


class Attention(nn.Module):
    """Heads with what the flags say; `memory` makes it cross-attention."""

    def __init__(
        self, *, causal: bool = True, kv_heads: int = HEADS, explicit: bool = False, rotary: bool = False,
        qk_norm: bool = False, window: int = 0, alibi: bool = False, relative: bool = False, scale: float | None = None,
        cap: float = 0.0, fused: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.causal, self.kv_heads, self.explicit, self.window, self.cap = causal, kv_heads, explicit, window, cap
        self.scale = HEAD**-0.5 if scale is None else scale
        if fused:
            self.qkv = nn.Linear(D, D + 2 * kv_heads * HEAD, bias=False)
        else:
            self.wq = nn.Linear(D, D, bias=False)
            self.wk = nn.Linear(D, kv_heads * HEAD, bias=False)
            self.wv = nn.Linear(D, kv_heads * HEAD, bias=False)
        self.wo = nn.Linear(D, D, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(HEAD), RMSNorm(HEAD)) if qk_norm else (nn.Identity(), nn.Identity())
        steps = torch.arange(T)
        if rotary:
            speeds = 10000.0 ** (-torch.arange(HEAD // 2) / (HEAD // 2))
            self.register_buffer("freqs", steps[:, None] * speeds, persistent=False)
        if alibi:
            slopes = 2.0 ** (-8 * torch.arange(1, HEADS + 1) / HEADS)
            self.register_buffer("bias", slopes[:, None, None] * (steps[None, :] - steps[:, None]), persistent=False)
        if relative:
            self.relative = nn.Embedding(32, HEADS)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        source = x if memory is None else memory
        (B, S, _), M = x.shape, source.shape[1]
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).split([D, self.kv_heads * HEAD, self.kv_heads * HEAD], -1)
        else:
            q, k, v = self.wq(x), self.wk(source), self.wv(source)
        q = self.q_norm(q.view(B, S, HEADS, HEAD)).transpose(1, 2)
        k = self.k_norm(k.view(B, M, self.kv_heads, HEAD)).transpose(1, 2)
        v = v.view(B, M, self.kv_heads, HEAD).transpose(1, 2)
        if hasattr(self, "freqs"):
            q, k = rotate(q, self.freqs), rotate(k, self.freqs)
        k, v = (each.repeat_interleave(HEADS // self.kv_heads, 1) for each in (k, v))
        mask = self.mask(S, M, x.device)
        if self.explicit or self.cap:
            scores = q @ k.transpose(-2, -1) * self.scale
            scores = self.cap * torch.tanh(scores / self.cap) if self.cap else scores
            y = torch.softmax(scores if mask is None else scores + mask, -1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.wo(y.transpose(1, 2).reshape(B, S, D))

    def mask(self, S: int, M: int, device: torch.device) -> Tensor | None:
        far = torch.arange(S, device=device)[:, None] - torch.arange(M, device=device)
        mask = torch.zeros(S, M, device=device)
        if self.causal:
            mask = mask.masked_fill(far < 0, -math.inf)
        if self.window:
            mask = mask.masked_fill(far >= self.window, -math.inf)
        if hasattr(self, "bias"):
            return mask + self.bias[:, :S, :M]
        if hasattr(self, "relative"):
            return mask + self.relative(far.clamp(-16, 15) + 16).permute(2, 0, 1)
        return mask if self.causal or self.window else None


class MLP(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor] = F.gelu, bias: bool = True):
        super().__init__()
        self.act, self.up, self.down = act, nn.Linear(D, 4 * D, bias=bias), nn.Linear(4 * D, D, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class GatedMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3, self.w2 = (nn.Linear(*size, bias=False) for size in ((D, 3 * D), (D, 3 * D), (3 * D, D)))

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Pre-norm; its kinds override `forward`, and say in `norms` how many they have."""

    norms = 2

    def __init__(self, layer: int = 0, norm: type[nn.Module] = nn.LayerNorm, mlp: type[nn.Module] = MLP, **heads: Any):
        super().__init__()
        self.norm = nn.ModuleList([norm(D) for _ in range(self.norms)])
        self.attn, self.mlp, self.layer = Attention(**heads), mlp(), layer

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm[0](x))
        return x + self.mlp(self.norm[1](x))


class Post(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm[0](x + self.attn(x))
        return self.norm[1](x + self.mlp(x))


class Sandwich(Block):
    norms = 4

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm[1](self.attn(self.norm[0](x)))
        return x + self.norm[3](self.mlp(self.norm[2](x)))


class OutputNorm(Block):
    """Norms on what is written alone, as OLMo 2's."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm[0](self.attn(x))
        return x + self.norm[1](self.mlp(x))


class Parallel(Block):
    norms = 1

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm[0](x)
        return x + self.attn(h) + self.mlp(h)


class LayerScale(Block):
    def __init__(self, layer: int = 0, start: float = 0.1, **more: Any):
        super().__init__(layer, **more)
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((D,), start)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm[0](x))
        return x + self.gamma_2 * self.mlp(self.norm[1](x))


class ReZero(Block):
    norms = 0

    def __init__(self, layer: int = 0, **more: Any):
        super().__init__(layer, **more)
        self.resweight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.resweight * self.attn(x)
        return x + self.resweight * self.mlp(x)


class DeepNorm(Block):
    alpha = (2 * LAYERS) ** 0.25

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm[0](self.alpha * x + self.attn(x))
        return self.norm[1](self.alpha * x + self.mlp(x))


class Multiplied(Block):
    """Writes times a number of the config, as MiniCPM's and Granite's."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm[0](x)) * 0.22
        return x + self.mlp(self.norm[1](x)) * 0.22


class ReluAfterAdd(Block):
    """Keeps no plain stream: what is added goes through a ReLU, as in a ResNet."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x + self.attn(self.norm[0](x)))
        return F.relu(x + self.mlp(self.norm[1](x)))


class DropPath(Block):
    """Stochastic depth: in training a block is left out for some sequences."""

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.ones(len(x), 1, 1)
        if self.training:
            keep = (torch.rand(len(x), 1, 1) > 0.2).float() / 0.8
        x = x + keep * self.attn(self.norm[0](x))
        return x + keep * self.mlp(self.norm[1](x))


def init(module: nn.Module) -> None:
    """Normal, about 1 over the square root of the width, as the usual 0.02 is of a larger model."""
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d):
        nn.init.normal_(module.weight, std=0.06)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


class GPT(nn.Module):
    """Tokens and learned positions, blocks, norm, head."""

    def __init__(
        self, block: Callable[[int], nn.Module] = Block, *, positions: bool = True, tied: bool = False,
        norm: type[nn.Module] = nn.LayerNorm, multiplier: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.config = SimpleNamespace(block_size=T, vocab_size=V)
        self.multiplier = multiplier
        self.tok = nn.Embedding(V, D)
        self.pos = nn.Embedding(T, D) if positions else None
        self.blocks = nn.ModuleList([block(layer) for layer in range(LAYERS)])
        self.norm_f, self.head = norm(D), nn.Linear(D, V, bias=False)
        self.apply(init)
        if tied:
            self.head.weight = self.tok.weight

    def forward(self, idx: Tensor) -> Tensor:
        x = self.tok(idx) * self.multiplier
        if self.pos is not None:
            x = x + self.pos(torch.arange(idx.shape[1], device=idx.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm_f(x))


class Encoder(GPT):
    """Trained on masked tokens, so that every position may see all."""


def gpt(
    block: type[nn.Module] = Block, *, kind: type[GPT] = GPT, model: dict[str, Any] | None = None, **heads: Any
) -> Callable[[], nn.Module]:
    """A maker of a GPT of such blocks."""
    return lambda: kind(lambda layer: block(layer, **heads), **(model or {}))


NOPE: dict[str, Any] = {"positions": False}
LLAMA: dict[str, Any] = {"rotary": True, "norm": RMSNorm, "mlp": GatedMLP}
case = partial(Case, "by-hand")
CASES = [
    case("pre-norm", gpt()),
    case("pre-norm, tied", gpt(model={"tied": True})),
    case("pre-norm, explicit softmax", gpt(explicit=True)),
    case("pre-norm, fused qkv", gpt(fused=True)),
    case("post-norm", gpt(Post)),
    case("post-norm, bidirectional", gpt(Post, kind=Encoder, causal=False)),
    case("sandwich norm", gpt(Sandwich)),
    case("norm on writes alone", gpt(OutputNorm)),
    case("parallel", gpt(Parallel)),
    case("rotary, gated MLP, RMSNorm", gpt(model={**NOPE, "norm": RMSNorm}, **LLAMA)),
    case("grouped queries", gpt(model={**NOPE, "norm": RMSNorm}, kv_heads=2, **LLAMA)),
    case("grouped queries, fused qkv", gpt(model={**NOPE, "norm": RMSNorm}, kv_heads=1, fused=True, **LLAMA)),
    case("QK-norm", gpt(model={**NOPE, "norm": RMSNorm}, qk_norm=True, **LLAMA)),
    case("norm gain 1 + w", gpt(model={"norm": UnitOffsetNorm}, norm=UnitOffsetNorm)),
    case("sliding window", gpt(window=16)),
    case("ALiBi", gpt(model=NOPE, alibi=True)),
    case("relative bias", gpt(model=NOPE, relative=True, explicit=True)),
    case("no positions", gpt(model=NOPE)),
    case("soft cap", gpt(cap=20.0)),
    case("attention scale of its own", gpt(scale=1 / HEAD)),
    case("LayerScale 0.1", gpt(LayerScale)),
    case("LayerScale 0", gpt(LayerScale, start=0.0)),
    case("ReZero", gpt(ReZero)),
    case("DeepNorm", gpt(DeepNorm)),
    case("multipliers", gpt(Multiplied, model={"multiplier": 12.0})),
    case("ReLU after the add", gpt(ReluAfterAdd), why="the sum goes through a ReLU", stream=False, plain=False),
    case("stochastic depth", gpt(DropPath), why="branches left out at random", train=True),
    case("squared ReLU", gpt(mlp=partial(MLP, lambda x: F.relu(x).square(), False))),
    case("tanh", gpt(mlp=partial(MLP, torch.tanh))),
]
