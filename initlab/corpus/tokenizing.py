"""Text -> ids: bytes, characters, tiktoken's encodings, Hugging Face's tokenizer.json, or what a user brings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray

from initlab.errors import DataError
from initlab.options import shown

FILE = "tokenizer.json"  # what tokenizers and transformers save
# transformers' (verbose: it says that the text is longer than a model reads), tokenizers'
_QUIET: tuple[dict[str, bool], ...] = ({"add_special_tokens": False, "verbose": False}, {"add_special_tokens": False})
_SIZES = ("get_vocab_size", "__len__", "n_vocab", "vocab_size")  # of tokenizers, transformers, tiktoken, others


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


def tokenize(parts: list[tuple[str, bytes]], tokenizer: Any) -> tuple[NDArray[Any], int, str]:
    """Turn texts, joined by line ends, into ids.

    Args:
        parts: name and UTF-8 bytes of each.
        tokenizer: as `load_corpus` takes it.

    Returns:
        the ids, the vocabulary that they need, and the tokenizer's name.

    Raises:
        DataError: it can't be had, or can't read the texts.
    """
    if tokenizer == "bytes":
        # What byte_encoding() gives for valid text, 100x faster and for any bytes.
        return np.frombuffer(b"\n".join(raw for _, raw in parts), dtype=np.uint8), 256, "bytes"
    if tokenizer == "char":
        text = _decode(parts, "char")
        points, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), return_inverse=True)
        return ids, len(points), "char"
    if not isinstance(tokenizer, str | Path):
        return _encoded(tokenizer, type(tokenizer).__name__, parts)
    path = Path(tokenizer)
    if path.suffix == ".json" or (path / FILE).is_file():
        path = path if path.suffix == ".json" else path / FILE
        return _encoded(_of_file(path), path.name, parts)
    known = tiktoken.list_encoding_names()
    if tokenizer not in known:
        raise DataError(
            f"unknown tokenizer {str(tokenizer)!r}; expected one of bytes, char, {', '.join(known)}, or a {FILE}"
        )
    try:
        encoding = tiktoken.get_encoding(str(tokenizer))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: not the file that was asked for
        raise DataError(
            f"tiktoken's {tokenizer} vocabulary isn't on this machine and couldn't be fetched "
            f"({type(error).__name__}); run once with network, or copy a tiktoken cache here and set "
            "TIKTOKEN_CACHE_DIR to it, or use the tokenizer bytes (--tokenizer bytes)"
        ) from None
    ids = np.array(encoding.encode_ordinary(_decode(parts, str(tokenizer))), dtype=np.int64)
    return ids, -(-encoding.n_vocab // 64) * 64, str(tokenizer)  # a multiple of 64, as nanoGPT has it for speed


def _of_file(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"no tokenizer at {path}; expected a {FILE}, as tokenizers and transformers save it")
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise DataError(
            f"{path} needs the package tokenizers, which isn't installed: pip install 'initlab[tokenizers]'"
        ) from None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # which has no class of its own
        raise DataError(
            f"{path} can't be read as a {FILE} ({shown(str(error))}): it was cut short, or is something else; expected "
            "what tokenizers and transformers save"
        ) from None


def _encoded(tokenizer: Any, name: str, parts: list[tuple[str, bytes]]) -> tuple[NDArray[Any], int, str]:
    """By an object's own `encode`, the text as a whole and nothing added to it."""
    text = _decode(parts, name)
    try:
        found = _encode_of(tokenizer)(text)
        ids = np.asarray(getattr(found, "ids", found))
    except Exception as error:
        raise DataError(
            f"the tokenizer {name} can't encode the text: {type(error).__name__}: {shown(str(error))}"
        ) from error
    if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
        raise DataError(
            f"the tokenizer {name} made {shown(found)} of the text; expected `encode` to return a list of "
            "token ids, or an object whose `ids` is one"
        )
    ids = ids.astype(np.int64)
    if ids.size and ids.min() < 0:
        raise DataError(f"the tokenizer {name} made the id {ids.min()} of the text; expected ids from 0 on")
    largest = int(ids.max()) + 1 if ids.size else 0
    return ids, max(largest, _size(tokenizer)), name


def _encode_of(tokenizer: Any) -> Callable[[str], Any]:
    """Without what is put before and after a text, without special tokens in it, and all of it."""
    if hasattr(tokenizer, "encode_ordinary"):  # tiktoken's, whose encode refuses special tokens
        ordinary: Callable[[str], Any] = tokenizer.encode_ordinary
        return ordinary
    if hasattr(tokenizer, "no_truncation"):  # tokenizers', whose files often say to cut texts at 512 tokens
        tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()

    def encode(text: str) -> Any:
        for options in _QUIET:
            try:
                return tokenizer.encode(text, **options)
            except TypeError:  # it has no such options
                continue
        return tokenizer.encode(text)

    return encode


def _size(tokenizer: Any) -> int:
    """Ids that a tokenizer has; 0: it doesn't say."""
    for name in _SIZES:
        try:
            found = getattr(tokenizer, name)
            return int(found() if callable(found) else found)
        except Exception:
            continue
    return 0


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
