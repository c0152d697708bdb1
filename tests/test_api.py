"""The public functions, used as a user would."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import initlab
from initlab.api import run
from initlab.api.side_by_side import SideBySide
from initlab.errors import ConfigError, DataError, ProbeError, RecipeError, RunError
from initlab.recipes import Constant, Normal, Recipe, Role, registry

pytestmark = pytest.mark.integration

TINY = initlab.NanoGPTConfig(n_layer=2, n_embd=32, n_head=1, block_size=16)
UNIFORM = initlab.Text("uniform", batch_size=2)
SMALL = {"model": TINY, "depths": (2, 4), "seeds": 2, "text": UNIFORM}


def compare(recipes, *, out=None, progress=None, **options):
    return initlab.compare(recipes, run=initlab.RunOptions(out=out, progress=progress), **options)


@pytest.fixture(scope="module")
def comparison():
    return compare(["nanogpt", "zero-out"], **SMALL)


def test_compare_fills_every_cell(comparison):
    assert len(comparison.summary) == 2 * 2 * 2
    assert comparison.run.complete
    assert list(comparison.summary["n_layer"].unique()) == [2, 4]
    assert comparison.records["expected_var"].notna().any()
    assert comparison.summary["expected_loss"].notna().all()
    assert comparison.run.manifest["recipes"]["nanogpt"]["rows"][0]["role"] == "token_embed"


def test_same_seed_same_tables(comparison):
    again = compare(["nanogpt", "zero-out"], **SMALL)
    pd.testing.assert_frame_equal(again.records, comparison.records)
    pd.testing.assert_frame_equal(again.heads, comparison.heads)
    columns = [column for column in comparison.summary if column != "seconds"]
    pd.testing.assert_frame_equal(again.summary[columns], comparison.summary[columns])


def test_recipes_are_compared_on_the_same_draw_and_text(comparison):
    by_recipe = dict(iter(comparison.at("embed").groupby("recipe", observed=True)))
    np.testing.assert_array_equal(by_recipe["nanogpt"]["var"], by_recipe["zero-out"]["var"])


def test_branch_write_exponents():
    found = compare(
        ["nanogpt", "nanogpt-no-depth-scale"],
        model=initlab.NanoGPTConfig(n_embd=128, n_head=2, block_size=64),
        depths=(4, 8, 16),
        text=initlab.Text(batch_size=2),
    )
    from initlab.judge.rules.depth import depth_exponents

    slopes = depth_exponents(found.records).set_index(["recipe", "site"])["slope"]
    assert slopes["nanogpt", "mlp_out"] == pytest.approx(-1, abs=0.1)
    assert slopes["nanogpt-no-depth-scale", "mlp_out"] == pytest.approx(0, abs=0.1)
    failed = {(f.code, f.recipe) for f in found.findings if f.status == "fail" and f.severity != "info"}
    assert failed == {("RES001", "nanogpt-no-depth-scale")}


def test_at_counts_negative_layers_from_the_end(comparison):
    last = comparison.at("resid_post", layer=-1)
    assert (last["layer"] == last["n_layer"] - 1).all() and len(last) == 8


def test_saved_run_loads_as_it_was(comparison, tmp_path):
    comparison.save(tmp_path / "run")
    loaded = initlab.load(tmp_path / "run")
    assert isinstance(loaded, initlab.Comparison)
    pd.testing.assert_frame_equal(loaded.records, comparison.records, rtol=1e-8)
    assert [f.message for f in loaded.findings] == [f.message for f in comparison.findings]
    json.loads((tmp_path / "run" / "run.json").read_text(), parse_constant=pytest.fail)


def test_report_of_a_run_in_memory_needs_a_folder(comparison):
    fresh = initlab.Comparison(comparison.run)
    with pytest.raises(RunError, match="only in memory"):
        fresh.report()


def test_report_writes_page_and_figures(comparison, tmp_path):
    page = initlab.Comparison(comparison.run).report(tmp_path / "run")
    assert page.name == "report.html"
    assert {"records.csv", "run.json", "findings.json"} <= {path.name for path in page.parent.iterdir()}
    assert list((page.parent / "figures").glob("*.png"))


def test_repr_is_readable(comparison):
    text = repr(comparison)
    assert "nanogpt" in text and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_cells_are_written_as_they_finish_and_resumed(tmp_path, monkeypatch):
    out = tmp_path / "run"
    measured, real = [], SideBySide.measure

    def interrupted(self, sweep, cell):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(cell.run_id)
        return real(self, sweep, cell)

    monkeypatch.setattr(SideBySide, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(["nanogpt", "zero-out"], **SMALL, out=out)
    partial = initlab.load(out)
    assert partial.summary["run_id"].tolist() == measured
    assert not partial.run.complete and partial.run.manifest["finished"] is None
    partial.report()

    resumed = []
    noted = lambda self, sweep, cell: (resumed.append(cell.run_id), real(self, sweep, cell))[1]  # noqa: E731
    monkeypatch.setattr(SideBySide, "measure", noted)
    whole = compare(["nanogpt", "zero-out"], **SMALL, out=out)
    assert whole.run.complete and len(resumed) == 5 and not set(resumed) & set(measured)
    fresh = compare(["nanogpt", "zero-out"], **SMALL)
    pd.testing.assert_frame_equal(whole.records, fresh.records, rtol=1e-8)


def test_another_run_in_the_folder_is_refused(comparison, tmp_path):
    comparison.save(tmp_path / "run")
    before = (tmp_path / "run" / "records.csv").read_bytes()
    with pytest.raises(RunError, match="holds another run") as caught:
        compare(["nanogpt"], **SMALL, out=tmp_path / "run")
    assert "recipes" in str(caught.value)
    assert (tmp_path / "run" / "records.csv").read_bytes() == before


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(tmp_path):
    def picky(role, dims):
        if dims.n_layer == 4 and dims.layer == 1:  # the first and the last block are tried before anything is measured
            raise ValueError("not for deep models")
        return Constant(1.0) if role == Role.NORM_GAIN else Normal(0.02)

    recipe = Recipe(id="picky", family="user", summary="", source="test", rule=picky)
    result = compare([recipe], **SMALL, out=tmp_path / "run")
    assert set(result.run.manifest["failed"]) == {"picky-L4-d32-s0", "picky-L4-d32-s1"}
    assert "not for deep models" in result.run.manifest["failed"]["picky-L4-d32-s0"]
    assert (result.summary["n_layer"] == 2).all()
    assert initlab.load(tmp_path / "run").run.manifest["failed"] == result.run.manifest["failed"]


def test_only_failing_cells_is_an_error():
    def never(role, dims):
        if dims.layer == 1:
            raise ValueError("no")
        return Normal(0.02)

    recipe = Recipe(id="never", family="user", summary="", source="test", rule=never)
    with pytest.raises(ProbeError, match="every one of 2 cells failed; the first"):
        compare([recipe], **SMALL | {"depths": (4,)})


def test_a_recipe_that_fails_at_its_ends_is_refused_before_anything_is_written(tmp_path):
    def broken(role, dims):
        return Normal(-1.0 if dims.layer == 3 else 0.02)

    with pytest.raises(RecipeError, match="broken"):
        compare([broken], **SMALL, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"recipes": ["nanogtp"]}, RecipeError, "did you mean nanogpt"),
        ({"recipes": []}, ConfigError, "recipes is empty"),
        ({"recipes": ["nanogpt", "nanogpt"]}, ConfigError, "'nanogpt' was given more than once"),
        ({"recipes": 3}, RecipeError, "recipe is 3; expected an id"),
        ({"model": "gpt2"}, ConfigError, "model is 'gpt2'; expected a NanoGPTConfig, a function of n_layer and n_embd"),
        ({"text": "my.txt"}, ConfigError, r"text is 'my.txt'; expected Text, as in text=initlab.Text\(data="),
        ({"run": "runs/a"}, ConfigError, r"run is 'runs/a'; expected RunOptions, as in run=initlab.RunOptions\(out="),
        ({"depths": 4}, ConfigError, "depths is 4; expected a list"),
        ({"depths": (4.0,)}, ConfigError, "depths holds 4.0; expected whole numbers"),
        ({"seeds": 2.5}, ConfigError, "seeds is 2.5"),
        ({"run": initlab.RunOptions(device="meta")}, ConfigError, "unknown device 'meta'"),
        ({"depths": ()}, ConfigError, "depths is empty"),
        ({"depths": (0,)}, ConfigError, "n_layer"),
        ({"widths": (97,)}, ConfigError, "give n_head"),
        ({"seeds": 0}, ConfigError, "seeds is 0"),
        ({"stats": "fast"}, ConfigError, "known: light, full"),
        ({"dtype": "int8"}, ConfigError, "known: float32"),
        ({"run": initlab.RunOptions(device="tpu9")}, ConfigError, "expected auto, cpu, cuda or cuda:N"),
        ({"text": initlab.Text("no/such/file.txt")}, DataError, "no/such/file.txt"),
        ({"model": replace(TINY, block_size=10**7), "text": initlab.Text()}, DataError, "10000000"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(changes, error, message, tmp_path):
    arguments = {"recipes": ["nanogpt"], **SMALL, "run": initlab.RunOptions(out=tmp_path / "run")} | changes
    with pytest.raises(error, match=message):
        initlab.compare(**arguments)
    assert not (tmp_path / "run").exists()


def test_progress_is_told_everything():
    calls = []

    class Progress:
        def start(self, work, cells, seconds):
            calls.append((work, cells, seconds))

        def advance(self, work, text):
            calls.append((work, text))

    compare(["nanogpt"], **SMALL, progress=Progress())
    (work, cells, seconds), *steps = calls
    assert cells == 4 and seconds > 0
    assert sum(amount for amount, _ in steps) == pytest.approx(work)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=300))


def test_probe_needs_nothing_but_a_model(model):
    probe = initlab.probe(model)
    assert probe.summary["loss"].item() == pytest.approx(math.log(300), abs=0.2)
    # 0.02 is small for a width of 64, and nothing else is to be said
    assert [(f.code, f.severity) for f in probe.findings if f.status == "fail"] == [("ACT001", "info")]
    assert "English prose" in probe.run.manifest["data"]["label"]
    assert probe.at("resid_post", layer=-1)["var"].item() > 0


def test_probe_of_a_small_vocabulary_falls_back_to_uniform_ids():
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, vocab_size=65))
    probe = initlab.probe(model)
    assert "uniform" in probe.run.manifest["data"]["label"].lower()


def test_probe_takes_ids_or_ids_and_targets(model):
    ids = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))
    shifted = initlab.probe(model, ids)
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), -1)], dim=1)
    given = initlab.probe(model, (ids, targets))
    assert shifted.summary["loss"].item() == given.summary["loss"].item()


@pytest.mark.parametrize(
    "batch",
    [torch.zeros(16, dtype=torch.long), "text", torch.zeros(0, 4, dtype=torch.long)],
)
def test_probe_refuses_a_batch_that_is_none(model, batch):
    with pytest.raises(ConfigError, match="expected"):
        initlab.probe(model, batch)


def test_ids_outside_the_vocabulary_are_a_clear_error(model):
    with pytest.raises(ConfigError, match="holds the id 300; the model knows ids below 300"):
        initlab.probe(model, torch.full((1, 8), 300))


def test_probe_names_an_init_that_was_not_applied(model):
    initlab.apply_recipe(model, "nanogpt-no-depth-scale", seed=0)
    rows = initlab.probe(model, recipe="nanogpt").records
    at = (rows["kind"] == "weight") & (rows["role"] == "mlp_out")
    np.testing.assert_allclose(rows[at]["var"] / rows[at]["expected_var"], 4, rtol=0.05)  # 2·n_layer


def test_apply_recipe_leaves_an_unknown_recipe_without_effect(model):
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(RecipeError):
        initlab.apply_recipe(model, "nope")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_activations_of_a_probe_are_predicted_from_its_weights(model):
    probe = initlab.probe(model, text=initlab.Text(batch_size=8))
    rows = probe.at("resid_post")
    np.testing.assert_allclose(rows["var"], rows["expected_var"], rtol=0.25)  # n_embd 64: far from wide


@pytest.mark.parametrize("name", registry.all_recipes())
def test_every_recipe_runs_and_starts_as_its_closed_form_says(name):
    # the slack of rule LOG002 at a width where the theory is meant to hold
    result = compare([name], model=initlab.NanoGPTConfig(n_layer=2, n_embd=256, n_head=4, block_size=64), seeds=2)
    assert not [f.message for f in result.findings if f.code in ("LOG002", "NUM001") and f.status != "pass"]
    assert set(result.run.manifest["failed"]) == set()


def test_manifest_names_no_owner(comparison):
    text = json.dumps(comparison.run.manifest)
    assert str(Path.home()) not in text
    assert {"config", "recipes", "data", "environment", "git", "command"} <= set(comparison.run.manifest)


def test_estimate_is_finite_for_nothing_to_do():
    assert run.estimate(0.0, 1.0, []) == 0.0


def test_another_models_probe_isnt_taken_for_this_one(model, tmp_path):
    first = initlab.probe(model)
    first.report(tmp_path / "run")
    again = initlab.probe(model)
    again.report(tmp_path / "run")  # the same model and batch: the same run
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    other = initlab.probe(model)
    with pytest.raises(RunError, match="holds another run"):
        other.report(tmp_path / "run")
    assert initlab.load(tmp_path / "run").summary["loss"].item() == pytest.approx(first.summary["loss"].item())


def test_text_that_was_asked_for_is_never_replaced():
    small = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, vocab_size=65))
    with pytest.raises(DataError, match="has 256 ids as bytes, the model 65; use a tokenizer that fits"):
        initlab.probe(small, text=initlab.Text(tokenizer="bytes"))


def test_uniform_ids_span_the_models_vocabulary(model):
    probe = initlab.probe(model, text=initlab.Text("uniform"))
    assert probe.run.manifest["data"]["vocab_size"] == 300
    assert probe.run.manifest["data"]["sum_p2"] == pytest.approx(1 / 300)


def test_repeats_are_counted_where_there_is_a_target(model):
    ids = torch.randint(300, (4, 32), generator=torch.Generator().manual_seed(0))
    targets = torch.full_like(ids, -1)
    targets[:, 5] = ids[:, 5]
    probe = initlab.probe(model, (ids, targets))
    assert probe.summary["repeat_rate"].item() == 1.0
    # own logit about 0.064·σ²/..: what the closed form says, since every target is the token just read
    assert probe.summary["loss"].item() == pytest.approx(probe.summary["expected_loss"].item(), abs=0.3)
    with pytest.raises(ConfigError, match="has a target"):
        initlab.probe(model, (ids, torch.full_like(ids, -1)))
    with pytest.raises(ConfigError, match="has a target"):
        initlab.probe(model, ids[:, :1])


def test_dropout_is_in_the_closed_form():
    config = initlab.NanoGPTConfig(n_layer=3, n_head=4, n_embd=256, block_size=64, vocab_size=300, dropout=0.4)
    model = initlab.NanoGPT(config)
    initlab.apply_recipe(model, "xavier", seed=0)
    for mode, off in (("train", False), ("eval", True)):
        getattr(model, mode)()
        probe = initlab.probe(model, text=initlab.Text(batch_size=16))
        rows = probe.at("resid_post")
        np.testing.assert_allclose(rows["var"], rows["expected_var"], rtol=0.15)
        assert probe.run.manifest["config"]["mode"] == mode
        level = probe.at("embed")["var"].item()
        assert level == pytest.approx(8e-4 if off else 8e-4 / 0.6, rel=0.03)


def test_norm_gains_are_in_the_closed_form(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".ln_" in name and name.endswith("weight"):
                p.fill_(2.0)
    probe = initlab.probe(model, text=initlab.Text(batch_size=8))
    for site in ("ln_1", "mlp_pre", "final_norm"):
        rows = probe.at(site)
        np.testing.assert_allclose(rows["var"], rows["expected_var"], rtol=0.1)
    # a gain of 2 doubles the pre-activations' rms, and is no recipe's
    assert [(f.code, f.severity) for f in probe.findings if f.status == "fail"] == [("INI004", "info")]


def test_in_place_residual_adds_are_seen_at_every_step():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = torch.nn.LayerNorm(32), torch.nn.Linear(32, 32)

        def forward(self, x):
            x += self.linear(self.norm(x.clone()))  # or the norm's backward would miss the x it saved
            return x

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block() for _ in range(3)])

        def forward(self, x):
            x = x.clone()
            for block in self.blocks:
                x = block(x)
            return x

    torch.manual_seed(0)
    levels = initlab.probe(Model(), torch.randn(64, 32)).at("resid_post")["var"]
    assert levels.is_monotonic_increasing and levels.is_unique


def test_a_buffer_that_is_replaced_is_put_back():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(8, 8)
            self.register_buffer("n", torch.zeros(()))

        def forward(self, x):
            self.n = self.n + 1
            return self.linear(x)

    model = Counting()
    before = model.n
    initlab.probe(model)
    assert model.n is before and model.n.item() == 0


def test_a_detached_branch_is_an_error(model):
    model.transformer.h[1].mlp.gelu.register_forward_hook(lambda m, args, output: output.detach())
    finding = next(f for f in initlab.probe(model).findings if f.code == "GRD001")
    assert (finding.status, finding.severity) == ("fail", "error")
    assert "transformer.h.1.mlp.c_fc.weight" in finding.message


def test_an_init_that_was_not_applied_is_named(model):
    initlab.apply_recipe(model, "nanogpt", seed=0)
    assert initlab.probe(model, recipe="nanogpt").worst == "info"  # of the width
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.mul_(3)
    finding = next(f for f in initlab.probe(model, recipe="nanogpt").findings if f.code == "INI001")
    assert finding.status == "fail" and finding.severity == "error"
    assert "transformer.h.1.mlp.c_proj.weight has std 0.03" in finding.message
    assert finding.layer_first == finding.layer_last == 1


def test_one_unscaled_projection_is_found():
    def attention_unscaled(role, dims):
        if role == Role.ATTN_OUT:
            return Normal(0.02)
        return registry.get("nanogpt")(role, dims)

    found = compare(
        attention_unscaled,
        model=initlab.NanoGPTConfig(n_embd=128, n_head=2, block_size=64),
        depths=(2, 4, 8),
        seeds=2,
    )
    finding = next(f for f in found.findings if f.code == "RES001")
    assert finding.status == "fail" and finding.site == "attn_out"
    assert finding.advice.startswith("divide the std of attn.c_proj.weight by")


def test_assert_healthy_says_what_is_wrong(model):
    assert initlab.assert_healthy(model, fail_on="warning").worst == "info"
    with pytest.raises(AssertionError, match="warning ACT001 hidden-std-too-small"):
        initlab.assert_healthy(model, fail_on="warning", limits={"ACT001.warning": 0.04})
    assert initlab.assert_healthy(model, fail_on="info", ignore=["ACT001"]).worst is None
    with pytest.raises(ConfigError, match="no rule has the code 'ACT009'"):
        initlab.assert_healthy(torch.nn.Linear(2, 2), ignore=["ACT009"])  # before anything is measured
    initlab.apply_recipe(model, "torch-default", seed=0)
    assert initlab.assert_healthy(model, limits={"EMB001.error": 1e-9}).worst == "warning"
    with pytest.raises(AssertionError, match=r"NanoGPT isn't healthy at init:\nerror EMB001.*; draw"):
        initlab.assert_healthy(model)
    with pytest.raises(ConfigError, match="fail_on is 'never'"):
        initlab.assert_healthy(model, fail_on="never")


def test_nan_in_a_weight_is_a_finding_and_no_crash(model):
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = math.nan
    found = {f.code: f for f in initlab.probe(model).findings}
    assert found["NUM001"].severity == "error" and "transformer.h.1.mlp.c_fc.weight" in found["NUM001"].message
    assert found["RES002"].status == "not_applicable"


def test_judging_again_is_kept_with_the_run(model, tmp_path):
    probe = initlab.probe(model)
    assert {f.code for f in probe.judge(select=["ACT"], limits={"ACT001": 0.01})} == {"ACT001", "ACT002", "ACT003"}
    limits = {finding.code: finding.limit for finding in probe.findings}
    assert probe.worst is None and limits["ACT001"] == "≥ 0.01; below 0.003 a warning"
    probe.report(tmp_path)
    overrides = {"select": ["ACT"], "limits": {"ACT001": 0.01}}
    assert json.loads((tmp_path / "run.json").read_text())["judging"] == overrides
    assert json.loads((tmp_path / "findings.json").read_text())["judging"] == overrides
    assert "judged by only ACT, ACT001=0.01" in " ".join(repr(probe).split())
    loaded = initlab.load(tmp_path)
    assert {f.code for f in loaded.findings} == {"ACT001", "ACT002", "ACT003"}
    loaded.judge()
    loaded.report()
    assert "judging" not in json.loads((tmp_path / "run.json").read_text())
    assert initlab.load(tmp_path).worst == "info"


def test_a_depth_scaling_that_the_code_claims_and_the_weights_lack_is_an_error():
    """As in huggingface/transformers#47458; a recipe applied on purpose overrules the code."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=4, n_embd=64, n_head=4, vocab_size=300, bos_token_id=1, eos_token_id=2)
    model = transformers.GPT2LMHeadModel(config)
    healthy = {f.code: f for f in initlab.probe(model).findings}
    assert healthy["INI002"].status == "pass" and "GPT2PreTrainedModel._init_weights" in healthy["INI002"].message
    assert healthy["INI004"].status == "pass"
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.normal_(0, 0.02)
    found = {f.code: f for f in initlab.probe(model).findings}
    assert (found["INI002"].status, found["INI002"].severity) == ("fail", "error")
    assert "aren't depth-scaled, though GPT2PreTrainedModel._init_weights says so" in found["INI002"].message
    assert found["INI004"].status == "fail"
    initlab.apply_recipe(model, "nanogpt-no-depth-scale", seed=0)
    assert initlab.probe(model).worst == "info"  # of the width


