"""Statistics of a user's own: by decorator, by argument, by entry point, by file; in table, finding, page, terminal."""

import json
import math
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import initlab
from initlab.api.callbacks import scalars
from initlab.cli import main
from initlab.errors import ConfigError
from initlab.judge.rules import named
from initlab.judge.rules.base import Case
from initlab.measure.statistics import KINDS, STATISTICS, Statistic, choose
from initlab.schema import HEADS, RECORDS

pytestmark = pytest.mark.integration

T, V = 12, 61


@pytest.fixture(autouse=True)
def _own_names():
    with STATISTICS.temporary():
        yield


def nano(**options):
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": T, "vocab_size": V}
    return initlab.NanoGPT(initlab.NanoGPTConfig(**sizes | options))


class Block(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(n_embd), nn.Linear(n_embd, 4 * n_embd)
        self.proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        return x + 0.25 * self.proj(torch.relu(self.fc(self.norm(x))))


class Scaled(nn.Module):
    """What its blocks write is multiplied before it is added."""

    def __init__(self, n_embd=16):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.blocks = nn.Embedding(V, n_embd), nn.ModuleList(Block(n_embd) for _ in range(2))
        self.lm_head = nn.Linear(n_embd, V)

    def forward(self, idx):
        x = self.wte(idx)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x)


IDS = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(0))


def rms(x):
    return x.double().square().mean().sqrt()


def above(x):
    return (x.abs() > 1e-3).float().mean()


def test_a_decorated_function_is_a_column_by_its_name():
    @initlab.statistic("half", of=("activation", "grad"))
    def half(x):
        """Half of the mean of |x|.

        More about it.
        """
        return x.abs().mean() / 2

    assert isinstance(half, Statistic) and float(half(torch.tensor([2.0, -4.0]))) == 1.5
    found = initlab.probe(nano(), IDS, metrics=["half"])
    rows = found.records
    passes = rows["kind"].isin(["activation", "grad"])
    np.testing.assert_allclose(rows.loc[passes, "half"], rows.loc[passes, "abs_mean"] / 2, rtol=1e-5)
    assert rows.loc[~passes, "half"].isna().all()
    assert list(rows.columns) == [*RECORDS, "half"]
    assert found.run.manifest["metrics"] == {"half": "Half of the mean of |x|"}
    assert found.run.manifest["config"]["metrics"] == ["half"]


def test_nothing_is_taken_that_was_not_asked_for():
    @initlab.statistic("never")
    def never(x):
        raise AssertionError

    found = initlab.probe(nano(), IDS)
    assert list(found.records.columns) == list(RECORDS) and list(found.heads.columns) == list(HEADS)
    assert "metrics" not in found.run.manifest and "metrics" not in found.run.manifest["config"]


@pytest.mark.parametrize(
    ("preset", "stats", "taken"), [("full", "full", 1), ("full", "light", 0), ("light", "full", 1)]
)
def test_a_preset_takes_its_own_without_being_asked(preset, stats, taken):
    initlab.statistic("usual", preset=preset)(rms)
    assert ("usual" in initlab.probe(nano(), IDS, stats=stats).records) == bool(taken)


@pytest.mark.parametrize("stats", ["full", "light"])
@pytest.mark.parametrize("model", [nano, Scaled])
def test_a_statistic_sees_what_its_row_says(model, stats):
    """Also where the model multiplies a tensor before it is what the site says, and whatever the statistic's degree."""
    made = model()
    found = initlab.probe(made, IDS, stats=stats, metrics={"own": rms, "above": above})
    np.testing.assert_allclose(found.records["own"], found.records["rms"], rtol=1e-4, atol=1e-12)
    if model is Scaled:
        write = []
        made.blocks[1].proj.register_forward_hook(lambda module, args, output: write.append(output))
        made(IDS)
        shown = found.records.query("module == 'blocks.1.proj' and kind == 'activation'")
        row = shown[shown["site"].str.endswith("_out")].iloc[0]
        assert row["above"] == pytest.approx(float(above(0.25 * write[0])), abs=1e-6)
        assert row["above"] != pytest.approx(float(above(write[0])), abs=1e-3)


