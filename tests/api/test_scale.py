"""`initlab.scale`, from models to verdicts, and the command."""

import json
import math
import sys
from dataclasses import replace

import cloudpickle
import pytest
import torch
from torch import nn

import initlab
from initlab import cli
from initlab.errors import ConfigError, ProbeError, RecipeError, RunError
from initlab.report import figures

pytestmark = pytest.mark.integration

NANOGPT = initlab.NanoGPTConfig(n_layer=4, n_embd=16, n_head=1, block_size=32)  # heads of 16
SMALL = {"text": initlab.Text("uniform", batch_size=2), "seeds": 2}
TINY = SMALL | {"model": replace(NANOGPT, block_size=16)}
BATCH = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


def scale(recipes, *, out=None, **options):
    return initlab.scale(recipes, run=initlab.RunOptions(out=out), **options)


def standard(n_embd, n_layer):
    """An MLP of standard parametrisation: torch's own init, one learning rate."""
    hidden = [layer for _ in range(n_layer) for layer in (nn.Linear(n_embd, n_embd, bias=False), nn.ReLU())]
    return nn.Sequential(nn.Linear(16, n_embd), nn.ReLU(), *hidden, nn.Linear(n_embd, 4, bias=False))


def mup(n_embd, n_layer):
    """The same in muP (Yang et al. 2022, table 8): std 1/sqrt(fan_in) of hidden matrices, 1/fan_in of the output's."""
    model = standard(n_embd, n_layer)
    for parameter in model.parameters():
        if parameter.dim() == 2 and parameter.shape[1] == n_embd:
            power = 1.0 if parameter.shape[0] == 4 else 0.5
            nn.init.normal_(parameter, std=math.sqrt(2) * n_embd**-power)
    return model


def mup_adam(model):
    """AdamW whose rate falls as 1/fan_in where fan_in is the width."""
    width = model[0].out_features
    groups = [
        {"params": [p], "lr": 0.01 * (64 / width if p.dim() == 2 and p.shape[1] == width else 1.0)}
        for p in model.parameters()
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-12, weight_decay=0.0)


def only(result, code):
    (found,) = [finding for finding in result.findings if finding.code == code]
    return found


def test_nanogpt_grows_with_width_as_published():
    """EleutherAI/nanoGPT-mup: standard parametrisation explodes with width; at init, slopes are the closed form's."""
    result = scale("nanogpt", model=NANOGPT, widths=(64, 128, 256), depths=(2,), steps=3)
    fits = result.slopes.set_index(["kind", "site", "step"])
    for site in ("q", "mlp_pre", "logits"):
        row = fits.loc[("activation", site, 0)]
        assert row["slope"] == pytest.approx(1.0, abs=0.15) and row["expected"] == pytest.approx(1.0, abs=0.1)
    assert fits.loc[("activation", "resid_post", 3), "slope"] > 2.0
    assert fits.loc[("activation", "ln_1", 3), "verdict"] == "flat"
    found = only(result, "SCL001")
    assert found.status == "fail" and found.severity == "warning" and "n_embd^+" in found.message
    assert "0.01 → 0.0025" in found.advice
    assert result.worst == "warning"  # what training does to weights isn't held against the init


def test_a_model_in_mup_is_flat_where_the_standard_one_grows():
    result = scale(standard, widths=(64, 128, 256), depths=(2,), batch=BATCH, steps=3)
    assert only(result, "SCL001").status == "fail"
    result = scale(mup, widths=(64, 128, 256), depths=(2,), batch=BATCH, steps=3, optimizer=mup_adam)
    assert only(result, "SCL001").status != "fail"
    hidden = result.slopes[result.slopes["module"].isin(["2", "4"]) & (result.slopes["step"] == 3)]
    assert len(hidden) == 2 and (hidden["slope"].abs() < 0.3).all()


def test_a_model_in_mup_whose_std_is_divided_twice_vanishes_with_width():
    def twice(n_embd, n_layer):
        model = mup(n_embd, n_layer)
        for parameter in model.parameters():
            if parameter.dim() == 2 and parameter.shape[1] == n_embd:
                parameter.data.mul_((64 / n_embd) ** 0.5)
        return model

    result = scale(twice, widths=(64, 128, 256), depths=(2,), batch=BATCH, steps=3, optimizer=mup_adam)
    found = only(result, "SCL001")
    assert found.status == "fail" and "vanishes with width" in found.message
    assert found.site in ("2", "3", "4", "5")  # neither what enters the hidden layers nor the output, which may shrink


