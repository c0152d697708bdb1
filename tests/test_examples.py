"""Every example runs and prints what its text promises."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
EXPECTED = {
    "01_probe.py": ["NanoGPT passes all checks", "expected_var"],
    "02_compare.py": ["nanogpt-no-depth-scale", "RES001"],
    "03_your_own_recipe.py": ["by_layer"],
    "04_your_own_model.py": ["6 blocks, stream reproduced from its writes in 6", "torch-default"],
    "05_watch_training.py": ["NanoGPT passes all checks", "attn_out", "fold after the last"],
    "06_hugging_face.py": ["LlamaForCausalLM passes", "though GPT2PreTrainedModel._init_weights says so", "Now every"],
    "07_fix_a_model.py": ["EMB001", "attn_out   8  0.02       0.005", "after: errors []"],
    "08_why_these_numbers.py": ["fan_in · σ² = 0.307", "n_embd  768: ×102.6 at 12 blocks", "ln V is 5.545"],
    "10_first_hour.py": ["DRW003", "drawn at", "no warning", "×0.249", "healthy at init: warning DRW003", "28/28"],
    "09_confirm.py": ["torch-default is stuck at 2 layers", "runs learnt more than"],
}


def test_every_example_is_expected():
    needs_more = {"audit_transformers.py", "nanogpt_claims.py"}  # minutes
    assert {path.name for path in (ROOT / "examples").glob("*.py")} - needs_more == set(EXPECTED)


@pytest.mark.parametrize("name", ["audit_transformers.py", "nanogpt_claims.py"])
def test_what_takes_minutes_starts(name, tmp_path):
    pytest.importorskip("transformers")
    command = [sys.executable, str(ROOT / "examples" / name), "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs(name, tmp_path):
    if "hugging_face" in name:
        pytest.importorskip("transformers")
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(ROOT / "examples" / name)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for text in EXPECTED[name]:
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == []  # an example leaves nothing behind


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells_of(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_was_executed(path, monkeypatch, tmp_path):
    """As a kernel does: cell after cell in one namespace; what a cell ends with is what it shows."""
    monkeypatch.chdir(tmp_path)
    space = {}
    for number, cell in enumerate(cells_of(path), 1):
        assert cell["execution_count"] == number
        assert not any(output["output_type"] in ("error", "display_data") for output in cell["outputs"])
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop()
        exec(compile(tree, path.name, "exec"), space)
        assert isinstance(last, ast.Expr)
        value = eval(compile(ast.Expression(last.value), path.name, "eval"), space)
        (stored,) = (each for each in cell["outputs"] if each["output_type"] == "execute_result")
        html = "".join(stored["data"]["text/html"])
        assert len(html.encode()) <= 60 * 1024
        if html.startswith('<div class="initlab">'):  # as it is today, but for the numbers
            assert value._repr_html_().split("</style>")[0] == html.split("</style>")[0]
    assert space["probe"].worst == "error" and space["proposal"].applied and not space["proposal"].after.failures
    assert str(ROOT) not in path.read_text() and list(tmp_path.iterdir()) == []


def test_the_claims_are_counted_in_the_first_sentence(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from nanogpt_note.evidence import Claim
    from nanogpt_note.page import answer, page_text

    saved = json.loads((ROOT / "reports" / "nanogpt-claims" / "claims.json").read_text(encoding="utf-8"))
    found = [Claim(**each) for each in saved]
    counts = Counter(claim.verdict for claim in found)
    said = answer(found)
    assert sum(map(int, re.findall(r"(\d+) (?:hold|do)", said))) == len(found) == sum(counts.values())
    assert f"{counts['holds']} hold, {counts['holds with a condition']} hold with a condition" in said
    about = {"environment": {}, "commit": "", "models": 1, "trainings": 0, "seconds": 1.0}
    assert re.search(r"<h1>(.*?)</h1>", page_text(found, {}, **about))[1] == said.replace("'", "&#39;")
    assert answer(found[:1]) == f"Of 1 statement about nanoGPT's init, 1 {found[0].verdict}."
