"""One door: whichever command measures or predicts a model, the closed form expects the same of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import initlab
from initlab.corpus import load_corpus
from initlab.judge import theory
from initlab.judge.theory import expecting
from initlab.measure.probe import Identity, measure
from initlab.models.config import NanoGPTConfig
from initlab.models.wiring import nanogpt_wiring
from initlab.recipes import Constant, Normal, Role, registry
from initlab.training import data as training_data
from initlab.wiring import Attention

pytestmark = pytest.mark.integration

SIZES = {"n_layer": 3, "n_head": 2, "n_embd": 128, "block_size": 64}
B = 4
WIRING = nanogpt_wiring(NanoGPTConfig(n_layer=3, n_head=2, n_embd=128, vocab_size=256))
SCALARS = ["expected_loss", "expected_logit_std", "expected_own_logit", "expected_token_cosine"]


def changed(wiring, score_scale=None, dropout=None):
    """The same with another scale of every score, or with dropout on what every branch writes."""

    def branch(old):
        body = old.body
        if score_scale is not None and isinstance(body, Attention):
            body = replace(body, score_scale=score_scale)
        return replace(old, body=body, dropout=old.dropout if dropout is None else dropout)

    def update(old):
        return replace(old, branches=tuple(map(branch, old.branches)))

    blocks = (replace(block, updates=tuple(map(update, block.updates))) for block in wiring.blocks)
    return replace(wiring, blocks=tuple(blocks))


def drawn(recipe, **changes):
    model = initlab.NanoGPT(initlab.NanoGPTConfig(**SIZES | {"vocab_size": 256} | changes))
    initlab.apply_recipe(model, recipe, seed=0)
    return model


def expected(tables, n_embd=128):
    """What is expected of the cell at step 0, by kind, site and block; scalars by name."""
    records = tables.records[(tables.records["step"] == 0) & (tables.records["n_embd"] == n_embd)]
    records = records[records["kind"].isin(["activation", "grad"]) & records["expected_var"].notna()]
    places = zip(records["kind"], records["site"], records["layer"].astype(float).fillna(-1), strict=True)
    summary = tables.summary[(tables.summary["step"] == 0) & (tables.summary["n_embd"] == n_embd)].iloc[0]
    return dict(zip(places, records["expected_var"], strict=True)) | {name: summary[name] for name in SCALARS}


def by_block(role, dims):
    """Nothing is drawn alike in two blocks, or in matrices of two sizes; biases as wide as their matrix."""
    if role == Role.NORM_GAIN:
        return Constant(1 / math.sqrt(dims.layer + 1))
    return Normal(0.5 / math.sqrt(dims.fan_in) * (1 + 0.1 * dims.layer))


@pytest.mark.parametrize("recipe", ["torch-default", by_block], ids=["torch-default", "by-block"])
def test_every_command_expects_the_same_of_a_model(recipe, monkeypatch):
    corpus = load_corpus()
    # the training part is the whole text, so that the batches are those of the other commands
    monkeypatch.setattr(
        training_data, "load_split", lambda *args: training_data.Split(corpus, corpus, corpus.describe())
    )
    sizes = initlab.NanoGPTConfig(**SIZES)
    text = initlab.Text(batch_size=B)
    options = {"text": text, "steps": 1, "warmup": 0, "eval_every": 0, "eval_batches": 1}
    compared = initlab.compare(recipe, model=sizes, seeds=1, text=text)
    targets = corpus.batch(B, 64, 0)[1].numpy()
    found = {
        "compare": compared,
        "probe": initlab.probe(drawn(recipe), recipe=recipe, text=text),
        "scale": initlab.scale(recipe, model=sizes, widths=[64, 128], steps=1, seeds=1, text=text),
        "train": initlab.train(recipe, model=sizes, run=initlab.RunOptions(device="cpu"), **options),
    }
    found = {name: expected(result) for name, result in found.items()}
    statistics = {
        "sum_p2": corpus.statistics()["sum_p2"],
        "repeat_rate": compared.summary["repeat_rate"].item(),
        "same_target": theory.equal_pairs(targets),
    }
    profile = initlab.predict(recipe, model=replace(sizes, vocab_size=256), **statistics).expected
    found["predict"] = {
        (kind, site, -1.0 if layer is None else float(layer)): value
        for kind, values, over in (("activation", profile.var, 1), ("grad", profile.grad, targets.size**2))
        for (site, layer), value in ((place, value / over) for place, value in values.items())
    } | {name: getattr(profile, name.removeprefix("expected_")) for name in SCALARS}
    for name, values in found.items():
        both = sorted(set(values) & set(found["compare"]), key=str)
        assert len(both) >= 50, name
        assert [values[place] for place in both] == pytest.approx(
            [found["compare"][place] for place in both], rel=1e-12, abs=0
        ), name


def test_norm_gains_may_depend_on_the_block():
    """Without them the closed form would expect five times the growth, and call a model as declared a broken one."""

    def fading(role, dims):
        if role == Role.NORM_GAIN:
            return Constant(1 / math.sqrt(dims.layer + 1))
        return Constant(0.0) if role in (Role.NORM_BIAS, Role.BIAS) else Normal(0.02)

    sizes = initlab.NanoGPTConfig(n_layer=12, n_embd=256, n_head=4, block_size=64)
    uniform = initlab.Text("uniform", batch_size=4)
    comparison = initlab.compare(fading, model=sizes, seeds=4, text=uniform, stats="light")
    records = comparison.records[comparison.records["kind"] == "activation"]
    ends = [records[records["site"] == "embed"], records[(records["site"] == "resid_post") & (records["layer"] == 11)]]
    growth = {key: (ends[1][key].to_numpy() / ends[0][key].to_numpy()).mean() for key in ("var", "expected_var")}
    assert growth["expected_var"] == pytest.approx(growth["var"], rel=0.04)  # standard error of the mean: 1.7 %
    profile = initlab.predict(fading, model=replace(sizes, vocab_size=256))
    assert profile.growth == pytest.approx(growth["expected_var"], rel=0.01)
    probe = initlab.probe(drawn(fading, n_layer=12, n_embd=256, n_head=4), recipe=fading, text=initlab.Text("uniform"))
    for result in (comparison, probe):
        judged = {f.code: f.status for f in result.findings}
        assert judged["RES002"] == judged["RES003"] == "pass"


def test_a_recipe_is_asked_with_the_models_own_sizes():
    """With a batch shorter than the position table, the std of that one depends on its rows, not on the batch's."""
    model = drawn(by_block)
    ids = torch.randint(256, (4, 16), generator=torch.Generator().manual_seed(0))
    as_found, declared = (initlab.probe(model, ids, recipe=recipe) for recipe in (None, by_block))
    both = [probe.at("embed")["expected_var"].item() for probe in (as_found, declared)]
    assert both[0] == pytest.approx(both[1], rel=0.02)
    assert declared.at("embed")["var"].item() == pytest.approx(both[1], rel=0.05)


