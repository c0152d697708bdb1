"""One run: the schedule, the loop's arithmetic, resuming, and what ends it."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from initlab.corpus import Corpus
from initlab.drawing.apply import apply_recipe
from initlab.drawing.groups import adam_groups
from initlab.errors import CheckpointError, ConfigError, DataError
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.models.wired import wired
from initlab.recipes import registry
from initlab.training.config import TrainConfig
from initlab.training.data import Split, split
from initlab.training.telling import TrainResult
from initlab.training.trainer import train

pytestmark = pytest.mark.integration

SIZES = NanoGPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=16, bias=False)
CONFIG = TrainConfig(steps=12, lr=1e-2, warmup=3, batch_size=4, eval_every=5, eval_batches=2)


@pytest.fixture(scope="module")
def parts() -> Split:
    walk = np.random.default_rng(0).integers(-1, 2, 4000).cumsum() % 16
    return split(Corpus("walk", "none", 16, walk.astype("<u2"), "0" * 64, "all tokens"))


def fresh(config: NanoGPTConfig = SIZES, seed: int = 1) -> NanoGPT:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NanoGPT(config)


def column(trained: TrainResult, name: str) -> list[float]:
    return [row[name] for row in trained.rows]


def test_a_run_learns_and_says_what_it_did(parts: Split) -> None:
    seen: list[dict[str, Any]] = []
    model = fresh().eval()
    trained = train(model, parts, replace(CONFIG, steps=60), on_row=seen.append)
    assert seen == trained.rows
    assert column(trained, "step") == list(range(61))
    assert column(trained, "tokens") == [32 * step for step in range(61)]
    evaluated = [row["step"] for row in trained.rows if not math.isnan(row["val_loss"])]
    assert evaluated == [*range(0, 60, 5), 60]
    assert math.isnan(trained.rows[-1]["loss"])
    assert trained.first_loss == pytest.approx(math.log(16), abs=0.1)
    assert trained.val_loss < parts.unigram_loss - 0.3
    assert (trained.steps_done, trained.tokens) == (60, 60 * 32)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_rows_say_what_a_plain_loop_says(parts: Split) -> None:
    """The first three updates, written out: loss before, norm before clipping, rate, and the weights after."""
    model, twin = fresh(), fresh()
    config = replace(CONFIG, steps=3, grad_clip=0.5)
    trained = train(model, parts, config)
    groups = [
        {"params": [p for p in twin.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in twin.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for step, row in enumerate(trained.rows[:3]):
        loss = twin(*parts.batch(4, 8, 0, step))[1]
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        for group in adam.param_groups:
            group["lr"] = config.lr_at(step)
        adam.step()
        adam.zero_grad()
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
        assert row["lr"] == config.lr_at(step)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("dropout", "micros"), [(0.0, 1), (0.2, 1), (0.2, 4)])
def test_a_nanogpts_losses_are_those_of_nanogpts_loop_to_the_bit(parts: Split, dropout: float, micros: int) -> None:
    sizes = replace(SIZES, dropout=dropout)
    config = replace(CONFIG, batch_size=8 // micros, grad_accum=micros, eval_every=0, eval_batches=2 * micros)
    twin = fresh(sizes)
    adam = torch.optim.AdamW(adam_groups(twin, lr=config.lr, weight_decay=0.1), betas=(0.9, 0.95), fused=True)
    found = []
    with torch.random.fork_rng():
        for step in range(config.steps):
            for group in adam.param_groups:
                group["lr"] = config.lr_at(step)
            if dropout:
                torch.manual_seed(int(np.random.SeedSequence((0, step, 0)).generate_state(1)[0]))
            idx, targets = parts.batch(8, 8, 0, step)
            total = torch.zeros(())
            for rows in torch.arange(8).chunk(micros):
                loss = twin(idx[rows], targets[rows])[1] / micros
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            adam.step()
            adam.zero_grad()
            found.append(float(total))
    trained = train(fresh(sizes), parts, config)
    assert column(trained, "loss")[:-1] == found


@pytest.mark.parametrize(
    ("changes", "recipe", "losses", "val_loss"),
    [
        ({}, None, [2.742948293685913, 2.5504202842712402, 2.234142780303955], 2.3229525089263916),
        ({"dropout": 0.2}, None, [2.749647378921509, 2.5953078269958496, 2.3416645526885986], 2.352782726287842),
        ({}, "completep", [3.7274699211120605, 3.895765781402588, 2.6956820487976074], 2.257939338684082),
    ],
)
def test_a_nanogpts_losses_are_those_on_record(
    parts: Split, changes: dict[str, Any], recipe: str | None, losses: list[float], val_loss: float
) -> None:
    """Printed by the trainer when it knew no other model; completep since eps is every parameter's. CPUs may differ."""
    drawn = None if recipe is None else registry.get(recipe)
    sizes = replace(SIZES, **changes)
    model = fresh(sizes if drawn is None else wired(sizes, drawn))
    if drawn is not None:
        apply_recipe(model, drawn, 0)
    trained = train(model, parts, CONFIG, recipe=drawn)
    assert [column(trained, "loss")[step] for step in (0, 5, 11)] == pytest.approx(losses, rel=1e-5)
    assert trained.val_loss == pytest.approx(val_loss, rel=1e-5)


