"""Sizes and options of a NanoGPT. Needs no torch, so that they can be predicted from where it isn't installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from initlab.errors import ConfigError
from initlab.options import checked_flag, real, shown, whole

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2", "silu")
GATED = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}  # Shazeer 2020, 2002.05202: f(x gate) · (x up)
NORMS = ("layernorm", "rmsnorm", "none")
PLACEMENTS = ("pre", "post", "sandwich", "sandwich-attn", "out")
INNER = ("none", "mlp", "both")
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
        norm: layernorm, rmsnorm (eps 1e-5, no bias), or `none`: none anywhere, nor before the head (Fixup, 1901.09321;
            SkipInit, 2002.10444; ReZero, 2003.04887; T-Fixup, Huang et al. 2020).
        norm_placement: `pre` (x + f(norm(x)), and a norm before the head), `post` (norm(x + f(x)), none before the
            head, as in Vaswani et al. 2017), `sandwich` (x + norm(f(norm(x))), Gemma 2, Peri-LN, 2502.02732),
            `sandwich-attn` (the same of attention, and `pre` of the MLP; NormFormer, 2110.09456, with
            inner_norm="mlp"), or `out` (x + norm(f(x)), and a norm before the head; OLMo 2, 2501.00656). With `out` and
            qk_norm more of the gradient comes through queries and keys than the closed form follows: of the first
            blocks' outputs it expects 0.65 to 0.85 of what is measured (4 blocks of n_embd 192, mean of 6 seeds).
        inner_norm: norms inside of branches: `mlp` (of the activations, before the MLP's output projection), `both`
            (of what the heads give together too, before attention's; Sub-LN of Magneto, 2210.06423), or `none`.
        qk_norm: each head's queries and keys are normalised, before they are rotated (2302.05442).
        positions: `learned` table, `rotary` (RoPE over the whole head, base 10000; 2104.09864) or `none`.
        residual_multiplier: what branches are multiplied with as they are added to the stream. A number, or a tuple of
            n_layer of them, one a block; so are the next two.
        skip_multiplier: what the stream is multiplied with as a branch is added: skip · x + f(norm(x)), or with `post`
            norm(skip · x + f(x)) (alpha of DeepNorm, 2203.00555; omega of Admin, 2004.08249). Above 0.
        norm_multiplier: what the norm in front of a branch gives is multiplied with before the branch reads it:
            f(c · norm(x)), with c = 1/sqrt(block), counted from 1, LayerNorm Scaling (2502.05795).
        attention_multiplier: what q·k is multiplied with before the softmax. None: 1/sqrt(head size).
        embedding_multiplier: what the embedding's sum is multiplied with.
        embed_norm: a norm of the embedding's sum, behind its multiplier (BLOOM, 2211.05100; nanochat, whose norms have
            no gain, as these have at their start).
        logit_multiplier: what the logits are multiplied with.
        logit_cap: c where the logits are c · tanh(logits / c) (Gemma 2, 2408.00118; nanochat). None: they are not.
        layer_scale: start of a learned number for each channel that multiplies each branch (CaiT, 2103.17239). None:
            there is none.
        gate: start of one learned number that multiplies each branch (ReZero, 2003.04887; SkipInit, 2002.10444). None:
            there is none.
        head_scale: start of a learned number for each head that multiplies what the head gives, before the output
            projection and the norm in front of it (HeadScale of NormFormer, 2110.09456). None: there is none.

    Raises:
        ConfigError: a size isn't a positive integer, n_head doesn't divide n_embd, n_kv_head not n_head, an option is
            unknown or needs a norm that another one leaves out, or a multiplier isn't a finite number, or not as many
            as there are blocks.
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
    residual_multiplier: float | tuple[float, ...] = 1.0
    attention_multiplier: float | None = None
    embedding_multiplier: float = 1.0
    logit_multiplier: float = 1.0
    layer_scale: float | None = None
    gate: float | None = None
    skip_multiplier: float | tuple[float, ...] = 1.0
    norm_multiplier: float | tuple[float, ...] = 1.0
    inner_norm: str = "none"
    head_scale: float | None = None
    embed_norm: bool = False
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if name == "vocab_size" and value is None:
                continue
            if not whole(value) or value < 1:
                raise ConfigError(f"{name} is {shown(value)}; expected a positive integer")
            if int(value) > _MOST[name]:
                raise ConfigError(f"{name} is {value}; expected at most {_MOST[name]:,}")
            object.__setattr__(self, name, int(value))
        if self.n_embd % self.n_head:
            divisors = [n for n in range(1, self.n_embd + 1) if self.n_embd % n == 0]
            n_head = min(divisors, key=lambda n: abs(n - self.n_head))
            n_embd = max(1, round(self.n_embd / self.n_head)) * self.n_head
            raise ConfigError(
                f"n_embd {self.n_embd} can't be split evenly over n_head {self.n_head}; "
                f"nearest that fit: n_head {n_head}, or n_embd {n_embd}"
            )
        dropout = self.dropout
        if not real(dropout) or not 0 <= dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}; expected a probability of at least 0 and below 1")
        object.__setattr__(self, "dropout", float(dropout))
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"unknown {name} {getattr(self, name)!r}; expected one of {', '.join(known)}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None or getattr(NanoGPTConfig, name) is not None:
                object.__setattr__(self, name, _number(name, value))
        for name in PER_BLOCK:
            value = getattr(self, name)
            if not isinstance(value, list | tuple):
                object.__setattr__(self, name, _number(name, value))
                continue
            if len(value) != self.n_layer:
                raise ConfigError(
                    f"{name} has {len(value)} numbers; expected one, or one for each of the {self.n_layer} blocks"
                )
            object.__setattr__(self, name, tuple(_number(name, each) for each in value))
        for name in _ABOVE_0:
            value = getattr(self, name)
            if value is not None and min(value if isinstance(value, tuple) else [value]) <= 0:
                raise ConfigError(
                    f"{name} is {value!r}; expected {'numbers' if name in PER_BLOCK else 'a number'} above 0"
                )
        for name in ("bias", "tie_weights", *_FLAGS):
            checked_flag(name, getattr(self, name))
        self._check_norms()
        n_kv_head = self.n_head if self.n_kv_head is None else self.n_kv_head
        if not whole(n_kv_head) or n_kv_head < 1 or self.n_head % n_kv_head:
            raise ConfigError(f"n_kv_head is {shown(n_kv_head)}; expected a divisor of n_head, {self.n_head}")
        if self.n_kv_head is not None:
            object.__setattr__(self, "n_kv_head", int(n_kv_head))
        if self.positions == "rotary" and self.head_size % 2:
            raise ConfigError(f"rotary positions turn pairs of features; a head has {self.head_size}, an odd number")

    def _check_norms(self) -> None:
        """Refuse an option that is about a norm that there isn't."""
        if self.norm == "none":
            for name in ("norm_placement", "qk_norm", "inner_norm", "embed_norm", "norm_multiplier"):
                if getattr(self, name) != getattr(NanoGPTConfig, name):
                    raise ConfigError(
                        f"{name} is {getattr(self, name)!r}, but norm is none; expected norm to be layernorm or rmsnorm"
                    )
        if self.norm_placement in ("post", "out") and self.norm_multiplier != 1:
            raise ConfigError(
                f"norm_multiplier multiplies what the norm in front of a branch gives, and norm_placement "
                f"{self.norm_placement} has none there; expected pre, sandwich or sandwich-attn"
            )

    def of_block(self, name: str, layer: int) -> float:
        """Get a multiplier that may differ from block to block.

        Args:
            name: one of PER_BLOCK.
            layer: the block's number, from 0.
        """
        value = getattr(self, name)
        return float(value[layer] if isinstance(value, tuple) else value)

    @property
    def reads_norm(self) -> bool:
        """Whether a branch has a norm in front of it."""
        return self.norm != "none" and self.norm_placement not in ("post", "out")

    @property
    def final_norm(self) -> bool:
        """Whether there is a norm before the head."""
        return self.norm != "none" and self.norm_placement != "post"

    def out_norm(self, number: int) -> bool:
        """Tell whether what a branch gives is normalised before it is added.

        Args:
            number: 1 of attention, 2 of the MLP.
        """
        return self.norm_placement in ("sandwich", "out") or (self.norm_placement == "sandwich-attn" and number == 1)

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
            ConfigError: a size isn't a positive integer, no head size from a quarter of its own on divides n_embd, or
                there is a multiplier for each block and the depth is to change.
        """
        n_layer = self.n_layer if n_layer is None else n_layer
        for name in PER_BLOCK if n_layer != self.n_layer else ():
            if isinstance(getattr(self, name), tuple):
                raise ConfigError(
                    f"{name} holds a number for each of {self.n_layer} blocks, so the depth can't become {n_layer}; "
                    "expected one number for all, or a function of (n_layer, n_embd) that makes the config"
                )
        if n_embd is None or n_embd == self.n_embd:
            return replace(self, n_layer=n_layer)
        n_head, n_kv_head = heads(n_embd, self.head_size), self.n_kv_head
        if n_kv_head is not None:  # the number that was asked for, or the nearest that is possible
            wanted = n_kv_head
            n_kv_head = min((n for n in range(1, n_head + 1) if n_head % n == 0), key=lambda n: abs(n - wanted))
        return replace(self, n_layer=n_layer, n_embd=n_embd, n_head=n_head, n_kv_head=n_kv_head)


def _number(name: str, value: Any) -> float:
    """As Python's own, since one of numpy's couldn't be stored. Raises ConfigError where it isn't one."""
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{name} is {value!r}; expected a finite number")
    return number


# far above any model's: what is larger is a slip that would take hours, or the machine's memory, to show
_MOST = {
    "block_size": 10_000_000,
    "vocab_size": 100_000_000,
    "n_layer": 100_000,
    "n_head": 100_000,
    "n_embd": 1_000_000,
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "activation": (*ACTIVATIONS, *GATED),
    "norm": NORMS,
    "norm_placement": PLACEMENTS,
    "positions": POSITIONS,
    "inner_norm": INNER,
}
_MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "logit_multiplier")
_NUMBERS = (*_MULTIPLIERS, "layer_scale", "gate", "head_scale", "logit_cap")
PER_BLOCK = ("residual_multiplier", "skip_multiplier", "norm_multiplier")  # a number, or one for each block
_ABOVE_0 = ("attention_multiplier", "logit_cap", "skip_multiplier")
_FLAGS = ("qk_norm", "embed_norm")
# fields that make it another model than nanoGPT
WIRING = (*PER_BLOCK, *_NUMBERS, *_FLAGS, "n_kv_head", "norm", "norm_placement", "positions", "inner_norm")


def parse_wiring(text: str) -> dict[str, Any]:
    """Read options of a NanoGPTConfig's wiring, as in `norm=rmsnorm,positions=rotary,skip_multiplier=1:0.5`.

    Args:
        text: names and values, separated by commas; numbers of several blocks are separated by colons.

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
            elif name in _FLAGS:
                found[name] = {"true": True, "1": True, "": True, "false": False, "0": False}[value.lower()]
            elif name in PER_BLOCK and ":" in value:
                found[name] = tuple(float(each) for each in value.split(":"))
            else:
                found[name] = int(value) if name == "n_kv_head" else float(value)
        except (KeyError, ValueError):
            expected = "true or false" if name in _FLAGS else "a number"
            expected += ", or one for each block, separated by colons" if name in PER_BLOCK else ""
            raise ConfigError(f"{name} is {value!r}; expected {expected}") from None
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
            "compare, scale, confirm and train take any"
        )


def heads(n_embd: int, size: int = HEAD_SIZE) -> int:
    """Count the heads of a width: of `size`, or of the largest smaller size that divides it.

    Raises:
        ConfigError: n_embd isn't a positive integer, or no size from a quarter of `size` on divides it.
    """
    if not whole(n_embd) or n_embd < 1:
        raise ConfigError(f"n_embd is {shown(n_embd)}; expected a positive integer")
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
