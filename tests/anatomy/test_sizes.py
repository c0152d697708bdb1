"""Vocabulary and longest sequence, as models declare or show them."""

import argparse
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from initlab.anatomy import sizes


class Plain(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        if config:
            self.config = SimpleNamespace(**config)

    def forward(self, whatever):
        return whatever


def test_vocabulary_and_length_come_from_what_is_declared():
    assert sizes.vocabulary(Plain()) == 50
    assert sizes.vocabulary(Plain({"vocab_size": 40})) == 40
    assert sizes.vocabulary(Plain({"text_config": SimpleNamespace(vocab_size=30)})) == 30
    assert sizes.vocabulary(nn.Linear(2, 2)) is None
    image = Plain({"vocab_size": 40})
    image.main_input_name = "pixel_values"
    assert sizes.vocabulary(image) is None
    assert sizes.longest(Plain({"n_positions": 64})) == 64
    assert sizes.longest(Plain({"max_position_embeddings": 10**6})) == sizes.LONGEST
    assert sizes.longest(Plain()) == sizes.LONGEST


@pytest.mark.parametrize(
    ("config", "padding", "expected"),
    [
        ({"max_position_embeddings": 66}, None, 66),
        ({"max_position_embeddings": 66}, 1, 64),  # RoBERTa's positions start behind the padding row
        ({"max_target_positions": 40}, None, 40),
        ({"max_position_embeddings": 66, "max_length": 20}, 1, 20),
        ({}, None, 66),
    ],
)
def test_the_longest_sequence_is_what_config_and_position_table_allow(config, padding, expected):
    model = Plain(config)
    model.positions = nn.Embedding(66, 8, padding_idx=padding)
    assert sizes.longest(model) == expected


def holding(**held):
    model = nn.Module()
    model.tok, model.head = nn.Embedding(50, 8), nn.Linear(8, 50)
    for name, value in held.items():
        setattr(model, name, value)
    return model


@dataclass
class Arguments:
    max_seq_len: int = 40


@pytest.mark.parametrize(
    "held",
    [
        {"config": SimpleNamespace(block_size=40)},
        {"cfg": {"ctx_len": 40, "vocab_size": 50}},
        {"args": Arguments()},
        {"params": argparse.Namespace(context_length=40)},
        {"hparams": {"n_ctx": 40}},
        {"maxlen": 40},
        {"inner": holding(seq_len=40)},
        {"pos_emb": nn.Embedding(40, 8)},
        {"wpe": nn.Embedding(42, 8, padding_idx=1)},
        {"pos_embedding": nn.Parameter(torch.zeros(1, 40, 8))},
        {"W_pos": nn.Parameter(torch.zeros(40, 8))},
        {"pe": torch.zeros(40, 1, 8)},
        {"freqs_cis": torch.zeros(40, 4, dtype=torch.complex64)},
        {"cos_cached": torch.zeros(1, 1, 40, 8)},
        {"bias": torch.ones(40, 40).tril().view(1, 1, 40, 40)},
        {"mask": torch.full((40, 40), -float("inf")).triu(1)},
        {"config": SimpleNamespace(block_size=64), "pos_emb": nn.Embedding(40, 8)},
    ],
)
def test_a_length_is_seen_however_it_is_kept(held):
    assert sizes.longest(holding(**held)) == 40


@pytest.mark.parametrize(
    "held",
    [
        {"config": SimpleNamespace(block_size=True)},
        {"relative_positions": nn.Embedding(40, 8)},
        {"segment_embedding": nn.Embedding(2, 8)},
        {"rotation": torch.randn(40, 40)},
        {"weights": nn.Parameter(torch.ones(40, 40).tril())},
        {"inv_freq": torch.zeros(40)},
    ],
)
def test_what_is_no_length_is_not_taken_for_one(held):
    assert sizes.longest(holding(**held)) == sizes.LONGEST


def positions_first(**held):
    model = nn.Module()
    model.pos = nn.Embedding(20, 8)
    for name, value in held.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (positions_first(tok=nn.Embedding(50, 8)), 50),
        (positions_first(what=nn.Embedding(50, 8), head=nn.Linear(8, 50)), 50),
        (positions_first(seg=nn.Embedding(2, 8), what=nn.Embedding(50, 8)), 50),
        (positions_first(W_E=nn.Parameter(torch.zeros(50, 8)), W_U=nn.Parameter(torch.zeros(8, 50))), 50),
        (positions_first(tok=nn.Embedding(64, 8), cfg={"d_vocab": 50}), 50),
        (positions_first(tok=nn.Embedding(50, 8), cfg={"vocab_size": 640}), 50),
        (positions_first(tok=nn.Embedding(1, 8)), 1),
        (positions_first(), None),
        (positions_first(y_embedder=nn.Embedding(11, 8), x_embedder=nn.Conv2d(3, 8, 2)), None),
    ],
)
def test_the_vocabulary_is_that_of_the_token_table(model, expected):
    assert sizes.vocabulary(model) == expected


def test_images_are_of_the_size_that_a_model_declares_or_its_positions_show():
    assert sizes.image_sizes(holding(img_size=(48, 40)), 8)[0] == 40
    assert sizes.image_sizes(holding(pos_embed=nn.Parameter(torch.zeros(1, 17, 8))), 7)[0] == 28
    assert sizes.image_sizes(holding(), 8)[0] == sizes.IMAGE_SIZE
    assert sizes.patch(holding(image_size=24, patch_size=6), 108) == (3, 24, 6)
    assert sizes.patch(holding(image_size=28), 49) == (1, 28, 7)
    assert sizes.patch(holding(), 108) is None


@pytest.mark.parametrize(("rows", "outputs", "found"), [(40, 40, 40), (40, 8, None)])
def test_a_table_called_like_time_steps_is_the_tokens_where_the_head_is_as_wide(rows, outputs, found):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.t = nn.Embedding(rows, 16)
            self.body, self.h = nn.Linear(16, 16), nn.Linear(16, outputs)

    assert sizes.vocabulary(Model()) == found
