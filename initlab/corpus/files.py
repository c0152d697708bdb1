"""Files of text, and nanoGPT's of ids."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from initlab.corpus.tokens import Corpus, corpus_of, padded
from initlab.errors import DataError

TEXT_SUFFIXES = (".txt", ".md")
GPT2_VOCAB = 50304  # nanoGPT's: 50257 padded to a multiple of 64


def read(path: Path) -> bytes:
    """Read a file. Raises DataError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from None


def text_files(folder: Path) -> list[Path]:
    """List the text files anywhere in a folder, in the same order on every system. Raises DataError: there are none."""
    files = [file for file in folder.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file()]
    if not files:
        raise DataError(
            f"no {' or '.join(TEXT_SUFFIXES)} file anywhere in {folder}; pass a folder that has some, or one file"
        )
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings and containers only: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, and only plain values are loaded")


def load_bin(path: Path, vocab_size: int | None) -> Corpus:
    """Map a file of nanoGPT's ids, which stay on disk.

    Args:
        path: of the file; a meta.pkl beside it has the vocabulary.
        vocab_size: of a file without one; default nanoGPT's.

    Raises:
        DataError: one of the two can't be read, or holds something else.
    """
    try:
        if (n := path.stat().st_size) == 0 or n % 2:
            raise DataError(f"{path} holds {n} bytes; expected uint16 ids, two bytes each, as nanoGPT writes them")
        tokens = np.memmap(path, dtype="<u2", mode="r")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from None
    needed = _meta_vocab(path.with_name("meta.pkl"))
    size = vocab_size or GPT2_VOCAB if needed is None else padded(vocab_size, needed, "meta.pkl")
    return corpus_of(path.name, "stored", tokens, size)


def _meta_vocab(path: Path) -> int | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            size = _PlainUnpickler(file).load()["vocab_size"]
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"vocab_size is {size!r}")
        return size
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(
            f"{path} can't be used ({type(error).__name__}: {error}); expected nanoGPT's meta.pkl, a dict with "
            "vocab_size, write it again or move it away and pass vocab_size"
        ) from None