@pytest.fixture
def cell():
    """Tables of one cell, before anything is expected of it, and the arguments of `expect` that cover it."""
    ids, targets = load_corpus("uniform").batch(B, 64, 0)
    tables = measure(drawn("nanogpt"), ids, targets, Identity(run_id="-", recipe="-", seed=0), preset="light")
    return tables, [[WIRING], load_corpus("uniform").describe(), targets.numpy()]


def test_nothing_is_expected_where_no_closed_form_applies(cell):
    tables, (wirings, described, targets) = cell
    weights = tables.records["kind"] == "weight"

    def silent(wirings=wirings, **options):
        theory.expect(tables, wirings, described, targets, **options)
        assert tables.records["expected_var"].isna().all() and tables.summary[SCALARS].isna().all(axis=None)

    silent(wirings=[])
    for column in ("step", "n_embd"):  # it was trained; no stream was found
        before = tables.summary[column].item()
        tables.summary[column] = 3 if column == "step" else 0
        silent()
        tables.summary[column] = before
    silent(recipe=registry.get("nanogpt"))  # nothing to ask it with
    gains = weights & (tables.records["role"] == "norm_gain")
    tables.records.loc[gains, "var"] = 1e-6
    silent()
    tables.records.loc[gains, "var"] = 0.0
    tables.records.loc[weights, "frac_nonfinite"] = 0.1
    silent()
    tables.records.loc[weights, "frac_nonfinite"] = 0.0
    theory.expect(tables, wirings, described, targets)
    assert tables.summary[SCALARS].notna().all(axis=None)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"targets": None}, {"grad"}),
        ({"last": 32}, {"grad"}),  # half of the positions have a target
        ({"dropout": "elsewhere"}, {"attn_out", "mlp_out"}),
        (
            {"score_scale": 1e3},
            {"grad", "attn_out", "resid_mid", "resid_post", "expected_token_cosine"},
        ),  # steep attention
        ({}, set()),
    ],
    ids=["no-targets", "few-targets", "hidden-writes", "steep", "all"],
)
def test_what_the_closed_form_does_not_cover_is_left_out(cell, change, missing):
    tables, (_, described, targets) = cell
    wiring = changed(WIRING, score_scale=change.get("score_scale"), dropout=0.1 if "dropout" in change else None)
    if "dropout" in change:  # measured at the projection, before the dropout that the theory counts in
        tables.records["module"] = tables.records["module"].str.replace(r"(attn|mlp)$", r"\1.c_proj", regex=True)
    targets = np.where(np.arange(64) < change.get("last", 64), targets, -1)
    theory.expect(tables, [wiring], described, None if "targets" in change else targets)
    found = expected(tables)
    places = {part for place in found if isinstance(place, tuple) for part in place}
    gone = {"grad", "attn_out", "mlp_out", "resid_mid", "resid_post"} - places
    gone |= {name for name in SCALARS if math.isnan(found[name])}
    assert gone == missing


