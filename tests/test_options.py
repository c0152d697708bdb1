"""What commands are told beside their model."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

import initlab
from initlab.errors import ConfigError
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
