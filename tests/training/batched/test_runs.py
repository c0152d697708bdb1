"""Runs side by side are the runs by themselves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from initlab.corpus import load_corpus
from initlab.drawing.apply import apply_recipe
from initlab.drawing.groups import adam_groups
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import empty_model
from initlab.models.wired import wired
from initlab.recipes import Base, registry
from initlab.training import data
from initlab.training.batched.runs import Runs
from initlab.training.batched.stack import Refused
from initlab.training.config import TrainConfig
from initlab.training.task import task_of
from initlab.training.trainer import train

pytestmark = pytest.mark.integration

MODEL = NanoGPTConfig(n_layer=2, n_embd=16, n_head=2, block_size=8, vocab_size=256)
# plain, none, both parts relative to a base, multipliers of the stream, a learned gate, a scale and a norm in each
# place, RMSNorm and rotary positions with a gated MLP
CASES = {
    "nanogpt": {},
    "torch-default": {"bias": False},
    "mup": {"n_embd": 32},
    "depth-mup": {"n_layer": 3},
    "deepnorm": {},
    "rezero": {},
    "skipinit": {},
    "u-mup": {"tie_weights": False},
    "magneto": {},
    "normformer": {},
    "hf-llama": {
        "activation": "swiglu",
        "norm": "rmsnorm",
        "positions": "rotary",
        "n_kv_head": 1,
        "qk_norm": True,
        "bias": False,
    },
}
PLACES = [(1e-3, 0, 0), (1e-2, 3, 0), (1e-2, 0, 1), (3e-3, 2, 1)]  # rate, warmup, seed


@pytest.fixture(scope="module")
def text() -> data.Split:
    return data.split(load_corpus("docstrings"))


def settings(lr: float = 1e-3, warmup: int = 0, seed: int = 0, **changes) -> TrainConfig:
    given = {"steps": 10, "batch_size": 2, "eval_batches": 2, "eval_every": 4}
    return TrainConfig(lr=lr, warmup=warmup, seed=seed, **given | changes)


def made(name: str, changes: dict, seed: int, dtype: torch.dtype):
    recipe = registry.get(name).at(Base(n_layer=1, n_embd=8))
    model = empty_model(wired(replace(MODEL, **changes), recipe), "cpu")
    apply_recipe(model, recipe, seed)
    return model.to(dtype), recipe


def pairs(names: list[str], configs: list[TrainConfig], changes: dict | None = None, dtype=torch.float32):
    """Models of the runs, with what they are trained with."""
    return [made(name, changes or {}, config.seed, dtype) for name, config in zip(names, configs, strict=True)]


def side_by_side(models, configs, text) -> Runs:
    tasks = [task_of(model) for model, _ in models]
    groups = [
        adam_groups(model, recipe, lr=config.lr, weight_decay=config.weight_decay)
        for (model, recipe), config in zip(models, configs, strict=True)
    ]
    return Runs(tasks, groups, text, configs)


def close(found, expected, tolerance: float) -> None:
    assert (found.steps_done, found.tokens) == (expected.steps_done, expected.tokens)
    assert len(found.rows) == len(expected.rows)
    for ours, theirs in zip(found.rows, expected.rows, strict=True):
        for key in ("step", "tokens", "lr", "loss", "val_loss", "grad_norm"):
            assert ours[key] == pytest.approx(theirs[key], rel=tolerance, abs=tolerance, nan_ok=True), (key, ours)
    for key in ("first_loss", "val_loss"):
        assert getattr(found, key) == pytest.approx(getattr(expected, key), rel=tolerance, nan_ok=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", CASES)
def test_side_by_side_runs_are_those_by_themselves(name, dtype, tolerance, text):
    configs = [settings(*place) for place in PLACES]
    names = [name] * len(configs)
    models = pairs(names, configs, CASES[name], dtype)
    runs = side_by_side(models, configs, text)
    found = runs.train()
    for run, (model, recipe) in enumerate(pairs(names, configs, CASES[name], dtype)):
        close(found[run], train(model, text, configs[run], recipe=recipe), tolerance)
        runs.write(run)
        if (
            dtype == torch.float64
        ):  # in float32 AdamW makes whole steps of a key's bias, whose gradient is rounding alone
            for ours, theirs in zip(models[run][0].parameters(), model.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_recipes_of_one_wiring_with_rates_of_their_own_are_trained_side_by_side(text):
    names, configs = ["cerebras-gpt", "mup", "mup"], [settings(1e-2), settings(1e-2), settings(1e-3, seed=1)]
    same = {"attention_multiplier": 0.125, "logit_multiplier": 0.5}

    def models():
        found = []
        for name, config in zip(names, configs, strict=True):
            recipe = replace(registry.get(name).at(Base(n_layer=1, n_embd=8)), wiring=None)
            model = empty_model(replace(MODEL, **same), "cpu").double()
            apply_recipe(model, recipe, config.seed)
            found.append((model, recipe))
        return found

    runs = side_by_side(models(), configs, text)
    assert len({tuple(part.multiplier.flatten().tolist()) for part in runs.stack.parts}) > 1
    for ours, (model, recipe), config in zip(runs.train(), models(), configs, strict=True):
        close(ours, train(model, text, config, recipe=recipe), 1e-6)


@pytest.mark.parametrize("name", ["nanogpt", "normformer"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_under_autocast_rounding_is_the_same(dtype, name, text):
    configs = [settings(lr, steps=6, dtype=dtype) for lr in (1e-3, 1e-2)]
    found = side_by_side(pairs([name] * 2, configs), configs, text).train()
    for ours, (model, recipe), config in zip(found, pairs([name] * 2, configs), configs, strict=True):
        expected = train(model, text, config, recipe=recipe)
        # the gradients of weights are rounded in another order of sums, and so is what a norm of 16 bits multiplies
        close(ours, expected, torch.finfo(getattr(torch, dtype)).eps)
        assert ours.rows[0]["loss"] == pytest.approx(expected.rows[0]["loss"], rel=1e-6)


def test_an_overflow_under_float16_skips_an_update_of_its_run_alone(text):
    configs = [settings(1e-3, steps=4, dtype="float16", batch_size=2) for _ in range(2)]

    def models():
        found = pairs(["nanogpt"] * 2, configs)
        with torch.no_grad():
            found[1][0].transformer.ln_f.weight.mul_(300)  # its scaled gradients overflow until the scale has shrunk
        return found

    runs = side_by_side(models(), configs, text)
    found = runs.train()
    for ours, (model, recipe), config in zip(found, models(), configs, strict=True):
        close(ours, train(model, text, config, recipe=recipe), 2e-2)
    norms = [[row["grad_norm"] for row in each.rows[:-1]] for each in found]
    assert not math.isfinite(norms[1][0]) and all(map(math.isfinite, norms[0]))
    assert found[1].rows[0]["loss"] != found[1].rows[1]["loss"]  # of another batch


def test_a_run_that_diverges_stays_as_it_is_and_touches_nobody(text):
    place = [(1e-3, 0, 0), (1e6, 0, 0), (1e-2, 0, 1)]
    configs = [settings(*each, grad_clip=0.0) for each in place]
    models = pairs(["nanogpt"] * 3, configs)
    runs = side_by_side(models, configs, text)
    found = runs.train()
    calm = [settings(*each, grad_clip=0.0) for each in (place[0], (1e-4, 0, 0), place[2])]
    for run, beside in zip((0, 2), (found[0], found[2]), strict=True):
        without = side_by_side(pairs(["nanogpt"] * 3, calm), calm, text).train()[run]
        untimed = ("step", "loss", "val_loss", "grad_norm")
        assert [[row[key] for key in untimed] for row in beside.rows[:-1]] == [
            [row[key] for key in untimed] for row in without.rows[:-1]
        ]
        assert beside.val_loss == without.val_loss  # to the bit
    model, recipe = pairs(["nanogpt"], configs[1:2])[0]
    expected = train(model, text, configs[1], recipe=recipe)
    assert found[1].steps_done == expected.steps_done < 10
    assert math.isnan(found[1].val_loss) and len(found[1].rows) == len(expected.rows)
    runs.write(1)
    weights = [model.state_dict() for model in (models[1][0], model)]
    assert all(values.isnan().equal(weights[1][name].isnan()) for name, values in weights[0].items())


def test_where_all_have_diverged_the_loop_ends(text, monkeypatch):
    configs = [settings(1e30, steps=200, eval_every=0) for _ in range(2)]
    runs = side_by_side(pairs(["nanogpt"] * 2, configs), configs, text)
    made = []
    batch = Runs.batch
    monkeypatch.setattr(Runs, "batch", lambda self, step: (made.append(step), batch(self, step))[1])
    found = runs.train()
    assert len(made) < 60 and all(each.steps_done < 5 for each in found)


class Branching(nn.Module):
    """A language model whose forward asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.head = nn.Embedding(256, 8), nn.Linear(8, 256)

    def forward(self, idx):
        x = self.wte(idx)
        return self.head(x * 2 if float(x.detach().mean()) > 1e9 else x)


