"""Text -> tiktoken tokens -> batches: the same for the same seed, and without a download."""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import hashlib
import math
import os
import pickle
import platform
import sys
import sysconfig
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import torch
from numpy.typing import NDArray
from torch import Tensor

from initlab.errors import ConfigError, DataError

CACHE_FORMAT = 1  # raise it when the extraction changes
GPT2_VOCAB = 50304  # nanoGPT's: 50257 padded to a multiple of 64
STATISTICS_TOKENS = 10_000_000
MOST_TOKENS = 2**27  # of a batch: 1 GiB of ids
HASH_EDGE = 16 * 2**20  # bytes
TEXT_SUFFIXES = (".txt", ".md")
# Not English prose: test suites, an application, a grammar with test data, other people's packages.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "_bundled"}

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
            _check_ids(rows, self.vocab_size, self.label)
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


def load_corpus(data: str | Path = "docstrings", tokenizer: str | None = None, vocab_size: int | None = None) -> Corpus:
    """Load and tokenize text.

    Args:
        data: "docstrings" (of Python's standard library, which every machine has), "uniform" (random ids), a UTF-8
            file, a folder (its .txt and .md files, by path), or a nanoGPT `.bin` of uint16 ids, which stays on disk.
        tokenizer: "bytes" (the default), "char" as nanoGPT's shakespeare_char, or the name of a tiktoken encoding
            such as "gpt2"; not for ids.
        vocab_size: pads the vocabulary; gives that of random ids (else 256), of a `.bin` without meta.pkl (50304).

    Raises:
        DataError: the data can't be found, read or tokenized, or doesn't fit vocab_size.
    """
    path = Path(data)
    if tokenizer is not None and (data == "uniform" or path.suffix == ".bin"):
        raise DataError(f"tokenizer {tokenizer!r} was given for {data}, which is ids already; leave the tokenizer out")
    if data == "uniform":
        size = _padded(256 if vocab_size is None else vocab_size, 2, "uniform")
        return Corpus("uniform random ids", "none", size, None)

    try:
        found = data == "docstrings" or path.exists()
    except OSError:  # too long for a path, or in a folder that may not be entered
        found = False
    if not found:
        raise DataError(
            f"no data at {path}; expected a text file, a folder, a nanoGPT .bin file, or one of docstrings, uniform"
        )
    if data == "docstrings":
        label = f"Python {platform.python_version()} standard library docstrings"
        parts = [(label, _docstrings())]
    elif path.is_dir():
        parts = [(str(file), _read(file)) for file in _text_files(path)]
        label = f"{path.resolve().name} ({len(parts)} file{'s'[: len(parts) > 1]})"
    elif path.suffix == ".bin":
        return _load_bin(path, vocab_size)
    else:
        label = path.name
        parts = [(str(path), _read(path))]

    tokenizer = tokenizer or "bytes"
    ids, needed = _tokenize(parts, tokenizer)
    tokens = ids.astype("<u2" if needed <= 2**16 else "<u4")
    return _corpus(label, tokenizer, tokens, _padded(vocab_size, needed, f"tokenizer {tokenizer}"))


def _corpus(label: str, tokenizer: str, tokens: Ids, vocab_size: int) -> Corpus:
    if len(tokens) < 2:
        raise DataError(f"{label} holds {len(tokens)} tokens; expected at least 2, one to read and one to predict")
    _check_ids(tokens[:STATISTICS_TOKENS], vocab_size, label)
    what, hashed = "all tokens", hashlib.sha256()
    if isinstance(tokens, np.memmap) and tokens.nbytes > 2 * HASH_EDGE:
        # OpenWebText's train.bin is 17 GB: reading all of it would take longer than a probe.
        what = "number of bytes, first and last 16 MiB"
        edge = HASH_EDGE // tokens.itemsize
        hashed.update(b"%d" % tokens.nbytes + tokens[:edge].tobytes() + tokens[-edge:].tobytes())
    else:
        hashed.update(tokens.tobytes())
    return Corpus(label, tokenizer, vocab_size, tokens, hashed.hexdigest(), what)


def _padded(vocab_size: int | None, needed: int, what: str) -> int:
    if vocab_size is not None and vocab_size < needed:
        raise DataError(f"{what} has {needed} ids, more than vocab_size {vocab_size}; expected at least {needed}")
    return vocab_size or needed


def _check_ids(ids: NDArray[Any], vocab_size: int, label: str) -> None:
    if (found := int(ids.max())) >= vocab_size:
        raise DataError(
            f"{label} holds the id {found}, outside a vocabulary of {vocab_size}; pass the vocab_size it was written "
            "with, or check that it is a file of plain uint16 ids"
        )


@functools.cache
def byte_encoding() -> tiktoken.Encoding:
    """tiktoken Encoding whose 256 tokens are the bytes: `encode` gives UTF-8 bytes, `decode_bytes` gives them back."""
    return tiktoken.Encoding(
        "initlab-bytes",
        pat_str=r"[\s\S]{1,64}",  # any piece will do, no merges cross it; 64 is 4x faster than 1
        mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={},
        explicit_n_vocab=256,
    )


