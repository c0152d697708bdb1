"""The text that models are trained on: a vocabulary that they all know, in windows that they all read."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

from initlab.errors import ConfigError, DataError
from initlab.models.config import config_at
from initlab.options import Text, checked

if TYPE_CHECKING:
    from initlab.drawing.subject import Subject
    from initlab.training.data import Split


def text_of(given: Text) -> Text:
    """Check a command's `text`, and read what can be read only once, or not by another process.

    Args:
        given: as the command was.

    Returns:
        the same, with a Corpus in place of rows and of a tokenizer that is an object.

    Raises:
        ConfigError: it is no Text.
        DataError: it can't be read.
    """
    text = checked("text", given, Text)
    if isinstance(text.data, str | PathLike) and isinstance(text.tokenizer, str | PathLike | None):
        return text
    from initlab.corpus import load_corpus

    return replace(text, data=load_corpus(text.data, text.tokenizer), tokenizer=None)


def split_for(subject: Subject, text: Text, otherwise: int) -> tuple[Split, int]:
    """Load a text in two parts for every model of a subject, and choose how long its windows are.

    The smallest model of each function is made, and has to be a causal language model.

    Args:
        subject: its NanoGPTs are told the text's vocabulary and block_size.
        text: as it was given; without a block_size windows are as long as each model can read, see
            `initlab.training.task.window_of`.
        otherwise: tokens of a window where no model says how many it reads.

    Returns:
        the text, and tokens in a window.

    Raises:
        ConfigError: a model is no causal language model, or doesn't know all ids of the text.
        DataError: the text can't be used, or is too short.
        ProbeError: a function can't make a model, or its forward raised (chained).
    """
    from initlab.drawing.subject import seeded
    from initlab.training.data import load_split
    from initlab.training.task import refuse_what_sees_ahead, task_of, window_of

    place = min(subject.depths), min(subject.widths)
    windows, known = [], dict[str, int]()
    if subject.config is not None:
        if text.block_size is not None:
            subject.read(block_size=text.block_size)
        config = config_at(subject.config, *place)
        windows.append(config.block_size)
        if config.vocab_size is not None:
            known["NanoGPT"] = config.vocab_size
    for maker in subject.makers:
        with seeded(0, "cpu"):
            model = maker.module(*place)
            task = task_of(model, text.block_size or window_of(model, otherwise))
            refuse_what_sees_ahead(task)
        windows.append(task.block_size)
        known[maker.name] = task.vocab_size
    if text.vocab_size is not None:
        known["the text"] = text.vocab_size
    name = min(known, key=known.__getitem__, default="")
    try:
        split = load_split(text.data, text.tokenizer, known.get(name))
    except DataError:
        if (
            not subject.makers
            or name == "the text"
            or (whole := load_split(text.data, text.tokenizer)).train.tokenizer == "stored"
        ):
            raise
        if (needed := whole.vocab_size) <= known[name]:
            raise
        raise ConfigError(
            f"{whole.described['label']} has {needed} ids as {whole.train.tokenizer}, and the model of {name} knows "
            f"{known[name]}; make it with vocab_size={needed}, or take another tokenizer (--tokenizer char)"
        ) from None
    subject.read(vocab_size=split.vocab_size)
    split.check(min(windows))
    return split, min(windows)
