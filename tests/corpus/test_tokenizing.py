"""Tokenizers that users bring: files of Hugging Face's, and objects with `encode`."""

import json
import sys

import numpy as np
import pytest
import tiktoken
import torch

import initlab
from initlab.corpus import load_corpus
from initlab.errors import ConfigError, DataError

TEXT = "the cat and the dog and the <s> bird"


@pytest.fixture
def text_file(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.fixture
def saved(tmp_path):
    """A tokenizer.json that adds a token before texts, pads them, and cuts them at 3, as many do at 512."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["<s>", "<unk>", "the", "cat", "and", "dog"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.add_special_tokens(["<more>"])
    made.enable_truncation(3)
    made.enable_padding(length=64)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


IDS = [2, 3, 4, 2, 5, 4, 2, 0, 1]


def test_a_file_reads_all_of_the_text_and_adds_nothing(saved, text_file):
    for given in (saved, str(saved), saved.parent):
        loaded = load_corpus(text_file, given)
        assert loaded.tokens.tolist() == IDS
        assert (loaded.tokenizer, loaded.vocab_size) == ("tokenizer.json", 7)  # with the token that was added
    assert load_corpus(text_file, saved, 128).vocab_size == 128
    with pytest.raises(DataError, match=r"tokenizer tokenizer\.json has 7 ids, more than vocab_size 6"):
        load_corpus(text_file, saved, 6)


def test_an_object_of_tokenizers_is_left_as_it_was(saved, text_file):
    from tokenizers import Tokenizer

    given = Tokenizer.from_file(str(saved))
    loaded = load_corpus(text_file, given)
    assert loaded.tokens.tolist() == IDS and loaded.tokenizer == "Tokenizer"
    assert given.truncation["max_length"] == 3 and given.padding["length"] == 64


def test_one_of_transformers(saved, text_file, capfd):
    transformers = pytest.importorskip("transformers")
    given = transformers.PreTrainedTokenizerFast(tokenizer_file=str(saved), model_max_length=4)
    loaded = load_corpus(text_file, given)
    assert loaded.tokens.tolist() == IDS and loaded.vocab_size == len(given)
    assert "longer than" not in "".join(capfd.readouterr())


class Words:
    def __init__(self, encode):
        self.encode = encode


def test_any_object_that_encodes(text_file):
    letters = load_corpus(text_file, Words(lambda text: [ord(c) - 32 for c in text]))
    assert letters.tokens.tolist() == [ord(c) - 32 for c in TEXT]
    assert (letters.tokenizer, letters.vocab_size) == ("Words", ord("t") - 31)  # as far as anybody knows
    sized = Words(lambda text: np.array([ord(c) for c in text]))
    sized.vocab_size = lambda: 500
    assert load_corpus(text_file, sized).vocab_size == 500
    own = tiktoken.Encoding("own", pat_str=r"[\s\S]", mergeable_ranks={bytes([i]): i for i in range(256)},
                            special_tokens={"<s>": 256})  # fmt: skip
    loaded = load_corpus(text_file, own)  # whose encode refuses a special token
    assert bytes(loaded.tokens.tolist()).decode() == TEXT and loaded.vocab_size == 257


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda text: text, "the tokenizer Words made 'the cat .* expected `encode` to return a list of token ids"),
        (lambda text: [0.5], r"made \[0.5\] of the text"),
        (lambda text: [[1, 2]], r"made \[\[1, 2\]\] of the text"),
        (lambda text: [1, -1], "made the id -1 of the text; expected ids from 0 on"),
        (lambda text: 1 / 0, "Words can't encode the text: ZeroDivisionError: 'division by zero'"),
        (lambda text: [], r"text\.txt holds 0 tokens; expected at least 2"),
    ],
)
def test_one_that_gives_no_ids_is_one_error(text_file, encode, message):
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(text_file, Words(encode))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path, text_file):
    pytest.importorskip("tokenizers")
    with pytest.raises(DataError, match=r"no tokenizer at .*away\.json; expected a tokenizer\.json"):
        load_corpus(text_file, tmp_path / "away.json")
    for content in (json.dumps({"model": 5}), "", "\x00junk"):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match=r"tokenizer\.json can't be read as a tokenizer\.json") as caught:
            load_corpus(text_file, tmp_path / "tokenizer.json")
        assert "\n" not in str(caught.value) and caught.value.__cause__ is None


def test_without_tokenizers_it_says_what_to_install(tmp_path, text_file, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match=r"needs the package tokenizers.*pip install 'initlab\[tokenizers\]'"):
        load_corpus(text_file, tmp_path / "tokenizer.json")


def model(vocab_size=128):
    torch.manual_seed(0)
    return initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=1, n_embd=16, n_head=1, block_size=8, vocab_size=vocab_size))


def test_commands_take_objects(text_file):
    tokenizer = Words(lambda text: [ord(c) for c in text])
    text = initlab.Text(text_file, tokenizer, 2, 8)
    probe = initlab.probe(model(), text=text, stats="light")
    assert probe.run.manifest["data"]["tokenizer"] == "Words"
    found = initlab.compare(["nanogpt"], model=model, seeds=1, text=text, stats="light",
                            run=initlab.RunOptions(jobs=2, progress=False))  # fmt: skip
    assert found.run.manifest["data"]["sha256"] == probe.run.manifest["data"]["sha256"]
    with pytest.raises(DataError, match=r"text\.txt has 117 ids as Words, the model 100"):
        initlab.probe(model(100), text=text)


@pytest.mark.parametrize("tokenizer", [5, "", " ", object(), ["gpt2"]])
def test_what_cannot_encode_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"expected a name, such as bytes or gpt2, a tokenizer\.json, or an object"):
        initlab.Text(tokenizer=tokenizer)
