"""How any model is called on a text, and which loss it is trained on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import VOCAB, Decoder, Headless, Penalised, Scoring, Seeing, Shifting, Silent
from torch import nn

from initlab.anatomy.look import of
from initlab.corpus import Corpus
from initlab.drawing.apply import apply_recipe
from initlab.drawing.groups import adam_groups
from initlab.errors import CheckpointError, ConfigError
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.recipes import Adam, Normal, Recipe, Role
from initlab.training.config import TrainConfig
from initlab.training.data import Split, split
from initlab.training.task import LONGEST, refuse_what_sees_ahead, task_of, window_of
from initlab.training.trainer import train

CONFIG = TrainConfig(steps=8, lr=1e-2, warmup=2, batch_size=4, eval_batches=2)
T = 12


@pytest.fixture(scope="module")
def parts() -> Split:
    walk = np.random.default_rng(0).integers(-1, 2, 4000).cumsum() % VOCAB
    return split(Corpus("walk", "none", VOCAB, walk.astype("<u2"), "0" * 64, "all tokens"))


def fresh(kind: type[Decoder] = Decoder, **options: Any) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return kind(**options)


def losses(model: nn.Module, parts: Split, config: TrainConfig = CONFIG, **options: Any) -> list[float]:
    trained = train(model, parts, config, task=task_of(model, T), **options)
    return [row["loss"] for row in trained.rows[:-1]]


def test_a_nanogpt_is_one_case() -> None:
    model = NanoGPT(NanoGPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=VOCAB))
    task = task_of(model)
    assert (task.block_size, task.vocab_size, task.draws, task.way) == (8, VOCAB, False, None)
    assert task.flops > 0 and task.identity["n_embd"] == 16
    assert task_of(NanoGPT(replace(model.config, dropout=0.1))).draws


def test_the_losses_of_a_model_that_returns_logits_are_their_cross_entropy(parts: Split) -> None:
    twin = fresh()
    adam = torch.optim.AdamW(adam_groups(twin, lr=CONFIG.lr, weight_decay=0.1), betas=(0.9, 0.95), fused=True)
    found = []
    for step in range(CONFIG.steps):
        for group in adam.param_groups:
            group["lr"] = CONFIG.lr_at(step)
        idx, targets = parts.batch(4, T, 0, step)
        loss = nn.functional.cross_entropy(twin(idx).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        found.append(loss.item())
    model = fresh()
    assert losses(model, parts) == pytest.approx(found, rel=1e-6)
    assert model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("kind", "own"), [(Scoring, True), (Silent, True), (Shifting, False)])
def test_a_loss_of_ones_own_is_taken_where_it_is_of_the_next_token(parts: Split, kind: Any, own: bool) -> None:
    model = fresh(kind)
    assert task_of(model, T).own_loss is own
    assert losses(model, parts) == pytest.approx(losses(fresh(), parts), rel=1e-6)


def test_a_term_that_a_model_adds_is_trained_on_and_not_evaluated(parts: Split) -> None:
    trained = [train(m, parts, CONFIG, task=task_of(m, T)) for m in (fresh(Penalised), fresh())]
    assert task_of(fresh(Penalised), T).own_loss
    assert trained[0].rows[0]["loss"] > trained[1].rows[0]["loss"] + 0.05
    assert trained[0].first_loss == pytest.approx(trained[1].first_loss, rel=1e-6)
    assert trained[0].val_loss != trained[1].val_loss


def test_dropout_of_any_model_repeats_and_leaves_the_random_state_alone(parts: Split) -> None:
    before = torch.get_rng_state()
    one, two, none = (losses(fresh(dropout=p), parts) for p in (0.2, 0.2, 0.0))
    assert one == two != none
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_was_cut_goes_on_to_the_bit_and_another_models_checkpoint_is_refused(
    parts: Split, tmp_path: Path
) -> None:
    class Cut(Exception):
        pass

    def cut(row: dict[str, Any]) -> None:
        if row["step"] == 6:
            raise Cut

    path = tmp_path / "ckpt.pt"
    with pytest.raises(Cut):
        losses(fresh(dropout=0.2), parts, checkpoint=path, checkpoint_every=3, on_row=cut)
    assert losses(fresh(dropout=0.2), parts, checkpoint=path) == losses(fresh(dropout=0.2), parts)
    with pytest.raises(CheckpointError, match=r"of another run .*model shapes"):
        losses(fresh(n_layer=3), parts, checkpoint=path)


def test_a_recipes_rates_reach_a_model_of_ones_own(parts: Split) -> None:
    def rates(role: Role, dims: Any) -> Adam:
        return Adam(lr=0.0 if role is Role.TOKEN_EMBED else 1.0)

    frozen = Recipe(
        id="frozen", family="user", summary="", source="here", rule=lambda role, dims: Normal(0.1), optimizer=rates
    )
    model = fresh()
    apply_recipe(model, frozen, 0)
    table = model.tok_embeddings.weight.detach().clone()
    losses(model, parts, replace(CONFIG, weight_decay=0.0), recipe=frozen, anatomy=of(model))
    assert torch.equal(table, model.tok_embeddings.weight)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(4, 4), "Linear has no table of tokens; expected a causal language model"),
        (fresh(Headless), "Headless returns neither logits over its 48 tokens at each position nor a loss"),
    ],
)
def test_what_predicts_no_token_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(model, T)


def test_what_sees_later_tokens_is_refused() -> None:
    refuse_what_sees_ahead(task_of(fresh(), T))
    with pytest.raises(ConfigError, match=r"Seeing sees later tokens: 7 of 7 positions move when"):
        refuse_what_sees_ahead(task_of(fresh(Seeing), T))


def test_frozen_models_and_small_vocabularies_are_refused(parts: Split) -> None:
    with pytest.raises(ConfigError, match="every parameter of Decoder is frozen"):
        losses(fresh().requires_grad_(False), parts)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the data's vocabulary is 48 and the model's 40"):
        losses(fresh(vocab_size=40), parts)


def test_windows_are_as_long_as_a_model_says_up_to_a_limit() -> None:
    model = fresh()
    assert window_of(model, 64) == 64
    for declared, expected in ((32, 32), (4096, LONGEST)):
        model.config = {"block_size": declared}  # type: ignore[assignment]
        assert window_of(model, 64) == expected
    assert math.isnan(task_of(model, T).flops)
