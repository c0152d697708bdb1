"""GPT in nanoGPT's own names, defaults, init and state_dict keys.

Follows https://github.com/karpathy/nanoGPT/blob/3adf61e/model.py (MIT), so that a measurement here is one of nanoGPT,
and its checkpoints load. Beyond it, by options of the config that are off by default: other activations and gated MLPs,
an untied head, other norms, in other places or none, rotary positions, grouped queries, multipliers, and learned ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from initlab.errors import CheckpointError, ConfigError
from initlab.models.checkpoint import check_sizes, check_weights, read_checkpoint, same
from initlab.models.config import ACTIVATIONS, GATED, GPT2_VOCAB, PER_BLOCK, NanoGPTConfig


class ReLU2(nn.Module):
    """relu(x)^2, of Primer (https://arxiv.org/abs/2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,  # exact erf, nanoGPT's since 594068e
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),  # OpenAI's GPT-2
    "relu": nn.ReLU,
    "relu2": ReLU2,
    "silu": nn.SiLU,
}
assert _ACTIVATIONS.keys() == set(ACTIVATIONS)


def _norm(config: NanoGPTConfig, size: int | None = None) -> nn.Module:
    size = config.n_embd if size is None else size
    return nn.LayerNorm(size, bias=config.bias) if config.norm == "layernorm" else nn.RMSNorm(size, eps=1e-5)