def test_describe_init_names_the_recipe_and_what_doesnt_fit():
    torch.manual_seed(0)
    config = initlab.NanoGPTConfig(n_layer=4, n_head=2, n_embd=128, block_size=32, vocab_size=300)
    model = initlab.NanoGPT(config)
    fits = initlab.describe_init(model)
    assert not fits.mismatches and "nanogpt" in repr(fits)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_proj.weight.normal_(0, 0.02)
            block.mlp.c_proj.weight.normal_(0, 0.02)
    assert any("not depth-scaled" in sentence for sentence in initlab.describe_init(model).mismatches)


def test_a_trained_checkpoint_is_measured_but_not_judged_as_an_init(model, tmp_path):
    arguments = {
        key: getattr(model.config, key) for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias")
    }
    torch.save({"model": model.state_dict(), "model_args": arguments, "iter_num": 250}, tmp_path / "ckpt.pt")
    loaded = initlab.NanoGPT.from_checkpoint(tmp_path / "ckpt.pt")
    with torch.no_grad():
        loaded.lm_head.weight.mul_(30)
    probe = initlab.probe(loaded)
    assert (probe.summary["step"] == 250).all() and probe.records["expected_var"].isna().all()
    assert not [f.code for f in probe.findings if f.status == "fail"]
