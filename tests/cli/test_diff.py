"""`initlab diff` on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torchless import WITHOUT_TORCH

import initlab
from initlab import cli

pytestmark = pytest.mark.integration

SMALL = ["--data", "uniform", "--batch-size", "2", "--block-size", "16"]
FACTORY = """
import initlab, torch
def make(recipe="nanogpt", gain=1.0):
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=16, vocab_size=48))
    initlab.apply_recipe(model, recipe, seed=torch.initial_seed())
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.mul_(gain)
    return model
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two saved runs, and a factory."""
    made = tmp_path_factory.mktemp("diff")
    (made / "mine.py").write_text(FACTORY)
    for name in ("nanogpt", "torch-default"):
        arguments = ["probe", f"{made / 'mine.py'}:make", "--arg", f"recipe={name}", *SMALL, "-o", str(made / name)]
        assert cli.main([*arguments, "--no-report", "--fail-on", "never"]) == 0
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main(["diff", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_two_runs_are_compared_without_torch(folder: Path) -> None:
    script = f"{WITHOUT_TORCH}from initlab.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "diff", str(folder / "nanogpt"), str(folder / "torch-default")]
    environment = os.environ | {"PYTHONPATH": str(Path(initlab.__file__).parents[1]), "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "normal → uniform" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_new_findings_fail_where_that_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = (folder / "nanogpt", folder / "torch-default")
    assert run(capsys, *runs)[0] == 0
    assert run(capsys, *runs, "--fail-on", "error")[0] == 1  # EMB001
    assert run(capsys, *runs, "--fail-on", "error", "--ignore", "EMB001")[0] == 0
    assert run(capsys, *reversed(runs), "--fail-on", "error")[0] == 0  # it goes


def test_formats_for_other_programs_count_what_is_new_in_b(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = (folder / "nanogpt", folder / "torch-default")
    _, out, _ = run(capsys, *runs, "--format", "jsonl")
    listed = [json.loads(line)["code"] for line in out.splitlines()]
    _, out, _ = run(capsys, *runs, "--format", "json")
    states = {row["code"]: row["state"] for row in json.loads(out)["findings"]}
    assert listed and {states[code] for code in listed} <= {"new", "worse"}
    assert set(listed) == {code for code, state in states.items() if state in ("new", "worse")}
    _, out, _ = run(capsys, *reversed(runs), "--format", "github")
    assert "::error" not in out and "::warning" not in out


def test_json_begins_with_verdict_and_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, folder / "nanogpt", folder / "torch-default", "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert list(found)[:6] == ["schema_version", "a", "b", "differs", "verdict", "counts"]
    assert found["differs"]
    assert found["counts"]["new"] == sum(row["state"] == "new" for row in found["findings"])
    assert {row["what"] for row in found["parameters"] if row["role"] == "mlp_out"} == {"std, distribution"}
    assert found["basis"]["kind"] == "one draw"


def test_one_factory_under_two_arguments_at_several_seeds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = f"{folder / 'mine.py'}:make"
    code, out, err = run(capsys, make, make, "--arg-b", "gain=3", "--seeds", "2", *SMALL, "-o", folder / "page")
    assert code == 0, err
    assert "transformer.h.1.mlp.c_proj.weight" in out
    assert "×3.00" in out
    assert "2 draws" in out
    assert "What changed" in (folder / "page" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nanogpt", "nanogpt"), "same run"),
        (("nanogpt", "nowhere"), "is no run's folder and no model"),
        (("nanogpt", "torch-default", "--seeds", "2"), "nothing is drawn"),
        (("nanogpt", "mine.py:make", "--arg-b", "size=3"), "has no argument 'size'"),
        (("nanogpt", "torch-default", "--select", "XYZ"), "no rule has the code"),
        (("nanogpt", "torch-default", "-o", "nanogpt"), "holds a run of `probe`"),
    ],
)
def test_what_cant_be_compared_is_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str], said: str
) -> None:
    monkeypatch.chdir(folder)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()[-1]) < 400
