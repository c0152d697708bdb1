"""Small models whose attention is computed in other ways, each with its scores written out in float64."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

V, T, S, C, NH, B = 19, 37, 11, 16, 4, 3
HS = C // NH


def heads(x: np.ndarray, n_head: int = NH) -> np.ndarray:
    return x.reshape(*x.shape[:2], n_head, -1).transpose(0, 2, 1, 3)


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


class Model(nn.Module):
    """One block: x + attn(x), and logits of the sum."""

    def __init__(self, attn: nn.Module):
        super().__init__()
        self.wte = nn.Embedding(V, C)
        self.block = Block(attn)
        self.lm_head = nn.Linear(C, V)

    def forward(self, idx: Tensor) -> Tensor:
        return self.lm_head(self.block(self.wte(idx)))

    def reference(self, idx: Tensor) -> dict[str, np.ndarray]:
        """q, k, v (B, nh, T, hs), scores (B, nh, T, S) and what of them is visible, by hand."""
        return self.block.attn.reference(array(self.wte.weight)[idx.numpy()])


class Block(nn.Module):
    def __init__(self, attn: nn.Module):
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x)


class Attn(nn.Module):
    """Projections of q, k and v; a kind says what becomes of them."""

    n_kv = NH

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(C, C), nn.Linear(C, C)
        self.k, self.v = (nn.Linear(C, self.n_kv * HS) for _ in range(2))

    def parts(self, x: Tensor, other: Tensor | None = None) -> list[Tensor]:
        other = x if other is None else other
        return [
            f(y).unflatten(-1, (-1, HS)).transpose(1, 2) for f, y in ((self.q, x), (self.k, other), (self.v, other))
        ]

    def joined(self, z: Tensor) -> Tensor:
        return self.out(z.transpose(1, 2).flatten(2))

    def by_hand(self, x: np.ndarray, other: np.ndarray | None = None) -> dict[str, np.ndarray]:
        other = x if other is None else other
        pairs = (("q", self.q, x), ("k", self.k, other), ("v", self.v, other))
        found = {name: y @ array(f.weight).T + array(f.bias) for name, f, y in pairs}
        return {name: heads(y, y.shape[-1] // HS) for name, y in found.items()}


CAUSAL = np.tril(np.ones((T, T), bool))


class Rotary(Attn):
    """Separate projections, rotary positions, causal `scaled_dot_product_attention`."""

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(T)[:, None] / 100.0 ** (torch.arange(0, HS, 2) / HS)
        self.register_buffer("turn", torch.polar(torch.ones_like(angle), angle))

    def rotated(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * self.turn[: x.shape[2]]).flatten(-2).to(x)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        return self.joined(F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v, is_causal=True))

    def reference(self, x: np.ndarray) -> dict[str, np.ndarray]:
        found = self.by_hand(x)
        for name in "qk":
            y = found[name]
            angle = np.arange(T)[:, None] / 100.0 ** (np.arange(0, HS, 2) / HS)
            even, odd = y[..., ::2].copy(), y[..., 1::2].copy()
            y[..., ::2] = even * np.cos(angle) - odd * np.sin(angle)
            y[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
        scores = found["q"] @ found["k"].swapaxes(2, 3) / math.sqrt(HS)
        return found | {"scores": scores, "visible": CAUSAL}


class Grouped(Attn):
    """Two queries to a key, a window of 8 keys as a boolean mask, and a scale of its own."""

    n_kv = 2

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(T, T, dtype=torch.bool).tril() & torch.ones(T, T).triu(-7).bool())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=0.3, enable_gqa=True)
        return self.joined(z)

    def reference(self, x: np.ndarray) -> dict[str, np.ndarray]:
        found = self.by_hand(x)
        scores = 0.3 * np.stack([found["q"][:, h] @ found["k"][:, h // 2].swapaxes(1, 2) for h in range(NH)], 1)
        return found | {"scores": scores, "visible": CAUSAL & np.triu(np.ones((T, T), bool), -7)}


class Explicit(Attn):
    """Scores written out, with a learned bias for every distance and an additive causal mask."""

    hidden = -math.inf

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(NH, 2 * T))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        place = torch.arange(T)
        bias = self.bias[:, place - place[:, None] + T]
        mask = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), self.hidden)
        scores = q @ k.transpose(-2, -1) * HS**-0.5 + bias + mask
        return self.joined(F.softmax(scores, dim=-1) @ v)

    def reference(self, x: np.ndarray) -> dict[str, np.ndarray]:
        found, bias = self.by_hand(x), array(self.bias)
        scores = found["q"] @ found["k"].swapaxes(2, 3) / math.sqrt(HS)
        scores += np.array([[[row[j - i + T] for j in range(T)] for i in range(T)] for row in bias])
        return found | {"scores": scores, "visible": CAUSAL}


class Lowest(Explicit):
    """The same, hidden by the largest negative number."""

    hidden = torch.finfo(torch.float32).min


class Steep(Explicit):
    """The same, hidden by -10000, and with logits of std 100: what isn't seen for that is visible all the same."""

    hidden = -10000.0

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.bias.mul_(100)


