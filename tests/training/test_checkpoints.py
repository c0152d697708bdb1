"""What a run leaves on disk, on a full one too."""

import os
import warnings

import numpy as np
import pytest
import torch
from disks import file_limit

from initlab.corpus import Corpus
from initlab.errors import CheckpointError, RunError
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.training.config import TrainConfig
from initlab.training.data import split
from initlab.training.trainer import train

SIZES = NanoGPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=8, vocab_size=16, bias=False)
CONFIG = TrainConfig(steps=8, lr=1e-2, batch_size=2, eval_batches=2)


@pytest.fixture(scope="module")
def parts():
    walk = np.random.default_rng(0).integers(-1, 2, 4000).cumsum() % 16
    return split(Corpus("walk", "none", 16, walk.astype("<u2"), "0" * 64, "all tokens"))


def test_the_file_is_nanogpts(parts, tmp_path):
    path = tmp_path / "ckpt.pt"
    trained = train(NanoGPT(SIZES), parts, CONFIG, checkpoint=path)
    held = torch.load(path, weights_only=True)
    assert {"model", "optimizer", "model_args", "iter_num", "best_val_loss", "config"} <= set(held)
    # sample.py calls GPTConfig(**model_args)
    assert set(held["model_args"]) == {
        *("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"),
    }
    assert held["iter_num"] == 8
    assert held["best_val_loss"] == min(trained.first_loss, trained.val_loss)
    # train.py loads it into AdamW with the groups of configure_optimizers
    matrices, gains = held["optimizer"]["param_groups"]
    assert (matrices["weight_decay"], gains["weight_decay"]) == (0.1, 0.0)
    assert len(matrices["params"]) + len(gains["params"]) == len(list(NanoGPT(SIZES).parameters()))
    assert NanoGPT.from_checkpoint(path).iter_num == 8


def test_what_nanogpt_lacks_is_said(parts, tmp_path):
    path = tmp_path / "ckpt.pt"
    sizes = NanoGPTConfig(
        n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=16, activation="relu", tie_weights=False
    )
    train(NanoGPT(sizes), parts, CONFIG, checkpoint=path)
    assert NanoGPT.from_checkpoint(path).config == sizes


@pytest.mark.parametrize("room", [100, 50_000, 300_000])
def test_a_full_disk_is_one_error_and_keeps_the_checkpoint_before(parts, tmp_path, room):
    path = tmp_path / "ckpt.pt"
    train(NanoGPT(SIZES), parts, CONFIG, checkpoint=path)
    before = path.read_bytes()
    assert len(before) > room
    longer = TrainConfig(**CONFIG.as_dict() | {"steps": 9})
    other = tmp_path / "other.pt"
    with file_limit(room), pytest.raises(RunError, match=r"could not write the checkpoint .*after step 9: File too l"):
        train(NanoGPT(SIZES), parts, longer, checkpoint=other)
    assert os.listdir(tmp_path) == ["ckpt.pt"]  # noqa: PTH208 - no half of the other

    def cut(row):
        if row["step"] == 6:
            raise KeyboardInterrupt

    early = tmp_path / "early.pt"
    with pytest.raises(KeyboardInterrupt):
        train(NanoGPT(SIZES), parts, CONFIG, checkpoint=early, checkpoint_every=4, on_row=cut)
    held = early.read_bytes()
    with file_limit(room), pytest.raises(RunError, match="the one before is kept"):
        train(NanoGPT(SIZES), parts, CONFIG, checkpoint=early)
    assert early.read_bytes() == held
    assert train(NanoGPT(SIZES), parts, CONFIG, checkpoint=early).steps_done == 8


def test_a_folder_that_is_gone_is_one_error(parts, tmp_path):
    with pytest.raises(RunError, match="No such file or directory"):
        train(NanoGPT(SIZES), parts, CONFIG, checkpoint=tmp_path / "gone" / "ckpt.pt")


@pytest.fixture(scope="module")
def kept(parts, tmp_path_factory):
    """A run that was cut after its second checkpoint: the last one, and the one before."""
    folder = tmp_path_factory.mktemp("kept")

    def cut(row):
        if row["step"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(NanoGPT(SIZES), parts, CONFIG, checkpoint=folder / "ckpt.pt", checkpoint_every=2, on_row=cut)
    other = tmp_path_factory.mktemp("whole") / "ckpt.pt"
    other.write_bytes((folder / "ckpt.pt").read_bytes())
    return folder, train(NanoGPT(SIZES), parts, CONFIG, checkpoint=other).val_loss


def test_the_checkpoint_before_is_kept(kept):
    folder, _ = kept
    assert torch.load(folder / "ckpt.pt", weights_only=True)["iter_num"] == 6
    assert torch.load(folder / "ckpt-before.pt", weights_only=True)["iter_num"] == 4


def test_a_flipped_bit_is_seen_and_the_one_before_taken(kept, parts, tmp_path):
    """Anywhere in the file: resumed from the last or the one before, to the same numbers, never from the damage."""
    folder, expected = kept
    data = (folder / "ckpt.pt").read_bytes()
    warned = 0
    for at in np.random.default_rng(0).integers(0, len(data), 8):
        path = tmp_path / "ckpt.pt"
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        (tmp_path / "ckpt-before.pt").write_bytes((folder / "ckpt-before.pt").read_bytes())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert train(NanoGPT(SIZES), parts, CONFIG, checkpoint=path).val_loss == expected
        warned += any("went on from" in str(each.message) for each in said)
    assert warned > 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda held: held["model"]["lm_head.weight"].fill_(float("nan")), "holds NaN"),
        (lambda held: held["initlab"].update(rows=[]), "the rows of the run"),
        (lambda held: held["initlab"].update(rows=[{}]), "the rows of the run"),
        (lambda held: held["initlab"].update(seconds="x"), "its seconds"),
        (lambda held: held["initlab"].pop("scaler"), "are missing"),
        (lambda held: held.update(iter_num=9), "iter_num is 9; expected 1 to 8"),
        (lambda held: held.update(iter_num="x"), "iter_num is 'x'"),
        (lambda held: held.update(iter_num=True), "iter_num is True"),
        (lambda held: held.update(best_val_loss=None), "best loss"),
        (lambda held: held.update(initlab=[]), "initlab of a type"),
        (lambda held: held.update(model=5), "model of a type"),
        (lambda held: held["model"].update({"lm_head.weight": 5}), "lm_head.weight of a type"),
        (lambda held: held.update(model_args={"n_layer": -1}), "model_args describe no model"),
        (lambda held: held.update(optimizer={"state": 5}), "don't fit this model"),
    ],
)
def test_what_no_run_writes_is_refused_in_a_sentence(kept, parts, tmp_path, change, named):
    held = torch.load(kept[0] / "ckpt.pt", weights_only=True)
    change(held)
    torch.save(held, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=named):
        train(NanoGPT(SIZES), parts, CONFIG, checkpoint=tmp_path / "ckpt.pt")


@pytest.mark.parametrize("sizes", [{"n_layer": 10**9}, {"n_embd": 10**9}, {"vocab_size": 10**12}, {"n_embd": 2**62}])
def test_a_file_that_claims_more_than_it_holds_takes_no_memory(kept, tmp_path, sizes):
    held = torch.load(kept[0] / "ckpt.pt", weights_only=True)
    held["model_args"].update(sizes)
    torch.save(held, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match="model_args"):
        NanoGPT.from_checkpoint(tmp_path / "ckpt.pt")
