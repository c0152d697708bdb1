"""The batch of a probe: the caller's, or one of real text, random ids or Gaussian inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from initlab.corpus import Corpus, load_corpus
from initlab.errors import ConfigError, DataError
from initlab.measure import inputs as making
from initlab.measure.inputs import Inputs
from initlab.options import Text


def inputs_for(
    model: nn.Module,
    batch: Any,
    *,
    text: Text,
    seed: int,
    T: int | None = None,
    load: Callable[..., Corpus] = load_corpus,
) -> tuple[Inputs, dict[str, Any]]:
    """Make the call to measure, and say what it was made of, for the manifest.

    Args:
        model: whose forward is called.
        batch: the caller's, see `inputs.of_batch`; None: one is made.
        text: for a model with a vocabulary.
        seed: of what is drawn.
        load: in place of load_corpus, so that a text that many models read is read once.
        T: tokens of each sequence that is made here; None: as many as the model declares, at most 1024.

    Raises:
        ConfigError: the batch can't be used, or none can be made.
        DataError: the text can't be used, or has ids that the model doesn't know.
    """
    vocab_size = making.vocabulary(model)
    if batch is not None:
        given = making.of_batch(model, batch)
        if given.ids is None or given.targets is None:
            return given, {"label": "the caller's batch", "targets": "none", "sum_p2": math.nan}
        if vocab_size is not None and (largest := int(max(given.ids.max(), given.targets.max()))) >= vocab_size:
            raise ConfigError(f"the batch holds the id {largest}; the model knows ids below {vocab_size}")
        return given, _describe_batch(given.ids, given.targets, vocab_size or int(given.ids.max()) + 1)
    if vocab_size is None:
        made = making.for_vectors(model, seed)
        return made, {"label": "Gaussian inputs", "targets": "none", "sum_p2": math.nan}
    chosen = text.data != "docstrings" or text.tokenizer is not None
    corpus = load(text.data, text.tokenizer, vocab_size if text.data == "uniform" else None)
    if corpus.vocab_size > vocab_size and chosen:
        raise DataError(
            f"{corpus.label} has {corpus.vocab_size} ids as {corpus.tokenizer}, the model {vocab_size}; use a "
            "tokenizer that fits (--tokenizer char), the model's own ids (a .bin file), or --data uniform"
        )
    if corpus.vocab_size > vocab_size:
        corpus = load("uniform", None, vocab_size)
    T = making.longest(model) if T is None else T
    ids, targets = corpus.batch(making.TOKENS // T or 1 if text.batch_size is None else text.batch_size, T, seed)
    return making.of_ids(model, ids, targets), corpus.describe()


def _describe_batch(idx: Tensor, targets: Tensor, vocab_size: int) -> dict[str, Any]:
    counts = idx.flatten().bincount().double()
    p = counts / counts.sum()
    seen = p[p > 0]
    return {
        "label": "the caller's batch",
        "tokenizer": "none",
        "vocab_size": vocab_size,
        "n_tokens": idx.numel(),
        "sha256": None,
        "sha256_of": None,
        "targets": "as given",
        "entropy_nats": float(-(seen * seen.log()).sum()),
        "sum_p2": float((p * p).sum()),
        "repeat_rate": float((idx == targets).double().mean()),
    }
