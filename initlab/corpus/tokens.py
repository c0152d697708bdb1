"""Tokens to draw batches from: the same for the same seed, and without a download."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from initlab.errors import ConfigError, DataError

STATISTICS_TOKENS = 10_000_000
MOST_TOKENS = 2**27  # of a batch: 1 GiB of ids
HASH_EDGE = 16 * 2**20  # bytes

Ids = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens to draw batches from; made by load_corpus.

    Attributes:
        label: what the text is, for people.
        tokenizer: `bytes`, `char` or a tiktoken name; `stored` for a file of ids, `none` for random ids.
        vocab_size: rows a model's embedding needs; above the largest id where the vocabulary is padded.
        tokens: ids, 1-D uint16 or uint32; None for random ids, which are drawn by `batch`.
        sha256: of the tokens' bytes, little endian, or the part of them that `sha256_of` says; None for random ids.
    """

    label: str
    tokenizer: str
    vocab_size: int
    tokens: Ids | None = field(repr=False)
    sha256: str | None = None
    sha256_of: str | None = None

    @property
    def n_tokens(self) -> int | None:
        """Length of the corpus; None for random ids, which never end."""
        return None if self.tokens is None else len(self.tokens)

    def batch(self, batch_size: int, block_size: int, seed: int) -> tuple[Tensor, Tensor]:
        """Random windows of the corpus and the token that follows each position.

        Args:
            batch_size: B, windows.
            block_size: T, tokens in a window.
            seed: not negative; the same seed draws the same windows, whatever was drawn before.

        Returns:
            (idx, targets), int64 CPU tensors (B, T); targets[:, i] is the token after idx[:, i].

        Raises:
            DataError: the corpus is shorter than block_size + 1 tokens, or holds an id outside the vocabulary.
            ConfigError: a size below 1, a negative seed.
        """
        if seed < 0:
            raise ConfigError(f"seed is {seed}; expected 0 or more")
        return self.draw(batch_size, block_size, np.random.default_rng(seed))

    def draw(self, batch_size: int, block_size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`batch` from a generator of the caller's."""
        if batch_size < 1 or block_size < 1:
            raise ConfigError(f"a batch of {batch_size} windows of {block_size} tokens; expected at least 1 of each")
        if batch_size * block_size > MOST_TOKENS:
            raise ConfigError(
                f"a batch of {batch_size:,} windows of {block_size:,} tokens; expected at most {MOST_TOKENS:,} tokens"
            )
        if self.tokens is None:
            rows = rng.integers(self.vocab_size, size=(batch_size, block_size + 1))
        else:
            if len(self.tokens) < block_size + 1:
                raise DataError(
                    f"{self.label} holds {len(self.tokens)} tokens; windows of block_size {block_size} need at least "
                    f"{block_size + 1}, use a longer text or a smaller block_size"
                )
            starts = rng.integers(len(self.tokens) - block_size, size=batch_size)
            rows = self.tokens[starts[:, None] + np.arange(block_size + 1)].astype(np.int64)
            check_ids(rows, self.vocab_size, self.label)
        windows = torch.from_numpy(rows)  # (B, T + 1)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def statistics(self) -> dict[str, float]:
        """What the closed forms need to know of the tokens, exact over at most the first 10 M of them.

        Returns:
            `entropy_nats` of the token frequencies p, `sum_p2` = sum of p^2 (chance that two random tokens are
            equal), `repeat_rate` (share of tokens equal to the one before).
        """
        if self.tokens is None:
            v = self.vocab_size
            return {"entropy_nats": math.log(v), "sum_p2": 1 / v, "repeat_rate": 1 / v}
        tokens = self.tokens[:STATISTICS_TOKENS]
        counts = np.bincount(tokens)
        p = counts[counts > 0] / len(tokens)
        return {
            "entropy_nats": float(-(p * np.log(p)).sum()),
            "sum_p2": float((p * p).sum()),
            "repeat_rate": float((tokens[1:] == tokens[:-1]).mean()),
        }

    def describe(self) -> dict[str, Any]:
        """All that a run's manifest should say of its data, ready for JSON."""
        names = ("label", "tokenizer", "vocab_size", "n_tokens", "sha256", "sha256_of")
        return {name: getattr(self, name) for name in names} | {"targets": "next-token"} | self.statistics()


def corpus_of(label: str, tokenizer: str, tokens: Ids, vocab_size: int) -> Corpus:
    """Make a corpus of tokens that were read.

    Args:
        label: what the text is, for people.
        tokenizer: its name.
        tokens: ids, 1-D, which may be memory-mapped.
        vocab_size: rows a model's embedding needs.

    Raises:
        DataError: fewer than two tokens, or an id outside the vocabulary.
    """
    if len(tokens) < 2:
        raise DataError(f"{label} holds {len(tokens)} tokens; expected at least 2, one to read and one to predict")
    check_ids(tokens[:STATISTICS_TOKENS], vocab_size, label)
    what, hashed = "all tokens", hashlib.sha256()
    if isinstance(tokens, np.memmap) and tokens.nbytes > 2 * HASH_EDGE:
        # OpenWebText's train.bin is 17 GB: reading all of it would take longer than a probe.
        what = "number of bytes, first and last 16 MiB"
        edge = HASH_EDGE // tokens.itemsize
        hashed.update(b"%d" % tokens.nbytes + tokens[:edge].tobytes() + tokens[-edge:].tobytes())
    else:
        hashed.update(tokens.tobytes())
    return Corpus(label, tokenizer, vocab_size, tokens, hashed.hexdigest(), what)


def padded(vocab_size: int | None, needed: int, what: str) -> int:
    """Return the vocabulary's size: what is needed, or as many as were asked for.

    Args:
        vocab_size: that was asked for; None: no more than is needed.
        needed: ids of what.
        what: has the ids, for the error.

    Raises:
        DataError: fewer were asked for than are needed.
    """
    if vocab_size is not None and vocab_size < needed:
        raise DataError(f"{what} has {needed} ids, more than vocab_size {vocab_size}; expected at least {needed}")
    return vocab_size or needed


def check_ids(ids: NDArray[Any], vocab_size: int, label: str) -> None:
    """Refuse ids outside a vocabulary. Raises DataError."""
    if (found := int(ids.max())) >= vocab_size:
        raise DataError(
            f"{label} holds the id {found}, outside a vocabulary of {vocab_size}; pass the vocab_size it was written "
            "with, or check that it is a file of plain uint16 ids"
        )
