"""The open list of engines: which is taken, and one from outside the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import initlab
from initlab import cli
from initlab.engines import ENGINES, Engine, Failed, choose, engine
from initlab.engines.batched import Batched
from initlab.engines.here import Here
from initlab.engines.processes import Processes
from initlab.errors import ConfigError, RunError

MODEL = initlab.NanoGPTConfig(n_layer=1, n_embd=16, n_head=2, block_size=8)
TINY = {"model": MODEL, "text": initlab.Text(batch_size=2), "steps": 2, "seeds": 1}
GRID = TINY | {"lrs": (1e-3, 1e-2), "warmups": (0,)}

OWN = """
from initlab.engines import Engine, engine, outcome

@engine("backwards")
class Backwards(Engine):
    def run(self, calls):
        for index in reversed(range(len(calls))):
            yield index, outcome(calls[index], self.shared)
"""


def test_several_at_a_time_are_processes_unless_an_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("initlab.engines.base.cores", lambda: 4)
    assert choose("auto", None, "cpu", 9) == (Processes, 4)
    assert choose("auto", None, "cpu", 3) == (Processes, 3)
    assert choose("auto", None, "cuda", 9) == choose("auto", 1, "cuda:1", 9) == (Batched, 1)
    assert choose("auto", 2, "cuda", 9) == (Processes, 2)
    assert choose("auto", 1, "cpu", 9) == (Here, 1)
    assert choose("processes", 1, "cpu", 9) == (Processes, 1)
    assert choose("here", None, "cpu", 9) == (Here, 1)


def test_what_cannot_be_chosen_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown engine 'process'; did you mean processes"):
        choose("process", None, "cpu", 1)
    with pytest.raises(ConfigError, match="jobs is 2 and engine 'here' makes one call at a time"):
        choose("here", 2, "cpu", 9)
    for jobs in (0, True, 1.5):
        with pytest.raises(ConfigError, match=r"jobs is .*; expected a whole number from 1 on"):
            choose("auto", jobs, "cpu", 9)


def test_an_engine_of_a_script_makes_a_grids_runs() -> None:
    here = initlab.confirm(["nanogpt"], **GRID, run=initlab.RunOptions(engine="here"))
    with ENGINES.temporary():
        exec(OWN, {"__name__": "script"})
        own = initlab.confirm(["nanogpt"], **GRID, run=initlab.RunOptions(engine="backwards"))
        with pytest.raises(ConfigError, match=r"engine 'backwards' exists already"):
            exec(OWN, {"__name__": "again"})
    assert own.run.tables.runs["lr"].tolist() == [1e-3, 1e-2]  # as planned, though made the other way round
    losses = [found.run.tables.runs.set_index("lr")["val_loss"].sort_index() for found in (own, here)]
    assert losses[0].equals(losses[1])
    with pytest.raises(ConfigError, match="unknown engine 'backwards'"):
        initlab.confirm(["nanogpt"], **GRID, run=initlab.RunOptions(engine="backwards"))


def test_an_engine_of_an_installed_package_is_found_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "backwards_plugin.py").write_text(OWN)
    info = tmp_path / "backwards_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: backwards-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[initlab.engines]\nbackwards = backwards_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    sizes = "--depths 1 --n-embd 16 --n-head 2 --block-size 8 --batch-size 2 --steps 2 --seeds 1 --warmups 0"
    arguments = f"confirm nanogpt {sizes} --lrs 1e-3,1e-2 --engine backwards --no-report".split()
    try:
        with ENGINES.temporary():
            monkeypatch.setattr(ENGINES, "_complete", False)
            assert cli.main([*arguments, "-o", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    finally:
        sys.modules.pop("backwards_plugin", None)
    runs = initlab.load(tmp_path / "run").run.tables.runs
    assert runs["lr"].tolist() == [1e-2, 1e-3]
    assert cli.main([*arguments, "-o", str(tmp_path / "other")]) == 2
    assert "unknown engine 'backwards'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "gave no result for 1 of 1 calls"),
        ([(0, 3)], "gave int for call 0; expected one result for each of 1 calls"),
        ([(7, Failed("lost"))], "gave Failed for call 7"),
    ],
)
def test_an_engine_that_leaves_calls_out_is_told_so(given: list[tuple[int, object]], message: str) -> None:
    with ENGINES.temporary():

        @engine("forgetful")
        class Forgetful(Engine):
            def run(self, calls):  # type: ignore[no-untyped-def]
                yield from given

        with pytest.raises(RunError, match=f"engine Forgetful {message}"):
            initlab.compare("nanogpt", model=MODEL, seeds=1, stats="light", run=initlab.RunOptions(engine="forgetful"))


def test_an_engine_is_a_class_derived_from_engine() -> None:
    with pytest.raises(ConfigError, match="expected a class derived from"):
        engine("none")(int)  # type: ignore[type-var]
