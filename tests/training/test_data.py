"""The two parts of a text, and the windows drawn from them."""

import math
import pickle

import numpy as np
import pytest
import torch

from initlab.corpus import Corpus, load_corpus
from initlab.errors import ConfigError, DataError
from initlab.training.data import load_split, split


def corpus(tokens, vocab_size=50):
    return Corpus("text", "none", vocab_size, np.asarray(tokens, dtype="<u2"), "0" * 64, "all tokens")


def test_the_first_nine_tenths_are_for_training():
    parts = split(corpus(range(40)), val_share=0.25)
    assert parts.train.tokens.tolist() == list(range(30))
    assert parts.val.tokens.tolist() == list(range(30, 40))
    said = parts.describe()
    assert (said["n_tokens"], said["n_tokens_val"], said["val_share"]) == (30, 10, 0.25)
    assert said["sum_p2"] == pytest.approx(1 / 30)


def test_a_batch_is_a_function_of_seed_and_step():
    parts = split(corpus(np.arange(4000) % 50))
    idx, targets = parts.batch(8, 16, seed=3, step=70)
    assert idx.shape == targets.shape == (8, 16)
    assert torch.equal(idx[:, 1:], targets[:, :-1])
    parts.batch(2, 4, seed=0, step=0)
    assert torch.equal(idx, parts.batch(8, 16, seed=3, step=70)[0])
    for seed, step in ((3, 71), (4, 70), (70, 3)):
        assert not torch.equal(idx, parts.batch(8, 16, seed, step)[0])
    with pytest.raises(ConfigError, match="seed is -1"):
        parts.batch(8, 16, seed=-1, step=0)


def test_training_and_evaluation_see_their_own_part_alone():
    parts = split(corpus([*range(20), *range(30, 50)]), val_share=0.5)
    seen = torch.cat([torch.cat(parts.batch(16, 4, 0, step)).flatten() for step in range(20)])
    assert set(seen.tolist()) == set(range(20))
    batches = parts.evaluation(20, 16, 4)
    assert len(batches) == 20
    assert set(torch.cat([torch.cat(batch).flatten() for batch in batches]).tolist()) == set(range(30, 50))
    again = parts.evaluation(20, 16, 4)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))


def test_unigram_loss_is_what_frequencies_alone_reach():
    parts = split(corpus([0] * 300 + [1] * 100 + [0] * 20 + [1] * 20, vocab_size=2), val_share=0.1 / 1.1)
    p = 301 / 402
    assert parts.unigram_loss == pytest.approx(-0.5 * (math.log(p) + math.log(1 - p)))
    # an id of the validation part alone costs no infinite loss
    unseen = split(corpus([0] * 90 + [1] * 10, vocab_size=2))
    assert unseen.unigram_loss == pytest.approx(math.log(92))
    assert split(load_corpus("uniform", vocab_size=7)).unigram_loss == pytest.approx(math.log(7))


def test_a_folder_of_nanogpts_is_used_as_it_is(tmp_path):
    np.arange(500, dtype=np.uint16).tofile(tmp_path / "train.bin")
    np.arange(60, dtype=np.uint16).tofile(tmp_path / "val.bin")
    parts = load_split(tmp_path)
    assert isinstance(parts.train.tokens, np.memmap)
    assert (parts.vocab_size, len(parts.train.tokens), len(parts.val.tokens)) == (50304, 500, 60)
    assert parts.describe()["label"] == tmp_path.name
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 600}))
    assert load_split(tmp_path).vocab_size == 600
    with pytest.raises(DataError, match="ids already"):
        load_split(tmp_path, "char")
    (tmp_path / "val.bin").unlink()
    with pytest.raises(DataError, match=r"holds train\.bin but no val\.bin"):
        load_split(tmp_path)


def test_a_text_is_split_and_too_short_a_one_refused(tmp_path):
    (tmp_path / "text.txt").write_text("abc" * 40, encoding="utf-8")
    parts = load_split(tmp_path / "text.txt", "char", val_share=0.5)
    assert (parts.vocab_size, len(parts.val.tokens)) == (3, 60)
    parts.check(59)
    with pytest.raises(DataError, match=r"text\.txt \(validation part\) holds 12 tokens.*at least 65"):
        load_split(tmp_path / "text.txt").check(64)
    with pytest.raises(DataError, match="validation part of text would hold 1 of its 10 tokens"):
        split(corpus(range(10)))
    with pytest.raises(ConfigError, match="val_share is 1"):
        split(corpus(range(10)), val_share=1)
