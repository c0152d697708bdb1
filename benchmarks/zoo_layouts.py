"""Transformers written by hand whose code is laid out otherwise: containers that add, blocks of raw parameters,
mixtures, pictures, two stacks."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import HEADS, LAYERS, MLP, NOPE, Attention, Block, Case, D, GatedMLP, RMSNorm, T, V, gpt, init, rotate


class PreNorm(nn.Module):
    def __init__(self, inside: nn.Module):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(D), inside

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Lucidrains(nn.Module):
    """Layers are ModuleList([attention, feed-forward]), and the sum is in the container."""

    def __init__(self) -> None:
        super().__init__()
        self.token_emb, self.pos_emb = nn.Embedding(V, D), nn.Embedding(T, D)
        self.layers = nn.ModuleList([nn.ModuleList(self.halves()) for _ in range(LAYERS)])
        self.to_logits = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, V))
        self.max_seq_len = T
        self.apply(init)

    @staticmethod
    def halves() -> list[nn.Module]:
        feed_forward = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))
        return [PreNorm(Attention()), PreNorm(feed_forward)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_emb(x) + self.pos_emb(torch.arange(x.shape[1]))
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return self.to_logits(x)


class Residual(nn.Module):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return x + residual


class Container(nn.Module):
    """Each half block is ModuleList([norm, block, residual])."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.max_seq_len = nn.Embedding(V, D), T
        halves = (half for _ in range(LAYERS) for half in (Attention(alibi=True), MLP()))
        self.layers = nn.ModuleList([nn.ModuleList([nn.LayerNorm(D), half, Residual()]) for half in halves])
        self.final_norm, self.logits = nn.LayerNorm(D), nn.Linear(D, V, bias=False)
        self.apply(init)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for norm, block, residual in self.layers:
            kept = x
            x = residual(block(norm(x)), kept)
        return self.logits(self.final_norm(x))


class NamedBlocks(nn.Module):
    """Blocks in a ModuleDict, sizes under `params`, rotary angles in one buffer: torchtitan's Llama 3."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.ffn_norm = RMSNorm(), RMSNorm()
            self.attention, self.feed_forward = Attention(rotary=True, kv_heads=2), GatedMLP()

        def forward(self, x: Tensor) -> Tensor:
            h = x + self.attention(self.attention_norm(x))
            return h + self.feed_forward(self.ffn_norm(h))

    def __init__(self) -> None:
        super().__init__()
        self.params = SimpleNamespace(max_seq_len=T, vocab_size=V, dim=D)
        self.tok_embeddings = nn.Embedding(V, D)
        self.layers = nn.ModuleDict({str(layer): self.Block() for layer in range(LAYERS)})
        self.norm, self.output = RMSNorm(), nn.Linear(D, V, bias=False)
        self.apply(init)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            h = layer(h)
        return self.output(self.norm(h))


class RawBlock(nn.Module):
    """Everything in one block is a parameter of its own, used by einsum."""

    def __init__(self) -> None:
        super().__init__()
        size = D // HEADS
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.randn(HEADS, D, size) * 0.06) for _ in range(3))
        self.W_O = nn.Parameter(torch.randn(HEADS, size, D) * 0.06)
        self.W_in, self.b_in = nn.Parameter(torch.randn(D, 4 * D) * 0.06), nn.Parameter(torch.zeros(4 * D))
        self.W_out, self.b_out = nn.Parameter(torch.randn(4 * D, D) * 0.06), nn.Parameter(torch.zeros(D))
        self.ln1, self.ln2 = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln1(x)
        q, k, v = (torch.einsum("btd,hds->bhts", h, W) for W in (self.W_Q, self.W_K, self.W_V))
        scores = torch.einsum("bhts,bhus->bhtu", q, k) / math.sqrt(q.shape[-1])
        S = x.shape[1]
        scores = scores.masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -math.inf)
        z = torch.einsum("bhtu,bhus->bhts", scores.softmax(-1), v)
        x = x + torch.einsum("bhts,hsd->btd", z, self.W_O)
        return x + F.gelu(self.ln2(x) @ self.W_in + self.b_in) @ self.W_out + self.b_out


class Reversible(nn.Module):
    """Two half streams, each written to by a function of the other."""

    def __init__(self) -> None:
        super().__init__()
        half = D // 2
        self.f, self.g = (
            nn.Sequential(nn.LayerNorm(half), nn.Linear(half, D), nn.GELU(), nn.Linear(D, half)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, -1)
        one = one + self.f(two)
        return torch.cat([one, two + self.g(one)], -1)


class Conv1dMLP(nn.Module):
    """Linear maps as convolutions of one step."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv1d(D, 4 * D, 1), nn.Conv1d(4 * D, D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c2(F.relu(self.c1(x.transpose(1, 2)))).transpose(1, 2)


class Experts(nn.Module):
    """The two best of four MLPs a token, in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(D, 4, bias=False), nn.ModuleList([GatedMLP() for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, D)
        weights, chosen = self.gate(flat).softmax(-1).topk(2)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            y = y.index_add(0, token, expert(flat[token]) * weights[token, place, None])
        return y.view_as(x)


class StackedExperts(nn.Module):
    """Weights of all experts in one tensor; every expert sees every token, and the router weighs them."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(D, 4, bias=False)
        self.w1, self.w2 = nn.Parameter(torch.randn(4, D, 2 * D) * 0.06), nn.Parameter(torch.randn(4, 2 * D, D) * 0.06)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(torch.einsum("btd,edf->btef", x, self.w1))
        return torch.einsum("btef,efd,bte->btd", y, self.w2, self.router(x).softmax(-1))