def test_the_function_gets_the_tensor_as_it_is():
    given = {}

    def look(x):
        given.setdefault(x.dim(), (x.dtype, x.requires_grad, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return x.sum()

    initlab.probe(nano(), IDS, dtype="bfloat16", metrics={"look": look})
    assert set(given) >= {1, 2, 3}
    assert {dtype for dtype, *_ in given.values()} == {torch.float32}
    assert all(state == [False, False, False] for _, *state in given.values())


def test_channels_are_told_by_their_smallest_median_and_largest():
    found = initlab.probe(
        nano(), IDS, metrics={"peak": initlab.statistic("x", per="channel")(lambda x: x.abs().amax(0))}
    )
    rows = found.records
    names = ["peak_min", "peak_median", "peak_max"]
    assert list(rows.columns)[-3:] == names
    of_channels = ~rows["site"].isin(["attn_logits", "attn_pattern"]) & ~rows["role"].isin(
        ["bias", "norm_gain", "norm_bias"]
    )
    np.testing.assert_allclose(rows.loc[of_channels, "peak_max"], rows.loc[of_channels, "abs_max"], rtol=1e-6)
    assert rows.loc[of_channels, names].diff(axis=1)["peak_median"].ge(0).all()
    assert rows.loc[~of_channels, names].isna().all(axis=None)


def test_heads_are_told_one_by_one():
    @initlab.statistic("own_entropy", per="head")
    def own_entropy(attention):
        assert attention.q.shape[1] == attention.k.shape[1] == attention.v.shape[1] == 2
        assert attention.scores.shape == attention.pattern.shape and attention.visible.shape == (T - 1, T)
        return torch.special.entr(attention.pattern).sum(-1).mean((0, 2))

    heads = initlab.probe(nano(), IDS, metrics=["own_entropy", "sink"]).heads
    assert list(heads.columns) == [*HEADS, "own_entropy", "sink"]
    np.testing.assert_allclose(heads["own_entropy"], heads["entropy"], rtol=1e-6)
    assert heads["sink"].between(0, 1).all() and len(heads) == 4


@pytest.mark.parametrize(("options", "model"), [({}, Scaled), ({"stats": "light"}, nano)])
def test_a_statistic_of_heads_that_are_not_seen_is_said(options, model):
    found = initlab.probe(model(), IDS, metrics=["sink"], **options)
    assert found.coverage["note"].str.contains("statistic sink: no attention heads were looked at").any()


def test_initlabs_own_are_right():
    found = initlab.probe(nano(), IDS, metrics=["abs_median", "channel_rms"])
    rows = found.records[found.records["kind"] == "activation"]
    assert (rows["abs_median"] <= rows["abs_max"]).all()
    wide = rows[rows["channel_rms_max"].notna()]
    assert (wide["channel_rms_min"] <= wide["rms"] * (1 + 1e-6)).all()
    assert (wide["channel_rms_max"] >= wide["rms"] * (1 - 1e-6)).all()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x, r"returned a tensor of shape \(3, 12, 16\); expected a tensor of shape \(\), one number"),
        (lambda x: "three", "returned str; expected a tensor"),
        (lambda x: None, "returned NoneType; expected a tensor"),
        (lambda x: x.sum() * 1j, "returned complex numbers"),
        (lambda x: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda x: x.data.mul_(2).sum(), "wrote into the tensor that it was given"),
        (lambda x: float(x.numpy().fill(0) or 0), "wrote into the tensor that it was given"),
        (lambda x: x.mul_(2).sum(), r"wrote into the tensor that it was given; .* use x\.clone\(\)"),
    ],
)
def test_a_function_that_fails_is_named_and_the_model_left_as_found(function, said):
    model = nano()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=rf"statistic 'bad' {said}.*\(on the activation of transformer\.h\.0\)"):
        initlab.probe(model, IDS, metrics={"bad": function})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and not p._backward_hooks for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", KINDS[1:4])
