"""How a NanoGPT is wired. Needs no torch, so that it can be predicted from where it isn't installed."""

from __future__ import annotations

import math

from initlab.wiring import MLP, Activation, Attention, Block, Branch, Linear, Norm, Term, Update, Wiring


def nanogpt_wiring(
    *,
    n_layer: int,
    n_head: int,
    n_embd: int,
    vocab_size: int,
    activation: Activation = "gelu",
    bias: bool = True,
    tied: bool = True,
    dropout: float = 0.0,
    eps: float = 1e-5,
    hidden: int | None = None,
) -> Wiring:
    """Describe a model of nanoGPT's layout: its own, NanoGPT, or transformers' GPT2LMHeadModel.

    Args:
        n_layer: blocks.
        n_head: attention heads.
        n_embd: width of the residual stream.
        vocab_size: rows of the token table.
        activation: of the MLP.
        bias: of the linear layers and norms; the head never has one.
        tied: the head is the token embedding.
        dropout: probability in force, 0 in eval mode; on attention weights and what enters the stream.
        eps: of the norms; nanoGPT's and torch's default.
        hidden: width of the MLP; None: 4 n_embd.
    """
    hidden = 4 * n_embd if hidden is None else hidden
    token = "transformer.wte.weight"

    def norm(module: str) -> Norm:
        return Norm(
            module=module, gain=f"{module}.weight", bias=f"{module}.bias" if bias else None, eps=eps, size=n_embd
        )

    def linear(module: str, fan_in: int, fan_out: int, start: int = 0, fused: int = 0) -> Linear:
        return Linear(
            weight=f"{module}.weight",
            bias=f"{module}.bias" if bias else None,
            fan_in=fan_in,
            fan_out=fan_out,
            start=start,
            fused=fused or fan_out,
            module=module,
        )

    def block(layer: int) -> Block:
        name = f"transformer.h.{layer}"
        query, key, value = (
            linear(f"{name}.attn.c_attn", n_embd, n_embd, part * n_embd, 3 * n_embd) for part in range(3)
        )
        attention = Attention(
            query=query,
            key=key,
            value=value,
            out=linear(f"{name}.attn.c_proj", n_embd, n_embd),
            n_head=n_head,
            n_kv_head=n_head,
            head_size=n_embd // n_head,
            score_scale=1 / math.sqrt(n_embd // n_head),
            dropout=dropout,
        )
        mlp = MLP(
            up=linear(f"{name}.mlp.c_fc", n_embd, hidden),
            out=linear(f"{name}.mlp.c_proj", hidden, n_embd),
            activation=activation,
        )
        branches = (
            Branch(site="attn_out", body=attention, norm=norm(f"{name}.ln_1"), dropout=dropout, module=f"{name}.attn"),
            Branch(site="mlp_out", body=mlp, norm=norm(f"{name}.ln_2"), dropout=dropout, module=f"{name}.mlp"),
        )
        return Block(layer=layer, name=name, updates=tuple(Update(branches=(branch,)) for branch in branches))

    head = token if tied else "lm_head.weight"
    return Wiring(
        n_embd=n_embd,
        blocks=tuple(map(block, range(n_layer))),
        terms=(Term(kind="token", weight=token), Term(kind="position", weight="transformer.wpe.weight")),
        final_norm=norm("transformer.ln_f"),
        head=Linear(weight=head, fan_in=n_embd, fan_out=vocab_size, fused=vocab_size, module="lm_head"),
        tied=tied,
        dropout=dropout,
    )
