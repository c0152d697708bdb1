"""`initlab.predict` and `initlab predict`: the expected profile, without a model and without torch."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torchless import WITHOUT_TORCH

import initlab
from initlab.api.predict import TEXTS
from initlab.cli import main
from initlab.corpus import load_corpus
from initlab.errors import ConfigError, RecipeError, RunError
from initlab.recipes import Constant, Normal, Role

SHORT = initlab.NanoGPTConfig(n_embd=128, n_head=2, block_size=64)


@pytest.mark.parametrize(
    ("n_embd", "n_layer", "qkv", "first", "growth", "cosine", "logit_std", "loss", "trapped"),
    [
        # the full T x T kernel on uniform ids, T = 1024: nanoGPT's init, and what zero projections do to a tied head
        (768, 12, 0.303, 6.2e-3, 103, 0.48, 0.554, 10.980, (10.8, 11.66)),
        (1024, 24, 0.405, 5.9e-3, 202, 0.59, 0.640, 11.031, (14.4, 14.43)),
        (1280, 36, 0.506, 6.3e-3, 337, 0.65, 0.716, 11.082, (18.0, 17.99)),
        (1600, 48, 0.632, 7.5e-3, 556, 0.70, 0.800, 11.146, (22.5, 22.49)),
    ],
)
def test_the_gpt2_family(n_embd, n_layer, qkv, first, growth, cosine, logit_std, loss, trapped):
    profile = initlab.predict("nanogpt", n_layer=n_layer, n_embd=n_embd)
    var = profile.expected.var
    assert var["v", n_layer - 1] == pytest.approx(qkv, rel=0.02)
    assert var["resid_post", 0] == pytest.approx(first, rel=0.01)
    assert profile.growth == pytest.approx(growth, rel=0.01)
    assert profile.expected.token_cosine == pytest.approx(cosine, abs=0.006)
    assert profile.expected.logit_std == pytest.approx(logit_std, abs=0.001)
    assert profile.expected.loss == pytest.approx(loss, abs=0.002)
    zero = initlab.predict("zero-out", n_layer=n_layer, n_embd=n_embd)
    assert zero.expected.own_logit == pytest.approx(trapped[0], rel=0.01)
    # beyond ln V the loss is the own logit itself: modded-nanogpt's log shows 16.0026 where that is 16.00
    assert zero.expected.loss == pytest.approx(trapped[1], abs=0.06)


def test_attention_is_as_measured():
    config = initlab.NanoGPTConfig(n_layer=3, n_head=6, n_embd=384, block_size=128, vocab_size=256)
    model = initlab.NanoGPT(config)
    initlab.apply_recipe(model, "torch-default", seed=0)
    heads = initlab.probe(model, text=initlab.Text("uniform", batch_size=4)).heads.groupby("layer")[
        ["logit_std", "entropy_frac"]
    ]
    profile = initlab.predict("torch-default", model=config)
    np.testing.assert_allclose(heads.mean()["logit_std"], profile.expected.score_std, rtol=0.08)
    # how far below 1: rows sampled evenly, 0.01 apart in all
    np.testing.assert_allclose(heads.mean()["entropy_frac"], profile.expected.entropy_frac, atol=0.003)


def test_gradients_are_predicted_for_the_targets_that_there_are():
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_head=2, n_embd=128, block_size=64, vocab_size=64))
    initlab.apply_recipe(model, "nanogpt", seed=0)
    ids = torch.randint(64, (4, 64), generator=torch.Generator().manual_seed(0))
    few = torch.where(torch.arange(64) < 16, ids, -1)
    expected = {}
    for name, batch in {"next": ids, "all": (ids, ids.flip(1)), "few": (ids, few)}.items():
        probe = initlab.probe(model, batch, stats="light")
        row = probe.at("resid_post", layer=1, kind="grad").iloc[0]
        expected[name] = row["expected_var"]
        if name != "few":
            assert row["var"] == pytest.approx(row["expected_var"], rel=0.06)
        assert probe.at("resid_post", layer=1)["expected_var"].notna().all()
    assert expected["next"] / expected["all"] == pytest.approx(64 / 63, rel=0.02)  # the last token has no next one
    assert math.isnan(expected["few"])


# other versions of Python have other docstrings
@pytest.mark.parametrize(("name", "p2_off", "rate_off"), [("english", 1e-3, 2e-3), ("docstrings", 0.05, 0.1)])
def test_text_statistics_are_those_of_the_corpus(name, p2_off, rate_off):
    statistics = load_corpus(name).statistics()
    _, sum_p2, repeat_rate = TEXTS[name]
    assert sum_p2 == pytest.approx(statistics["sum_p2"], rel=p2_off)
    assert repeat_rate == pytest.approx(statistics["repeat_rate"], rel=rate_off)


def test_what_is_given_counts():
    model = initlab.NanoGPTConfig(n_layer=2, n_embd=128, n_head=2, block_size=64)
    bytes_ = replace(model, vocab_size=256)
    base = initlab.predict(model=bytes_)
    assert base.setting.text.sum_p2 == base.setting.text.repeat_rate == 1 / 256
    text = initlab.predict(model=model, text=initlab.Text("docstrings"))
    assert (text.setting.vocab_size, text.setting.text.sum_p2) == (256, 0.0553)
    assert text.expected.token_cosine > base.expected.token_cosine
    own = initlab.predict(model=bytes_, sum_p2=0.0553, repeat_rate=0.033)
    assert own.expected == text.expected
    exact = initlab.predict(model=bytes_, exact=True)
    assert exact.growth == pytest.approx(base.growth, rel=1e-3) and exact.growth != base.growth
    untied = initlab.predict(model=replace(bytes_, tie_weights=False))
    assert untied.expected.own_logit == 0
    tanh = initlab.predict(model=bytes_, activation="tanh")
    by_function = initlab.predict(model=bytes_, activation=np.tanh)
    assert tanh.growth == pytest.approx(by_function.growth, rel=1e-9) and tanh.growth != base.growth


def test_a_recipe_of_ones_own_that_draws_blocks_differently():
    def late(role, dims):
        if role in (Role.ATTN_OUT, Role.MLP_OUT) and dims.layer == 0:
            return Constant(0.0)
        return Constant(1.0) if role == Role.NORM_GAIN else Normal(0.02)

    model = initlab.NanoGPTConfig(n_layer=2, n_embd=64, n_head=1, vocab_size=64, bias=False)
    var = initlab.predict(late, model=model).var.set_index(["site", "layer"])["var"]
    assert var["resid_post", 0] == var["resid_pre", 0] < var["resid_post", 1]


def test_a_thousand_wide_layers_take_about_a_second():
    import time

    started = time.process_time()
    profile = initlab.predict("nanogpt", n_layer=1000, n_embd=16384)
    assert time.process_time() - started < 10
    assert math.isfinite(profile.growth) and math.isfinite(profile.gradient_ratio)
    lines = repr(profile).splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 100


def lambda_std(std):
    def constant(role, dims):
        return Normal(std)

    return constant


def test_where_the_softmax_is_far_from_uniform_the_profile_says_so():
    assert "Attention logits reach std 2.0" in repr(initlab.predict("kaiming", model=SHORT, n_layer=2))
    for fine in ("nanogpt", "xavier"):
        assert "Attention logits reach" not in repr(initlab.predict(fine, model=SHORT, n_layer=2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_layer": 0}, ConfigError, "n_layer is 0; expected a positive integer"),
        ({"n_embd": 64.0}, ConfigError, r"n_embd is 64.0; expected a positive integer"),
        ({"model": replace(SHORT, vocab_size=1)}, ConfigError, "vocab_size is 1; expected a whole number from 2 on"),
        ({"model": torch.nn.Linear(2, 2)}, ConfigError, "predict expects NanoGPTs of a NanoGPTConfig alone"),
        (
            {"text": initlab.Text("wikipedia")},
            ConfigError,
            "no statistics of the text 'wikipedia'; known: uniform, english, docstrings",
        ),
        ({"sum_p2": 1e-9}, ConfigError, "sum_p2 is 1e-09; expected a share from 1.98791e-05 to 1"),
        ({"repeat_rate": 1.5}, ConfigError, "repeat_rate is 1.5; expected a share from 0 to 1"),
        ({"activation": "swoosh"}, ConfigError, "no moments for activation 'swoosh'"),
        (
            {"activation": lambda x: x * math.nan},
            ConfigError,
            "activation <lambda> gives values that aren't finite; expected",
        ),
        ({"activation": lambda x: 1.0}, ConfigError, r"activation <lambda> gives shape \(\) for .*elementwise"),
        ({"recipe": lambda_std(1e200)}, RecipeError, r"Normal\(std=1e\+200\) for role token_embed; expected finite"),
        (
            {"model": replace(SHORT, block_size=100_000), "exact": True},
            ConfigError,
            "100000 is above 4096, leave exact out",
        ),
        ({"recipe": "nanogtp"}, RecipeError, "did you mean nanogpt"),
    ],
)
def test_what_cannot_be_used_is_said(arguments, error, message):
    with pytest.raises(error, match=message):
        initlab.predict(**arguments)


def test_saved_as_table_and_pictures(tmp_path):
    profile = initlab.predict("nanogpt", model=SHORT, n_layer=3)
    folder = profile.save(tmp_path / "a" / "b")
    assert {path.name for path in folder.iterdir()} == {"profile.csv", "profile.png", "profile-dark.png"}
    table = pd.read_csv(folder / "profile.csv")
    assert table["var"].to_numpy() == pytest.approx(profile.var["var"].to_numpy())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file can't be written"):
        profile.save(tmp_path / "file")


@pytest.mark.parametrize("recipe", ["nanogpt", "zero-out"])
def test_the_figure_says_how_much_and_names_zeros(recipe):
    figure = initlab.predict(recipe, model=SHORT, n_layer=3).plot("dark")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert [axes.get_yscale() for axes in figure.axes] == ["log"] * 3
    assert ("MLP (0)" in texts) is (recipe == "zero-out")
    assert texts[0].startswith("×")


def test_command(capsys, tmp_path):
    assert main(["predict", "nanogpt", "--n-layer", "48", "--n-embd", "1600", "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100 or str(tmp_path) in out.splitlines()[-1]
    said = " ".join(out.split())
    assert "The stream grows ×556 over 48 blocks" in said
    assert "First loss 11.146 nats: ln V +0.320" in said
    assert "not every block is shown" in out and "block 47" in out
    assert (tmp_path / "profile.png").exists()
    assert main(["predict", "zero-out", "--n-layer", "2", "--format", "json", "--untied", "--no-bias"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["own_logit"] == 0 and found["growth"] == 1
    assert {"layer", "site", "var", "grad_var"} == set(found["rows"][0])
    assert main(["predict", "--sum-p2", "2"]) == 2
    assert "sum_p2 is 2; expected a share" in capsys.readouterr().err


def test_needs_no_torch(tmp_path):
    code = (
        f"{WITHOUT_TORCH}from initlab.cli import main\n"
        f"sys.exit(main(['predict', '--n-layer', '2', '-o', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "The stream grows" in done.stdout