class SumsExperts(Block):
    """The block itself sums what its experts write."""

    def __init__(self, layer: int = 0):
        super().__init__(layer)
        self.router, self.experts = nn.Linear(D, 2), nn.ModuleList([MLP(), MLP()])
        del self.mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm[0](x))
        h = self.norm[1](x)
        weights = self.router(h).softmax(-1)
        for number, expert in enumerate(self.experts):
            x = x + weights[..., number : number + 1] * expert(h)
        return x


class SharedFeedForward(nn.Module):
    """One MLP for all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn, self.seq_len = MLP(), T
        self.embed, self.layers = nn.Embedding(V, D), nn.ModuleList([Block() for _ in range(LAYERS)])
        for layer in self.layers:
            layer.mlp = self.ffn
        self.ln, self.head = nn.LayerNorm(D), nn.Linear(D, V)
        self.apply(init)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.ln(x))


class WithTargets(nn.Module):
    """As tutorials write it: a position table of 32 rows that nothing else tells of, and (logits, loss) returned."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding_table, self.position_embedding_table = nn.Embedding(V, D), nn.Embedding(32, D)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.ln_f, self.lm_head = nn.LayerNorm(D), nn.Linear(D, V)
        self.apply(init)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.token_embedding_table(idx) + self.position_embedding_table(torch.arange(idx.shape[1]))
        logits = self.lm_head(self.ln_f(self.blocks(x)))
        return logits, None if targets is None else F.cross_entropy(logits.view(-1, V), targets.view(-1))


class RotaryOutside(nn.Module):
    """Angles of 64 positions in a buffer, given to every block; longer sequences don't fit."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj, self.ffn = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False), GatedMLP()
            self.attention_norm, self.ffn_norm = RMSNorm(), RMSNorm()

        def forward(self, x: Tensor, angles: Tensor) -> Tensor:
            B, S, _ = x.shape
            parts = self.qkv(self.attention_norm(x)).view(B, S, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            q, k, v = rotate(parts[0], angles), rotate(parts[1], angles), parts[2]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(B, S, D))
            return x + self.ffn(self.ffn_norm(x))

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings, self.layers = nn.Embedding(V, D), nn.ModuleList([self.Block() for _ in range(LAYERS)])
        self.norm, self.output = RMSNorm(), nn.Linear(D, V, bias=False)
        speeds = 10000.0 ** (-torch.arange(D // HEADS // 2) / (D // HEADS // 2))
        self.register_buffer("freqs", torch.arange(T)[:, None] * speeds)
        self.apply(init)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_embeddings(tokens)
        for layer in self.layers:
            h = layer(h, self.freqs[: tokens.shape[1]])
        return self.output(self.norm(h))


class ZeroWrites(nn.Module):
    """Output projections and head at zero, as nanochat draws them."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(sequence_len=T, vocab_size=V)
        self.wte, self.h = nn.Embedding(V, D), nn.ModuleList([Block(norm=RMSNorm, rotary=True) for _ in range(LAYERS)])
        self.lm_head = nn.Linear(D, V, bias=False)
        self.apply(init)
        for block in self.h:
            nn.init.zeros_(block.attn.wo.weight)
            nn.init.zeros_(block.mlp.down.weight)
        nn.init.zeros_(self.lm_head.weight)

    def forward(self, idx: Tensor) -> Tensor:
        x = F.rms_norm(self.wte(idx), (D,))
        for block in self.h:
            x = block(x)
        return self.lm_head(F.rms_norm(x, (D,)))


class TorchAttention(nn.Module):
    """nn.MultiheadAttention inside a block of one's own."""

    def __init__(self, layer: int = 0):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = (
            nn.LayerNorm(D),
            nn.MultiheadAttention(D, HEADS, batch_first=True),
            nn.LayerNorm(D),
        )
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.ReLU(), nn.Linear(4 * D, D))

    def forward(self, x: Tensor) -> Tensor:
        h, mask = self.ln_1(x), torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


ODD = {"attention": 0, "plain": False}
case = partial(Case, "by-hand")
CASES = [
    case("lucidrains' layers", Lucidrains),
    case("ModuleList([norm, block, residual])", Container),
    case("blocks in a ModuleDict", NamedBlocks),
    case("raw parameters, einsum", gpt(lambda layer: RawBlock())),
    case("chunked reversible", gpt(lambda layer: Reversible()), why="two half streams, MLPs alone", **ODD),
    case("convolutions as linear maps", gpt(mlp=Conv1dMLP)),
    case("experts in a loop", gpt(model=NOPE, mlp=Experts, rotary=True)),
    case("stacked experts", gpt(mlp=StackedExperts)),
    case("block sums its experts", gpt(SumsExperts)),
    case("one MLP for all layers", SharedFeedForward),
    case("forward(idx, targets), 32 positions", WithTargets),
    case("rotary angles from outside", RotaryOutside),
    case("zero writes and head", ZeroWrites),
    case("nn.MultiheadAttention", gpt(TorchAttention)),
]