def test_a_function_that_fails_on_one_kind_is_said_with_it(kind):
    bad = initlab.statistic("bad", of=kind)(lambda x: x.zero_().sum())
    model = nano()
    before = model.transformer.wte.weight.clone()
    with pytest.raises(ConfigError, match=rf"statistic 'bad' wrote into .* \(on the {kind} of "):
        initlab.probe(model, IDS, metrics=[bad])
    assert torch.equal(model.transformer.wte.weight, before)


@pytest.mark.parametrize("per", ["channel", "head"])
def test_a_wrong_number_of_channels_or_heads_is_an_error(per):
    bad = initlab.statistic("bad", per=per)(lambda x: torch.ones(3))
    size = {"channel": 16, "head": 2}[per]
    with pytest.raises(
        ConfigError, match=rf"returned a tensor of shape \(3,\); expected a tensor of shape \({size},\)"
    ):
        initlab.probe(nano(), IDS, metrics=[bad])


def test_numbers_and_whole_numbers_will_do():
    rows = initlab.probe(nano(), IDS, metrics={"three": lambda x: 3, "size": lambda x: torch.tensor(x.numel())}).records
    assert (rows["three"] == 3).all()
    assert (rows["size"] == rows["numel"]).all()


def test_a_function_that_draws_changes_nothing_else():
    def drawing(x):
        return x.flatten()[torch.randint(x.numel(), ()) + 0 * random.randrange(3)] * np.random.rand()  # noqa: NPY002

    model = nano(dropout=0.3)
    torch.manual_seed(7)
    plain = initlab.probe(model, IDS).records
    state = torch.get_rng_state()
    drawn = initlab.probe(model, IDS, metrics={"one": drawing}).records
    np.testing.assert_array_equal(drawn["var"], plain["var"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: initlab.statistic("var")(rms), "records has a column var already"),
        (lambda: initlab.statistic("entropy", per="head")(rms), "heads has a column entropy already"),
        (lambda: initlab.statistic("abs_median")(rms), "statistic 'abs_median' exists already"),
        (lambda: initlab.statistic("abs median")(rms), "named 'abs median'; expected letters"),
        (lambda: initlab.statistic("_hidden")(rms), "expected letters"),
        (lambda: initlab.statistic("x", of="activations")(rms), "of is 'activations'; known: activation, grad"),
        (lambda: initlab.statistic("x", per="row")(rms), "per is 'row'; known: tensor, channel, head"),
        (lambda: initlab.statistic("x", preset="heavy")(rms), "preset is 'heavy'; known: light, full"),
        (lambda: choose({"x": 3}, "full"), "statistic 'x' is int; expected a function"),
        (lambda: choose(["abs_medan"], "full"), "unknown statistic 'abs_medan'; did you mean abs_median"),
        (lambda: choose([lambda x: x.sum()], "full"), "expected names of statistics, file.py:name, or functions with"),
        (lambda: choose(3, "full"), "metrics holds 3; expected names"),
        (lambda: choose({"channel_rms_min": rms, "channel_rms": STATISTICS.get("channel_rms")}, "full"), "both fill"),
        (lambda: choose(["no.py:f"], "full"), r"statistic 'no\.py:f': file no\.py not found"),
    ],
)
def test_what_cannot_be_a_statistic_is_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_the_ways_to_ask():
    own = STATISTICS.get("abs_median")
    for asked in ("abs_median", ["abs_median"], ("abs_median", own), own, [own], {"abs_median": own}):
        assert choose(asked, "full") == (own,)
    assert [each.name for each in choose([above, own], "full")] == ["above", "abs_median"]
    assert choose({"mine": own}, "full")[0].columns == ("mine",)
    assert choose(None, "full") == () == choose([], "light")


PLUGIN = '''
import initlab

@initlab.statistic("p99", of=("activation", "grad"))
def p99(x):
    """0.99 quantile of |x|"""
    return x.abs().float().flatten().quantile(0.99)
'''


def test_an_installed_package_adds_one_by_entry_point(tmp_path, monkeypatch):
    (tmp_path / "statistics_plugin.py").write_text(PLUGIN)
    info = tmp_path / "statistics_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: statistics-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[initlab.statistics]\np99 = statistics_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(STATISTICS, "_found", STATISTICS.items())  # what the plugin adds is gone with the test
    monkeypatch.setattr(STATISTICS, "_complete", False)
    try:
        assert initlab.probe(nano(), IDS, metrics=["p99"]).records["p99"].notna().sum() > 10
    finally:
        sys.modules.pop("statistics_plugin", None)


