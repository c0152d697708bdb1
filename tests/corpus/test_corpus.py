from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Iterator
from fractions import Fraction
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tiktoken
import torch

from initlab.corpus import Corpus, byte_encoding, load_corpus, tokens
from initlab.errors import ConfigError, DataError

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler, naïvely, in the mind to suffer ☃\n"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "hamlet.txt"
    path.write_bytes(TEXT.encode())
    return path


def ids(loaded: Corpus) -> list[int]:
    assert loaded.tokens is not None
    return loaded.tokens.tolist()


def test_the_text_that_is_shipped() -> None:
    english = load_corpus()
    assert (english.n_tokens, english.vocab_size, english.tokenizer) == (299_834, 256, "bytes")
    # the same on every machine, or runs that nobody gave a text couldn't be compared
    assert english.sha256 == "bd82c2f4d41b8b2a2eb5265efaaafd213f1e0ab19d17b03f06fc3d2401a4c53f"
    assert load_corpus(tokenizer="char").vocab_size == 83
    text = byte_encoding().decode(ids(english))
    assert text.isascii() and "gutenberg" not in text.lower()
    assert "  " not in text and "\r" not in text and "\n\n\n\n" not in text
    notice = (resources("initlab.corpus") / "english.md").read_text("utf-8")
    assert "299,834 bytes" in notice and "public" in notice
    assert text.index("WORKSHOP ON ELECTRONIC TEXTS") == 143_093 and "first 143,092 bytes" in notice


def test_byte_encoding_round_trip(text_file: Path) -> None:
    encoding = byte_encoding()
    assert (encoding.name, encoding.n_vocab) == ("initlab-bytes", 256)
    every = bytes(range(256))
    assert encoding.decode_bytes(list(every)) == every
    long = "".join(map(chr, range(32, 3000))) + " " * 500 + TEXT
    assert encoding.encode(long) == list(long.encode())
    loaded = load_corpus(text_file, "bytes")
    assert ids(loaded) == encoding.encode(TEXT)
    assert loaded.tokens is not None
    assert loaded.tokens.dtype == np.uint16
    assert loaded.sha256 == hashlib.sha256(loaded.tokens.tobytes()).hexdigest()


def test_char_is_nanogpts(text_file: Path) -> None:
    loaded = load_corpus(text_file, "char")
    chars = sorted(set(TEXT))
    stoi = {ch: i for i, ch in enumerate(chars)}
    assert loaded.vocab_size == len(chars)
    assert ids(loaded) == [stoi[ch] for ch in TEXT]


