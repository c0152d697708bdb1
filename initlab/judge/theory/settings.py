"""What the theory needs to know: of a model's weights, of what they don't show, and of the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from initlab.judge.activations import Activation

Norm = tuple[float, float]  # mean squares of gain and bias


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockScales:
    """Mean squares of one block's weights, biases, and norms' gains and biases."""

    qkv: float
    attn_out: float
    mlp_in: float
    mlp_out: float
    query_key: float | None = None  # geometric mean over q and k, where they aren't as qkv
    mlp_gate: float | None = None  # of a gated MLP, act(gate x) * (in x)
    qkv_bias: float = 0.0
    attn_out_bias: float = 0.0
    mlp_in_bias: float = 0.0
    mlp_gate_bias: float = 0.0
    mlp_out_bias: float = 0.0
    ln_1: Norm = (1.0, 0.0)
    ln_2: Norm = (1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What a pre-norm decoder does that its weights don't show.

    LayerNorm and RMSNorm differ by 1/n_embd, which is neglected. Rotary positions rotate q and k, which leaves their
    products' variance as it is.
    """

    activation: Activation = "gelu"
    dropout: float = 0.0  # probability in force, 0 in eval mode; on attention weights and what enters the stream
    eps: float = 1e-5  # of the norms; nanoGPT's and torch's default
    embed_scale: float = 1.0  # multiplies what the embeddings give
    residual_scale: float = 1.0  # multiplies what a branch writes
    score_scale: float = 1.0  # of the attention logits, beside 1/sqrt(head size)
    logit_scale: float = 1.0
    parallel: bool = False  # attention and MLP read the same stream


@dataclass(frozen=True, kw_only=True)
class TextStatistics:
    """What counts of the tokens that a model reads."""

    block_size: int  # T, tokens in the measured sequences
    sum_p2: float  # probability that two tokens of the text are the same
    repeat_rate: float  # probability that the next token is the current one
    same_target: float | None = None  # that two positions of a sequence are to predict the same token; None: sum_p2

    @classmethod
    def of_batch(
        cls, described: Mapping[str, Any], summary: Mapping[str, Any], targets: NDArray[np.int64] | None
    ) -> Self:
        """Gather the statistics of a measured batch.

        Args:
            described: of the text that the batch was drawn from, as `Corpus.describe` gives it: `sum_p2`.
            summary: of the cell, a row of that table: `block_size` and `repeat_rate`, which are the batch's own.
            targets: of the batch, (B, T), negative where there is none; None without targets.
        """
        return cls(
            block_size=int(summary["block_size"]),
            sum_p2=float(described["sum_p2"]),
            repeat_rate=float(summary["repeat_rate"]),
            same_target=None if targets is None else equal_pairs(targets),
        )


@dataclass(frozen=True, kw_only=True)
class Setting(Wiring, TextStatistics):
    """A pre-norm decoder and its text: sizes, mean squares of the weights, wiring, statistics."""

    n_embd: int
    vocab_size: int
    token: float
    position: float  # 0 without a table
    unembed: float
    blocks: tuple[BlockScales, ...]
    ln_f: Norm = (1.0, 0.0)
    tied: bool = True
    mlp_width: int | None = None  # None: 4 n_embd
    attn_width: int | None = None  # heads times head size; None: n_embd

    @property
    def hidden(self) -> int:
        """Width of the MLP's activation."""
        return 4 * self.n_embd if self.mlp_width is None else self.mlp_width

    @property
    def attended(self) -> int:
        """Width of what the heads give to the attention's output projection."""
        return self.n_embd if self.attn_width is None else self.attn_width


def equal_pairs(tokens: NDArray[np.int64]) -> float:
    """Count how often two positions of one sequence hold the same token, as a share of all pairs.

    On text it is above `sum_p2` of the whole text: a word just used comes again.

    Args:
        tokens: sequences (B, T), or one; negative numbers stand for no token. Without a pair the share is 0.
    """
    equal = pairs = 0
    for row in np.atleast_2d(tokens):
        counts = np.unique(row[row >= 0], return_counts=True)[1]
        equal += int((counts * (counts - 1)).sum())
        pairs += int(counts.sum() * (counts.sum() - 1))
    return equal / pairs if pairs else 0.0