class Flex(Attn):
    """flex_attention: a window of 5 keys, and a bias for distance that differs by head; two queries to a key."""

    n_kv = 2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        mask = create_block_mask(lambda b, h, i, j: (i >= j) & (i - j < 5), None, None, T, T, device="cpu")
        z = flex_attention(
            q, k, v, score_mod=lambda s, b, h, i, j: s - (i - j) * (h + 1) / 4, block_mask=mask, enable_gqa=True
        )
        return self.joined(z)

    def reference(self, x: np.ndarray) -> dict[str, np.ndarray]:
        found, place = self.by_hand(x), np.arange(T)
        scores = np.stack([found["q"][:, h] @ found["k"][:, h // 2].swapaxes(1, 2) for h in range(NH)], 1)
        scores = scores / math.sqrt(HS) - (place[:, None] - place) * np.arange(1, NH + 1)[:, None, None] / 4
        return found | {"scores": scores, "visible": CAUSAL & np.triu(np.ones((T, T), bool), -4)}


class Padded(Attn):
    """Bidirectional: sequence b sees its first T - 5b keys, by an additive mask."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        there = torch.arange(T) < T - 5 * torch.arange(len(x))[:, None]
        mask = torch.where(there, 0.0, torch.finfo(x.dtype).min)[:, None, None]
        return self.joined(F.scaled_dot_product_attention(q, k, v, mask.to(x)))

    def reference(self, x: np.ndarray) -> dict[str, np.ndarray]:
        found = self.by_hand(x)
        there = np.arange(T) < T - 5 * np.arange(len(x))[:, None]
        scores = found["q"] @ found["k"].swapaxes(2, 3) / math.sqrt(HS)
        return found | {"scores": scores, "visible": there[:, None, None] & np.ones((T, T), bool)}


class Cross(Attn):
    """T queries of the stream, S keys of a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(S, C))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x, self.memory.expand(len(x), S, C))
        return self.joined(F.scaled_dot_product_attention(q, k, v))

    def reference(self, x: np.ndarray) -> dict[str, np.ndarray]:
        found = self.by_hand(x, np.broadcast_to(array(self.memory), (len(x), S, C)))
        scores = found["q"] @ found["k"].swapaxes(2, 3) / math.sqrt(HS)
        return found | {"scores": scores, "visible": np.ones((T, S), bool)}


class Torchs(nn.Module):
    """nn.MultiheadAttention, causal."""

    weights = True

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(C, NH, batch_first=True)
        nn.init.normal_(self.inner.in_proj_weight, 0, 0.5)
        nn.init.normal_(self.inner.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(T, T, dtype=torch.bool).triu(1)
        return self.inner(x, x, x, attn_mask=mask, need_weights=self.weights)[0]

    def reference(self, x: np.ndarray) -> dict[str, np.ndarray]:
        qkv = x @ array(self.inner.in_proj_weight).T + array(self.inner.in_proj_bias)
        q, k, v = (heads(part) for part in np.split(qkv, 3, axis=-1))
        return {"q": q, "k": k, "v": v, "scores": q @ k.swapaxes(2, 3) / math.sqrt(HS), "visible": CAUSAL}


class Weightless(Torchs):
    """The same by `scaled_dot_product_attention`."""

    weights = False
