"""Small language models in the manners of six tutorials: how they keep their sizes, and what their forward returns."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

T, V, D = 24, 61, 16


class Attention(nn.Module):
    """One head, causal by a mask that it keeps where `length` is given."""

    def __init__(self, length: int | None = None):
        super().__init__()
        self.qkv, self.proj = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D)
        if length is not None:
            self.register_buffer("tril", torch.tril(torch.ones(length, length)))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if not hasattr(self, "tril"):
            return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        scores = q @ k.transpose(1, 2) * D**-0.5
        length = x.shape[1]
        scores = scores.masked_fill(self.tril[:length, :length] == 0, float("-inf"))
        return self.proj(scores.softmax(-1) @ v)


class Block(nn.Module):
    def __init__(self, length: int | None = None):
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(D), Attention(length)
        self.ln2, self.mlp = nn.LayerNorm(D), nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Tutorial(nn.Module):
    """Tables, blocks and a head; `reads` gives the logits of every position."""

    def __init__(self, length: int | None = None):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        self.blocks = nn.Sequential(Block(length), Block(length))
        self.ln_f, self.lm_head = nn.LayerNorm(D), nn.Linear(D, V, bias=False)

    def reads(self, idx: Tensor) -> Tensor:
        return self.lm_head(self.hidden(idx))

    def hidden(self, idx: Tensor) -> Tensor:
        assert idx.shape[1] <= T
        return self.ln_f(self.blocks(self.tokens(idx) + self.positions(torch.arange(idx.shape[1]))))


@dataclass
class Sizes:
    block_size: int = T
    vocab_size: int = V


class LastWithoutTargets(Tutorial):
    """A config in a dataclass; without targets the last position alone."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Sizes()

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.hidden(idx)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, V), targets.reshape(-1), ignore_index=-1)


class PlainAttribute(Tutorial):
    """`block_size` on the model itself; -1 is ignored."""

    def __init__(self) -> None:
        super().__init__(T)
        self.block_size = T

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = self.reads(idx)
        loss = None if targets is None else F.cross_entropy(logits.view(-1, V), targets.reshape(-1), ignore_index=-1)
        return logits, loss


class FlattensLogits(Tutorial):
    """Nothing is declared; with targets the logits come back as (B*T, V), and -1 is no target."""

    def __init__(self) -> None:
        super().__init__(T)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = self.reads(idx)
        if targets is None:
            return logits, None
        B, length, channels = logits.shape
        logits = logits.view(B * length, channels)
        return logits, F.cross_entropy(logits, targets.reshape(B * length))


class KeepsItsLoss(nn.Module):
    """Sizes in `params`, rotary caches, the loss in an attribute; without targets the last position alone."""

    def __init__(self) -> None:
        super().__init__()
        self.params = SimpleNamespace(dim=D, vocab_size=V, max_seq_len=T)
        self.last_loss: Tensor | None = None
        self.tok_embeddings, self.layers = nn.Embedding(V, D), nn.ModuleList([Block(), Block()])
        self.norm, self.output = nn.LayerNorm(D), nn.Linear(D, V, bias=False)
        angles = torch.outer(torch.arange(T), 1.0 / 100 ** torch.arange(0, 1, 2 / D))
        self.register_buffer("freqs_cos", angles.cos(), persistent=False)
        self.register_buffer("freqs_sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        x = self.tok_embeddings(tokens)
        cos, sin = self.freqs_cos[: tokens.shape[1]], self.freqs_sin[: tokens.shape[1]]
        even, odd = x[..., ::2], x[..., 1::2]
        x = torch.cat([even * cos - odd * sin, even * sin + odd * cos], -1)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        if targets is None:
            return self.output(x[:, [-1], :])
        logits = self.output(x)
        self.last_loss = F.cross_entropy(logits.view(-1, V), targets.reshape(-1))
        return logits


class PlainLoss(Tutorial):
    """Every position's logits, and a cross entropy that knows no -1."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Sizes()

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = self.reads(idx)
        loss = None if targets is None else F.cross_entropy(logits.view(-1, V), targets.reshape(-1))
        return logits, loss


class PositionsFirst(nn.Module):
    """The position table is registered first, `context_length` is a plain attribute, and heads keep their masks."""

    def __init__(self) -> None:
        super().__init__()
        self.context_length = T
        self.position_embed, self.token_embed = nn.Embedding(T, D), nn.Embedding(V, D)
        self.attn_blocks = nn.ModuleList([Block(T), Block(T)])
        self.layer_norm, self.lm_head = nn.LayerNorm(D), nn.Linear(D, V)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.token_embed(idx) + self.position_embed(torch.arange(idx.shape[1]))
        for block in self.attn_blocks:
            x = block(x)
        logits = self.lm_head(self.layer_norm(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.reshape(-1, V), targets.reshape(-1).long())


class LossAlone(Tutorial):
    """With targets the loss and nothing else."""

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        logits = self.reads(idx)
        return logits if targets is None else F.cross_entropy(logits.view(-1, V), targets.reshape(-1))


TUTORIALS = (LastWithoutTargets, PlainAttribute, FlattensLogits, KeepsItsLoss, PlainLoss, PositionsFirst, LossAlone)
