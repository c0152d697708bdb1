"""`initlab trace-init`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from initlab.cli import main

FACTORY = """
import torch
from torch import nn

def make(n=2, bare=False):
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(n)])
    if bare:
        model.gain = nn.Parameter(torch.empty(4))
    return model
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    path = tmp_path / "traced_factory.py"
    path.write_text(FACTORY)
    return f"{path}:make"


def test_shows_the_lines_and_fails_on_findings(factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace-init", factory]) == 0
    assert "traced_factory.py:6" in capsys.readouterr().out
    assert main(["trace-init", factory, "--arg", "bare=true"]) == 1
    assert "gain is uninitialised memory" in capsys.readouterr().out
    assert main(["trace-init", factory, "--arg", "bare=true", "--fail-on", "never"]) == 0


def test_json_holds_the_writes(factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace-init", factory, "--format", "json", "--arg", "n=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["parameter"] for row in found["writes"]] == ["0.weight", "0.bias"]
    assert {each["code"][:3] for each in found["findings"]} == {"DRW"}


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("concise", "Sequential: error DRW001 never-drawn: gain is uninitialised memory"),
        ("github", "::error title=DRW001 never-drawn (Sequential)::gain is uninitialised memory"),
        ("junit", '<failure type="error" message="gain is uninitialised memory'),
        ("sarif", '"ruleId": "DRW001"'),
        ("jsonl", '{"code": "DRW001"'),
    ],
)
def test_formats_for_other_programs(factory: str, how: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace-init", factory, "--arg", "bare=true", "--format", how]) == 1
    out = capsys.readouterr().out
    assert text in out
    assert how not in ("concise", "github") or "What the init code of Sequential wrote: found 1 error; 6 checks" in out


def test_what_has_no_init_code_is_refused(factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace-init", "shakespeare"]) == 2
    assert "no init code to trace" in capsys.readouterr().err
    assert main(["trace-init", factory, "--arg", "m=1"]) == 2
    assert "unexpected keyword argument 'm'" in capsys.readouterr().err
