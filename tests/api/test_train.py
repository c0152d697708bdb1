"""`initlab.train` from outside: the tables, the folder, killed and interrupted runs, several processes."""

import math
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import ENVIRONMENT, held
from disks import file_limit

import initlab
from initlab.errors import ConfigError, DataError, ProbeError, RunError
from initlab.models.config import PRESETS
from initlab.models.nanogpt import NanoGPT

pytestmark = pytest.mark.integration

SIZES = replace(PRESETS["shakespeare-cpu"], n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=31)
SHORT = {
    "model": SIZES,
    "text": initlab.Text("uniform", batch_size=4),
    "steps": 6,
    "warmup": 2,
    "eval_every": 3,
    "eval_batches": 2,
}
# the same from the command line
ARGUMENTS = [
    *("--n-layer", "2", "--n-head", "2", "--n-embd", "16", "--block-size", "16", "--data", "uniform"),
    *("--vocab-size", "31", "--warmup", "2", "--batch-size", "4", "--eval-batches", "2", "--no-report"),
]


def train(recipes, *, out=None, progress=None, **options):
    return initlab.train(recipes, run=initlab.RunOptions(out=out, progress=progress), **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "train"
    result = train(["nanogpt", "torch-default"], **SHORT, watch_every=2, out=out)
    return result, out


def test_the_tables_hold_a_run_a_recipe(trained):
    result, out = trained
    assert isinstance(result, initlab.Training)
    runs = result.runs.set_index("recipe")
    assert list(runs.index) == ["nanogpt", "torch-default"]
    assert (runs["steps_done"] == 6).all() and (runs["tokens"] == 6 * 4 * 16).all()
    assert (runs["ln_vocab"] - math.log(31)).abs().max() < 1e-8
    assert (runs["unigram_loss"] - math.log(31)).abs().max() < 1e-8
    assert (runs["n_params"] == NanoGPT(SIZES).num_params()).all()
    curves = result.curves
    assert list(curves.loc[curves["recipe"] == "nanogpt", "step"]) == list(range(7))
    last = curves[curves["step"] == 6].set_index("recipe")
    assert last["val_loss"].to_dict() == runs["val_loss"].to_dict()
    assert last["loss"].isna().all()
    assert set(curves["peak_lr"]) == {1e-3}
    assert curves.loc[curves["step"] == 2, "lr"].tolist() == [1e-3, 1e-3]  # the preset's rate, at the warmup's end
    pd.testing.assert_frame_equal(initlab.load(out).curves, curves)


def test_models_are_measured_before_and_after(trained):
    result, _ = trained
    assert result.summary.groupby("recipe")["step"].apply(list).tolist() == [[0, 6], [0, 6]]
    records = result.records
    after = records[records["step"] == 6]
    assert set(after["kind"]) == {"activation", "grad"}
    assert set(after["site"]) == set(initlab.schema.RESIDUAL_SITES)
    before = records[(records["step"] == 0) & (records["site"] == "resid_post") & (records["kind"] == "activation")]
    nanogpt = before[before["recipe"] == "nanogpt"]
    assert (nanogpt["var"] / nanogpt["expected_var"] - 1).abs().max() < 0.3
    codes = {(f.code, f.recipe) for f in result.findings if f.status == "fail"}
    assert ("EMB001", "torch-default") in codes
    assert ("EMB001", "nanogpt") not in codes


def test_a_probe_of_the_same_recipe_sees_the_same_init(trained):
    """The weights are those that every command draws from this recipe and seed."""
    from initlab.drawing.apply import apply_recipe
    from initlab.recipes import registry

    result, _ = trained
    model = NanoGPT(replace(SIZES, vocab_size=31))
    apply_recipe(model, registry.get("nanogpt"), 0)
    weights = result.records[(result.records["kind"] == "weight") & (result.records["recipe"] == "nanogpt")]
    for row in weights.itertuples():
        parameter = dict(model.named_parameters())[row.module]
        assert row.rms == pytest.approx(parameter.square().mean().sqrt().item(), rel=1e-5)


def test_the_folder_holds_metrics_checkpoint_and_watch(trained):
    result, out = trained
    folder = out / "runs" / "nanogpt-L2-d16-s0"
    metrics = pd.read_csv(folder / "metrics.csv")
    own = result.curves[result.curves["recipe"] == "nanogpt"].reset_index(drop=True)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], own[name], rtol=1e-8)
    model = NanoGPT.from_checkpoint(folder / "ckpt.pt")
    assert model.iter_num == 6
    watch = initlab.load(folder / "watch")
    assert list(watch.summary["step"]) == [0, 2, 4]
    assert watch.summary["loss"].tolist() == pytest.approx(own["loss"].iloc[[0, 2, 4]].tolist(), rel=1e-5)


