"""Steps of an optimizer of its own, on models of its own."""

import math

import pytest
import torch
from torch import nn

from initlab.anatomy.inputs import Inputs, of_ids
from initlab.corpus import load_corpus
from initlab.drawing.apply import apply_recipe
from initlab.errors import ConfigError, ProbeError
from initlab.measure.steps import ScaleConfig, measure_steps, own_optimizer
from initlab.measure.sweep import Cell
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import empty_model
from initlab.recipes import registry

CORPUS = load_corpus("uniform", vocab_size=32)
MODEL = NanoGPTConfig(n_embd=32, n_head=1, block_size=8, vocab_size=32)
SIZES = {"model": MODEL, "batch_size": 2, "preset": "light"}


def config(**more):
    return ScaleConfig(
        **{"recipes": ("nanogpt",), "widths": (16, 32), "depths": (2,), "seeds": 1, "steps": 2, **SIZES, **more}
    )


def drawn(cell, scale):
    model = empty_model(cell.config(scale), "cpu")
    apply_recipe(model, registry.get("nanogpt"), cell.seed)
    return model


def inputs(model, seed):
    return of_ids(model, *CORPUS.batch(2, 8, seed))


def measured(scale, make=None, optimizer=None):
    cell = scale.cells()[0]
    make = make or (lambda cell: drawn(cell, scale))
    return measure_steps(cell, scale, make, inputs, optimizer or own_optimizer(scale.optimizer, scale.lr))


def test_activations_and_changes_are_those_of_a_loop_written_by_hand():
    scale = config()
    tables = measured(scale)
    model = drawn(scale.cells()[0], scale)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0)
    idx, targets = CORPUS.batch(2, 8, 0)
    last, logits = [], []
    model.transformer.h[-1].register_forward_hook(lambda m, a, out: last.append(out.detach()))
    for step in range(3):
        out, loss = model(idx, targets)
        logits.append(out.detach())
        rows = tables.records[tables.records["step"] == step].set_index(["kind", "site", "layer"])
        assert rows.loc[("activation", "resid_post", 1), "var"].item() == pytest.approx(
            last[-1].var(correction=0).item(), rel=1e-4
        )
        assert tables.summary.set_index("step").loc[step, "loss"] == pytest.approx(loss.item(), rel=1e-5)
        if step:
            moved = (last[-1] - last[0]).var(correction=0).item()
            assert rows.loc[("change", "resid_post", 1), "var"].item() == pytest.approx(moved, rel=1e-3)
            change = tables.records[(tables.records["kind"] == "change") & (tables.records["site"] == "logits")]
            moved = (logits[-1] - logits[0]).var(correction=0).item()
            assert change.set_index("step").loc[step, "var"] == pytest.approx(moved, rel=1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_weights_are_on_record_before_the_steps_alone():
    records = measured(config()).records
    assert set(records.loc[records["step"] == 0, "kind"]) == {"activation", "grad", "weight", "weight_grad"}
    assert set(records.loc[records["step"] > 0, "kind"]) == {"activation", "grad", "change", "effective", "propagating"}


def test_random_state_is_left_alone_and_dropout_hides_no_change():
    torch.manual_seed(3)
    before = torch.get_rng_state()

    def make(cell):
        return nn.Sequential(nn.Embedding(32, 16), nn.Dropout(0.5), nn.Linear(16, 32))

    one = measured(config(lr=1e-30), make)
    assert torch.equal(torch.get_rng_state(), before)
    changes = one.records[one.records["kind"] == "change"]
    assert len(changes) == 2 and (changes["abs_max"] < 1e-6).all()  # the same masks at every step
    again = measured(config(lr=1e-30), make)
    assert one.records["var"].tolist() == again.records["var"].tolist()


def test_a_forward_that_writes_into_the_batch_is_given_the_same_one_at_every_step():
    class Writing(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x):
            x += 1
            return self.mix(x)

    batch = torch.zeros(2, 4)
    tables = measure_steps(
        Cell("torch-default", 2, 16, 0),
        config(lr=1e-30),
        lambda cell: Writing(),
        lambda model, seed: Inputs(args=(batch,)),
        own_optimizer("adamw", 1e-30),
    )
    assert (batch == 0).all()
    assert tables.summary["loss"].nunique() == 1


def test_a_loss_that_is_not_finite_is_recorded_and_ends_the_steps():
    tables = measured(config(lr=1e30, steps=4))
    assert tables.summary["step"].tolist() == [0, 1]
    assert not math.isfinite(tables.summary["loss"].iloc[-1])


def test_an_optimizer_of_the_users_making_takes_the_steps():
    still = measured(config(), optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.0))
    assert (still.records.loc[still.records["kind"] == "change", "abs_max"] == 0).all()
    with pytest.raises(ProbeError, match=r"returned str; expected a torch.optim.Optimizer"):
        measured(config(), optimizer=lambda model: "adam")
    with pytest.raises(ProbeError, match=r"optimizer\(model\) raised ZeroDivisionError"):
        measured(config(), optimizer=lambda model: 1 / 0)
    with pytest.raises(ConfigError, match="unknown optimizer 'lion'; known: adamw, sgd"):
        own_optimizer("lion", 1e-3)


def test_a_frozen_model_takes_no_steps():
    with pytest.raises(ProbeError, match="every parameter of NanoGPT is frozen"):
        measured(config(), lambda cell: drawn(cell, config()).requires_grad_(False))


def test_cells_are_the_widths_at_the_smallest_depth_and_the_depths_at_the_smallest_width():
    found = [(cell.n_layer, cell.n_embd) for cell in config(widths=(64, 16, 32), depths=(4, 2)).cells()]
    assert found == [(2, 16), (2, 32), (2, 64), (4, 16)]
    assert {size["n_layer"] for size in config(depths=(2, 4)).sizes() if size["n_embd"] == 32} == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (64,)}, r"a slope needs two widths or more \(--widths 64,128,256\)"),
        ({"steps": -1}, "steps is -1"),
        ({"lr": 0.0}, "lr is 0.0; expected a number above 0"),
        ({"widths": (16, 37)}, "n_embd 37 has no divisor between 8 and 32 for a head size"),
    ],
)
def test_what_contradicts_itself_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        config(**options)
