"""One writer per folder, across processes, threads and forks."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cells import CELLS, cell, manifest

from initlab.errors import RunError
from initlab.rundir import RunDir, check, load, lock, note

pytestmark = pytest.mark.integration

HOLDER = """
import sys
sys.path.insert(0, sys.argv[2])
from cells import cell, manifest
from initlab.rundir import RunDir
folder = RunDir.open(sys.argv[1], manifest())
folder.append(cell("a"))
print("open", flush=True)
sys.stdin.readline()
folder.close()
print("closed", flush=True)
sys.stdin.readline()
"""
HELPERS = str(Path(__file__).parents[1] / "helpers")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), HELPERS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout and process.stdout.readline() == "open\n"
    return process


def test_a_second_process_is_told_who_writes_and_may_when_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = holder(path)
    with process:
        assert process.stdin and process.stdout
        before = {item.name: item.read_bytes() for item in path.iterdir()}
        for attempt in (
            lambda: RunDir.open(path, manifest()),
            lambda: check(path),
            lambda: note(path, "judging", {"select": ["GRD"]}),
        ):
            with pytest.raises(RunError, match=r"is being written by process \d+ on ") as caught:
                attempt()
            said = str(caught.value)
            assert f"process {process.pid} on {socket.gethostname()}, `initlab compare nanogpt → √2`" in said
            assert "choose another folder with -o" in said
        assert {item.name: item.read_bytes() for item in path.iterdir()} == before
        assert set(load(path).tables.summary["run_id"]) == {"a"}  # reading needs no lock
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "closed\n"
        with RunDir.open(path, manifest()) as folder:
            assert folder.done == {"a"}
        assert not (path / lock.LOCK).exists()
        process.stdin.write("\n")


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / lock.LOCK).exists()
    with RunDir.open(tmp_path, manifest()) as folder:
        folder.append(cell("b"))
    assert set(load(tmp_path).tables.summary["run_id"]) == {"a", "b"}
    assert not (tmp_path / lock.LOCK).exists()


def test_of_many_at_once_one_writes(tmp_path: Path) -> None:
    """Threads that begin together, over and over: one at a time, and none is refused for good."""
    begun, opened, refused = threading.Barrier(4), [], []

    def run(number: int) -> None:
        for turn in range(5):
            begun.wait(timeout=30)
            try:
                with RunDir.open(tmp_path / str(turn), manifest()) as folder:
                    for run_id in CELLS[:1]:
                        if run_id not in folder.done:
                            folder.append(cell(run_id))
                opened.append((turn, number))
            except RunError as error:
                assert "is being written by" in str(error)  # at first without a name
                refused.append((turn, number))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) + len(refused) == 20
    for turn in range(5):
        run_ids = load(tmp_path / str(turn)).tables.runs["run_id"].tolist()
        assert run_ids == ["a"]
        assert any(each == turn for each, _ in opened)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_holds_nothing(tmp_path: Path) -> None:
    folder = RunDir.open(tmp_path, manifest())
    (told, tell), (hear, begin) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:  # as a DataLoader's worker, which outlives a parent that is killed
        os.close(tell)
        os.write(begin, b".")
        os.read(told, 1)
        os._exit(0)
    try:
        os.read(hear, 1)
        os.close(folder._lock._end.peek()[2][1])  # as the parent's death does
        folder._lock._end.detach()
        lock._held.clear()
        RunDir.open(tmp_path, manifest()).close()
    finally:
        for end in (tell, told, hear, begin):
            os.close(end)
        os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_that_ends_leaves_the_lock(tmp_path: Path) -> None:
    folder = RunDir.open(tmp_path, manifest())
    child = os.fork()
    if not child:
        folder._lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / lock.LOCK).exists()
    with pytest.raises(RunError, match="by this very process"):
        RunDir.open(tmp_path, manifest())


@pytest.mark.parametrize("supported", [False, None])
@pytest.mark.parametrize(
    ("content", "free"),
    [
        ("", True),
        ("no json", True),
        ("[]", True),
        (json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}), True),
        (json.dumps({"pid": 2**70, "host": socket.gethostname()}), True),
        (json.dumps({"pid": "x", "host": socket.gethostname()}), True),
        (json.dumps({"pid": os.getppid(), "host": socket.gethostname(), "command": "initlab train"}), False),
        (json.dumps({"pid": 1, "host": "elsewhere"}), False),
    ],
)
def test_where_files_cant_be_locked_the_process_in_the_file_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool | None, content: str, free: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    if supported is None:
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    (tmp_path / lock.LOCK).write_text(content)
    if not free:
        with pytest.raises(RunError, match=r"is being written by process \d+ on .*run\.lock is its lock"):
            lock.take(tmp_path)
        return
    held = lock.take(tmp_path, "initlab train")
    assert json.loads((tmp_path / lock.LOCK).read_text())["pid"] == os.getpid()
    with pytest.raises(RunError, match="by this very process"):
        lock.take(tmp_path)
    held.release()
    held.release()
    assert not (tmp_path / lock.LOCK).exists()


def test_a_folder_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunDir.open(path, manifest()) as folder:
        folder.append(cell("a"))
        for item in path.iterdir():
            item.unlink()
        path.rmdir()
        folder.restore_if_deleted([cell("a")])
        folder.append(cell("b"))
        with pytest.raises(RunError, match="by this very process"):
            RunDir.open(path, manifest())
        folder.restore_if_deleted([cell("a")])  # nothing to do
    assert load(path).tables.summary["run_id"].tolist() == ["a", "b"]
