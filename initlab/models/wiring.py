"""How a NanoGPT is wired. Needs no torch, so that it can be predicted from where it isn't installed."""

from __future__ import annotations

import math

from initlab.models.config import GATED, GPT2_VOCAB, PER_BLOCK, NanoGPTConfig
from initlab.wiring import MLP, Activation, Attention, Block, Branch, Linear, Norm, Term, Update, Wiring


def nanogpt_wiring(
    config: NanoGPTConfig,
    *,
    activation: Activation | None = None,
    dropout: float = 0.0,
    eps: float = 1e-5,
    hidden: int | None = None,
) -> Wiring:
    """Describe a NanoGPT, or a model of nanoGPT's layout.

    Args:
        config: its sizes and options; gates are taken at their start.
        activation: of the MLP; None: the config's.
        dropout: probability in force, 0 in eval mode; on attention weights and what enters the stream.
        eps: of the norms; nanoGPT's and torch's default.
        hidden: width of the MLP; None: the config's.
    """
    return _Writer(config, activation, dropout, eps, config.hidden if hidden is None else hidden).whole()


class _Writer:
    def __init__(
        self, config: NanoGPTConfig, activation: Activation | None, dropout: float, eps: float, hidden: int
    ) -> None:
        self.config, self.dropout, self.eps, self.hidden = config, dropout, eps, hidden
        named = GATED.get(config.activation, config.activation)
        self.activation: Activation = named if activation is None else activation

    def norm(self, module: str, size: int | None = None, scale: float = 1.0) -> Norm:
        centred = self.config.norm == "layernorm"
        return Norm(
            module=module,
            gain=f"{module}.weight",
            bias=f"{module}.bias" if self.config.bias and centred else None,
            eps=self.eps,
            centred=centred,
            scale=scale,
            size=self.config.n_embd if size is None else size,
        )

    def linear(self, module: str, fan_in: int, fan_out: int, start: int = 0, fused: int = 0) -> Linear:
        return Linear(
            weight=f"{module}.weight",
            bias=f"{module}.bias" if self.config.bias else None,
            fan_in=fan_in,
            fan_out=fan_out,
            start=start,
            fused=fused or fan_out,
            module=module,
        )

    def attention(self, name: str) -> Attention:
        config, size = self.config, self.config.head_size
        n_kv_head = config.n_kv_head or config.n_head
        widths = (config.n_head * size, n_kv_head * size, n_kv_head * size)
        query, key, value = (
            self.linear(f"{name}.c_attn", config.n_embd, width, sum(widths[:part]), sum(widths))
            for part, width in enumerate(widths)
        )
        scale = config.attention_multiplier
        return Attention(
            query=query,
            key=key,
            value=value,
            out=self.linear(f"{name}.c_proj", config.n_embd, config.n_embd),
            n_head=config.n_head,
            n_kv_head=n_kv_head,
            head_size=size,
            score_scale=1 / math.sqrt(size) if scale is None else scale,
            query_norm=self.norm(f"{name}.q_norm", size) if config.qk_norm else None,
            key_norm=self.norm(f"{name}.k_norm", size) if config.qk_norm else None,
            out_norm=self.norm(f"{name}.out_norm") if config.inner_norm == "both" else None,
            head_gain=None if config.head_scale is None else f"{name}.head_scale",
            rotary=config.positions == "rotary",
            dropout=self.dropout,
        )

    def mlp(self, name: str) -> MLP:
        n_embd = self.config.n_embd
        return MLP(
            up=self.linear(f"{name}.c_fc", n_embd, self.hidden),
            gate=self.linear(f"{name}.c_gate", n_embd, self.hidden) if self.config.gated else None,
            out=self.linear(f"{name}.c_proj", self.hidden, n_embd),
            activation=self.activation,
            inner_norm=None if self.config.inner_norm == "none" else self.norm(f"{name}.inner_norm", self.hidden),
        )

    def update(self, layer: int, number: int) -> Update:
        config, block = self.config, f"transformer.h.{layer}"
        residual, skip, read = (config.of_block(name, layer) for name in PER_BLOCK)
        site, module = ("attn_out", f"{block}.attn") if number == 1 else ("mlp_out", f"{block}.mlp")
        post = self.norm(f"{block}.ln_{number}_out") if config.out_norm(number) else None
        branch = Branch(
            site=site,
            body=self.attention(module) if number == 1 else self.mlp(module),
            norm=self.norm(f"{block}.ln_{number}", scale=read) if config.reads_norm else None,
            post=post,
            scale=residual * (1.0 if config.gate is None else config.gate),
            gain=None if config.layer_scale is None else f"{block}.scale_{number}",
            dropout=self.dropout,
            module=module if post is None else post.module,
        )
        after = self.norm(f"{block}.ln_{number}") if config.norm_placement == "post" else None
        return Update(branches=(branch,), keep=skip, norm=after)

    def whole(self) -> Wiring:
        config = self.config
        token, vocab_size = "transformer.wte.weight", config.vocab_size or GPT2_VOCAB
        terms = [Term(kind="token", weight=token)]
        if config.positions == "learned":
            terms.append(Term(kind="position", weight="transformer.wpe.weight"))
        head = token if config.tie_weights else "lm_head.weight"
        return Wiring(
            n_embd=config.n_embd,
            blocks=tuple(
                Block(
                    layer=layer, name=f"transformer.h.{layer}", updates=(self.update(layer, 1), self.update(layer, 2))
                )
                for layer in range(config.n_layer)
            ),
            terms=tuple(terms),
            embed_norm=self.norm("transformer.ln_e") if config.embed_norm else None,
            embed_scale=config.embedding_multiplier,
            final_norm=self.norm("transformer.ln_f") if config.final_norm else None,
            head=Linear(weight=head, fan_in=config.n_embd, fan_out=vocab_size, fused=vocab_size, module="lm_head"),
            tied=config.tie_weights,
            logit_scale=config.logit_multiplier,
            logit_cap=config.logit_cap,
            dropout=self.dropout,
        )