def test_tiktoken_encoding_by_name(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {bytes([i]): i for i in range(256)} | {b"to": 256, b" be": 257} | {b"%d" % i: i for i in range(300, 70000)}
    encoding = tiktoken.Encoding("gpt2", pat_str=r"\s?\w+|\W", mergeable_ranks=words, special_tokens={"<|end|>": 70000})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    text_file.write_text("<|end|> 69999", "utf-8")  # text isn't a special token, whatever it looks like
    loaded = load_corpus(text_file, "gpt2")
    assert encoding.decode(ids(loaded)) == "<|end|> 69999"
    assert 70000 not in ids(loaded)
    assert loaded.tokens is not None
    assert loaded.tokens.dtype == np.uint32
    assert loaded.vocab_size == 70016  # the next multiple of 64


@pytest.mark.parametrize("error", [requests.exceptions.ConnectionError("no route"), ValueError("Hash mismatch")])
def test_gpt2_offline(text_file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def get_encoding(name: str) -> tiktoken.Encoding:
        raise error

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    with pytest.raises(DataError, match=r"gpt2 vocabulary .*with network.*TIKTOKEN_CACHE_DIR.*--tokenizer bytes"):
        load_corpus(text_file, "gpt2")


def test_unknown_tokenizer(text_file: Path) -> None:
    with pytest.raises(DataError, match=r"'gpt9'; expected one of bytes, char, gpt2, .* a tokenizer\.json$"):
        load_corpus(text_file, "gpt9")


def test_padded_vocabulary(text_file: Path) -> None:
    assert load_corpus(text_file, vocab_size=50304).vocab_size == 50304
    with pytest.raises(DataError, match="tokenizer bytes has 256 ids, more than vocab_size 65; expected at least 256"):
        load_corpus(text_file, vocab_size=65)
    with pytest.raises(DataError, match="more than vocab_size 0"):
        load_corpus(text_file, vocab_size=0)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes("caf\xe9 au lait".encode("latin-1"))
    assert load_corpus(path).n_tokens == 12
    with pytest.raises(DataError, match=r"latin1\.txt isn't UTF-8: byte 0xe9 at position 3; tokenizer char needs text"):
        load_corpus(path, "char")


def test_folder(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "z.md").write_text("third", "utf-8")
    (folder / "b.txt").write_text("second", "utf-8")
    (folder / "a.TXT").write_text("first", "utf-8")
    (folder / "a.py").write_text("no prose", "utf-8")
    loaded = load_corpus(str(folder))
    assert byte_encoding().decode(ids(loaded)) == "first\nsecond\nthird"
    assert loaded.label == "books (3 files)"

    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.txt or \.md file anywhere in .*empty"):
        load_corpus(tmp_path / "empty")


@pytest.mark.parametrize("content", [b"", b"a"])
def test_too_little_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "short.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"short\.txt holds {len(content)} tokens; expected at least 2"):
        load_corpus(tmp_path / "short.txt")


@pytest.mark.parametrize("path", ["nowhere.txt", "./docstrings", "./english", "To be, or not to be " * 300])
def test_missing(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no data at .*expected a text file, a folder"):
        load_corpus(path)


def write_bin(folder: Path, stored: Any, meta: object = None) -> Path:
    np.array(stored, dtype="<u2").tofile(folder / "train.bin")
    if meta is not None:
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder / "train.bin"


def test_bin_round_trip(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(65, size=1000)
    path = write_bin(tmp_path, stored)
    loaded = load_corpus(path)
    assert isinstance(loaded.tokens, np.memmap)
    assert np.array_equal(loaded.tokens, stored)
    assert (loaded.vocab_size, loaded.tokenizer) == (50304, "stored")
    assert load_corpus(path, vocab_size=65).vocab_size == 65
    with pytest.raises(DataError, match=r"train\.bin holds the id 64, outside a vocabulary of 64"):
        load_corpus(path, vocab_size=64)
    with pytest.raises(DataError, match=r"tokenizer 'gpt2' was given for .*train\.bin"):
        load_corpus(path, "gpt2")

    write_bin(tmp_path, stored, {"vocab_size": 65, "itos": {0: "\n"}, "stoi": {"\n": 0}})
    assert load_corpus(path).vocab_size == 65
    assert load_corpus(path, vocab_size=128).vocab_size == 128
    with pytest.raises(DataError, match=r"meta\.pkl has 65 ids, more than vocab_size 64"):
        load_corpus(path, vocab_size=64)


def test_bin_ids_beyond_those_checked_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "STATISTICS_TOKENS", 4)
    loaded = load_corpus(write_bin(tmp_path, [1, 2, 3, 4, 90]), vocab_size=65)
    with pytest.raises(DataError, match="holds the id 90, outside a vocabulary of 65"):
        loaded.batch(1, 4, seed=0)


@pytest.mark.parametrize("content", [b"", b"123"])
def test_bin_of_the_wrong_size(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"holds {len(content)} bytes; expected uint16 ids"):
        load_corpus(tmp_path / "train.bin")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"vocab_size": Fraction(65)}, "refers to fractions.Fraction, and only plain values are loaded"),
        ({"vocab_size": "65"}, "vocab_size is '65'"),
        ({"itos": {}}, "KeyError: 'vocab_size'"),
        ([65], "TypeError"),
    ],
)
def test_meta_refused(tmp_path: Path, meta: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_corpus(write_bin(tmp_path, [1, 2, 3], meta))


def test_large_bin_is_hashed_at_its_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "HASH_EDGE", 8)
    stored = np.arange(20)
    whole = load_corpus(write_bin(tmp_path, stored))
    assert whole.describe()["sha256_of"] == "number of bytes, first and last 16 MiB"
    stored[10] = 99
    assert load_corpus(write_bin(tmp_path, stored)).sha256 == whole.sha256
    stored[-1] = 99
    assert load_corpus(write_bin(tmp_path, stored)).sha256 != whole.sha256
    assert load_corpus(write_bin(tmp_path, stored[:8])).sha256_of == "all tokens"


