"""The engine on Ray: what it refuses, and, where Ray is installed, a Ray of this machine's own for real."""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import initlab
from initlab.engines import Failed, choose
from initlab.engines.ray import Ray
from initlab.errors import ConfigError, RunError

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs pip install 'initlab[ray]'")
MODEL = initlab.NanoGPTConfig(n_layer=1, n_embd=16, n_head=2, block_size=8)
GRID: dict[str, Any] = {
    "model": MODEL,
    "text": initlab.Text(batch_size=2),
    "steps": 2,
    "seeds": 1,
    "lrs": (1e-3, 1e-2),
    "warmups": (0,),
}


def test_it_is_placed_where_it_is_told_and_others_are_not() -> None:
    made, jobs = choose("ray", None, "cpu", 9, "head:6379")
    assert isinstance(made, partial) and made.func is Ray
    assert made.keywords == {"device": "cpu", "address": "head:6379"}
    assert jobs == 0  # what there is room for
    assert choose("ray", 20, "cpu", 9)[1] == 9
    for name in ("auto", "here", "processes"):
        with pytest.raises(
            ConfigError, match=f"address is 'head:6379' and engine '{name}' makes calls on this machine"
        ):
            choose(name, None, "cpu", 9, "head:6379")


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *given: Any, **named: Any) -> Any:
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    options = initlab.RunOptions(engine="ray", out=tmp_path / "run")
    for command in (initlab.confirm, initlab.compare):
        given = GRID if command is initlab.confirm else {"model": MODEL, "seeds": 1}
        with pytest.raises(ConfigError, match=r"engine 'ray' needs Ray, .* pip install 'initlab\[ray\]'"):
            command(["nanogpt"], **given, run=options)
    assert not (tmp_path / "run").exists()


@needs_ray
def test_a_gpu_is_not_asked_for_by_its_number() -> None:
    with pytest.raises(ConfigError, match="device is cuda:1 and Ray gives each call a GPU of its own"):
        Ray({}, 1, device="cuda:1")


def add(one: int, other: int) -> int:
    return one + other


def die(once: str, other: int) -> int:
    """The worker is killed, as when memory runs out; the second time not, if a file can be made."""
    if not once or not Path(once).exists():
        if once:
            Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return other


def refuse(other: int) -> int:
    raise RunError("the disk is full")


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_calls_are_made_and_lost_workers_replaced(tmp_path: Path) -> None:
    with Ray({"other": 3}, 2) as engine:
        assert dict(engine.run([partial(add, at) for at in range(5)])) == {at: at + 3 for at in range(5)}
        calls = [partial(die, str(tmp_path / "once")), partial(die, ""), partial(add, 1), partial(add, "x")]
        found = dict(engine.run(calls))
        assert found[0] == 3 and found[2] == 4
        assert isinstance(found[1], Failed) and "its worker was lost 2 times" in found[1].text
        assert isinstance(found[3], Failed) and "TypeError" in found[3].text
        with pytest.raises(RunError, match="the disk is full"):
            list(engine.run([refuse]))
        assert dict(engine.run([partial(add, 1)])) == {0: 4}


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_not_there_or_has_no_gpu_is_said_in_a_sentence() -> None:
    with pytest.raises(RunError, match=r"the Ray cluster at 127\.0\.0\.1:1 can't be reached"):
        Ray({}, 1, address="127.0.0.1:1")
    with pytest.raises(RunError, match=r"this machine's Ray has no GPU, which the runs are on"):
        Ray({}, 1, device="cuda")


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_is_killed_meanwhile_ends_the_run_and_not_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # the one that Ray makes for this user
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    subprocess.run(["ray", "get-auth-token", "--generate"], capture_output=True, timeout=60)
    command = "ray start --head --block --node-ip-address 127.0.0.1 --port 6397 --num-cpus 2 --include-dashboard false"
    head = subprocess.Popen(
        command.split(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        _until(lambda: _answers(6397), head)
        with Ray({}, 0, address="127.0.0.1:6397") as engine:
            assert engine.jobs == 2
            killed = False
            with pytest.raises(RunError, match=r"the Ray cluster at 127\.0\.0\.1:6397 is gone: .* resumes"):
                for _ in engine.run([partial(time.sleep, 0.5)] * 40):
                    if not killed:
                        os.killpg(head.pid, signal.SIGKILL)
                        killed = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_command_gives_what_it_gives_here(tmp_path: Path) -> None:
    """Two workers, one of which is killed in the middle: the tables are those of this process."""
    sizes = {"model": MODEL, "seeds": 2}
    commands: list[Any] = [
        partial(initlab.compare, ["nanogpt", "zero-out"], **sizes),
        partial(initlab.scale, ["nanogpt"], **sizes, depths=(1, 2), steps=1),
        partial(initlab.confirm, ["nanogpt"], **GRID),
    ]
    for number, command in enumerate(commands):
        here = command(run=initlab.RunOptions(engine="here"))
        apart = command(run=initlab.RunOptions(engine="ray", jobs=2, out=tmp_path / str(number)))
        for name in ("records", "summary", "runs"):
            one, other = (
                getattr(found.run.tables, name).drop(columns="seconds", errors="ignore") for found in (here, apart)
            )
            keys = ["run_id", *(["step", "site", "kind", "layer", "module", "call"] if name == "records" else [])]
            one, other = (frame.sort_values(keys).reset_index(drop=True) for frame in (one, other))
            numbers = one.select_dtypes("number").columns
            assert len(one) == len(other)
            assert (one["run_id"].astype(str) == other["run_id"].astype(str)).all()
            for column in numbers:
                assert one[column].to_numpy(float) == pytest.approx(other[column].to_numpy(float), 1e-6, nan_ok=True)


@needs_ray
@pytest.mark.slow
def test_a_grid_survives_a_killed_worker_and_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    sizes = "--depths 1,2 --n-embd 32 --n-head 2 --block-size 16 --batch-size 2 --steps 150 --seeds 3 --warmups 0"
    command = [sys.executable, "-m", "initlab", "confirm", "nanogpt", *sizes.split(), "--lrs", "1e-3,1e-2"]
    command += ["--engine", "ray", "--jobs", "2", "--no-report", "-o", str(tmp_path / "run")]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    runs = tmp_path / "run" / "runs.csv"
    _until(lambda: runs.exists() and started.poll() is None, started)
    worker = _until(lambda: _workers(started.pid), started)[0]
    os.kill(worker, signal.SIGKILL)
    _until(lambda: len(runs.read_text().splitlines()) > 4, started)
    started.send_signal(signal.SIGINT)
    said, _ = started.communicate(timeout=120)
    assert "resumes" in said and not _workers(started.pid), said
    before = len(initlab.load(tmp_path / "run").run.tables.runs)
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    found = initlab.load(tmp_path / "run").run
    assert 0 < before < len(found.tables.runs) == 12 and not found.manifest["failed"]


def _until(asked: Any, started: subprocess.Popen[str], seconds: float = 150) -> Any:
    end = time.monotonic() + seconds
    while not (found := asked()):
        assert started.poll() is None, started.stdout.read() if started.stdout else ""
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)
    return found


def _workers(parent: int) -> list[int]:
    """Ids of the processes in which a Ray that a process started makes calls."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except (OSError, ValueError):
            continue

    def below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == parent:
                return True
        return False

    return [pid for pid, name in names.items() if name.startswith("ray::_make") and below(pid)]
