"""What commands are told beside their model."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pandas as pd
import pytest

import initlab
from initlab.errors import ConfigError, DataError
from initlab.options import RunOptions, Text, checked


def test_they_are_frozen_and_say_what_they_cannot_use() -> None:
    assert Text("my.txt") == Text(data="my.txt") and initlab.RunOptions() == RunOptions(device="auto")
    with pytest.raises(FrozenInstanceError):
        Text().data = "other.txt"  # type: ignore[misc]
    for wrong in (0, 2.5, True, "4"):
        with pytest.raises(ConfigError, match=f"batch_size is {wrong!r}; expected a whole number from 1 on"):
            Text(batch_size=wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"block_size is {wrong!r}; expected a whole number from 1 on"):
            Text(block_size=wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"jobs is {wrong!r}; expected a whole number from 1 on"):
            RunOptions(jobs=wrong)  # type: ignore[arg-type]
    for wrong in (3, None):
        with pytest.raises(ConfigError, match=f"data is {wrong}; expected a path"):
            Text(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="out is 3; expected a path"):
        RunOptions(out=3)  # type: ignore[arg-type]


def test_another_kind_of_value_is_refused_with_an_example() -> None:
    with pytest.raises(ConfigError, match=r"text is 'my.txt'; expected Text, as in text=initlab.Text\(data="):
        checked("text", "my.txt", Text)
    assert checked("run", RunOptions(jobs=2), RunOptions).jobs == 2


@pytest.mark.parametrize("name", ["data", "tokenizer", "out"])
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_text_is_no_default(name, value):
    made = RunOptions if name == "out" else Text
    with pytest.raises(ConfigError, match=f"{name} is "):
        made(**{name: value})


def test_numbers_of_numpy_are_counts():
    text = Text(batch_size=np.int64(4), block_size=np.int32(8))
    assert (type(text.batch_size), type(text.block_size)) == (int, int)
    assert RunOptions(jobs=np.int64(2)).jobs == 2
    for wrong in (True, 1.5, "x", 0, np.float64(2.0)):
        with pytest.raises(ConfigError, match="batch_size is"):
            Text(batch_size=wrong)


def test_fields_of_text_and_run_are_keywords_too(tmp_path):
    sizes = {"depths": [1], "widths": [8], "seeds": 1}
    said = initlab.compare("nanogpt", **sizes, text=initlab.Text(batch_size=2, block_size=8))
    plain = initlab.compare("nanogpt", **sizes, batch_size=2, block_size=8, out=tmp_path / "run", progress=False)
    pd.testing.assert_frame_equal(plain.records, said.records)
    assert (tmp_path / "run" / "run.json").is_file()


def test_they_come_before_those_of_the_object():
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=256))
    text = initlab.Text("uniform", batch_size=2)
    found = initlab.probe(model, text=text, batch_size=3, vocab_size=10)
    assert found.run.manifest["data"]["label"] == initlab.probe(model, text=text).run.manifest["data"]["label"]
    initlab.assert_healthy(model, batch_size=2, block_size=8)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"vocab_size": 1}, "vocab_size is 1"),
        ({"batch_size": 2, "text": "my.txt"}, "text is 'my.txt'"),
    ],
)
def test_they_are_refused_alike(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        initlab.compare("nanogpt", depths=[1], widths=[8], seeds=1, **given)


def test_a_text_is_refused_that_needs_more_ids_than_it_may_have():
    config = initlab.NanoGPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8)
    with pytest.raises(DataError, match="256 ids, more than vocab_size 100"):
        initlab.train("nanogpt", model=config, steps=1, vocab_size=100)
    with pytest.raises(ConfigError, match="vocab_size 300, the text 256"):
        initlab.compare("nanogpt", model=replace(config, vocab_size=300), seeds=1, vocab_size=256)
