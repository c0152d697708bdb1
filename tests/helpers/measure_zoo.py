"""Tiny models of many structures, written by hand: what a user might bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

D, T, V = 32, 12, 300


class Norm(nn.Module):
    """RMSNorm by hand, under a name that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    """Grouped queries: 4 heads of q, 2 of k and v; `memory` makes it cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(D, D, bias=False)
        self.k_proj = nn.Linear(D, D // 2, bias=False)
        self.v_proj = nn.Linear(D, D // 2, bias=False)
        self.o_proj = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        source = x if memory is None else memory
        B, length, _ = x.shape
        q = self.q_proj(x).view(B, length, 4, 8).transpose(1, 2)
        k, v = (
            p(source).view(B, source.shape[1], 2, 8).transpose(1, 2).repeat_interleave(2, 1)
            for p in (self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=memory is None)
        return self.o_proj(y.transpose(1, 2).reshape(B, length, D))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(D, 64, bias=False), nn.Linear(D, 64, bias=False)
        self.down_proj = nn.Linear(64, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Top-1 routing over three experts, on flattened tokens as real ones do it."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(D, 3, bias=False)
        self.experts = nn.ModuleList([Gated() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, D)
        weight, choice = self.router(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            chosen = choice == number
            out[chosen] = expert(flat[chosen])
        return (out * weight[:, None]).view_as(x)


class Block(nn.Module):
    def __init__(self, mlp: type[nn.Module] = Gated) -> None:
        super().__init__()
        self.norm_1, self.attn = Norm(), Attention()
        self.norm_2, self.mlp = Norm(), mlp()


class Pre(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class Post(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_1(x + self.attn(x))
        return self.norm_2(x + self.mlp(x))


class Parallel(Block):
    def __init__(self) -> None:
        super().__init__()
        del self.norm_2

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm_1(x)
        return x + self.attn(h) + self.mlp(h)


class Sandwich(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm_3, self.norm_4 = Norm(), Norm()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm_3(self.attn(self.norm_1(x)))
        return x + self.norm_4(self.mlp(self.norm_2(x)))


class Multiplied(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.22 * self.attn(self.norm_1(x))
        return x + 0.22 * self.mlp(self.norm_2(x))


class Returning(Pre):
    """Takes its stream by keyword and returns it inside something."""

    def forward(self, *, hidden_states: Tensor, how: Any = tuple, scale: None = None) -> Any:
        y = super().forward(hidden_states)
        return {"hidden_states": y, "cache": None} if how is dict else (y, None)


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp(F.relu_(self.norm_2(x)))


class Functional(Block):
    """A highway: the stream itself is multiplied with a gate that depends on it, so that nothing is simply kept."""

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        x = gate * x + (1 - gate) * self.attn(self.norm_1(x))
        return gate * x + (1 - gate) * self.mlp(self.norm_2(x))


class Balanced(Block):
    """Skip and write are both scaled, so that the variance stays: √½·x + √½·f(x)."""

    def forward(self, x: Tensor) -> Tensor:
        x = 0.5**0.5 * x + 0.5**0.5 * self.attn(self.norm_1(x))
        return 0.5**0.5 * x + 0.5**0.5 * self.mlp(self.norm_2(x))


class LayerScaled(Block):
    """A LayerScale that is no module; its values differ, as after training."""

    def __init__(self) -> None:
        super().__init__()
        self.scale_1, self.scale_2 = nn.Parameter(torch.rand(D)), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale_1 * self.attn(self.norm_1(x))
        return x + self.scale_2 * self.mlp(self.norm_2(x))


class Shortcut(Block):
    """Two attentions, and experts that see the first state and write to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleList([Attention(), Attention()])
        self.experts, self.norm_3 = Experts(), Norm()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn[0](self.norm_1(x))
        late = self.experts(self.norm_2(x))
        x = x + self.attn[1](self.norm_3(x))
        return x + self.mlp(self.norm_2(x)) + late