class Counting(Branching):
    """One that is another at each call."""

    def forward(self, idx):
        self.calls = getattr(self, "calls", 0) + 1
        return self.head(self.wte(idx)) * self.calls


class Drawing(Branching):
    def forward(self, idx):
        return self.head(nn.functional.dropout(self.wte(idx), 0.5))


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [(Branching, RuntimeError, "item"), (Drawing, RuntimeError, "random"), (Counting, Refused, "first loss is")],
)
def test_models_that_cannot_be_mapped_are_refused_and_draw_nothing(kind, error, message, text):
    configs = [settings(), settings(1e-2)]
    tasks = [task_of(kind(), 8) for _ in configs]
    groups = [adam_groups(task.model, lr=1e-3) for task in tasks]
    before = torch.get_rng_state()
    with pytest.raises(error, match=message):
        Runs(tasks, groups, text, configs).train()
    assert torch.get_rng_state().equal(before)


def test_models_of_other_shapes_or_with_a_parameter_that_nothing_reads_are_refused(text):
    configs = [settings(), settings()]
    models = [made("nanogpt", {}, 0, torch.float32), made("nanogpt", {"n_embd": 32}, 0, torch.float32)]
    with pytest.raises(Refused, match="names, shapes and kinds"):
        side_by_side(models, configs, text)
    models = pairs(["nanogpt"] * 2, configs)
    for model, _ in models:
        model.spare = nn.Parameter(torch.ones(3))
    tasks = [task_of(model) for model, _ in models]
    with pytest.raises(Refused, match="depend on spare"):
        Runs(tasks, [adam_groups(model, lr=1e-3) for model, _ in models], text, configs).train()


