"""`initlab.watch` from outside: the loop, the folder, the writers, and what must not stop a training run."""

import gc
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import torch

import initlab
from initlab.errors import ConfigError, RunError

pytestmark = pytest.mark.integration

T, V = 12, 61
ROOT = Path(initlab.__file__).parents[1]


def nano():
    torch.manual_seed(0)
    return initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=T, vocab_size=V))


def attached(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) + sum(
        bool(p._backward_hooks) for p in model.parameters()
    )


def train(model, w, steps, start=0, spoil=None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(start, start + steps):
        x, y = torch.randint(V, (2, 3, T), generator=torch.Generator().manual_seed(step)).unbind(0)
        if spoil and step == spoil:
            with torch.no_grad():
                model.transformer.h[1].mlp.c_fc.weight[0, 0] = math.nan
        loss = model(x, y)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        w.step(loss=loss)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    model, out = nano(), tmp_path_factory.mktemp("runs") / "watch"
    with initlab.watch(model, every=2, out=out) as w:
        train(model, w, 5)
    return model, w, out


def test_the_loop_is_recorded_and_read_back(watched):
    model, w, out = watched
    result = initlab.load(out)
    assert isinstance(result, initlab.Watch)
    assert result.summary["step"].tolist() == [0, 2, 4]
    assert result.summary["loss"].notna().all()
    pd.testing.assert_frame_equal(result.records, w.records)
    assert attached(model) == 0
    assert result.run.manifest["finished"]


def test_in_memory_and_with_plain_calls_it_is_the_same(watched, tmp_path):
    model = nano()
    w = initlab.watch(model, every=2)
    train(model, w, 5)
    w.close()
    w.step()  # of a closed watch: nothing
    expected = watched[1].records
    pd.testing.assert_frame_equal(w.records, expected, rtol=1e-6)
    w.result.save(tmp_path / "saved")
    assert initlab.load(tmp_path / "saved").summary["step"].tolist() == [0, 2, 4]


def test_updates_and_their_ratios(watched):
    updates = watched[1].result.updates
    assert len(updates) == 3 * sum(1 for _ in nano().parameters())
    one = updates[(updates["module"] == "transformer.wte.weight") & (updates["step"] == 0)].iloc[0]
    # AdamW's first step is lr × sign(gradient), but for weight decay
    assert one["update_rms"] == pytest.approx(1e-2, rel=0.01)
    assert one["ratio"] == one["update_rms"] / one["weight_rms"]
    assert "attn_out" in set(watched[1].result.updates_by_role["role"])


def test_report_and_text_say_what_was_watched(watched, tmp_path):
    result = watched[1].result
    text = repr(result)
    assert "ACT001" in text  # 0.02 at a width of 16
    assert "NanoGPT passes all checks that apply (26/27; 1 note); as an init at step 0" in text
    assert [line.split()[0] for line in text.splitlines() if line[:2] in ("0 ", "2 ", "4 ")] == ["0", "2", "4"]
    page = result.report(tmp_path / "page").read_text()
    assert "Scales over training" in page and "0 to 4, every 2" in page
    assert "No training:" not in page
    assert (tmp_path / "page" / "figures" / "watch.png").exists()


def test_only_the_first_step_is_judged_as_an_init_but_every_step_for_numbers():
    model = nano()
    with initlab.watch(model, every=2) as w:
        train(model, w, 5, spoil=2)
    findings = {finding.code: finding for finding in w.result.findings}
    assert findings["NUM001"].status == "fail" and "step 2" in findings["NUM001"].message
    assert "c_fc.weight (weight at mlp_in, layer 1, step 2)" in findings["NUM001"].message
    failed = {finding.code for finding in w.result.findings if finding.status == "fail"}
    assert failed == {"NUM001", "ACT001"}  # 0.02 at a width of 16


def test_an_exception_in_the_loop_comes_through_and_leaves_nothing(tmp_path):
    model = nano()
    with pytest.raises(ZeroDivisionError), initlab.watch(model, every=1, out=tmp_path / "run") as w:
        train(model, w, 2)
        model(torch.zeros(1, T, dtype=torch.long), torch.zeros(1, T, dtype=torch.long))
        raise ZeroDivisionError
    assert attached(model) == 0
    result = initlab.load(tmp_path / "run")
    assert result.summary["step"].tolist() == [0, 1]
    assert "still open, or was killed: recorded up to step 1" in repr(result)


def test_a_watch_that_nobody_holds_takes_itself_off():
    model = nano()
    w = initlab.watch(model, every=1)
    assert attached(model) == 2
    del w
    gc.collect()
    assert attached(model) == 0


def test_a_killed_run_loads_and_is_resumed(tmp_path):
    program = f"""
    import os, signal, sys
    sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
    from test_watch import initlab, nano, train
    model = nano()
    w = initlab.watch(model, every=2, out={str(tmp_path / "run")!r})
    train(model, w, 7)
    with open({str(tmp_path / "run" / "records.csv")!r}, "a") as file:
        file.write("as-found-step8,as-found,0,8,2")  # half a line of a step that was under way
    os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=os.environ, timeout=120, check=False)
    assert done.returncode == -9
    assert initlab.load(tmp_path / "run").summary["step"].tolist() == [0, 2, 4, 6]
    model = nano()
    with pytest.raises(RunError, match=r"holds steps 0 to 6 of a watched run; pass start_step="):
        initlab.watch(model, every=2, out=tmp_path / "run")
    with pytest.raises(RunError, match=r"holds another run .*every: 2 there, 3 now"):
        initlab.watch(model, every=3, start_step=3, out=tmp_path / "run")
    with initlab.watch(model, every=2, start_step=3, out=tmp_path / "run") as w:  # the checkpoint was of step 3
        assert w.result.summary["step"].tolist() == [0, 2]
        train(model, w, 4, start=3)
    assert w.result.summary["step"].tolist() == [0, 2, 4, 6]
    assert not w.records.duplicated(["step", "module", "site", "kind", "call", "layer"]).any()


class Board:
    def __init__(self):
        self.found = {}

    def add_scalar(self, tag, value, step):
        self.found[tag, step] = value


class Run:
    def __init__(self):
        self.found = {}

    def log(self, values, step):
        self.found |= {(tag, step): value for tag, value in values.items()}


def test_writers_and_functions_are_told():
    board, run, seen = Board(), Run(), []
    model = nano()
    with initlab.watch(model, every=2, callback=[board, run, lambda *given: seen.append(given)]) as w:
        train(model, w, 3)
    assert [step for step, _ in seen] == [0, 2]
    assert seen[0][1]["step"].unique().tolist() == [0]
    assert board.found == run.found
    assert board.found["initlab/loss", 2] == w.result.summary.set_index("step").loc[2, "loss"]
    records = w.records
    row = records.query("site == 'resid_post' and layer == 1 and kind == 'grad' and step == 2")
    assert board.found["initlab/resid_post/1/grad_var", 2] == row["var"].item()
    ratios = w.result.updates_by_role.query("role == 'mlp_out' and step == 2")["ratio"].item()
    assert board.found["initlab/update_ratio/mlp_out", 2] == pytest.approx(ratios)
    assert all(math.isfinite(value) for value in board.found.values())
    assert len(board.found) / 2 <= 2 * 8 * 2 + 14


def test_a_callback_that_raises_is_warned_of_once_and_training_goes_on():
    model, calls = nano(), []

    def broken(step, records):
        calls.append(step)
        raise ValueError("no connection")

    with initlab.watch(model, every=1, callback=broken) as w, pytest.warns(RuntimeWarning) as warned:
        train(model, w, 3)
    assert calls == [0, 1, 2]
    assert len(warned) == 1 and "error in callback 0, and won't repeat this: ValueError: no conn" in str(warned[0])
    assert warned[0].filename == __file__
    assert w.result.summary["step"].tolist() == [0, 1, 2]


def test_a_folder_that_goes_away_does_not_stop_training(tmp_path):
    model = nano()
    out = tmp_path / "run"
    with pytest.warns(RuntimeWarning, match="error in writing") as warned, initlab.watch(model, every=1, out=out) as w:
        train(model, w, 1)
        for item in out.iterdir():
            item.unlink()
        out.rmdir()
        train(model, w, 2)
    assert len(warned) == 1


def test_what_could_not_be_recorded_is_warned_of_and_noted(tmp_path):
    model = nano()
    said = "step 0 was not recorded: the watched Transformer wasn't called with gradients enabled"
    part = initlab.watch(model.transformer, every=2, out=tmp_path / "run")
    with pytest.warns(RuntimeWarning, match=said), part as w:
        train(model, w, 3)
    with pytest.raises(RunError, match="no step was recorded yet: step 0 was not recorded"):
        _ = w.result
    assert attached(model) == 0


def test_a_loss_that_the_model_returns_neednt_be_told():
    model, told = nano(), []
    with initlab.watch(model, every=1) as w:
        for micro in (1, 2):
            losses = []
            for x, y in torch.randint(V, (micro, 2, 3, T)):
                loss = model(x, y)[1]
                (loss / micro).backward()
                losses.append(float(loss.detach()))
            told.append(sum(losses) / micro)
            w.step()
    assert w.result.summary["loss"].tolist() == pytest.approx(told)
    with initlab.watch(model, every=1) as w:
        model(torch.zeros(2, T, dtype=torch.long))[0].square().mean().backward()  # logits alone
        w.step()
    assert w.result.summary["loss"].isna().all()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.zeros(3), r"loss has shape \(3,\); expected one"),
        ("x", "loss is 'x'; expected a number"),
        (torch.zeros((), dtype=torch.complex64) + 1j, "loss is Tensor; expected a number"),
    ],
)
def test_a_loss_that_is_no_number_is_said_and_the_step_is_recorded(loss, message):
    model = nano()
    with initlab.watch(model, every=1) as w, pytest.warns(RuntimeWarning, match=message):
        model(*torch.zeros(2, 1, T, dtype=torch.long).unbind(0))[1].backward()
        w.step(loss=loss)
        train(model, w, 1)
    summary = w.result.summary
    assert summary["step"].tolist() == [0, 1]
    assert summary["loss"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0; expected a whole number of steps from 1 on"),
        ({"every": 2.5}, "every is 2.5"),
        ({"start_step": -1}, "start_step is -1"),
        ({"stats": "some"}, "unknown stats 'some'; known: light, full"),
        ({"loss_scale": 0}, "loss_scale is 0; expected a positive number or a torch.amp.GradScaler"),
        ({"loss_scale": None}, "loss_scale is None"),
        ({"callback": 3}, "callback is int; expected a function"),
        ({"on_failure": 3}, "on_failure is 3; expected a function"),
        ({"drift": 3}, "drift is 3; expected True, a model, or a state dict"),
        ({"drift": {"w": torch.ones(1)}}, "drift: no weight of NanoGPT is among the 1 given"),
        ({"modules": "nothing.*"}, "takes no module of NanoGPT"),
        ({"modules": []}, "modules is empty"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_attached(options, message, tmp_path):
    model = nano()
    with pytest.raises(ConfigError, match=message):
        initlab.watch(model, out=tmp_path / "run", **options)
    assert attached(model) == 0 and not (tmp_path / "run").exists()


def test_other_processes_only_count(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    model = nano()
    with initlab.watch(model, every=1) as w:
        assert attached(model) == 0
        train(model, w, 2)
    with pytest.raises(RunError, match=r"another process \(rank 0\) records"):
        _ = w.result


def test_light_is_passed_on():
    model = nano()
    with initlab.watch(model, every=1, stats="light") as w:
        train(model, w, 1)
    assert w.result.heads.empty and w.records["kurtosis"].isna().all()


def test_a_rule_that_fails_calls_a_function_once_until_it_passes_again():
    model, told = nano(), []
    weight = model.transformer.h[1].mlp.c_fc.weight
    kept = weight.detach().clone()
    with initlab.watch(model, every=1, on_failure=lambda step, finding: told.append((step, finding.code))) as w:
        for step in range(6):
            with torch.no_grad():
                weight[0, 0] = math.nan if step in (1, 2, 4) else kept[0, 0]
            model(*torch.randint(V, (2, 3, T)).unbind(0))[1].backward()
            model.zero_grad()
            w.step()
            assert ("NUM001" in [finding.code for finding in w.failing]) == (step in (1, 2, 4))
    assert [each for each in told if each[1] == "NUM001"] == [(1, "NUM001"), (4, "NUM001")]
    assert "ACT001" not in [code for _, code in told]  # a note is no alarm


def test_an_init_that_fails_is_told_of_at_step_0():
    model, told = nano(), []
    torch.nn.init.normal_(model.transformer.wte.weight, std=1.0)  # tied to the head
    with initlab.watch(model, every=2, on_failure=lambda *given: told.append(given)) as w:
        train(model, w, 3)
    failed = {f.code for f in w.result.failures if f.severity != "info"}
    assert failed and {finding.code for _, finding in told} == failed
    assert {step for step, _ in told} == {0}


def test_an_alarm_that_raises_is_warned_of_and_training_goes_on():
    def broken(step, finding):
        raise ValueError("no connection")

    with initlab.watch(nano(), every=1, on_failure=broken) as w, pytest.warns(RuntimeWarning) as warned:
        model = w._recorder._model
        torch.nn.init.normal_(model.transformer.wte.weight, std=1.0)
        train(model, w, 2)
    assert [str(each.message).split("won't")[0] for each in warned] == [
        "initlab.watch goes on after an error in on_failure, and "
    ]
    assert warned[0].filename == __file__
    assert w.result.summary["step"].tolist() == [0, 1]


def test_drift_is_the_distance_from_the_first_weights():
    model, seen = nano(), {}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with initlab.watch(model, every=2, drift=True, callback=(board := Board())) as w:
        train(model, w, 2)
        seen = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(model, w, 1)
    drift = w.result.drift
    assert drift.query("step == 0")["distance"].dropna().eq(0).all()
    rows = drift.query("step == 2").set_index("module")
    assert set(rows.index) == set(before)
    for name in ("transformer.h.1.mlp.c_fc.weight", "transformer.ln_f.weight"):
        a, b = before[name].double().flatten(), seen[name].double().flatten()
        assert rows.loc[name, "distance"] == pytest.approx(((b - a).norm() / a.norm()).item(), rel=1e-4)
        assert rows.loc[name, "cosine"] == pytest.approx((a @ b / a.norm() / b.norm()).item(), abs=1e-6)
    one = w.result.drift_by_role.query("role == 'mlp_out' and step == 2").iloc[0]
    assert board.found["initlab/drift/mlp_out", 2] == pytest.approx(one["distance"])
    assert 0 < board.found["initlab/cosine/mlp_out", 2] < 1
    assert {f.code for f in w.result.failures} == {"ACT001"}  # 0.02 at a width of 16
    titles = [axes.get_title(loc="left") for axes in w.result.plot("watch").axes]
    assert titles[-1] == "Distance from the init, by role" and len(titles) == 4


@pytest.mark.parametrize("give", [lambda m: m, lambda m: m.state_dict()])
def test_drift_may_be_measured_from_another_model(give):
    torch.manual_seed(5)
    other = initlab.NanoGPT(nano().config)
    model = nano()
    with initlab.watch(model, every=1, drift=give(other)) as w:
        train(model, w, 1)
    row = w.result.drift.set_index("module").loc["transformer.h.0.attn.c_attn.weight"]
    assert row["distance"] == pytest.approx(2**0.5, rel=0.1) and abs(row["cosine"]) < 0.1
    assert initlab.watch(model).__exit__(None, None, None) is None


def test_modules_are_recorded_alone_and_sites_may_be_declared():
    model = nano()
    with initlab.watch(model, every=1, modules="*.mlp*", sites="transformer.h.*") as w:
        train(model, w, 1)
    records = w.records
    assert records["module"].str.contains("mlp").all()
    assert {"activation", "grad", "weight", "weight_grad", "update"} == set(records["kind"])
    assert w.result.run.manifest["config"]["modules"] == "*.mlp*"
    assert w.result.run.manifest["config"]["sites"] == "transformer.h.*"


def test_sites_that_the_model_lacks_are_refused():
    with pytest.raises(initlab.InitlabError, match="sites"):
        initlab.watch(nano(), sites="layers.*")
