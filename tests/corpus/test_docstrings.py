"""Python's own docstrings as a text."""

from __future__ import annotations

import gc
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import pytest

from initlab.corpus import Corpus, byte_encoding, load_corpus
from initlab.corpus import docstrings as module
from initlab.errors import DataError

pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def docstrings(cache: Path) -> Corpus:
    """Extracted once: it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return load_corpus("docstrings")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def small_stdlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "stdlib"
    (folder / "package" / "tests").mkdir(parents=True)
    (folder / "b.py").write_text('"""Module b.\n\n    Indented   line."""\ndef f():\n    "Function   f."\n', "utf-8")
    (folder / "a.py").write_text(
        'class A:\n    """Class A."""\n    async def g(self):\n        r"""Do\\d \\e."""\n', "utf-8"
    )
    (folder / "package" / "c.py").write_text('"""Surrogate \\udc80, escape \\d."""\n', "utf-8")
    (folder / "package" / "broken.py").write_text('"""Python 2."""\nprint "hello"\n', "utf-8")
    (folder / "package" / "tests" / "d.py").write_text('"""A test."""\n', "utf-8")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    return folder


def ids(loaded: Corpus) -> list[int]:
    assert loaded.tokens is not None
    return loaded.tokens.tolist()


def test_docstring_statistics(docstrings: Corpus) -> None:
    statistics = docstrings.statistics()
    assert 3.2 < statistics["entropy_nats"] < 3.45
    assert 0.05 < statistics["sum_p2"] < 0.063
    assert 0.025 < statistics["repeat_rate"] < 0.045
    assert docstrings.n_tokens is not None
    assert 800_000 < docstrings.n_tokens < 4_000_000
    assert docstrings.label.startswith("Python 3.")
    assert docstrings.vocab_size == 256


def test_docstrings_come_from_the_cache(docstrings: Corpus, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(module, "_extract", lambda stdlib: pytest.fail("extracted again"))
    again = load_corpus("docstrings")
    assert ids(again) == ids(docstrings)
    assert again.sha256 == docstrings.sha256


def test_extraction(small_stdlib: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load_corpus("docstrings")
    assert not caught
    assert gc.isenabled()
    expected = "Class A.\n\nDo\\d \\e.\n\nModule b.\n\nIndented line.\n\nFunction f.\n\nSurrogate ?, escape \\d."
    assert byte_encoding().decode(ids(loaded)) == expected
    assert [path.suffix for path in (tmp_path / "cache" / "initlab").iterdir()] == [".txt"]


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b.replace(b"Class", b"class"), lambda b: b""])
def test_damaged_cache_is_rebuilt(small_stdlib: Path, tmp_path: Path, damage: Any) -> None:
    first = load_corpus("docstrings")
    (file,) = (tmp_path / "cache" / "initlab").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert load_corpus("docstrings").sha256 == first.sha256
    assert file.read_bytes() == whole


def test_cache_that_cannot_be_written(small_stdlib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a file where a folder is needed, for root too
    assert load_corpus("docstrings").n_tokens


def test_stdlib_without_sources(small_stdlib: Path) -> None:
    for file in small_stdlib.rglob("*.py"):
        file.unlink()
    with pytest.raises(DataError, match=r"no readable sources in .*stdlib.*--data PATH"):
        load_corpus("docstrings")