def test_what_the_wiring_does_not_know_is_taken_as_measured(cell):
    tables, (_, described, targets) = cell
    theory.expect(tables, [WIRING], described, targets)
    before = expected(tables)
    blocks = list(WIRING.blocks)
    attention, mlp = blocks[1].updates
    blocks[1] = replace(blocks[1], updates=(attention, replace(mlp, branches=(replace(mlp.branches[0], body=None),))))

    def again(wiring):
        tables.records["expected_var"] = math.nan
        theory.expect(tables, [wiring], described, targets)
        return expected(tables)

    found = again(replace(WIRING, blocks=tuple(blocks)))
    seen = tables.records["kind"].isin(["activation", "grad"]) & (tables.records["site"] == "mlp_out")
    written = tables.records[seen & (tables.records["layer"] == 1)]
    assert written["expected_var"].isna().tolist() == [True, False]  # its gradient is known, from what is above
    wanted = before["activation", "resid_post", 2.0] - before["activation", "mlp_out", 1.0] + written["var"].iloc[0]
    assert found["activation", "resid_post", 2.0] == pytest.approx(wanted, rel=0.03)
    assert ("grad", "resid_post", 1.0) in found and ("grad", "resid_pre", 1.0) not in found

    unknown = replace(WIRING, terms=None)
    tables.summary["embed_together"] = math.nan
    assert ("activation", "resid_post", 2.0) not in (behind := again(unknown))  # how alike positions are isn't known
    assert {("activation", site, 2.0) for site in ("q", "v", "mlp_pre", "mlp_out")} <= set(behind)
    tables.summary["embed_together"] = 0.5 / 256
    found = again(unknown)
    assert set(before) - set(found) >= {("activation", "embed", -1.0), ("activation", "resid_pre", 0.0)}
    assert ("activation", "resid_post", 2.0) in found and math.isnan(found["expected_own_logit"])
    places = [place for place in found if place[0] == "activation"]
    assert [found[at] for at in places] == pytest.approx([before[at] for at in places], rel=0.02)


def test_each_stack_has_as_many_positions_as_were_measured(cell):
    """An encoder of 40 positions before a decoder of 64."""
    tables, (_, described, targets) = cell
    source = changed(nanogpt_wiring(NanoGPTConfig(n_layer=1, n_head=2, n_embd=128, vocab_size=256)))
    layer = tables.records["layer"] == 0
    tables.records.loc[layer & (tables.records["site"] == "resid_post"), "numel"] = B * 40 * 128
    target = replace(WIRING, blocks=WIRING.blocks[1:])
    found = expecting._measured(tables, [source, target], None)
    assert found.positions == (40, 64)
    tables.summary["block_size"] = 0
    assert expecting._measured(tables, [source, target], B).positions == (40, 64)
    assert expecting._measured(tables, [source, target], None).positions == (0, 0)
    theory.expect(tables, [WIRING], described, targets)  # not known how many there are
    assert tables.records["expected_var"].isna().all()
    theory.expect(tables, [WIRING], {"sum_p2": math.nan}, None, sequences=B)
    assert tables.records["expected_var"].notna().any()