def test_logits_that_are_divided_twice_vanish_with_width_and_once_they_do_not():
    """EleutherAI/gpt-neox#956: a factor of 1/width at the head, of which there are two; one is muP's."""

    class Head(nn.Module):
        def __init__(self, n_embd, times):
            super().__init__()
            self.out, self.by = nn.Linear(n_embd, 64, bias=False), (64 / n_embd) ** times
            nn.init.normal_(self.out.weight)

        def forward(self, x):
            return self.out(x * self.by)

    def divided(times):
        def make(n_embd, n_layer):
            return nn.Sequential(nn.Embedding(64, n_embd), nn.LayerNorm(n_embd), Head(n_embd, times))

        return make

    found = {}
    for times in (1, 2):
        result = scale(divided(times), widths=(64, 128, 256), depths=(2,), steps=1, lr=1e-4)
        found[times] = only(result, "SCL001")
    assert found[2].status == "fail" and found[2].site == "logits" and "1/n_embd" in found[2].advice
    assert found[1].status != "fail"


def test_updates_grow_with_depth():
    """C.4's depth check: the stream's change has an exponent of 1 and more, whatever the depth scaling of the init."""
    result = scale("nanogpt", model=NANOGPT, widths=(64,), depths=(2, 4, 8), steps=1)
    fits = result.slopes.set_index(["kind", "site", "step"])
    assert fits.loc[("activation", "resid_post", 0), "verdict"] == "flat"
    assert fits.loc[("change", "resid_post", 1), "slope"] > 1.0
    assert only(result, "SCL002").status == "fail"
    assert only(result, "SCL001").status == "not_applicable"


def test_two_seeds_of_a_small_run_say_what_they_can_not_tell():
    result = scale(["nanogpt"], widths=(16, 32), depths=(1,), steps=1, **{**TINY, "seeds": 1})
    found = only(result, "SCL001")
    assert found.status == "not_applicable" and "needs more --seeds" in found.message


def test_rates_that_diverge_are_recorded_and_nothing_is_fitted():
    result = scale(["nanogpt"], widths=(16, 32), depths=(1,), steps=3, lr=1e30, **TINY)
    assert set(result.summary["step"]) == {0, 1}
    after = result.slopes[(result.slopes["step"] == 1) & (result.slopes["site"] == "logits")]
    assert after["slope"].isna().all() and (after["n"] == 0).all()
    assert "smallest size; try a smaller --lr" in only(result, "SCL001").message
    assert "the loss isn't finite from step 1 on (2 of 2 seeds)" in str(result).replace("\n", " ")
    assert only(result, "NUM001").status == "pass"


def test_a_saved_run_loads_and_the_same_command_resumes_it(tmp_path):
    options = {"widths": (16, 32), "depths": (1, 2), "steps": 1, **TINY}
    first = scale(["nanogpt", standard], out=tmp_path / "a", **options)
    assert len(first.run.manifest["cells"]) == 12
    loaded = initlab.load(tmp_path / "a")
    assert type(loaded) is initlab.Scaling
    assert str(loaded) == str(first)
    again = scale(["nanogpt", standard], out=tmp_path / "a", **options)
    assert len(again.summary) == len(first.summary) == 24
    with pytest.raises(RunError, match="steps: 1 there, 2 now"):
        scale(["nanogpt", standard], out=tmp_path / "a", **{**options, "steps": 2})
    page = loaded.report().read_text()
    assert 'id="slopes"' in page and 'id="fig-coord"' in page and 'id="fig-coord-depth"' in page
    for name in ("coord", "coord-depth"):
        assert (tmp_path / "a" / "figures" / f"{name}.png").stat().st_size > 10_000
        assert figures.FIGURES.get(name).words(loaded.run).endswith(".")


def test_a_function_with_another_source_is_another_run(tmp_path):
    options = {"widths": (16, 32), "depths": (1,), "steps": 1, **SMALL}

    def made(n_embd, n_layer):
        return standard(n_embd, n_layer)

    scale(made, out=tmp_path / "a", **options)

    def made(n_embd, n_layer):
        return mup(n_embd, n_layer)

    with pytest.raises(RunError, match="sources"):
        scale(made, out=tmp_path / "a", **options)