def test_accumulation_equals_one_big_batch(parts: Split) -> None:
    whole = train(fresh(), parts, replace(CONFIG, batch_size=8))
    halves = train(fresh(), parts, replace(CONFIG, batch_size=2, grad_accum=4, eval_batches=8))
    assert column(halves, "loss")[:-1] == pytest.approx(column(whole, "loss")[:-1], rel=1e-4)
    assert column(halves, "grad_norm")[:-1] == pytest.approx(column(whole, "grad_norm")[:-1], rel=1e-3)


def test_the_same_seed_repeats_a_run_and_leaves_the_random_state_alone(parts: Split) -> None:
    dropping = replace(SIZES, dropout=0.2)
    before = torch.get_rng_state()
    losses = [column(train(fresh(dropping), parts, CONFIG), "loss")[:-1] for _ in range(2)]
    assert losses[0] == losses[1]
    assert torch.equal(before, torch.get_rng_state())
    other = column(train(fresh(dropping), parts, replace(CONFIG, seed=1)), "loss")[:-1]
    assert other != losses[0]


@pytest.mark.parametrize(("dropout", "dtype"), [(0.0, "float32"), (0.2, "float32"), (0.2, "float16")])
def test_a_run_that_is_cut_anywhere_goes_on_to_the_bit(
    parts: Split, tmp_path: Path, dropout: float, dtype: str
) -> None:
    sizes = replace(SIZES, dropout=dropout)
    config = replace(CONFIG, dtype=dtype)
    whole = fresh(sizes)
    reference = train(whole, parts, config)

    class Cut(Exception):
        pass

    def cut(row: dict[str, Any]) -> None:
        if row["step"] == 8:
            raise Cut

    path = tmp_path / "ckpt.pt"
    with pytest.raises(Cut):
        train(fresh(sizes), parts, config, checkpoint=path, checkpoint_every=3, on_row=cut)
    assert NanoGPT.from_checkpoint(path).iter_num == 6
    rows: list[dict[str, Any]] = []
    model = fresh(sizes, seed=5)  # its weights come from the checkpoint
    resumed = train(model, parts, config, checkpoint=path, checkpoint_every=3, on_row=rows.append)
    assert rows == resumed.rows
    for name in ("step", "loss", "grad_norm", "val_loss", "lr", "tokens"):
        assert np.array_equal(column(resumed, name), column(reference, name), equal_nan=True), name
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), whole.parameters(), strict=True))
    again = train(fresh(sizes), parts, config, checkpoint=path, checkpoint_every=3)
    assert again.val_loss == reference.val_loss
    assert again.steps_done == 12
    loaded = NanoGPT.from_checkpoint(path)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), whole.parameters(), strict=True))


