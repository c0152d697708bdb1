"""Calls in worker processes. The calls are of the standard library, so that no worker loads torch."""

import operator
import os
import pickle
import signal
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from commands import process, wait_until

from initlab.engines import Failed, processes
from initlab.engines.here import Here
from initlab.engines.processes import Processes
from initlab.errors import RunError

pytestmark = pytest.mark.integration


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it ended just now, or this system has no such folder
        return not Path("/proc/self").exists()
    return state != "Z"  # ended, and nobody has asked how: a busy machine's init takes its time


def test_results_come_with_their_index_and_what_raises_is_recorded():
    with Processes({}, 2) as pool:
        found = dict(pool.run([partial(operator.truediv, 6, divisor) for divisor in (1, 0, 3)]))
        again = dict(pool.run([partial(os.getpid)]))  # the processes are kept
        assert again[0] in pool.pids
    assert found == {0: 6.0, 1: Failed("ZeroDivisionError: division by zero"), 2: 2.0}


def test_calls_made_here_give_what_workers_give():
    calls = [partial(int, "11"), partial(int, "x")]
    with Here({"base": 2}) as pool:
        here = dict(pool.run(calls))
    with Processes({"base": 2}, 1) as pool:
        assert dict(pool.run(calls)) == here
    assert here[0] == 3 and here[1].text.startswith("ValueError: invalid literal")


def test_shared_arguments_go_with_every_call():
    with Processes({"base": 2}, 1) as pool:
        assert dict(pool.run([partial(int, "101"), partial(int, "11")])) == {0: 5, 1: 3}


def test_what_is_not_asked_for_is_ended_with_the_run():
    with Processes({}, 2) as pool:
        results = pool.run([partial(abs, 1), partial(time.sleep, 60)])
        assert next(results) == (0, 1)
        started = time.monotonic()
        results.close()
        assert dict(pool.run([partial(abs, -2), partial(abs, -3)])) == {0: 2, 1: 3}
    assert time.monotonic() - started < 50  # where the call is of 60


def test_a_worker_has_one_thread_and_prints_do_not_reach_the_replies():
    with Processes({}, 1) as pool:
        calls = [partial(os.getenv, "OMP_NUM_THREADS"), partial(os.write, 1, b"stray\n"), partial(print, "stray")]
        assert dict(pool.run(calls)) == {0: "1", 1: 6, 2: None}


def test_a_call_whose_worker_dies_is_tried_once_more_and_the_others_go_on(tmp_path):
    # dies at the first try alone: the folder is there at the second
    once = partial(
        exec, f"import os\ntry: os.mkdir({str(tmp_path / 'seen')!r})\nexcept OSError: pass\nelse: os._exit(7)"
    )
    with Processes({}, 1) as pool:
        found = dict(pool.run([partial(os._exit, 3), once, partial(abs, -1)]))
    assert found == {0: Failed("the worker process ended 2 times: EXIT(3)"), 1: None, 2: 1}


def test_functions_of_the_callers_own_travel_and_what_cannot_is_that_calls_failure():
    factor = 3
    lock = threading.Lock()
    with Processes({}, 2) as pool:
        found = dict(pool.run([partial(lambda x: factor * x, 2), partial(print, lock), partial(threading.Lock)]))
    assert found[0] == 6
    assert all(found[index].text == "TypeError: cannot pickle '_thread.lock' object" for index in (1, 2))


def test_a_run_error_ends_the_run():
    with Processes({}, 1) as pool, pytest.raises(RunError, match="disk full"):
        list(pool.run([partial(exec, "from initlab.errors import RunError; raise RunError('disk full')")]))
    with Here({}) as here, pytest.raises(RunError, match="disk full"):
        list(here.run([partial(exec, "from initlab.errors import RunError; raise RunError('disk full')")]))


@pytest.mark.parametrize("made", [Here, Processes])
def test_a_call_that_exits_has_failed(made):
    with made({}) as pool:
        assert dict(pool.run([partial(sys.exit, 4), partial(abs, -1)])) == {0: Failed("SystemExit: 4"), 1: 1}


def _without_a(call, a):
    return call()


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker can't import a test