def test_a_model_of_another_kind_with_buffers_a_mask_and_a_frozen_part(text):
    class Own(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.wte, self.norm, self.head = nn.Embedding(256, 8), nn.LayerNorm(8), nn.Linear(8, 256)
            self.qkv = nn.Linear(8, 24)
            self.head.bias.requires_grad_(False)
            self.register_buffer("mask", torch.ones(8, 8).tril().bool())
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, idx, targets=None):
            if self.training:
                self.steps += 1
            q, k, v = self.qkv(self.norm(self.wte(idx)))[:, None].chunk(3, -1)
            x = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)[:, 0]
            return self.head(self.norm(x + self.wte(idx)))

    configs = [settings(1e-3), settings(1e-2, seed=1)]
    tasks = [task_of(Own(config.seed), 8) for config in configs]
    for task in tasks:
        task.model.steps.zero_()
    runs = Runs(tasks, [adam_groups(task.model, lr=1e-3, weight_decay=0.1) for task in tasks], text, configs)
    for run, (ours, config) in enumerate(zip(runs.train(), configs, strict=True)):
        model = Own(config.seed)
        close(ours, train(model, text, config, task=replace(tasks[run], model=model)), 1e-5)
        runs.write(run)
        assert float(tasks[run].model.steps) == float(model.steps) == 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_side_by_side_on_a_gpu(text):
    configs = [settings(*place, device="cuda") for place in PLACES]
    names = ["nanogpt"] * len(configs)
    found = side_by_side([(model.cuda(), recipe) for model, recipe in pairs(names, configs)], configs, text).train()
    for ours, (model, recipe), config in zip(found, pairs(names, configs), configs, strict=True):
        close(ours, train(model, text, config, recipe=recipe), 1e-4)