def test_a_checkpoint_of_another_run_is_refused(parts: Split, tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    train(fresh(), parts, CONFIG, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"lr: 0.01 there, 0.02 now"):
        train(fresh(), parts, replace(CONFIG, lr=2e-2), checkpoint=path)
    with pytest.raises(CheckpointError, match=r"model n_layer: 2 there, 3 now"):
        train(fresh(replace(SIZES, n_layer=3)), parts, CONFIG, checkpoint=path)
    other = Split(parts.train, parts.val, parts.described | {"sha256": "1" * 64})
    with pytest.raises(CheckpointError, match="data sha256"):
        train(fresh(), other, CONFIG, checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="can't be read as a checkpoint"):
        train(fresh(), parts, CONFIG, checkpoint=path)
    torch.save({"model": fresh().state_dict(), "model_args": {}}, path)
    with pytest.raises(CheckpointError, match="wasn't written by initlab"):
        train(fresh(), parts, CONFIG, checkpoint=path)


def test_divergence_is_recorded_not_raised(parts: Split, tmp_path: Path) -> None:
    model = fresh()
    trained = train(model, parts, replace(CONFIG, lr=1e30, warmup=0), checkpoint=tmp_path / "ckpt.pt")
    assert math.isnan(trained.val_loss)
    assert 0 < trained.steps_done < 12
    last = trained.rows[-1]
    assert last["step"] == trained.steps_done
    assert not (math.isfinite(last["loss"]) and math.isfinite(last["grad_norm"]))
    broken = fresh()
    with torch.no_grad():
        broken.transformer.ln_f.weight[0] = math.nan
    trained = train(broken, parts, CONFIG)
    assert trained.steps_done == 0
    assert math.isnan(trained.first_loss)
    assert len(trained.rows) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_and_the_scaler(parts: Split, dtype: str) -> None:
    trained = train(fresh(), parts, replace(CONFIG, dtype=dtype, steps=40))
    exact = train(fresh(), parts, replace(CONFIG, steps=40))
    assert trained.steps_done == 40
    assert trained.val_loss == pytest.approx(exact.val_loss, abs=0.1)
    assert trained.val_loss != exact.val_loss


def test_rows_only_every_so_often(parts: Split) -> None:
    trained = train(fresh(), parts, replace(CONFIG, log_every=4))
    assert column(trained, "step") == [0, 4, 5, 8, 10, 12]
    every = train(fresh(), parts, CONFIG)
    assert [row["loss"] for row in trained.rows[:-1]] == [every.rows[row["step"]]["loss"] for row in trained.rows[:-1]]


def test_bad_input_is_refused_before_a_step(parts: Split) -> None:
    with pytest.raises(DataError, match="at least 401"):
        train(fresh(replace(SIZES, block_size=400)), parts, CONFIG)
    with pytest.raises(ConfigError, match="vocabulary is 16 and the model's 8"):
        train(fresh(replace(SIZES, vocab_size=8)), parts, CONFIG)
    for change, text in (
        ({"steps": 0}, "steps is 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"warmup": -1}, "warmup is -1"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"min_lr": 2.0}, "min_lr is 2.0"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"betas": (0.9, 1.0)}, "betas is"),
    ):
        with pytest.raises(ConfigError, match=text):
            replace(CONFIG, **change)


def test_speed_is_of_training_alone(parts: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock where a training pass takes a second, and one of an evaluation a thousand."""
    clock = 0.0

    class Slow(NanoGPT):
        def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
            nonlocal clock
            clock += 1.0 if self.training else 1000.0
            return super().forward(idx, targets)

    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    trained = train(Slow(SIZES), parts, replace(CONFIG, steps=30, eval_every=10, log_every=10))
    assert column(trained, "step") == [0, 10, 20, 30]
    rates = column(trained, "tokens_per_second")
    assert math.isnan(rates[0]) and math.isnan(rates[-1])
    assert rates[1:-1] == [32.0, 32.0]
    assert trained.seconds == 30 + 4 * 2 * 1000


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_watcher_is_told_of_every_update_and_the_scale_of_the_loss(parts: Split, dtype: str) -> None:
    class Watch:
        def __init__(self, model: torch.nn.Module, scale: torch.amp.GradScaler, start: int):
            self.model, self.scale, self.start = model, scale, start
            self.losses: list[float] = []
            self.closed = False

        def __enter__(self) -> Watch:
            return self

        def __exit__(self, *error: object) -> None:
            self.closed = True

        def step(self, loss: torch.Tensor) -> None:
            self.losses.append(loss.item())

    made: list[Watch] = []

    def watcher(model: torch.nn.Module, scale: torch.amp.GradScaler, start: int) -> Watch:
        made.append(Watch(model, scale, start))
        return made[0]

    model = fresh()
    trained = train(model, parts, replace(CONFIG, grad_accum=4, dtype=dtype), watcher=watcher)
    (watch,) = made
    assert watch.losses == column(trained, "loss")[:-1]
    assert (watch.model, watch.start, watch.closed) == (model, 0, True)
    assert watch.scale.get_scale() == (1.0 if dtype == "float32" else 65536)