def test_one_from_a_file_is_in_table_finding_terminal_and_page_and_the_run_comes_back(tmp_path, capsys):
    file, out = tmp_path / "mine.py", tmp_path / "run"
    file.write_text(PLUGIN)
    for _ in range(2):  # what a file registers is forgotten
        options = ["probe", "shakespeare", "--n-layer", "2", "--n-embd", "32", "--n-head", "2", "--batch-size", "1"]
        code = main([*options, "--metrics", f"{file}:p99,sink", "-o", str(out), "--fail-on", "never"])
        assert code == 0
    shown = capsys.readouterr().out
    assert "p99" in shown
    found = initlab.load(out)
    assert list(found.records.columns)[-1] == "p99" and found.heads["sink"].notna().all()
    page = (out / "report.html").read_text()
    assert "p99" in page and "0.99 quantile of |x|" in page
    assert json.loads((out / "run.json").read_text())["config"]["metrics"] == ["p99", "sink"]
    assert "p99" in repr(found)

    def judge(case, rows):
        worst = float(rows["p99"].max())
        return (case.failed if worst > case.limits["most"] else case.passed)(f"{worst:g}", severity="error")

    def measure(run):
        return run.tables.records.query("site == 'logits' and kind == 'activation'")[["recipe", "p99"]]

    rule = replace(named("LOG001"), code="USR001", limits={"most": 1e-6}, limit="{most}", measure=measure, judge=judge)
    finding = rule.judge(Case(rule=rule, recipe="nanogpt", limits=rule.limits), rule.measure(found.run))
    assert finding.status == "fail" and float(finding.message) == pytest.approx(found.at("logits")["p99"].iloc[0])


def train(model, watch, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        ids = torch.randint(V, (2, T + 1), generator=torch.Generator().manual_seed(step))
        loss = model(ids[:, :-1], ids[:, 1:])[1]
        (loss * 1024).backward()
        for p in model.parameters():
            p.grad /= 1024
        optimizer.step()
        optimizer.zero_grad()
        watch.step(loss=loss)


@pytest.mark.parametrize("out", [None, "run"])
def test_a_watch_takes_them_at_each_step_unscaled(tmp_path, out):
    model = nano()
    where = None if out is None else tmp_path / out
    curves = {}
    callback = lambda step, records: curves.update({step: scalars(records)})  # noqa: E731
    with initlab.watch(model, every=2, loss_scale=1024, metrics={"own": rms}, out=where, callback=callback) as w:
        train(model, w)
    assert {f"initlab/resid_post/1/{name}" for name in ("var", "grad_var", "own", "grad_own")} <= set(curves[2])
    rows = w.records
    assert set(rows["step"]) == {0, 2} and set(rows["kind"]) == set(KINDS)
    np.testing.assert_allclose(rows["own"], rows["rms"], rtol=1e-4, atol=1e-12)


def test_a_statistic_that_fails_or_draws_does_not_touch_training():
    def worn(x):
        if x.dim() == 1:
            raise ValueError("no vectors")
        return x.mean() * torch.rand(())

    plain, watched = nano(dropout=0.2), nano(dropout=0.2)
    torch.manual_seed(3)
    train(plain, initlab.watch(plain, every=10**6, start_step=1))
    torch.manual_seed(3)
    with (
        pytest.warns(RuntimeWarning, match=r"error in statistic worn, .*raised ValueError: no vectors") as warned,
        initlab.watch(watched, every=1, metrics={"worn": worn, "own": rms}) as w,
    ):
        train(watched, w)
    assert len(warned) == 1
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert w.records["own"].notna().all() and w.records["worn"].isna().any() and w.records["worn"].notna().any()
    assert w.result.coverage["note"].str.contains("statistic 'worn' raised ValueError").any()
    assert math.isfinite(w.result.summary["loss"].iloc[0])
