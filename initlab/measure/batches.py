"""The batch of a probe: the caller's, or one of real text, random ids or Gaussian inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.arguments import required
from initlab.anatomy.examples import example, signature
from initlab.anatomy.inputs import TOKENS, Inputs, Rows, Ways, of_batch, ways
from initlab.anatomy.sizes import LONGEST, lengths, vocabulary
from initlab.anatomy.tensors import floats
from initlab.anatomy.trying import first_that_runs
from initlab.corpus import Corpus, load_corpus
from initlab.errors import ConfigError, DataError, InitlabError, ProbeError
from initlab.measure.losses import logits_in
from initlab.options import Text

FEW = 16  # tokens of a sequence that tell whether the likeliest way to call a forward works
SHORTEST = 8  # tokens: a model that can't read so many isn't given fewer


def inputs_for(
    model: nn.Module,
    batch: Any,
    *,
    text: Text,
    seed: int,
    load: Callable[..., Corpus] = load_corpus,
) -> tuple[Inputs, dict[str, Any]]:
    """Make the call to measure, and say what it was made of, for the manifest.

    What is made here is tried on a sequence or two: a length that the forward can't read is halved.

    Args:
        model: whose forward is called, unwrapped; left as it was.
        batch: the caller's, see `inputs.of_batch`; None: one is made.
        text: for a model with a vocabulary.
        seed: of what is drawn.
        load: in place of load_corpus, so that a text that many models read is read once.

    Raises:
        ConfigError: the batch can't be used, or none can be made.
        DataError: the text can't be used, or has ids that the model doesn't know.
        ProbeError: the model's forward raised on everything that was made for it (chained).
    """
    vocab_size = vocabulary(model)
    if batch is not None:
        given = of_batch(model, batch, lambda found: _chosen(model, found, seed))
        if given.ids is None or given.targets is None:
            return given, describe_batch(model, given)
        if vocab_size is not None and (largest := int(max(given.ids.max(), given.targets.max()))) >= vocab_size:
            raise ConfigError(f"the batch holds the id {largest}; the model knows ids below {vocab_size}")
        return given, describe_batch(model, given)
    if vocab_size is None:
        return _drawn(model, seed)
    chosen = text.data != Text().data or text.tokenizer is not None
    vocab_size = min(vocab_size, text.vocab_size or vocab_size)
    corpus = load(text.data, text.tokenizer, max(vocab_size, 2) if text.data == "uniform" else None)
    if corpus.vocab_size > vocab_size and chosen and not (text.data == "uniform" and vocab_size == 1):
        raise DataError(
            f"{corpus.label} has {corpus.vocab_size} ids as {corpus.tokenizer}, the model {vocab_size}; use a "
            "tokenizer that fits (--tokenizer char), the model's own ids (a .bin file), or --data uniform"
        )
    if corpus.vocab_size > vocab_size:
        corpus = load("uniform", None, max(vocab_size, 2))
    try:
        return _read(model, corpus, vocab_size, text, seed), corpus.describe()
    except ProbeError as error:
        try:  # its table may be of something else than tokens
            return _drawn(model, seed)
        except InitlabError:
            raise error from error.__cause__


def _drawn(model: nn.Module, seed: int) -> tuple[Inputs, dict[str, Any]]:
    """Gaussian inputs, for a model without tokens."""
    made = _made(model, lambda rows: ways(model, None, seed=seed), seed)
    return made, {"label": "Gaussian inputs", "targets": "none", "sum_p2": math.nan}


def _read(model: nn.Module, corpus: Corpus, vocab_size: int, text: Text, seed: int) -> Inputs:
    """Windows of a text, as long as the model can read them."""
    first: tuple[int, ProbeError] | None = None
    rows = text.batch_size
    for T in [text.block_size] if text.block_size else _lengths(model):
        count = rows or TOKENS // T or 1
        if rows is None and len(required(model)) > 1:  # other arguments could be taken for sequences of one row
            count = max(2, count - (count == T))
        ids, targets = corpus.batch(count, T, seed)
        if vocab_size < corpus.vocab_size:  # of one id: no text has so few
            ids, targets = ids % vocab_size, targets % vocab_size

        def found(part: Rows, ids: Tensor = ids, targets: Tensor = targets) -> Any:
            return ways(model, ids[part], targets[part], seed)

        try:
            made = _made(model, found, seed)
        except ProbeError as raised:
            first = first or (T, raised)
            continue
        if first is None:
            return made
        length, error = first
        cause = error.__cause__
        note = f"the forward raised at {length} tokens ({type(cause).__name__}: {_line(cause)}); measured at {T}"
        return replace(made, notes=(note, *made.notes))
    assert first is not None
    raise first[1]


def _lengths(model: nn.Module) -> list[int]:
    """Lengths to try: the least that anything in the model is made for, others, and then ever shorter ones."""
    known = [size for size in lengths(model) if size <= LONGEST][:4] or [LONGEST]
    shorter = known[0] // 2
    tried = list(known)
    while shorter >= SHORTEST:
        tried.append(shorter)
        shorter //= 2
    return tried


def _made(model: nn.Module, found: Ways, seed: int) -> Inputs:
    """The first way that works, of those to call the model on what was made. Raises ProbeError: none does."""
    return next(islice(found(slice(None)), _number(model, found, seed), None))


def _number(model: nn.Module, found: Ways, seed: int) -> int:
    number = _first(model, found, seed)
    if not isinstance(number, int):
        raise ProbeError(
            f"{type(model).__name__} raised in its forward pass: {type(number).__name__}: {_line(number)} "
            f"(forward{signature(model)}); pass batch= with what it needs, as in {example(model)}"
        ) from number
    return number


def way_of(model: nn.Module, ids: Tensor, targets: Tensor, seed: int = 0) -> int:
    """Tell which of the ways to call a model on ids and their targets works, by its number among `ways`.

    Args:
        model: left as it was.
        ids: (B, T), of which a sequence or two are tried.
        targets: (B, T).
        seed: of what is drawn.

    Raises:
        ConfigError: nothing is known of an argument that the forward needs.
        ProbeError: no way works (chained).
    """
    return _number(model, lambda rows: ways(model, ids[rows], targets[rows], seed), seed)


def _chosen(model: nn.Module, found: Ways, seed: int) -> Inputs:
    """The same for a caller's ids: where no way works, the likeliest, of which the look says what is wrong.

    A few tokens show that the likeliest works, as it mostly does; only where they don't, whole sequences are tried.
    """
    if len(list(islice(found(slice(0, 2)), 2))) < 2:
        return next(found(slice(None)))
    sample, complete = _trial(model, found, several=True)
    works = False

    def works_whole(output: Any, inputs: Inputs) -> bool:
        nonlocal works
        works = complete(output, inputs)
        return works

    first_that_runs(model, islice(found((sample, slice(0, FEW))), 1), seed, works_whole)
    number = 0 if works else _first(model, found, seed)
    return next(islice(found(slice(None)), number if isinstance(number, int) else 0, None))


def _first(model: nn.Module, found: Ways, seed: int) -> int | Exception | SystemExit:
    sample, complete = _trial(model, found)
    return first_that_runs(model, found(sample), seed, complete)


def _trial(model: nn.Module, found: Ways, *, several: bool = False) -> tuple[slice, Callable[[Any, Inputs], bool]]:
    """The rows to try, and whether what a forward returned is all that is wanted."""
    sample = slice(0, 1 if len(required(model)) < 2 else 2)
    several = several or len(list(islice(found(sample), 2))) > 1
    vocab_size = vocabulary(model)

    def complete(output: Any, inputs: Inputs) -> bool:
        if not several:
            return True
        if inputs.targets is not None and logits_in(output, inputs.ids, vocab_size) is None:
            return False
        return all(math.isfinite(each.sum(dtype=torch.float32)) for each in floats(output))

    return sample, complete


def _line(error: BaseException | None) -> str:
    """The first line of an error, which may show tables of tensors."""
    return str(error).strip().partition("\n")[0][:200]


def describe_batch(model: nn.Module, batch: Inputs) -> dict[str, Any]:
    """Say what a batch of the caller's is made of, for the manifest.

    Args:
        model: whose forward is called.
        batch: of which ids and targets are looked at.
    """
    idx, targets = batch.ids, batch.targets
    if idx is None or targets is None:
        return {"label": "the caller's batch", "targets": "none", "sum_p2": math.nan}
    counts = idx.flatten().bincount().double()
    p = counts / counts.sum()
    seen = p[p > 0]
    return {
        "label": "the caller's batch",
        "tokenizer": "none",
        "vocab_size": vocabulary(model) or int(idx.max()) + 1,
        "n_tokens": idx.numel(),
        "sha256": None,
        "sha256_of": None,
        "targets": "as given",
        "entropy_nats": float(-(seen * seen.log()).sum()),
        "sum_p2": float((p * p).sum()),
        "repeat_rate": float((idx == targets).double().mean()),
    }
