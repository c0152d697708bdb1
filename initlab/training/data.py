"""Text in two parts: one to train on, one to evaluate on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from initlab.corpus import STATISTICS_TOKENS, Corpus, load_corpus
from initlab.errors import ConfigError, DataError

BIN_FILES = ("train.bin", "val.bin")  # what nanoGPT's prepare.py leaves in a data folder
EVALUATION_SEED = 1_000_003  # one number for all: evaluations of every recipe and seed see the same windows


@dataclass(frozen=True, eq=False)
class Split:
    """The training and validation part of a corpus; made by `split` or `load_split`.

    Attributes:
        train, val: the parts, which may be memory-mapped.
        described: what a manifest says of the data, but for the size of the parts.
    """

    train: Corpus
    val: Corpus
    described: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        """Count the rows that a model's embedding needs."""
        return self.train.vocab_size

    def check(self, block_size: int) -> None:
        """Refuse a part that is too short for one window and the token after it.

        Args:
            block_size: tokens in a window.

        Raises:
            DataError: one is.
        """
        for corpus in (self.train, self.val):
            corpus.draw(1, block_size, np.random.default_rng(0))

    def batch(self, batch_size: int, block_size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Draw windows of the training part, a function of (seed, step) alone: a run goes on where it was left.

        Args:
            batch_size: B, windows.
            block_size: T, tokens in a window.
            seed: of the run, not negative.
            step: of it, not negative.

        Returns:
            (idx, targets), int64 CPU tensors (B, T); targets[:, i] is the token after idx[:, i].

        Raises:
            DataError: the part is shorter than block_size + 1 tokens, or holds an id outside the vocabulary.
            ConfigError: a size below 1, a negative seed or step.
        """
        if min(seed, step) < 0:
            raise ConfigError(f"seed is {seed} and step {step}; expected 0 or more")
        return self.train.draw(batch_size, block_size, np.random.default_rng((seed, step)))

    def evaluation(self, batches: int, batch_size: int, block_size: int) -> list[tuple[Tensor, Tensor]]:
        """Draw windows of the validation part, always the same ones. Raises as `batch` does.

        Args:
            batches: how many (idx, targets).
            batch_size: B, windows in each.
            block_size: T, tokens in a window.
        """
        rng = np.random.default_rng(EVALUATION_SEED)
        return [self.val.draw(batch_size, block_size, rng) for _ in range(batches)]

    @cached_property
    def unigram_loss(self) -> float:
        """Compute the cross entropy of predicting the training part's token frequencies on the validation part, nats.

        What a model reaches that has learnt how frequent tokens are and nothing else: runs that fail to train settle
        there. Each id counts once more than it was seen, so that an id of the validation part alone costs no infinite
        loss. At most the first 10 M tokens of each part are counted.
        """
        if self.train.tokens is None or self.val.tokens is None:
            return math.log(self.vocab_size)
        seen, wanted = (
            np.bincount(part[:STATISTICS_TOKENS], minlength=self.vocab_size)
            for part in (self.train.tokens, self.val.tokens)
        )
        p = (seen + 1) / (seen.sum() + self.vocab_size)
        return float(-(wanted * np.log(p)).sum() / wanted.sum())

    def describe(self) -> dict[str, Any]:
        """Gather what a run's manifest should say of its data, ready for JSON; statistics are of the training part."""
        parts = {"n_tokens": self.train.n_tokens, "n_tokens_val": self.val.n_tokens}
        return self.described | parts | self.train.statistics() | {"unigram_loss": self.unigram_loss}


def split(corpus: Corpus, val_share: float = 0.1) -> Split:
    """Cut a corpus into a first part to train on and the rest to evaluate on, as nanoGPT's prepare.py does.

    Random ids have no end, so both parts are the whole.

    Args:
        corpus: to cut.
        val_share: of the tokens, to evaluate on.

    Raises:
        ConfigError: val_share isn't between 0 and 1.
        DataError: a part would hold fewer than 2 tokens.
    """
    if not 0 < val_share < 1:
        raise ConfigError(f"val_share is {val_share!r}; expected a share between 0 and 1, such as 0.1")
    described = corpus.describe() | {"val_share": val_share}
    if corpus.tokens is None:
        return Split(corpus, corpus, described)
    cut = int(len(corpus.tokens) * (1 - val_share))
    parts = {"training": corpus.tokens[:cut], "validation": corpus.tokens[cut:]}
    for name, tokens in parts.items():
        if len(tokens) < 2:
            raise DataError(
                f"the {name} part of {corpus.label} would hold {len(tokens)} of its {len(corpus.tokens)} tokens; "
                "expected at least 2, use a longer text"
            )
    train, val = (
        replace(corpus, tokens=tokens, label=f"{corpus.label} ({name} part)") for name, tokens in parts.items()
    )
    return Split(train, val, described)


def load_split(
    data: Any = "english", tokenizer: Any = None, vocab_size: int | None = None, val_share: float = 0.1
) -> Split:
    """Load a corpus in two parts; a folder with nanoGPT's train.bin and val.bin has its own, which stay on disk.

    Args:
        data: as `load_corpus` takes it.
        tokenizer: as `load_corpus` takes it.
        vocab_size: as `load_corpus` takes it.
        val_share: as `split` takes it.

    Raises:
        DataError: as load_corpus; also where one of the two files is missing.
    """
    folder = Path(data) if isinstance(data, str | PathLike) else None
    there = [name for name in BIN_FILES if folder is not None and (folder / name).is_file()]
    if folder is None or not there:
        return split(load_corpus(data, tokenizer, vocab_size), val_share)
    if len(there) == 1:
        (missing,) = set(BIN_FILES) - set(there)
        raise DataError(f"{folder} holds {there[0]} but no {missing}; nanoGPT's prepare.py writes both, run it again")
    train, val = (load_corpus(folder / name, tokenizer, vocab_size) for name in BIN_FILES)
    described = train.describe() | {"label": folder.resolve().name, "sha256_val": val.sha256, "val_share": None}
    return Split(train, val, described)
