"""What ends a process, Slurm, Docker and a closed terminal among them, loses nothing and leaves nothing running."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from commands import held, process, wait_until

import initlab
from initlab import cli

pytestmark = pytest.mark.integration

SHORT = ["--n-embd", "32", "--block-size", "16", "--data", "uniform", "--no-report"]


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_as_ctrl_c_does_and_the_same_command_resumes(tmp_path, number):
    out = tmp_path / "run"
    arguments = ["compare", "nanogpt", "--depths", "1", "--seeds", "3", *SHORT, "-o", out]
    with held(out / "commits.jsonl", 2, *arguments) as started:
        started.send_signal(number)
        _, said = started.communicate(timeout=120)
    assert started.returncode == 128 + number, said
    assert said.strip().splitlines()[-1].startswith(f"initlab: ended by {number.name}; finished models are kept")
    assert "Traceback" not in said
    assert not (out / "run.lock").exists()
    run = initlab.load(out).run
    assert len(run.tables.summary) == 2 and not run.damaged


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_workers_end_with_a_command_that_is_ended(tmp_path, number):
    out = tmp_path / "run"
    arguments = ["confirm", "nanogpt", "--depths", "1", "--lrs", "1e-3", "--warmups", "0", "--seeds", "10"]
    arguments += ["--jobs", "2", "--steps", "300", *SHORT[:-3], "--no-report", "-o", out]
    with process("-m", "initlab", *arguments) as started:
        wait_until(lambda: size(out / "runs.csv"), started)
        workers = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        assert len(workers) >= 2
        started.send_signal(number)
        _, said = started.communicate(timeout=120)
    assert started.returncode == 128 + number, said
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


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
