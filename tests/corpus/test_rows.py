"""Rows that users bring as text: Hugging Face datasets, loaders, iterables of batches."""

import itertools
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import initlab
from initlab.corpus import load_corpus, rows
from initlab.errors import ConfigError, DataError

IDS = torch.arange(60).reshape(4, 15) % 50


class Rows:
    """What is needed of a dataset: its columns, some of them alone, and its rows."""

    def __init__(self, **columns):
        self.columns = columns
        self.column_names = list(columns)

    def select_columns(self, names):
        return Rows(**{name: self.columns[name] for name in names})

    def __iter__(self):
        for row in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, row, strict=True))


def kinds():
    yield "Rows", Rows
    try:
        import datasets
    except ModuleNotFoundError:
        return
    yield "Dataset", lambda **columns: datasets.Dataset.from_dict(columns)
    yield "IterableDataset", lambda **columns: datasets.Dataset.from_dict(columns).to_iterable_dataset()


KINDS = pytest.mark.parametrize(("name", "made"), list(kinds()))


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


@KINDS
def test_the_text_of_a_dataset(name, made):
    loaded = load_corpus(made(text=["one ☃", "", "two"], source=["a", "b", "c"]))
    assert bytes(loaded.tokens.tolist()).decode() == "one ☃\n\ntwo"
    assert (loaded.label, loaded.tokenizer, loaded.vocab_size) == (name, "bytes", 256)
    assert load_corpus(made(text=["one", "two"]), "char").vocab_size == len(set("one\ntwo"))


@KINDS
def test_the_ids_of_a_dataset(name, made):
    given = made(input_ids=[[1, 2, 3], [4, 0, 0]], attention_mask=[[1, 1, 1], [1, 0, 0]], text=["ab", "cd"])
    loaded = load_corpus(given)
    assert loaded.tokens.tolist() == [1, 2, 3, 4]  # without its padding
    assert (loaded.tokenizer, loaded.vocab_size) == ("stored", 5)
    assert load_corpus(given, vocab_size=64).vocab_size == 64
    assert bytes(load_corpus(given, "bytes").tokens.tolist()) == b"ab\ncd"  # a tokenizer reads text
    with pytest.raises(DataError, match=rf"tokenizer 'char' was given for {name}, which is ids already"):
        load_corpus(made(input_ids=[[1, 2]]), "char")
    with pytest.raises(DataError, match=rf"{name} has the columns content, lang; expected text or input_ids"):
        load_corpus(made(content=["a"], lang=["en"]))


def test_the_training_part_of_several(datasets):
    for kind in (dict, datasets.DatasetDict):
        parts = {name: datasets.Dataset.from_dict({"text": [name, name]}) for name in ("test", "train")}
        loaded = load_corpus(kind(parts))
        assert bytes(loaded.tokens.tolist()) == b"train\ntrain" and loaded.label.endswith("[train]")
    with pytest.raises(DataError, match="holds a, b; expected a split train, or one of them"):
        load_corpus({"a": [], "b": []})


def test_a_dataset_in_the_format_of_torch(datasets):
    given = datasets.Dataset.from_dict({"input_ids": IDS.tolist()}).with_format("torch")
    assert load_corpus(given).tokens.tolist() == IDS.flatten().tolist()
    assert load_corpus(DataLoader(given, batch_size=2)).tokens.tolist() == IDS.flatten().tolist()


def test_a_folder_that_save_to_disk_wrote(datasets, tmp_path, monkeypatch):
    one = datasets.Dataset.from_dict({"text": ["one", "two"]})
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=one).save_to_disk(str(tmp_path / "parts"))
    for name in ("one", "parts"):
        loaded = load_corpus(tmp_path / name)
        assert bytes(loaded.tokens.tolist()) == b"one\ntwo" and loaded.label.startswith(f"{name}: Dataset")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"one can't be read as a dataset"):
        load_corpus(tmp_path / "one")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs the package datasets: pip install datasets"):
        load_corpus(tmp_path / "parts")


FLAT = IDS.flatten().tolist()
WINDOWS = IDS[:, :-1], IDS[:, 1:]


@pytest.mark.parametrize(
    "given",
    [
        IDS,
        IDS.numpy(),
        IDS.tolist(),
        [IDS[:2], IDS[2:].int()],
        [{"input_ids": IDS, "labels": IDS}],
        {"input_ids": IDS},
        [WINDOWS],  # whose targets end one token later
        DataLoader(IDS, batch_size=3),
        DataLoader(TensorDataset(IDS), batch_size=3),
        DataLoader(TensorDataset(*WINDOWS), batch_size=3),
        (row for row in IDS),
    ],
)
def test_batches_of_ids(given):
    loaded = load_corpus(given)
    assert loaded.tokens.tolist() == FLAT and loaded.vocab_size == 50