class Threefold(Block):
    """Attention, a mixer and an MLP in one sum."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = nn.Linear(D, D)
        del self.norm_2

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm_1(x)
        return x + (self.attn(h) + self.mixer(h) + self.mlp(h))


class SplitBranch(Block):
    """Its MLP is a sum of parts and of the branch's own input, and no state of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Gated(), Gated()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x)) * torch.sigmoid(x)
        h = self.norm_2(x)
        return x + self.mlp(0.3 * self.first(h) + 0.7 * self.second(h) + 0.5 * h)


class AddPreLayerNorm(nn.Module):
    """Projects and adds; the norm in its name is the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(64, D)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.dense(hidden) + residual


class Added(Block):
    """The sums are inside modules that are handed the residual, as BERT's."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(D, 64)
        self.output = AddPreLayerNorm()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return self.output(hidden=F.gelu(self.mlp(self.norm_2(x))), residual=x)


class Cross(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm_3, self.cross_attn = Norm(), Attention()

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        x = x + self.cross_attn(self.norm_3(x), memory)
        return x + self.mlp(self.norm_2(x))


class Language(nn.Module):
    """Tokens in, logits out, with any block."""

    def __init__(self, block: Callable[[], nn.Module], **call: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.layers = nn.ModuleList([block() for _ in range(3)])
        self.norm, self.head = Norm(), nn.Linear(D, V, bias=False)
        self.call = call

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            out = layer(hidden_states=x, **self.call) if self.call else layer(x)
            x = out["hidden_states"] if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out
        return self.head(self.norm(x))


class Stacked(nn.Module):
    """Blocks in an nn.Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(V, D), Pre(), Pre(), Norm(), nn.Linear(D, V))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(tokens)


class Shared(nn.Module):
    """One block used three times, as ALBERT does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.group, self.head = nn.Embedding(V, D), nn.ModuleList([Pre()]), nn.Linear(D, V)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for _ in range(3):
            x = self.group[0](x)
        return self.head(x)


class Translator(nn.Module):
    """Encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.encoder = nn.ModuleList([Pre() for _ in range(2)])
        self.decoder = nn.ModuleList([Cross() for _ in range(2)])

    def forward(self, ids: Tensor) -> Tensor:
        memory = x = self.embed(ids)
        for block in self.encoder:
            memory = block(memory)
        for block in self.decoder:
            x = block(x, memory)
        return self.head(x)


ATTN_MLP = ("attn_out", "mlp_out")
# name -> (model, sites written to in each block of each stack)
ZOO: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, ...]]]] = {
    "pre-norm, gated, grouped queries": (lambda: Language(Pre), {"layers": ATTN_MLP}),
    "post-norm": (lambda: Language(Post), {"layers": ATTN_MLP}),
    "parallel": (lambda: Language(Parallel), {"layers": ATTN_MLP}),
    "sandwich norms": (lambda: Language(Sandwich), {"layers": ATTN_MLP}),
    "residual multiplier": (lambda: Language(Multiplied), {"layers": ATTN_MLP}),
    "experts": (lambda: Language(lambda: Pre(Experts)), {"layers": ATTN_MLP}),
    "keyword in, tuple out": (lambda: Language(Returning, how=tuple), {"layers": ATTN_MLP}),
    "keyword in, dict out": (lambda: Language(Returning, how=dict), {"layers": ATTN_MLP}),
    "in-place activation": (lambda: Language(InPlace), {"layers": ATTN_MLP}),
    "sequential": (Stacked, {"body": ATTN_MLP}),
    "one block three times": (Shared, {"group": ATTN_MLP}),
    "three writes in one sum": (lambda: Language(Threefold), {"layers": ("attn_out", "mixer_out", "mlp_out")}),
    "a write from an earlier state": (
        lambda: Language(Shortcut),
        {"layers": ("attn_out", "attn_out", "mlp_out", "mlp_out")},
    ),
    "encoder and decoder": (
        Translator,
        {"encoder": ATTN_MLP, "decoder": ("attn_out", "cross_attn_out", "mlp_out")},
    ),
}
