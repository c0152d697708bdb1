"""`initlab.confirm` on models that aren't NanoGPT."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from decoders import VOCAB, Decoder, Headless, Seeing, decoder, small_start, stubborn

import initlab
from initlab import cli, rundir
from initlab.errors import ConfigError, DataError, ProbeError, RecipeError
from initlab.recipes import Constant, Normal, Recipe, Role
from initlab.training import execution

pytestmark = pytest.mark.integration

TEXT = initlab.Text("uniform", batch_size=2, block_size=8)
TINY = {"model": decoder, "text": TEXT, "n_embd": 16, "depths": [1], "steps": 3, "lrs": (1e-3,), "warmups": (0,)}
SMALL = TINY | {"depths": [1, 2], "lrs": (1e-3, 1e-2), "seeds": 2}


def confirm(recipes, *, jobs=1, out=None, **options):
    return initlab.confirm(recipes, run=initlab.RunOptions(jobs=jobs, out=out), **options)


def tenth(role, dims):
    """Everything a tenth."""
    return Normal(0.1)


def sandwiched(role, dims):
    return Normal(0.02)


SANDWICH = Recipe(
    id="sandwich",
    family="user",
    summary="",
    source="here",
    rule=sandwiched,
    wiring=lambda dims: {"norm_placement": "sandwich"},
)


@pytest.fixture(scope="module")
def found():
    return confirm(["nanogpt", tenth, small_start], **SMALL)


def test_recipes_and_inits_of_ones_own_are_trained_side_by_side(found):
    run = found.run
    assert run.complete and run.manifest["failed"] == {}
    config = run.manifest["config"]
    assert config["recipes"] == ["nanogpt", "tenth", "small_start"] and config["model"] == "Decoder"
    assert (config["depths"], config["widths"], config["batch_size"], config["block_size"]) == ([1, 2], [16], 2, 8)
    assert len(run.tables.runs) == 3 * 2 * 2 * 2
    assert (run.tables.runs["ln_vocab"] - np.log(VOCAB)).abs().max() < 1e-6
    at_init = run.tables.summary[run.tables.summary["step"] == 0]
    assert len(at_init) == 3 * 2 * 2
    assert set(run.tables.runs.groupby("n_layer", observed=True)["n_params"].nunique()) == {1}
    assert {"resid_post", "logits"} <= set(found.records.loc[found.records["step"] == 3, "site"])
    assert {f.recipe for f in found.findings} == {"nanogpt", "tenth", "small_start"}


def test_the_runs_are_those_of_a_loop_written_out(found):
    """Weights of the seed, its batches, its rate: what a user would get from the same init."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = small_start(1, 16)
    split = initlab.training.data.load_split("uniform", None, VOCAB)
    rows = found.run.tables.training
    rows = rows[rows["run_id"] == "small_start-L1-d16-s1-lr0.01-w0"]
    adam = torch.optim.AdamW([{"params": [p]} for p in model.parameters()], lr=1e-2, betas=(0.9, 0.95))
    for group in adam.param_groups:
        group["weight_decay"] = 0.1 if group["params"][0].dim() > 1 else 0.0
    for step in range(3):
        for group in adam.param_groups:
            group["lr"] = float(rows["lr"].iloc[step])
        idx, targets = split.batch(2, 8, 1, step)
        loss = torch.nn.functional.cross_entropy(model(idx).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        assert rows["loss"].iloc[step] == pytest.approx(loss.item(), rel=1e-5)


def test_the_report_is_that_of_nanogpts(found, tmp_path):
    assert "Decoder" in repr(found) and "1 layer: 12 runs (2 rates, 1 warmup, 2 seeds)" in repr(found)
    page = found.report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Decoder" in page and "small_start" in page and "What training says" in page
    assert {"regrets.csv", "effects.csv"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_what_fails_is_recorded_and_the_same_call_goes_on(tmp_path, monkeypatch):
    train_cell = execution.train_cell

    def train_or_fail(cell, *given, **named):
        if "tenth" in cell.run_id:
            raise MemoryError("out of memory")
        return train_cell(cell, *given, **named)

    grid = TINY | {"seeds": 2, "out": tmp_path / "run"}
    with monkeypatch.context() as patch:
        patch.setattr(execution, "train_cell", train_or_fail)
        first = confirm(["nanogpt", tenth], **grid)
    assert len(first.run.manifest["failed"]) == 2 and len(first.run.tables.runs) == 2
    trained = []
    monkeypatch.setattr(
        execution, "train_cell", lambda cell, *a, **k: (trained.append(cell.recipe), train_cell(cell, *a, **k))[1]
    )
    again = confirm(["nanogpt", tenth], **grid)
    assert trained == ["tenth", "tenth"] and again.run.complete
    columns = [column for column in again.run.tables.runs if column != "seconds"]
    whole = confirm(["nanogpt", tenth], **grid | {"out": None}).run.tables.runs

    def order(frame):
        return frame[columns].astype({"run_id": str, "recipe": str}).sort_values("run_id", ignore_index=True)

    pd.testing.assert_frame_equal(order(again.run.tables.runs), order(whole))


def test_what_a_model_cannot_be_given_is_left_out_and_said(tmp_path):
    found = confirm([SANDWICH, "nanogpt"], **TINY | {"seeds": 1}, out=tmp_path / "run")
    assert found.run.complete and set(found.run.tables.runs["recipe"]) == {"nanogpt"}
    (why,) = found.run.manifest["config"]["left_out"].values()
    assert "norm_placement" in why and "Decoder" in why
    assert f"sandwich was left out: {why}" in " ".join(found._text(color=False, width=2000).split())
    with pytest.raises(RecipeError, match="sandwich is more than a draw"):
        confirm([SANDWICH], **TINY | {"seeds": 1}, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_module_is_copied_and_has_its_own_depth():
    model = Decoder(2, 16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grid = {key: value for key, value in TINY.items() if key not in ("depths", "n_embd")}
    found = confirm(["nanogpt"], **grid | {"model": model, "seeds": 1})
    assert found.run.tables.runs["n_layer"].tolist() == [2] and found.run.tables.runs["n_embd"].tolist() == [16]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="depths was given, but Decoder takes no n_layer"):
        confirm(["nanogpt"], **grid | {"model": model, "depths": [4]})


def test_a_function_of_nanogpt_configs_is_trained_as_they_are():
    def config(n_layer, n_embd):
        return initlab.NanoGPTConfig(n_layer=n_layer, n_embd=n_embd, n_head=2, block_size=8, vocab_size=VOCAB)

    found = confirm(["nanogpt"], **TINY | {"model": config, "seeds": 1, "jobs": 2})
    twin = confirm(["nanogpt"], **TINY | {"model": config(1, 16), "seeds": 1})
    assert found.run.tables.training["loss"].equals(twin.run.tables.training["loss"])


def test_a_users_file_reaches_the_workers(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent("""
        from torch import nn
        from torch.nn import functional as F

        class Stage(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.ln = nn.LayerNorm(width)
                self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

            def forward(self, x):
                return x + self.c_proj(F.gelu(self.c_fc(self.ln(x))))

        class Net(nn.Module):
            def __init__(self, n_layer, n_embd):
                super().__init__()
                self.wte, self.lm_head = nn.Embedding(256, n_embd), nn.Linear(n_embd, 256, bias=False)
                self.h = nn.ModuleList(Stage(n_embd) for _ in range(n_layer))

            def forward(self, idx, targets=None):
                x = self.wte(idx)
                for stage in self.h:
                    x = stage(x)
                logits = self.lm_head(x)
                return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())

        def make(n_layer, n_embd):
            return Net(n_layer, n_embd)
        """)
    )
    options = "--depths 1,2 --lrs 1e-3 --warmups 0 --seeds 1 --steps 2 --n-embd 16 --block-size 8 --batch-size 2"
    arguments = ["confirm", "nanogpt", "xavier", "--model", f"{file}:make", *options.split(), "--jobs", "2"]
    assert cli.main([*arguments, "--no-report", "-o", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert "Net" in shown.out and "8 models to measure or train" in shown.err
    found = rundir.load(tmp_path / "run")
    assert len(found.tables.runs) == 4 and found.manifest["environment"]["jobs"] == 2
    assert cli.main([*arguments, "--no-report", "-o", str(tmp_path / "run")]) == 0
    assert "0 models to measure or train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": stubborn, "depths": [1, 2]}, ProbeError, "stubborn made .* expected more at the larger: does it"),
        ({"model": lambda n_layer, n_embd: Seeing(n_layer, n_embd)}, ConfigError, "Seeing sees later tokens"),
        ({"model": lambda n_layer, n_embd: Headless(n_layer, n_embd)}, ConfigError, "Headless returns neither logits"),
        ({"text": initlab.Text()}, ConfigError, r"has 256 ids as bytes, and the model of decoder knows 48; .*=256"),
        (
            {"model": lambda n_layer, n_embd: Decoder(n_layer, 15)},
            ProbeError,
            "raised ValueError|raised in its forward",
        ),
        ({"model": None, "recipes": ["nanogpt", decoder]}, ConfigError, "functions that make models of another"),
        ({"recipes": [small_start]}, ConfigError, "a model to draw recipes into was given, but no recipe"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(changes, error, message, tmp_path):
    given = TINY | {"recipes": ["nanogpt"], "seeds": 1, "out": tmp_path / "run"} | changes
    with pytest.raises(error, match=message):
        confirm(given.pop("recipes"), **given)
    assert not (tmp_path / "run").exists()


def test_ids_of_a_file_that_a_model_does_not_know_are_named(tmp_path):
    np.arange(400, dtype="<u2").tofile(tmp_path / "text.bin")
    with pytest.raises(DataError, match="outside a vocabulary of 48"):
        confirm(["nanogpt"], **TINY | {"text": initlab.Text(tmp_path / "text.bin", block_size=8)})


def test_a_role_without_an_answer_leaves_its_recipe_out():
    def partial(role: Role, dims):
        return None if role is Role.MLP_GATE else Constant(0.02)

    found = confirm(["nanogpt", partial], **TINY | {"seeds": 1})
    assert list(found.run.manifest["config"]["left_out"]) == ["partial"]


def test_a_config_of_transformers_is_trained():
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(**sizes, intermediate_size=24, vocab_size=64, max_position_embeddings=16)
    grid = {key: value for key, value in TINY.items() if key not in ("depths", "n_embd")}
    found = confirm(["nanogpt", "hf-llama"], **grid | {"model": config, "seeds": 1, "text": initlab.Text("uniform")})
    assert found.run.complete and found.run.manifest["config"]["model"] == "LlamaForCausalLM"
    assert found.run.manifest["config"]["block_size"] == 16
    assert found.run.tables.runs["n_layer"].tolist() == [2, 2]
    # before any update the loss is that of the fresh model on the windows that every run is evaluated on
    assert (found.run.tables.runs["first_loss"] - np.log(64)).abs().max() < 0.1