def rotated(x: Tensor) -> Tensor:
    """Turn pairs of features, the i-th of each half, by position · 10000^(-2i/hs) (RoPE, 2104.09864).

    Args:
        x: queries or keys, (B, nh, T, hs).
    """
    T, half = x.shape[-2], x.shape[-1] // 2
    speeds = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(T, device=x.device)[:, None] * speeds  # (T, hs / 2), in float32
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class CausalSelfAttention(nn.Module):
    """Multi-head causal attention, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: NanoGPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head or config.n_head
        self.head_size, self.scale = config.head_size, config.attention_multiplier
        self.rotary = config.positions == "rotary"
        width = (self.n_head + 2 * self.n_kv_head) * self.head_size
        self.c_attn = nn.Linear(config.n_embd, width, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = nn.Dropout(config.dropout)  # never called: the fused kernel drops inside
        self.resid_dropout = nn.Dropout(config.dropout)
        self.q_norm = _norm(config, self.head_size) if config.qk_norm else None
        self.k_norm = _norm(config, self.head_size) if config.qk_norm else None
        self.out_norm = _norm(config) if config.inner_norm == "both" else None
        self.head_scale = _learned(config.head_scale, config.n_head)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        counts = (self.n_head, self.n_kv_head, self.n_kv_head)
        parts = self.c_attn(x).split([count * self.head_size for count in counts], dim=2)
        q, k, v = (
            y.view(B, T, count, self.head_size).transpose(1, 2) for y, count in zip(parts, counts, strict=True)
        )  # (B, nh, T, hs) each
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = rotated(q), rotated(k)
        dropout = self.attn_dropout.p if self.training else 0.0
        grouped = self.n_kv_head != self.n_head
        z = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=self.scale, enable_gqa=grouped
        )  # (B, nh, T, hs)
        if self.head_scale is not None:
            z = z * self.head_scale[:, None, None]
        z = z.transpose(1, 2).contiguous().view(B, T, C)
        if self.out_norm is not None:
            z = self.out_norm(z)
        return self.resid_dropout(self.c_proj(z))


class MLP(nn.Module):
    """Two-layer perceptron, with a gate or without, (B, T, C) -> (B, T, C)."""

    def __init__(self, config: NanoGPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.hidden, bias=config.bias)
        self.gelu = _ACTIVATIONS[GATED.get(config.activation, config.activation)]()  # nanoGPT's name, whatever it is
        self.c_proj = nn.Linear(config.hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.c_gate = nn.Linear(config.n_embd, config.hidden, bias=config.bias) if config.gated else None
        self.inner_norm = None if config.inner_norm == "none" else _norm(config, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gelu(self.c_fc(x)) if self.c_gate is None else self.gelu(self.c_gate(x)) * self.c_fc(x)
        h = h if self.inner_norm is None else self.inner_norm(h)
        return self.dropout(self.c_proj(h))


class Block(nn.Module):
    """Transformer block: its input is the residual stream, after attention it is resid_mid, its output resid_post."""

    def __init__(self, config: NanoGPTConfig, layer: int = 0) -> None:
        super().__init__()
        self.post = config.norm_placement == "post"
        self.multiplier, self.skip, self.read = (config.of_block(name, layer) for name in PER_BLOCK)
        normed = self.post or config.reads_norm
        self.ln_1 = _norm(config) if normed else None
        self.attn = CausalSelfAttention(config)
        self.ln_2 = _norm(config) if normed else None
        self.mlp = MLP(config)
        self.ln_1_out, self.ln_2_out = (_norm(config) if config.out_norm(number) else None for number in (1, 2))
        self.scale_1, self.scale_2 = (_learned(config.layer_scale, config.n_embd) for _ in range(2))
        self.gate_1, self.gate_2 = (_learned(config.gate) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.attn(self._read(x, self.ln_1))
        x = self._added(x, self._scaled(y, self.ln_1_out, self.scale_1, self.gate_1), self.ln_1)
        y = self.mlp(self._read(x, self.ln_2))
        return self._added(x, self._scaled(y, self.ln_2_out, self.scale_2, self.gate_2), self.ln_2)

    def _read(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        x = x if norm is None or self.post else norm(x)
        return x if self.read == 1 else x * self.read

    def _scaled(self, y: Tensor, norm: nn.Module | None, scale: Tensor | None, gate: Tensor | None) -> Tensor:
        y = y if norm is None else norm(y)
        y = y if scale is None else y * scale
        y = y if gate is None else y * gate
        return y if self.multiplier == 1 else y * self.multiplier

    def _added(self, x: Tensor, y: Tensor, norm: nn.Module | None) -> Tensor:
        x = (x if self.skip == 1 else x * self.skip) + y
        return norm(x) if norm is not None and self.post else x


def _learned(start: float | None, *size: int) -> nn.Parameter | None:
    return None if start is None else nn.Parameter(torch.full(size, float(start)))


class Transformer(nn.ModuleDict):
    """The container named `transformer`; a ModuleDict as in nanoGPT, with its entries typed."""

    wte: nn.Embedding
    wpe: nn.Embedding
    ln_e: nn.Module
    drop: nn.Dropout
    h: nn.ModuleList
    ln_f: nn.Module


class NanoGPT(nn.Module):
    """nanoGPT's GPT: same parameter names, same init, same arithmetic.

    Weights are drawn from torch's global RNG in nanoGPT's own order: after the same `torch.manual_seed` they are
    bit-identical to those of karpathy's GPT at 3adf61e (activation and tying at their defaults).

    Args:
        config: sizes and options.
    """

    def __init__(self, config: NanoGPTConfig) -> None:
        super().__init__()
        vocab_size = config.vocab_size or GPT2_VOCAB
        self.config = replace(config, vocab_size=vocab_size)
        self.iter_num = 0  # optimizer steps behind the weights; from_checkpoint reads it
        parts: dict[str, nn.Module] = {"wte": nn.Embedding(vocab_size, config.n_embd)}
        if config.positions == "learned":
            parts["wpe"] = nn.Embedding(config.block_size, config.n_embd)
        if config.embed_norm:
            parts["ln_e"] = _norm(config)
        parts["drop"] = nn.Dropout(config.dropout)
        parts["h"] = nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)])
        if config.final_norm:
            parts["ln_f"] = _norm(config)
        self.transformer = Transformer(parts)
        self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False)
        if config.tie_weights:
            # This way round: nanoGPT 43b37fd undid the reverse, which left the head at Embedding's default N(0, 1).
            self.transformer.wte.weight = self.lm_head.weight

        # torch's default draws above and the tied matrix's second draw here are overwritten, but advance the RNG
        # as in nanoGPT.
        self.apply(self._init_weights)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):  # two writes to the stream per block, GPT-2 paper section 2.3
                nn.init.normal_(p, mean=0.0, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits, and with targets the loss.

        Args:
            idx: token ids, int64 (B, T) with T <= block_size.
            targets: the ids to predict at each position, int64 (B, T); -1 leaves a position out of the loss.

        Returns:
            logits (B, T, V), or (B, 1, V) of the last position without targets; and the mean cross entropy in nats,
            or None.

        Raises:
            ConfigError: T is above block_size.
        """
        T = idx.size(1)
        if self.config.block_size < T:
            raise ConfigError(
                f"a sequence of {T} tokens doesn't fit a model of block_size {self.config.block_size}; "
                "shorten the sequence or build the model with a larger block_size"
            )
        config, parts = self.config, self.transformer
        x = parts.wte(idx)  # (B, T, C)
        if config.positions == "learned":
            x = x + parts.wpe(torch.arange(T, device=idx.device))  # (T, C)
        if config.embedding_multiplier != 1:
            x = x * config.embedding_multiplier
        if config.embed_norm:
            x = parts.ln_e(x)
        x = parts.drop(x)
        for block in parts.h:
            x = block(x)
        if config.final_norm:
            x = parts.ln_f(x)
        logits = self.lm_head(x if targets is not None else x[:, -1:])  # (B, T, V); the last is all that sampling needs
        if config.logit_multiplier != 1:
            logits = logits * config.logit_multiplier
        if config.logit_cap is not None:
            logits = config.logit_cap * torch.tanh(logits / config.logit_cap)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    def num_params(self, non_embedding: bool = False) -> int:
        """Count parameters, tied ones once; `non_embedding` leaves out wpe, and wte where it isn't the head."""
        n = sum(p.numel() for p in self.parameters())
        if non_embedding:
            n -= self.transformer.wpe.weight.numel() if self.config.positions == "learned" else 0
            n -= 0 if self.config.tie_weights else self.transformer.wte.weight.numel()
        return n

    def decay_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Group parameters for AdamW, as nanoGPT's configure_optimizers: matrices decay, biases and gains don't."""
        params = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
        ]

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, dropout: float | None = None) -> NanoGPT:
        """Load a `ckpt.pt` written by nanoGPT's train.py; nothing in the file is executed.

        Args:
            path: a torch file holding a dict with `model` (weights; a compiled model's `_orig_mod.` prefix is fine)
                and `model_args` (NanoGPTConfig's fields); the rest is ignored.
            dropout: replaces the checkpoint's dropout, as in nanoGPT the only thing that can be.

        Returns:
            The model on the CPU, float32, in training mode, with its `iter_num`; torch's RNG is left as it was.

        Raises:
            CheckpointError: the file is missing, unreadable, not such a checkpoint, or its weights don't fit it.
            ConfigError: dropout isn't in [0, 1).
        """
        args, weights, iter_num = read_checkpoint(Path(path))
        if "tie_weights" not in args:
            args["tie_weights"] = same(weights.get("transformer.wte.weight"), weights.get("lm_head.weight"))
        try:
            config = NanoGPTConfig(**args)
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{path}: model_args describe no model that can be built: {error}") from None
        if dropout is not None:
            config = replace(config, dropout=dropout)
        check_sizes(path, weights, config.n_layer)
        try:
            with torch.device("meta"):
                wanted = cls(config).state_dict()
        except (RuntimeError, OverflowError, TypeError) as error:
            raise CheckpointError(f"{path}: model_args describe no model that can be built: {error}") from None
        check_weights(path, weights, wanted, tied=config.tie_weights)  # before memory is taken for what they claim
        with torch.random.fork_rng(devices=[]):
            model = cls(config)
        model.load_state_dict(weights)
        model.iter_num = iter_num
        return model


def empty_model(config: NanoGPTConfig, device: str | torch.device) -> NanoGPT:
    """Build a NanoGPT with uninitialised weights: on the meta device nothing is drawn, so no random state is used.

    What the config itself sets, LayerScale, gates and heads' numbers, has its start, since recipes leave it alone.
    """
    with torch.device("meta"):
        model = NanoGPT(config)
    model.to_empty(device=device)
    starts = {"scale": config.layer_scale, "gate": config.gate, "head": config.head_scale}
    for name, parameter in model.named_parameters():
        start = starts.get(name.rpartition(".")[2].partition("_")[0])
        if start is not None:
            nn.init.constant_(parameter, start)
    if config.tie_weights:  # to_empty allocates each name by itself
        model.lm_head.weight = model.transformer.wte.weight
    return model
