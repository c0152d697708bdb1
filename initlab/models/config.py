"""Sizes and options of a NanoGPT. Needs no torch, so that they can be predicted from where it isn't installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from initlab.errors import ConfigError

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2", "silu")
GPT2_VOCAB = 50304  # nanoGPT's: 50257 padded to a multiple of 64
HEAD_SIZE = 64  # of GPT-2, at every size of it


@dataclass(frozen=True, kw_only=True)
class NanoGPTConfig:
    """Sizes and options of a NanoGPT; the defaults are nanoGPT's GPTConfig.

    Args:
        block_size: longest sequence, and the length of those that commands read, tokens.
        vocab_size: rows of the token embedding. None: as many as the text that a command reads has ids; of a model
            that is built without a text, 50304 (GPT-2's 50257 padded to a multiple of 64).
        n_layer: blocks.
        n_head: attention heads; must divide n_embd.
        n_embd: width of the residual stream.
        dropout: probability, in [0, 1).
        bias: biases in every Linear and LayerNorm; the head never has one. train.py sets False.
        activation: one of ACTIVATIONS.
        tie_weights: the head is the token embedding.

    Raises:
        ConfigError: a size isn't a positive integer, n_head doesn't divide n_embd, or an option is unknown.
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
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {self.activation!r}; expected one of {', '.join(ACTIVATIONS)}")

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
        return replace(self, n_layer=n_layer, n_embd=n_embd, n_head=heads(n_embd, self.n_embd // self.n_head))


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