def corpora(folder: Path) -> Iterator[Corpus]:
    (folder / "counting.txt").write_bytes(bytes(range(256)) * 4)
    yield load_corpus(folder / "counting.txt")
    yield load_corpus("uniform", vocab_size=1000)


def test_batches(tmp_path: Path) -> None:
    for loaded in corpora(tmp_path):
        idx, targets = loaded.batch(8, 16, seed=3)
        assert idx.shape == targets.shape == (8, 16)
        assert idx.dtype == targets.dtype == torch.int64
        assert idx.is_contiguous()
        assert targets.is_contiguous()
        assert torch.equal(idx[:, 1:], targets[:, :-1])
        assert torch.equal(loaded.batch(8, 16, seed=3)[1], targets)
        assert not torch.equal(loaded.batch(8, 16, seed=4)[0], idx)
        assert idx.min() >= 0
        assert idx.max() < loaded.vocab_size
    counting = next(corpora(tmp_path))
    idx, targets = counting.batch(8, 16, seed=3)
    assert torch.equal(targets, (idx + 1) % 256)


def test_batches_leave_no_trace(tmp_path: Path) -> None:
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    for loaded in corpora(tmp_path):
        loaded.batch(2, 4, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)  # type: ignore[index] # noqa: NPY002


def test_windows_reach_both_ends(tmp_path: Path) -> None:
    (tmp_path / "abc.txt").write_text("abcd", "utf-8")
    loaded = load_corpus(tmp_path / "abc.txt")
    idx, targets = loaded.batch(64, 2, seed=0)
    assert {chr(i) for i in idx.flatten()} == set("abc")
    assert {chr(i) for i in targets.flatten()} == set("bcd")
    assert loaded.batch(1, 3, seed=0)[1].tolist() == [[98, 99, 100]]
    with pytest.raises(DataError, match=r"abc\.txt holds 4 tokens; windows of block_size 4 need at least 5"):
        loaded.batch(1, 4, seed=0)
    with pytest.raises(ConfigError, match="a batch of 0 windows"):
        loaded.batch(0, 2, seed=0)


def test_statistics_are_exact(tmp_path: Path) -> None:
    (tmp_path / "aab.txt").write_text("aaab", "utf-8")
    statistics = load_corpus(tmp_path / "aab.txt").statistics()
    assert statistics["entropy_nats"] == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert statistics["sum_p2"] == pytest.approx(0.75**2 + 0.25**2)
    assert statistics["repeat_rate"] == pytest.approx(2 / 3)


def test_uniform() -> None:
    loaded = load_corpus("uniform", vocab_size=65)
    assert loaded.statistics() == {"entropy_nats": math.log(65), "sum_p2": 1 / 65, "repeat_rate": 1 / 65}
    idx, _ = loaded.batch(64, 64, seed=0)
    assert idx.unique().numel() == 65
    assert load_corpus("uniform").vocab_size == 256
    with pytest.raises(DataError, match="tokenizer 'bytes' was given for uniform"):
        load_corpus("uniform", "bytes")
    with pytest.raises(DataError, match="vocab_size 1; expected at least 2"):
        load_corpus("uniform", vocab_size=1)


def test_description_is_json(tmp_path: Path) -> None:
    for loaded in corpora(tmp_path):
        described = json.loads(json.dumps(loaded.describe()))
        assert list(described) == [
            "label",
            "tokenizer",
            "vocab_size",
            "n_tokens",
            "sha256",
            "sha256_of",
            "targets",
            "entropy_nats",
            "sum_p2",
            "repeat_rate",
        ]
        assert described["targets"] == "next-token"
        assert "tokens=" not in repr(loaded).replace("n_tokens=", "")