def test_the_text_says_what_came_of_it(trained):
    result, _ = trained
    text = str(result)
    row = result.runs[result.runs["recipe"] == "nanogpt"].iloc[0]
    line = next(line for line in text.splitlines() if line.startswith("nanogpt "))
    assert f"{row['val_loss']:.4f}" in line
    assert " 6 " in line
    assert "EMB001" in text
    assert "ln V 3.434" in text


def test_the_same_call_resumes_and_another_refuses(trained):
    result, out = trained
    again = train(["nanogpt", "torch-default"], **SHORT, watch_every=2, out=out)
    pd.testing.assert_frame_equal(again.curves, result.curves)
    with pytest.raises(RunError, match=r"holds another run \(steps: 6 there, 7 now\)"):
        train(["nanogpt", "torch-default"], **SHORT | {"steps": 7}, watch_every=2, out=out)


def test_without_a_folder_everything_is_in_memory(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = train("nanogpt", **SHORT)
    assert list(tmp_path.iterdir()) == []
    first = trained[0].curves
    first = first.loc[first["recipe"] == "nanogpt", "loss"]
    np.testing.assert_allclose(result.curves["loss"], first, rtol=1e-8)  # the tables on disk hold nine digits
    assert result.save(tmp_path / "later").name == "later"
    np.testing.assert_allclose(initlab.load(tmp_path / "later").curves["loss"], first, rtol=1e-8)


def test_a_run_that_diverges_is_a_result(tmp_path):
    result = train(["nanogpt", "xavier"], **SHORT | {"lr": 1e30, "warmup": 0}, out=tmp_path / "out")
    assert result.runs["val_loss"].isna().all()
    assert (result.runs["steps_done"] < 6).all()
    assert result.run.manifest["failed"] == {}
    assert str(result).count("diverged after 1 step of 6.") == 2


def test_bad_input_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "out"
    for change, kind, text in (
        ({"steps": 0}, ConfigError, "steps is 0"),
        ({"stepz": 1}, ConfigError, "unknown training setting 'stepz'"),
        ({"preset": "gpt9"}, ConfigError, "unknown preset 'gpt9'"),
        ({"warmup": 6}, ConfigError, "warmup is 6 for a run of 6 steps; expected fewer"),
        ({"watch_every": -1}, ConfigError, "watch_every is -1"),
        ({"seed": -1}, ConfigError, "seed is -1"),
        ({"model": {"n_layer": 2}}, ConfigError, "model is {'n_layer': 2}; expected a NanoGPTConfig"),
        ({"text": initlab.Text(tmp_path / "none.txt")}, DataError, "no data at"),
    ):
        with pytest.raises(kind, match=text):
            train(["nanogpt"], **SHORT | change, out=out)
    with pytest.raises(ConfigError, match="'nanogpt' was given more than once"):
        train(["nanogpt", "nanogpt"], **SHORT, out=out)
    whole = replace(SIZES, vocab_size=None)
    (tmp_path / "short.txt").write_text("to be or not", encoding="utf-8")
    with pytest.raises(DataError, match=r"short\.txt \(training part\) holds 10 tokens"):
        train(["nanogpt"], **SHORT | {"text": initlab.Text(tmp_path / "short.txt"), "model": whole}, out=out)
    with pytest.raises(ConfigError, match="watch_every needs a folder"):
        train(["nanogpt"], **SHORT, watch_every=1)
    assert not out.exists()


def test_a_disk_that_fills_up_ends_the_run_with_whole_files_and_it_goes_on(tmp_path, trained):
    out = tmp_path / "out"
    options = SHORT | {"steps": 200, "eval_every": 0}
    with file_limit(9000), pytest.raises(RunError, match=r"could not write .*metrics\.csv: File too large; its rows"):
        train(["nanogpt", "xavier"], **options, out=out)
    metrics = (out / "runs" / "nanogpt-L2-d16-s0" / "metrics.csv").read_text(encoding="utf-8")
    assert metrics.endswith("\n")
    assert pd.read_csv(out / "runs" / "nanogpt-L2-d16-s0" / "metrics.csv")["step"].is_monotonic_increasing
    result = train(["nanogpt", "xavier"], **options, out=out)
    assert result.runs["steps_done"].tolist() == [200, 200]


def test_a_checkpoint_that_cannot_be_used_fails_its_own_recipe(tmp_path):
    out = tmp_path / "out"
    folder = out / "runs" / "nanogpt-L2-d16-s0"
    train(["nanogpt"], **SHORT, out=out)
    with initlab.rundir.RunDir.open(out, initlab.rundir.load(out).manifest) as held:
        held.forget(["nanogpt-L2-d16-s0"])
    (folder / "ckpt.pt").write_bytes(b"x")
    with pytest.raises(ProbeError, match=r"ckpt\.pt can't be read as a checkpoint"):
        train(["nanogpt"], **SHORT, out=out)
    (folder / "ckpt.pt").unlink()
    assert train(["nanogpt"], **SHORT, out=out).runs["steps_done"].tolist() == [6]


def test_a_run_that_is_killed_goes_on_to_the_same_numbers(tmp_path):
    """SIGKILL between two checkpoints; and SIGINT, which is said in a sentence."""
    out = tmp_path / "killed"
    metrics = out / "runs" / "nanogpt-L2-d16-s0" / "metrics.csv"
    command = ["train", "nanogpt", *ARGUMENTS, "--steps", "60", "--eval-every", "10", "-o", out]
    with held(metrics, 18, *command) as process:
        process.kill()
    assert len(pd.read_csv(metrics)) == 17
    with held(metrics, 37, *command) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith("initlab: interrupted; no model was finished; the same command")
    assert "Traceback" not in said
    torch.set_num_threads(1)
    options = SHORT | {"steps": 60, "eval_every": 10}
    resumed = train(["nanogpt"], **options, out=out)
    whole = train(["nanogpt"], **options)
    for name in ("step", "loss", "val_loss", "grad_norm", "lr", "tokens"):
        np.testing.assert_allclose(resumed.curves[name], whole.curves[name], rtol=1e-8, err_msg=name)
    assert len(pd.read_csv(metrics)) == 61


@pytest.mark.slow
def test_torchrun_trains_as_one_process_and_the_first_one_speaks(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "initlab", "train", "nanogpt", "xavier", *ARGUMENTS, "--steps", "8", "--eval-every", "4"]
    command += ["--watch-every", "4"]
    done = subprocess.run(
        [*torchrun, *command, "-o", str(tmp_path / "two")], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("val loss") == 1
    assert done.stderr.count("models to train") == 1
    two = initlab.load(tmp_path / "two").curves
    one = train(["nanogpt", "xavier"], **SHORT | {"steps": 8, "eval_every": 4}).curves
    for name in ("step", "loss", "val_loss", "grad_norm"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5)
    watched = [initlab.load(place).summary for place in (tmp_path / "two").rglob("watch")]
    assert [each["n_tokens"].tolist() for each in watched] == [[64, 64]] * 2  # of the whole batch
    refused = subprocess.run(
        [*torchrun, *command, "--lr", "0.1", "-o", str(tmp_path / "two")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0
    assert refused.stderr.count("initlab: error: output folder") == 1


@pytest.mark.parametrize("run", [{"jobs": 2}, {"engine": "processes"}])
def test_jobs_and_engines_are_refused(run):
    with pytest.raises(ConfigError, match="train makes one run after another, here"):
        initlab.train("nanogpt", **SHORT, run=initlab.RunOptions(**run))