def _tokenize(parts: list[tuple[str, bytes]], tokenizer: str) -> tuple[NDArray[Any], int]:
    """Ids of the named texts joined by line ends, and the vocabulary they need."""
    if tokenizer == "bytes":
        # What byte_encoding() gives for valid text, 100x faster and for any bytes.
        return np.frombuffer(b"\n".join(raw for _, raw in parts), dtype=np.uint8), 256
    if tokenizer == "char":
        text = _decode(parts, tokenizer)
        points, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), return_inverse=True)
        return ids, len(points)
    known = tiktoken.list_encoding_names()
    if tokenizer not in known:
        raise DataError(f"unknown tokenizer {tokenizer!r}; expected one of bytes, char, {', '.join(known)}")
    try:
        encoding = tiktoken.get_encoding(tokenizer)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: not the file that was asked for
        raise DataError(
            f"tiktoken's {tokenizer} vocabulary isn't on this machine and couldn't be fetched "
            f"({type(error).__name__}); run once with network, or copy a tiktoken cache here and set "
            "TIKTOKEN_CACHE_DIR to it, or use the tokenizer bytes (--tokenizer bytes)"
        ) from None
    ids = np.array(encoding.encode_ordinary(_decode(parts, tokenizer)), dtype=np.int64)
    return ids, -(-encoding.n_vocab // 64) * 64  # padded to a multiple of 64, as nanoGPT does for speed


def _decode(parts: list[tuple[str, bytes]], tokenizer: str) -> str:
    texts = []
    for name, raw in parts:
        try:
            texts.append(raw.decode())
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name} isn't UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}; tokenizer {tokenizer} "
                "needs text, convert the file or use the tokenizer bytes (--tokenizer bytes)"
            ) from None
    return "\n".join(texts)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from None


def _text_files(folder: Path) -> list[Path]:
    files = [file for file in folder.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES and file.is_file()]
    if not files:
        raise DataError(
            f"no {' or '.join(TEXT_SUFFIXES)} file anywhere in {folder}; pass a folder that has some, or one file"
        )
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())  # the same on every system


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, strings and containers only: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, and only plain values are loaded")


def _load_bin(path: Path, vocab_size: int | None) -> Corpus:
    try:
        if (n := path.stat().st_size) == 0 or n % 2:
            raise DataError(f"{path} holds {n} bytes; expected uint16 ids, two bytes each, as nanoGPT writes them")
        tokens = np.memmap(path, dtype="<u2", mode="r")
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from None
    needed = _meta_vocab(path.with_name("meta.pkl"))
    size = vocab_size or GPT2_VOCAB if needed is None else _padded(vocab_size, needed, "meta.pkl")
    return _corpus(path.name, "stored", tokens, size)


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


def _docstrings() -> bytes:
    """The docstrings of this Python's standard library, about 1.6 MB; extracted once, then from the cache."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    cache = _cache_file(stdlib)
    with contextlib.suppress(OSError):
        digest, _, text = cache.read_bytes().partition(b"\n")
        if text and hashlib.sha256(text).hexdigest().encode() == digest:
            return text
    # A docstring may hold lone surrogates, which UTF-8 can't.
    text = "\n\n".join(_extract(stdlib)).encode("utf-8", "replace")
    if not text:
        raise DataError(
            f"Python's standard library has no readable sources in {stdlib}, so there is no default text; "
            "pass a text file (--data PATH), or uniform for random ids"
        )
    with contextlib.suppress(OSError):  # a cache that can't be written costs seconds, not the run
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}")
        part.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        part.replace(cache)
    return text


def _cache_file(stdlib: Path) -> Path:
    usual = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    home = os.path.expanduser(usual.get(sys.platform, "~/.cache"))  # noqa: PTH111 - doesn't raise without a home
    # The same version can hold other modules elsewhere (Debian takes some out), so the place is part of the name.
    place = hashlib.sha256(str(stdlib).encode()).hexdigest()[:8]
    name = f"docstrings-{sys.implementation.name}-{platform.python_version()}-{place}-v{CACHE_FORMAT}.txt"
    return Path(os.environ.get("XDG_CACHE_HOME") or home) / "initlab" / name


def _extract(stdlib: Path) -> list[str]:
    """Docstrings in the order of their modules' paths; indentation and runs of blanks removed, lines kept."""
    files = []
    for folder, inside, names in os.walk(stdlib):
        inside[:] = set(inside) - SKIPPED_FOLDERS  # os.walk goes where this list says
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    docs = []
    collecting = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles, and looking for some among torch's objects takes most of the time
    try:
        for file in sorted(files, key=lambda file: file.relative_to(stdlib).as_posix()):
            try:
                with warnings.catch_warnings(action="ignore"):  # of old escapes in old modules
                    tree = ast.parse(file.read_bytes())
            except (OSError, SyntaxError, ValueError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    docs.append((ast.get_docstring(node, clean=False) or "").strip())
    finally:
        if collecting:
            gc.enable()
    return ["\n".join(" ".join(line.split()) for line in doc.splitlines()) for doc in docs if doc]