def test_a_failing_cell_is_recorded_and_the_rest_goes_on():
    calls = []

    def flaky(n_embd, n_layer):
        calls.append(n_embd)
        if len(calls) == 6:  # after the survey: two sizes, the first twice, then four cells
            raise ValueError("out of luck")
        return standard(n_embd, n_layer)

    result = scale(flaky, widths=(16, 32), depths=(1,), steps=1, **SMALL)
    (failed,) = result.run.manifest["failed"].values()
    assert failed == "ProbeError: flaky(n_layer=1, n_embd=32) raised ValueError: out of luck"
    assert result.summary["run_id"].nunique() == 3


@pytest.mark.parametrize(
    ("subject", "error", "message"),
    [
        ([], ConfigError, "recipes is empty"),
        (3, RecipeError, "recipe is 3; expected an id"),
        (["nanogpt", "nanogpt"], ConfigError, "'nanogpt' was given more than once"),
        ("nanogtp", RecipeError, "did you mean nanogpt"),
        (lambda n_embd, n_layer: nn.Linear(3, 4), ProbeError, "made 16 parameters at n_embd 16 and 16 at 32"),
        (lambda n_embd, n_layer: 3, ProbeError, "returned int; expected a torch.nn.Module"),
        (lambda n_layer, n_embd, a: 3, ProbeError, r"lambda\(n_layer=1, n_embd=16\) raised TypeError"),
    ],
)
def test_bad_subjects(subject, error, message):
    with pytest.raises(error, match=message):
        scale(subject, widths=(16, 32), depths=(1,), **SMALL)


def test_a_batch_is_refused_with_recipes():
    with pytest.raises(ConfigError, match="batch= is for models of functions"):
        scale("nanogpt", batch=BATCH)
    with pytest.raises(ConfigError, match="a Linear has one size; give a function"):
        scale("nanogpt", model=nn.Linear(2, 2))


def test_command(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make(n_embd, n_layer):\n"
        "    return nn.Sequential(nn.Embedding(256, n_embd), nn.Linear(n_embd, 256))\n"
    )
    small = ["--steps", "1", "--seeds", "2", "--batch-size", "2", "--data", "uniform"]
    command = ["scale", "nanogpt", f"{tmp_path / 'mine.py'}:make", "--widths", "16,32", "--depths", "1", *small]
    assert cli.main([*command, "--no-report", "-o", str(tmp_path / "a")]) == 0
    shown = capsys.readouterr()
    assert "var ∝ n_embd^x" in shown.out and "\nmake\n" in shown.out and "closed" in shown.out
    assert all(len(line) <= 100 for line in shown.out.splitlines() if not line.startswith("tables"))
    assert "8 models to measure, about" in shown.err
    flat = " ".join(shown.out.split())
    assert "1 step of AdamW" in flat and "95 % interval over seeds" in flat
    alone = [*command[:2], *command[3:], "--seeds", "1", "--no-report", "-o", str(tmp_path / "one")]
    assert cli.main(alone) == 0
    assert "interval of the fit, which needs three sizes (--seeds 3" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*command, "--modules", "mlp_*", "--no-report", "-o", str(tmp_path / "a")]) == 0
    shown = capsys.readouterr().out
    assert "mlp_act" in shown and "attn_out" not in shown
    assert json.loads((tmp_path / "a" / "run.json").read_text())["kind"] == "scale"
    assert cli.main(["scale", "nanogpt", "--widths", "64", "-o", str(tmp_path / "b")]) == 2
    assert "needs two widths or more (--widths 64,128,256)" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_jobs_and_engine_are_taken(tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker can't import a test
    sizes = {"widths": (16, 32), "depths": (1,), "steps": 1, "seeds": 1, "batch": BATCH}
    alone = scale(standard, **sizes)
    several = initlab.scale(standard, **sizes, run=initlab.RunOptions(jobs=2))
    assert several.records["var"].to_numpy() == pytest.approx(alone.records["var"].to_numpy(), rel=1e-4)
    with pytest.raises(ConfigError, match="unknown engine 'nowhere'"):
        initlab.scale(standard, **sizes, run=initlab.RunOptions(engine="nowhere"))
