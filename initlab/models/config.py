"""Sizes and options of a NanoGPT. Needs no torch, so that they can be predicted from where it isn't installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from initlab.errors import ConfigError

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2", "silu")
GATED = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}  # Shazeer 2020, 2002.05202: f(x gate) · (x up)
NORMS = ("layernorm", "rmsnorm")
PLACEMENTS = ("pre", "post", "sandwich")
POSITIONS = ("learned", "rotary", "none")
GPT2_VOCAB = 50304  # nanoGPT's: 50257 padded to a multiple of 64
HEAD_SIZE = 64  # of GPT-2, at every size of it


@dataclass(frozen=True, kw_only=True)
class NanoGPTConfig:
    """Sizes and options of a NanoGPT; the defaults are nanoGPT's GPTConfig, and with them it is nanoGPT bit for bit.

    Args:
        block_size: longest sequence, and the length of those that commands read, tokens.
        vocab_size: rows of the token embedding. None: as many as the text that a command reads has ids; of a model
            that is built without a text, 50304 (GPT-2's 50257 padded to a multiple of 64).
        n_layer: blocks.
        n_head: attention heads; must divide n_embd.
        n_embd: width of the residual stream.
        dropout: probability, in [0, 1).
        bias: biases in every Linear and LayerNorm; the head never has one. train.py sets False.
        activation: one of ACTIVATIONS, or of GATED: then the MLP has a gate, and a hidden width of 8/3 n_embd, up to a
            multiple of 8, in place of 4 n_embd.
        tie_weights: the head is the token embedding.
        n_kv_head: heads of keys and values, of which each serves several of the queries' (GQA); must divide n_head.
            None: n_head.
        norm: layernorm, or rmsnorm (eps 1e-5, no bias).
        norm_placement: `pre` (x + f(norm(x)), and a norm before the head), `post` (norm(x + f(x)), none before the
            head, as in Vaswani et al. 2017), or `sandwich` (x + norm(f(norm(x))), Gemma 2, Peri-LN, 2502.02732).
        qk_norm: each head's queries and keys are normalised, before they are rotated (2302.05442).
        positions: `learned` table, `rotary` (RoPE over the whole head, base 10000; 2104.09864) or `none`.
        residual_multiplier: what branches are multiplied with as they are added to the stream.
        attention_multiplier: what q·k is multiplied with before the softmax. None: 1/sqrt(head size).
        embedding_multiplier: what the embedding's sum is multiplied with.
        logit_multiplier: what the logits are multiplied with.
        layer_scale: start of a learned number for each channel that multiplies each branch (CaiT, 2103.17239). None:
            there is none.
        gate: start of one learned number that multiplies each branch (ReZero, 2003.04887; SkipInit, 2002.10444). None:
            there is none.

    Raises:
        ConfigError: a size isn't a positive integer, n_head doesn't divide n_embd, n_kv_head not n_head, an option is
            unknown, or a multiplier isn't a finite number.
    """

    block_size: int = 1024
    vocab_size: int | None = None
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    activation: str = "gelu"
    tie_weights: bool = True
    n_kv_head: int | None = None
    norm: str = "layernorm"
    norm_placement: str = "pre"
    qk_norm: bool = False
    positions: str = "learned"
    residual_multiplier: float = 1.0
    attention_multiplier: float | None = None
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    layer_scale: float | None = None
    gate: float | None = None

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if (not isinstance(value, Integral) or value < 1) and not (name == "vocab_size" and value is None):
                raise ConfigError(f"{name} is {value!r}; expected a positive integer")
        if self.n_embd % self.n_head:
            divisors = [n for n in range(1, self.n_embd + 1) if self.n_embd % n == 0]
            n_head = min(divisors, key=lambda n: abs(n - self.n_head))
            n_embd = max(1, round(self.n_embd / self.n_head)) * self.n_head
            raise ConfigError(
                f"n_embd {self.n_embd} can't be split evenly over n_head {self.n_head}; "
                f"nearest that fit: n_head {n_head}, or n_embd {n_embd}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}; expected a probability of at least 0 and below 1")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"unknown {name} {getattr(self, name)!r}; expected one of {', '.join(known)}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is None and getattr(NanoGPTConfig, name) is None:
                continue
            try:
                number = math.nan if isinstance(value, bool) else float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not math.isfinite(number) or isinstance(value, str):
                raise ConfigError(f"{name} is {value!r}; expected a finite number")
            object.__setattr__(self, name, number)  # one of numpy's couldn't be stored
        if self.attention_multiplier is not None and self.attention_multiplier <= 0:
            raise ConfigError(f"attention_multiplier is {self.attention_multiplier:g}; expected a number above 0")
        if not isinstance(self.qk_norm, bool):
            raise ConfigError(f"qk_norm is {self.qk_norm!r}; expected True or False")
        n_kv_head = self.n_head if self.n_kv_head is None else self.n_kv_head
        if not isinstance(n_kv_head, Integral) or n_kv_head < 1 or self.n_head % n_kv_head:
            raise ConfigError(f"n_kv_head is {n_kv_head!r}; expected a divisor of n_head, {self.n_head}")
        if self.positions == "rotary" and self.head_size % 2:
            raise ConfigError(f"rotary positions turn pairs of features; a head has {self.head_size}, an odd number")

    @property
    def head_size(self) -> int:
        """Features of a head."""
        return self.n_embd // self.n_head

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.activation in GATED

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return -(-8 * self.n_embd // 24) * 8 if self.gated else 4 * self.n_embd

    @property
    def plain(self) -> bool:
        """Whether it is wired as nanoGPT, whatever its sizes, activation (without a gate), bias, dropout and tie."""
        return not self.gated and all(getattr(self, name) == getattr(NanoGPTConfig, name) for name in WIRING)

    def resized(self, *, n_layer: int | None = None, n_embd: int | None = None) -> NanoGPTConfig:
        """Change depth and width; heads keep their size, or have the largest smaller one that divides the width.

        Args:
            n_layer: None: as it is.
            n_embd: None: as it is.

        Raises:
            ConfigError: a size isn't a positive integer, or no head size from a quarter of its own on divides n_embd.
        """
        n_layer = self.n_layer if n_layer is None else n_layer
        if n_embd is None or n_embd == self.n_embd:
            return replace(self, n_layer=n_layer)
        n_head, n_kv_head = heads(n_embd, self.head_size), self.n_kv_head
        if n_kv_head is not None:  # the number that was asked for, or the nearest that is possible
            wanted = n_kv_head
            n_kv_head = min((n for n in range(1, n_head + 1) if n_head % n == 0), key=lambda n: abs(n - wanted))
        return replace(self, n_layer=n_layer, n_embd=n_embd, n_head=n_head, n_kv_head=n_kv_head)


_CHOICES: dict[str, tuple[str, ...]] = {
    "activation": (*ACTIVATIONS, *GATED),
    "norm": NORMS,
    "norm_placement": PLACEMENTS,
    "positions": POSITIONS,
}
_NUMBERS = (
    "residual_multiplier",
    "attention_multiplier",
    "embedding_multiplier",
    "logit_multiplier",
    "layer_scale",
    "gate",
)
# fields that make it another model than nanoGPT
WIRING = (*_NUMBERS, "n_kv_head", "norm", "norm_placement", "qk_norm", "positions")


def parse_wiring(text: str) -> dict[str, Any]:
    """Read options of a NanoGPTConfig's wiring, as in `norm=rmsnorm,positions=rotary,n_kv_head=2`.

    Args:
        text: names and values, separated by commas.

    Raises:
        ConfigError: a name isn't one of them, or a value can't be read.
    """
    found: dict[str, Any] = {}
    for each in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = each.partition("=")
        if name not in WIRING:
            raise ConfigError(f"unknown wiring {name!r}; expected NAME=VALUE with one of {', '.join(sorted(WIRING))}")
        try:
            if name in _CHOICES:
                found[name] = value
            elif name == "qk_norm":
                found[name] = {"true": True, "1": True, "": True, "false": False, "0": False}[value.lower()]
            else:
                found[name] = int(value) if name == "n_kv_head" else float(value)
        except (KeyError, ValueError):
            raise ConfigError(
                f"{name} is {value!r}; expected {'true or false' if name == 'qk_norm' else 'a number'}"
            ) from None
    return found


Configs = NanoGPTConfig | Callable[[int, int], NanoGPTConfig]  # of several sizes, at (n_layer, n_embd)


def config_at(config: Configs, n_layer: int, n_embd: int) -> NanoGPTConfig:
    """Resize a config, or ask for it. Raises ConfigError on sizes that contradict each other."""
    if isinstance(config, NanoGPTConfig):
        return config.resized(n_layer=n_layer, n_embd=n_embd)
    return config(n_layer, n_embd)


def refuse_other_models(model: Any, what: str) -> None:
    """Refuse a model that is no NanoGPTConfig, where one was given. Raises ConfigError.

    Args:
        model: as it was given; None is nothing.
        what: begins the sentence: the command and its verb.
    """
    if model is not None and not isinstance(model, NanoGPTConfig):
        shown = model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)
        raise ConfigError(
            f"model is {shown}; {what} NanoGPTs of a NanoGPTConfig alone, other models can't be yet: "
            "compare and scale take any"
        )


def heads(n_embd: int, size: int = HEAD_SIZE) -> int:
    """Count the heads of a width: of `size`, or of the largest smaller size that divides it.

    Raises:
        ConfigError: n_embd isn't a positive integer, or no size from a quarter of `size` on divides it.
    """
    if not isinstance(n_embd, Integral) or n_embd < 1:
        raise ConfigError(f"n_embd is {n_embd!r}; expected a positive integer")
    found = max(each for each in range(1, size + 1) if n_embd % each == 0)
    if found < min(size // 4, n_embd):
        raise ConfigError(f"n_embd {n_embd} has no divisor between {size // 4} and {size} for a head size; give n_head")
    return n_embd // found


PRESETS: dict[str, NanoGPTConfig] = {
    # README "I only have a macbook"; config/train_shakespeare_char.py; train.py
    "shakespeare-cpu": NanoGPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=65, bias=False),
    "shakespeare": NanoGPTConfig(
        n_layer=6, n_head=6, n_embd=384, block_size=256, vocab_size=65, dropout=0.2, bias=False
    ),
    "gpt2": NanoGPTConfig(vocab_size=GPT2_VOCAB, bias=False),
}
