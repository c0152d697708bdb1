"""What ends a process, Slurm, Docker and a closed terminal among them, loses nothing and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import initlab
from initlab import cli

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
SHORT = ["--n-embd", "32", "--block-size", "16", "--data", "uniform", "--no-report"]


def started(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "initlab", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def wait_for(found, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_as_ctrl_c_does_and_the_same_command_resumes(tmp_path, number):
    out = tmp_path / "run"
    process = started("compare", "nanogpt", "--depths", "1", "--seeds", "60", *SHORT, "-o", out)
    wait_for(lambda: size(out / "commits.jsonl"), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert said.strip().splitlines()[-1].startswith(f"initlab: ended by {number.name}; finished models are kept")
    assert "Traceback" not in said
    assert not (out / "run.lock").exists()
    run = initlab.load(out).run
    assert 0 < len(run.tables.summary) < 60 and not run.damaged


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_workers_end_with_a_command_that_is_ended(tmp_path, number):
    out = tmp_path / "run"
    process = started(
        *("confirm", "nanogpt", "--depths", "1", "--lrs", "1e-3", "--warmups", "0", "--seeds", "10", "--jobs", "2"),
        *("--steps", "300", *SHORT[:-3], "--no-report", "-o", out),
    )
    wait_for(lambda: size(out / "runs.csv"), process)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    workers = Path(children).read_text().split()
    assert len(workers) >= 2
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_before_the_first_model_no_report_is_promised(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("initlab.api.side_by_side.SideBySide.measure", interrupted)
    assert cli.main(["compare", "nanogpt", "--depths", "1", "--seeds", "1", *SHORT, "-o", str(out)]) == 130
    said = capsys.readouterr().err
    assert "no model was finished" in said and "initlab report" not in said


def test_handlers_are_put_back_and_others_left(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["rules"]) == 0
    assert signal.getsignal(signal.SIGTERM) == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert not {signal.SIGHUP} & cli._hear().keys()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, before)
