"""A decoder written by hand, as people write theirs: RoPE, RMSNorm, SwiGLU; and ways in which its forward may end."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB = 48


class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


def rotated(x: Tensor) -> Tensor:
    """(B, nh, T, hs), each pair of features turned by its position."""
    T, half = x.shape[-2], x.shape[-1] // 2
    angles = torch.outer(torch.arange(T), 10000.0 ** (-torch.arange(half) / half))
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, hidden = heads, 8 * width // 3
        self.attention_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.w1, self.w3 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        h = self.attention_norm(x)
        q, k, v = (w(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        z = F.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=causal)
        x = x + self.dropout(self.wo(z.transpose(1, 2).flatten(2)))
        h = self.mlp_norm(x)
        return x + self.dropout(self.w2(F.silu(self.w1(h)) * self.w3(h)))


class Decoder(nn.Module):
    """Returns its logits."""

    causal = True

    def __init__(
        self, n_layer: int = 2, n_embd: int = 16, *, heads: int = 2, dropout: float = 0.0, vocab_size: int = VOCAB
    ):
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab_size, n_embd)
        self.layers = nn.ModuleList(Block(n_embd, heads, dropout) for _ in range(n_layer))
        self.norm, self.output = RMSNorm(n_embd), nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(tokens)

    def logits(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, self.causal)
        return self.output(self.norm(x))


def entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Scoring(Decoder):
    """Returns logits and loss, as nanoGPT does."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        logits = self.logits(tokens)
        return logits, None if targets is None else entropy(logits, targets)


class Penalised(Decoder):
    """Adds a term of its own to the loss."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        logits = self.logits(tokens)
        term = 1e-2 * logits.logsumexp(-1).square().mean()
        return logits, None if targets is None else entropy(logits, targets) + term


class Shifting(Decoder):
    """Shifts what it is given once more: its loss is of the token after the next."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        logits = self.logits(tokens)
        return logits, None if targets is None else entropy(logits[:, :-1], targets[:, 1:])


class Silent(Decoder):
    """Returns its loss alone."""

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        return entropy(self.logits(tokens), targets)


class Seeing(Decoder):
    """Without a causal mask."""

    causal = False


class Headless(Decoder):
    """Returns one number a sequence."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(tokens)[:, :, :2].mean(1)


def decoder(n_layer: int, n_embd: int) -> nn.Module:
    """Llama's layout, drawn as torch draws it."""
    return Decoder(n_layer, n_embd)


def small_start(n_layer: int, n_embd: int) -> nn.Module:
    """The same, with every matrix drawn of std 0.02."""
    model = Decoder(n_layer, n_embd)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    return model


def stubborn(n_layer: int, n_embd: int) -> nn.Module:
    """The same size, whatever is asked for."""
    return Decoder(2, n_embd)
