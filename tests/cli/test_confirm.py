"""`initlab confirm` on the command line."""

import json
import signal
import subprocess
from pathlib import Path

import pytest
from commands import process, wait_until

import initlab
from initlab import cli
from initlab.registry import Registry
from initlab.report import figures
from initlab.training.protocol import GRIDS

pytestmark = pytest.mark.integration

TINY = "--depths 1 --lrs 1e-3,1e30 --warmups 0 --seeds 1 --steps 3 --n-embd 16 --n-head 2 --block-size 8 --batch-size 2"


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_it_trains_reports_and_says_what_it_does(capsys, tmp_path, monkeypatch):
    few: Registry[figures.FigureSpec] = Registry("few figure")
    for name in ("losses", "rates"):
        few.add(name, figures.FIGURES.get(name))
    monkeypatch.setattr(figures, "FIGURES", few)
    out = tmp_path / "run"
    code, stdout, stderr = run(capsys, "confirm", "nanogpt", "zero-out", *TINY.split(), "--jobs", 1, "-o", out)
    assert code == 0, stderr
    assert "initlab: 6 models to measure or train, about" in stderr
    assert stdout.strip().splitlines()[-1] == f"report  {out / 'report.html'}"
    assert (out / "report.html").exists() and (out / "runs.csv").exists()
    assert {path.name for path in (out / "figures").iterdir()} == {"losses.png", "rates.png"}
    found = initlab.load(out)
    assert found.run.manifest["command"].startswith("initlab confirm nanogpt zero-out --depths 1")
    assert found.run.manifest["config"]["lrs"] == [1e-3, 1e30]
    code, stdout, _ = run(capsys, "report", out, "--format", "json")
    assert code == 0 and json.loads(stdout)["out"] == str(out)


def test_options_reach_the_grid(capsys, tmp_path):
    options = "--schedule constant --weight-decay 0 --grad-clip 0 --eval-every 2 --no-bias --untied --activation relu"
    text = tmp_path / "text.txt"
    text.write_text("abcdefghij " * 500)
    options += f" --tokenizer char --vocab-size 16 --dtype bfloat16 --data {text}"
    arguments = ["nanogpt", *TINY.split(), *options.split(), "--jobs", 1, "--no-report", "-o", tmp_path / "run"]
    assert run(capsys, "confirm", *arguments)[0] == 0
    found = initlab.load(tmp_path / "run").run
    expected = {"schedule": "constant", "weight_decay": 0.0, "grad_clip": 0.0, "eval_every": 2, "bias": False}
    expected |= {"tie_weights": False, "activation": "relu", "tokenizer": "char", "vocab_size": 16, "dtype": "bfloat16"}
    assert {key: found.manifest["config"][key] for key in expected} == expected
    evaluated = found.tables.training[found.tables.training["val_loss"].notna()]
    assert evaluated.loc[evaluated["run_id"].str.contains("lr0.001"), "step"].tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nanogpt --warmups 150", "warmups holds 150 for runs of 150 steps"),
        ("nanogpt --lrs 0", "lrs holds 0.0; expected learning rates above 0"),
        ("nanogpt --lrs ,", "lrs is empty"),
        ("nanogpt --lrs 1e-3,0.001", "lrs has '0.001' more than once"),
        ("nanogpt nanogpt", "recipe 'nanogpt' was given more than once"),
        ("nanogpx", "did you mean nanogpt"),
        ("nanogpt --jobs 0", "jobs is 0"),
        ("nanogpt --engine proceses", "unknown engine 'proceses'; did you mean processes"),
        ("nanogpt --engine here --jobs 2", "engine 'here' makes one call at a time"),
        ("nanogpt --block-size 5000000", "need at least 5000001"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, capsys, tmp_path):
    code, stdout, stderr = run(capsys, "confirm", *arguments.split(), "-o", tmp_path / "run")
    assert code == 2 and stdout == ""
    assert stderr.startswith("initlab: error: ") and stderr.count("\n") == 1 and message in stderr
    assert not (tmp_path / "run").exists()


def test_what_is_no_number_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["confirm", "nanogpt", "--lrs", "fast"])
    assert exit.value.code == 2
    assert "'fast' is no list of numbers such as 1e-3,3e-3,1e-2" in capsys.readouterr().err


def test_the_help_names_the_defaults_that_are_used(capsys):
    with pytest.raises(SystemExit):
        cli.main(["confirm", "--help"])
    shown = "".join(capsys.readouterr().out.split())
    for name, option in (("depths", "n_layer"), ("warmups", "stepsofwarmup")):
        quick, thorough = (",".join(map(str, GRIDS[grid][name])) for grid in ("quick", "thorough"))
        assert f"{option}({quick};thorough:{thorough})" in shown
    for name, option in (("steps", "ineachrun"), ("block_size", "tokensinasequence"), ("batch_size", "sequences")):
        quick, thorough = (
            vars(grid["model"]).get(name, grid.get(name)) for grid in (GRIDS["quick"], GRIDS["thorough"])
        )
        assert f"{option}({quick};thorough:{thorough})" in shown
    assert f"width({GRIDS['quick']['model'].n_embd};thorough:{GRIDS['thorough']['model'].n_embd})" in shown
    assert GRIDS["quick"]["lrs"] == GRIDS["thorough"]["lrs"] == (1e-3, 3e-3, 1e-2)
    assert GRIDS["quick"]["seeds"] == GRIDS["thorough"]["seeds"] == 3


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_the_same_command_resumes(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["confirm", "nanogpt", "--depths", "1", "--lrs", "1e-3", "--warmups", "0", "--seeds", "10"]
    arguments += ["--steps", "300", "--n-embd", "32", "--jobs", "2", "--no-report", "-o", str(out)]
    with process("-m", "initlab", *arguments) as started:
        wait_until(lambda: (out / "runs.csv").exists(), started)
        ours = ["pgrep", "-f", "-P", str(started.pid), "LokyProcess"]  # not the tracker of their semaphores
        workers = subprocess.run(ours, capture_output=True, text=True).stdout.split()
        assert len(workers) == 2
        started.send_signal(signal.SIGINT)
        _, stderr = started.communicate(timeout=120)
    assert started.returncode == 130, stderr
    assert f"initlab report {out}" in stderr and "resumes" in stderr and "Traceback" not in stderr
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    kept = len(initlab.load(out).run.tables.runs)
    assert 0 < kept < 10
    code, _, stderr = run(capsys, *arguments)
    assert code == 0 and f"{10 - kept} models to measure or train" in stderr
    assert len(initlab.load(out).run.tables.runs) == 10