def test_other_targets_are_none_of_the_text():
    assert load_corpus([(IDS, torch.zeros_like(IDS))]).tokens.tolist() == FLAT


def test_texts():
    assert bytes(load_corpus(["one", "two"]).tokens.tolist()) == b"one\ntwo"
    assert bytes(load_corpus([["one", "two"], ["three"]]).tokens.tolist()) == b"one\ntwo\nthree"
    assert bytes(load_corpus(DataLoader(Texts(), batch_size=2)).tokens.tolist()) == b"one\ntwo\nthree"


class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, at):
        return {"text": ["one", "two", "three"][at]}


def test_rows_without_an_end_are_read_so_far(monkeypatch):
    read = itertools.count()
    monkeypatch.setattr(rows, "MOST_IDS", 100)
    loaded = load_corpus(IDS[next(read) % 4] for _ in itertools.count())
    assert loaded.n_tokens == 100 and next(read) == 7
    assert loaded.label == "generator (its first 100 ids)"
    monkeypatch.setattr(rows, "MOST_BYTES", 8)
    cut = load_corpus("☃" for _ in itertools.count())
    assert bytes(cut.tokens.tolist()).decode() == "☃\n☃\n"  # whole characters
    assert cut.label == "generator (its first 8 bytes)"
    monkeypatch.setattr(rows, "MOST_ROWS", 5)
    with pytest.raises(DataError, match="generator holds 4 tokens"):  # the line ends between five empty texts
        load_corpus("" for _ in itertools.count()).batch(1, 4, 0)


def broken():
    yield IDS[0]
    raise OSError("connection lost")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "list holds no rows; expected a dataset with a column text or input_ids"),
        ([torch.rand(2, 3)], r"list holds the row tensor\(.*expected a dataset"),
        ([torch.zeros(2, 3, 4, dtype=torch.long)], "list holds the row tensor"),
        ([torch.ones(2, 3) > 0], "list holds the row tensor"),
        ([torch.zeros(2, 3, dtype=torch.bfloat16)], "list holds the row tensor"),
        ([None], "list holds the row None"),
        ([1, 2, 3], "list holds the row 1;"),
        ([[1, -100]], "list holds the id -100; expected ids from 0 on"),
        (["one", [1, 2]], "list holds rows of text and rows of ids"),
        (broken(), "generator raised while it was read: OSError: 'connection lost'"),
        ([[1]], "list holds 1 tokens; expected at least 2"),
    ],
)
def test_what_is_no_text_is_one_error(given, message):
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [5, None, b"text", "", object()])
def test_what_has_no_rows_is_refused(data):
    with pytest.raises(ConfigError, match=r"data is .*; expected a path|data is empty"):
        initlab.Text(data)


def make(n_layer=1):
    config = initlab.NanoGPTConfig(n_layer=n_layer, n_embd=16, n_head=1, block_size=8, vocab_size=64)
    return initlab.NanoGPT(config)


QUIET = initlab.RunOptions(engine="here", progress=False)


def test_commands_read_rows_once():
    def given():
        return initlab.Text((row for row in IDS.repeat(2, 1)), batch_size=2, block_size=8)

    hashes = {
        initlab.probe(make(), text=given(), stats="light").run.manifest["data"]["sha256"],
        initlab.compare(["nanogpt"], model=make, depths=[1, 2], seeds=1, text=given(), run=QUIET, stats="light")
        .run.manifest["data"]["sha256"],
        initlab.confirm(["nanogpt"], model=make, depths=[1], lrs=[1e-3], warmups=[0], seeds=1, steps=2, text=given(),
                        run=QUIET).run.manifest["data"]["sha256"],
        initlab.train(["nanogpt"], model=make, n_layer=1, steps=2, text=given(), run=QUIET)
        .run.manifest["data"]["sha256"],
    }  # fmt: skip
    assert hashes == {load_corpus(IDS.repeat(2, 1)).sha256}


def test_a_corpus_is_a_text(tmp_path):
    corpus = load_corpus(IDS, vocab_size=60)
    assert load_corpus(corpus).vocab_size == 60 and load_corpus(corpus, vocab_size=64).vocab_size == 64
    with pytest.raises(DataError, match="Tensor has 60 ids, more than vocab_size 50"):
        load_corpus(corpus, vocab_size=50)
    with pytest.raises(DataError, match="tokenizer 'char' was given for Tensor, which is ids already"):
        load_corpus(corpus, "char")
    random = load_corpus("uniform", vocab_size=300)
    assert load_corpus(random).vocab_size == 300 and load_corpus(random, vocab_size=7).vocab_size == 7


def test_numpy_ids_of_any_size():
    loaded = load_corpus([np.array([1, 70_000], dtype=np.uint32)])
    assert loaded.tokens.tolist() == [1, 70_000] and loaded.tokens.dtype == np.uint32