def test_a_file_that_is_mapped_is_mapped_again_also_a_part_of_it(tmp_path):
    np.arange(4000, dtype="<u2").tofile(tmp_path / "train.bin")
    tokens = np.memmap(tmp_path / "train.bin", dtype="<u2", mode="r", offset=200)
    for part in (tokens, tokens[:3000], tokens[500:][100:200]):
        opened, place = processes._place(part)
        assert len(pickle.dumps(place)) < 1000  # not the tokens
        again = opened(*place)
        assert isinstance(again, np.memmap) and again.mode == "r"
        np.testing.assert_array_equal(again, part)
    with Processes({"a": tokens[7:20]}, 1) as pool:
        calls = [partial(getattr, tokens[20:30], "mode"), partial(np.sum, tokens[::2]), partial(np.sum, tokens + 1)]
        found = dict(pool.run([partial(_without_a, call) for call in calls] + [partial(np.sum)]))
    assert found == {0: "r", 1: tokens[::2].sum(), 2: (tokens + 1).sum(), 3: tokens[7:20].sum()}


def test_an_answer_that_cannot_be_read_is_recorded():
    # made there by name, as this file can't be imported there
    make = "type('A', (), {'__reduce__': lambda self: (__import__('operator').truediv, (1, 0))})()"
    with Processes({}, 1) as pool:
        found = dict(pool.run([partial(eval, make), partial(abs, -2)]))
    assert found == {0: Failed("ZeroDivisionError: division by zero"), 1: 2}


def test_a_process_that_loky_replaces_is_given_again_what_is_shared():
    with Processes({"base": 2}, 1) as pool:
        assert dict(pool.run([partial(int, "101")])) == {0: 5}
        before = pool.pids
        forget = "setattr(__import__('initlab.engines.processes').engines.processes, '_shared', None)"
        pool._workers[0].submit(lambda base: eval(forget)).result()
        assert dict(pool.run([partial(int, "11")])) == {0: 3}
        assert pool.pids != before


def test_a_worker_that_died_between_two_runs_is_replaced():
    with Processes({}, 1) as pool:
        list(pool.run([partial(abs, 1)]))
        (first,) = pool.pids
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not alive(first))
        wait_until(lambda: pool._workers[0]._executor._flags.broken)  # loky has seen it
        assert dict(pool.run([partial(abs, -3)])) == {0: 3}


def test_a_worker_killed_from_outside_is_replaced(tmp_path):
    begun = tmp_path / "begun"
    long = f"import os, time\ntry: os.mkdir({str(begun)!r})\nexcept OSError: pass\nelse: time.sleep(60)"

    def kill():
        wait_until(begun.exists)
        os.kill(first, signal.SIGKILL)

    with Processes({}, 1) as pool:
        list(pool.run([partial(abs, 1)]))
        (first,) = pool.pids
        killer = threading.Thread(target=kill)
        killer.start()
        found = dict(pool.run([partial(exec, long), partial(os.getpid)]))
        killer.join()
    assert found[0] is None  # at the second try
    assert found[1] != first


def test_an_abandoned_run_ends_its_workers_at_once():
    with pytest.raises(KeyboardInterrupt), Processes({}, 2) as pool:
        for index, _ in pool.run([partial(abs, 1), partial(time.sleep, 60), partial(time.sleep, 60)]):
            assert index == 0
            pids = pool.pids
            started = time.monotonic()
            raise KeyboardInterrupt
    assert time.monotonic() - started < 50  # where the calls are of 60
    assert pids and not any(map(alive, pids))


def test_a_worker_that_cannot_start_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(processes.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match=r"can't be started: EXIT\(1\) .*jobs=1"), Processes({}, 1) as pool:
        list(pool.run([partial(abs, 1)]))


def test_shared_arguments_that_cannot_be_loaded_are_one_clear_error():
    with (
        pytest.raises(RunError, match=r"can't be started: ZeroDivisionError: division by zero .*jobs=1"),
        Processes({"x": Bad()}, 2) as pool,
    ):
        list(pool.run([partial(abs, 1)]))


class Bad:
    def __reduce__(self):
        return operator.truediv, (1, 0)


SCRIPT = """
import sys, time
from functools import partial
from initlab.engines.processes import Processes

with Processes({}, 2) as pool:  # at the top of a script, without a guard
    for index, _ in pool.run([partial(abs, 1), partial(abs, 2), partial(time.sleep, 60), partial(time.sleep, 60)]):
        if index < 2:
            print(*pool.pids, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(number, tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    with process(tmp_path / "script.py") as parent:
        parent.stdout.readline()
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        os.kill(parent.pid, number)
        _, errors = parent.communicate(timeout=120)
    wait_until(lambda: not any(map(alive, pids)))
    assert errors.count("Traceback") == (number == signal.SIGINT), errors  # the parent's own
    assert "resource_tracker" not in errors
