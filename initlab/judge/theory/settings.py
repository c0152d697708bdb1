"""What the theory needs to know: `initlab.wiring` in mean squares of the weights in place of their names, and the text.

A number that isn't known is NaN, and everything that would follow from it has no expectation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from initlab.judge.activations import Activation


@dataclass(frozen=True, kw_only=True, slots=True)
class Norm:
    """A normalisation; LayerNorm and RMSNorm differ by 1/n_embd but where the features have a mean."""

    gain: float = 1.0  # mean square of what the normalised is multiplied with
    bias: float = 0.0  # mean square
    eps: float = 0.0
    centred: bool = True
    site: str = ""  # ln_1 or ln_2, of what it gives


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """A matrix, or the part of one: mean squares of weight and bias."""

    square: float
    fan_in: int
    fan_out: int
    bias: float = 0.0

    @property
    def forward(self) -> float:
        """Mean square of what comes out ÷ of what goes in, biases apart."""
        return self.fan_in * self.square

    @property
    def backward(self) -> float:
        """The same of the gradient on its way back."""
        return self.fan_out * self.square


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """As `initlab.wiring.Attention`; rotary positions leave the variance of q·k as it is."""

    query: Linear
    key: Linear
    value: Linear
    out: Linear | None
    n_head: int
    n_kv_head: int
    head_size: int
    score_scale: float
    query_scale: float = 1.0
    key_scale: float = 1.0
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    head_square: float = 1.0  # mean square of what heads are multiplied with
    out_norm: Norm | None = None
    causal: bool = True
    window: int | None = None
    soft_cap: float | None = None
    spread: float | None = None  # variance of the scores within a row, where it doesn't follow from q and k
    cross: int | None = None
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MLP:
    """As `initlab.wiring.MLP`."""

    up: Linear
    out: Linear
    gate: Linear | None = None
    activation: Activation = "gelu"
    inner_norm: Norm | None = None
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """As `initlab.wiring.Branch`; without a body `written` is what was measured of it, and `alike` how alike positions
    are: their mean product over the mean square."""

    site: str
    body: Attention | MLP | None
    norm: Norm | None = None
    post: Norm | None = None
    square: float = 1.0  # mean square of what the result is multiplied with: scale and gain
    dropout: float = 0.0
    written: float = math.nan
    alike: float = math.nan
    seen: bool = True  # its sites are told apart from those of the block's other branches


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """As `initlab.wiring.Update`."""

    branches: tuple[Branch, ...]
    keep: float = 1.0
    norm: Norm | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """As `initlab.wiring.Block`."""

    layer: int
    updates: tuple[Update, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """A summand of the embedding: mean square of its rows, and what they are multiplied with."""

    kind: Literal["token", "position", "constant"]
    square: float
    scale: float = 1.0
    sinusoid: bool = False  # a fixed vector for each position, alike for neighbours


@dataclass(frozen=True, kw_only=True, slots=True)
class Stack:
    """As `initlab.wiring.Wiring`, of sequences of so many positions.

    Without terms it begins with `begun`: the mean square of what was measured, and the mean product of two different
    positions over it.
    """

    positions: int
    n_embd: int
    blocks: tuple[Block, ...]
    terms: tuple[Term, ...] | None = None
    begun: tuple[float, float] = (math.nan, math.nan)
    embed_norm: Norm | None = None
    embed_scale: float = 1.0
    final_norm: Norm | None = None
    head: Linear | None = None
    tied: bool = False
    logit_scale: float = 1.0
    logit_cap: float | None = None
    dropout: float = 0.0

    @property
    def token(self) -> float:
        """What a token's own row is multiplied with in the embedding's sum; NaN where that isn't known."""
        if self.terms is None:
            return math.nan
        return sum(term.scale for term in self.terms if term.kind == "token") * self.embed_scale

    @property
    def ordered(self) -> bool:
        """Whether positions see different keys; all of them are alike otherwise."""
        return any(
            isinstance(branch.body, Attention) and branch.body.cross is None and (branch.body.causal or self.window)
            for block in self.blocks
            for update in block.updates
            for branch in update.branches
        ) or any(term.sinusoid for term in self.terms or ())

    @property
    def window(self) -> int | None:
        """The narrowest that attention looks through; None where it sees the whole sequence."""
        windows = [
            branch.body.window
            for block in self.blocks
            for update in block.updates
            for branch in update.branches
            if isinstance(branch.body, Attention) and branch.body.window and branch.body.window < self.positions
        ]
        return min(windows, default=None)


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
class Setting:
    """A model and its text: stacks in the order of the pass, the last of which the head reads.

    Attributes:
        stacks: an encoder's before its decoder's.
        text: that the model reads; where it reads no tokens everything of it is NaN, and so is the loss.
    """

    stacks: tuple[Stack, ...]
    text: TextStatistics

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Of all stacks, in order."""
        return tuple(block for stack in self.stacks for block in stack.blocks)

    @property
    def n_embd(self) -> int:
        """Width of the last stack."""
        return self.stacks[-1].n_embd

    @property
    def vocab_size(self) -> int:
        """Logits of a position; 0 without a head."""
        head = self.stacks[-1].head
        return 0 if head is None else head.fan_out

    @property
    def tied(self) -> bool:
        """Whether the head is the token table."""
        return self.stacks[-1].tied


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
