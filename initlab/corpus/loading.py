"""From what a user names or brings to a corpus."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.resources import files as resources
from os import PathLike
from pathlib import Path
from typing import Any

from initlab.corpus import files
from initlab.corpus.docstrings import docstrings
from initlab.corpus.rows import load_saved, rows_of, saved
from initlab.corpus.tokenizing import tokenize
from initlab.corpus.tokens import Corpus, corpus_of, padded
from initlab.errors import DataError

NAMED = ("english", "docstrings")


def load_corpus(data: Any = "english", tokenizer: Any = None, vocab_size: int | None = None) -> Corpus:
    """Load and tokenize text.

    Args:
        data: "english" (300 kB of prose that initlab brings, see `initlab/corpus/english.md`), "docstrings" (of
            Python's standard library, another text on each version), "uniform" (random ids), a UTF-8 file, a folder
            (its .txt and .md files, by path, or a dataset that save_to_disk wrote), or a nanoGPT `.bin` of uint16 ids,
            which stays on disk. Or rows: a Hugging Face dataset, a loader, texts or ids, see `rows.rows_of`; or a
            Corpus.
        tokenizer: "bytes" (the default), "char" as nanoGPT's shakespeare_char, the name of a tiktoken encoding such as
            "gpt2", a tokenizer.json or a folder that holds one; or an object whose `encode` returns a list of ids, or
            what has one in `ids`. Not for ids.
        vocab_size: pads the vocabulary; gives that of random ids (else 256), of a `.bin` without meta.pkl (50304).

    Raises:
        DataError: the data can't be found, read or tokenized, or doesn't fit vocab_size.
    """
    if not isinstance(data, str | PathLike):
        return _brought(data, tokenizer, vocab_size)
    path = Path(data)
    if tokenizer is not None and (data == "uniform" or path.suffix == ".bin"):
        raise _ids_already(tokenizer, data)
    if data == "uniform":
        size = padded(256 if vocab_size is None else vocab_size, 2, "uniform")
        return Corpus("uniform random ids", "none", size, None)

    try:
        found = data in NAMED or path.exists()
    except OSError:  # too long for a path, or in a folder that may not be entered
        found = False
    if not found:
        raise DataError(
            f"no data at {path}; expected a text file, a folder, a nanoGPT .bin file, or one of {', '.join(NAMED)}, "
            "uniform"
        )
    if data == "english":
        label = "English prose (shipped with initlab)"
        parts = [(label, (resources("initlab.corpus") / "english.txt").read_bytes())]
    elif data == "docstrings":
        label = f"Python {platform.python_version()} standard library docstrings"
        parts = [(label, docstrings())]
    elif path.is_dir() and saved(path):
        return _brought(load_saved(path), tokenizer, vocab_size, path.resolve().name)
    elif path.is_dir():
        parts = [(str(file), files.read(file)) for file in files.text_files(path)]
        label = f"{path.resolve().name} ({len(parts)} file{'s'[: len(parts) > 1]})"
    elif path.suffix == ".bin":
        return files.load_bin(path, vocab_size)
    else:
        label = path.name
        parts = [(str(path), files.read(path))]
    return _tokenized(label, parts, tokenizer, vocab_size)


def _brought(data: Any, tokenizer: Any, vocab_size: int | None, name: str | None = None) -> Corpus:
    """Of rows that a user brings."""
    if isinstance(data, Corpus):
        if tokenizer is not None:
            raise _ids_already(tokenizer, data.label)
        needed = 2 if data.tokens is None and vocab_size is not None else data.vocab_size
        return replace(data, vocab_size=padded(vocab_size, needed, data.label))
    label, rows = rows_of(data, text=tokenizer is not None)
    label = f"{name}: {label}" if name else label
    if isinstance(rows, bytes):
        return _tokenized(label, [(label, rows)], tokenizer, vocab_size)
    if tokenizer is not None:
        raise _ids_already(tokenizer, label)
    needed = int(rows.max()) + 1 if len(rows) else 1
    tokens = rows.astype("<u2" if needed <= 2**16 else "<u4")
    return corpus_of(label, "stored", tokens, padded(vocab_size, needed, label))


def _tokenized(label: str, parts: list[tuple[str, bytes]], tokenizer: Any, vocab_size: int | None) -> Corpus:
    ids, needed, name = tokenize(parts, "bytes" if tokenizer is None else tokenizer)
    tokens = ids.astype("<u2" if needed <= 2**16 else "<u4")
    return corpus_of(label, name, tokens, padded(vocab_size, needed, f"tokenizer {name}"))


def _ids_already(tokenizer: Any, what: Any) -> DataError:
    return DataError(f"tokenizer {tokenizer!r:.80} was given for {what}, which is ids already; leave the tokenizer out")
