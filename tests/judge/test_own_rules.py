"""Rules from outside the package: of a script's file, and of an installed package."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import synthetic_run

import initlab
from initlab import cli
from initlab.errors import ConfigError
from initlab.judge.rules import RULES, evaluate, rule
from initlab.rundir import Run
from initlab.schema import Tables

pytestmark = pytest.mark.integration

RULE = '''
from initlab.judge.remedies import rescaled
from initlab.judge.rules import rule
from initlab.judge.rules.counting import rows_of
from initlab.recipes import Role


def measure_table(run):
    """Std of the token embedding's weights."""
    return rows_of(run, "weight", "token_embed")[["recipe", "seed", "std"]]


def halve(finding, model):
    return [
        change
        for row in model.of(Role.TOKEN_EMBED)
        for change in rescaled(row, list(row["stds"]), 0.5, finding, "half as wide")
    ]


@rule(
    code="MYX001",
    question="Mine",
    evidence="residual",
    measures="std of the token embedding",
    needs="a token embedding",
    limits={"std": 0.015},
    unit="std",
    limit="≤ {std}",
    basis="heuristic",
    why="It is an example.",
    advice="halve the embedding",
    false_alarms="all",
    source="this test",
    since="1.0",
    remedy=halve,
    measure=measure_table,
)
def wide_embedding(case, rows):
    std = float(rows["std"].max())
    if std <= case.limits["std"]:
        return case.passed(f"std {std:.3f}", measured=std)
    return case.failed(f"The embedding has std {std:.3f}", severity="error", measured=std, effect=1.0)
'''
QUICK: dict[str, Any] = {"text": initlab.Text("uniform", batch_size=2)}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[None]:
    path = tmp_path / "own_rule.py"
    path.write_text(RULE)
    spec = importlib.util.spec_from_file_location("own_rule", path)
    assert spec is not None and spec.loader is not None
    with RULES.temporary():
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        yield
    assert "MYX001" not in RULES


def nanogpt() -> initlab.NanoGPT:
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=64))
    initlab.apply_recipe(model, "nanogpt")
    return model


@pytest.mark.usefixtures("own")
def test_one_file_adds_a_rule_to_the_list_the_findings_the_page_and_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = initlab.probe(nanogpt(), **QUICK)
    (mine,) = (finding for finding in found.findings if finding.code == "MYX001")
    assert (mine.name, mine.status, mine.severity) == ("wide-embedding", "fail", "error")
    (easy,) = found.judge(select=["MYX001"], limits={"MYX001": 0.5})
    assert easy.status == "pass"
    out = found.save(tmp_path / "run")

    assert cli.main(["rules"]) == 0
    assert list(RULES)[-1].code == "MYX001" and "MYX001  wide-embedding" in capsys.readouterr().out
    assert cli.main(["rules", "wide-embedding"]) == 0
    assert "Std of the token embedding's weights." in capsys.readouterr().out
    command = ["report", str(out), "--select", "MYX001", "--limit", "MYX001=0.015", "--fail-on", "error"]
    assert cli.main([*command, "--format", "json"]) == 1
    assert [f["code"] for f in json.loads(capsys.readouterr().out)["findings"]] == ["MYX001"]

    page = (out / "report.html").read_text()
    card = page[page.index("The embedding has std") :]
    assert '<a href="#fig-residual">see the figure</a>' in card[: card.index("</section>")]


@pytest.mark.usefixtures("own")
def test_its_remedy_is_proposed_and_applied() -> None:
    model = nanogpt()
    before = model.transformer.wte.weight.std().item()
    proposal = initlab.fix(model, select=["MYX001"], **QUICK)
    assert [(row["code"], row["role"], row["how"], row["why"]) for row in proposal.rows] == [
        ("MYX001", "token_embed", "× 0.5", "half as wide")
    ]
    assert proposal.left == []
    proposal.apply()
    assert model.transformer.wte.weight.std().item() == pytest.approx(before / 2)


def test_an_installed_package_adds_a_rule_by_entry_point(tmp_path: Path) -> None:
    (tmp_path / "own_rules.py").write_text(RULE)
    info = tmp_path / "own_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[initlab.rules]\nmine = own_rules\nbroken = no_such_module\n")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(Path(initlab.__file__).parents[1])!r}]\n"
    code += "from initlab import cli; sys.exit(cli.main(['rules']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "MYX001  wide-embedding" in done.stdout and "RES001" in done.stdout
    assert "rule plugin 'broken' (no_such_module) can't be loaded and is left out" in done.stderr


@pytest.mark.parametrize("first", ["base", "scale", "depth"])
def test_the_catalogues_order_is_the_same_whichever_module_is_imported_first(first: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(initlab.__file__).parents[1])!r})\n"
    code += f"import initlab.judge.rules.{first}\n"
    code += "from initlab.judge.rules import RULES; print([each.code for each in RULES])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str([each.code for each in RULES])


def counting(code: str, **changes: object) -> None:
    """Register a rule that says how many steps it sees."""
    texts = dict.fromkeys(("question", "measures", "needs", "unit", "limit", "why", "advice", "false_alarms"), "x")

    @rule(  # type: ignore[arg-type]
        **texts,
        **{"code": code, "basis": "derived", "source": "this test", "since": "1.0", "about_init": False} | changes,
        measure=lambda run: run.tables.summary,
    )
    def steps_seen(case, rows):  # type: ignore[no-untyped-def]
        return case.passed(str(rows["step"].nunique()))


def test_over_steps_a_rule_sees_the_first_alone_unless_it_says_otherwise() -> None:
    once = synthetic_run(("nanogpt",), depths=(2,), seeds=1)
    summary = pd.concat([once.tables.summary, once.tables.summary.assign(step=5)], ignore_index=True)
    tables = Tables(**dict(once.tables.items()) | {"summary": summary})
    with RULES.temporary():
        counting("MYX001")
        counting("MYX002", later=("watch",))
        for kind, seen in {"watch": ["1", "2"], "train": ["1", "1"], "compare": ["2", "2"]}.items():
            findings = evaluate(Run(tables, once.manifest | {"kind": kind}), select=["MYX"])
            assert [f.message for f in sorted(findings, key=lambda f: f.code)] == seen


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("RES001", r"rule 'RES001' exists already \(source: Radford et al\. 2019.*\); rename yours"),
        ("mine", "a rule's code is 'mine'; expected capitals and a number, such as RES001"),
    ],
)
def test_a_code_that_is_taken_or_cant_be_selected_is_refused(code: str, message: str) -> None:
    with RULES.temporary(), pytest.raises(ConfigError, match=message):
        counting(code)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda case, rows: 1 / 0, "raised ZeroDivisionError: division by zero; --ignore MYX003 leaves it out"),
        (lambda case, rows: None, "returned None; expected case.passed"),
        (lambda case, rows: case.failed("off", severity="fatal"), "with a severity of error, warning, info"),
    ],
)
def test_a_rule_that_breaks_is_named_and_can_be_left_out(judge: Any, message: str) -> None:
    run = synthetic_run()
    text = dict.fromkeys(("measures", "needs", "unit", "limit", "why", "advice", "false_alarms", "source"), "x")
    with RULES.temporary():
        rule(
            code="MYX003",
            question="Mine",
            basis="heuristic",
            since="1.0",
            measure=lambda run: run.tables.summary[["recipe"]],
            **text,
        )(judge)
        with pytest.raises(ConfigError, match=rf"rule MYX003 .*{message}"):
            evaluate(run)
        assert evaluate(run, ignore=["MYX003"])


def test_the_docstrings_own_example_works() -> None:
    text = textwrap.dedent(initlab.rule.__doc__.split("::\n", 1)[1].split("The function's name")[0])
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=256))
    with RULES.temporary():
        exec(text, {"initlab": initlab})
        found = {f.code: f for f in initlab.probe(model).findings}
    assert found["MY001"].name == "gradient-too-spread" and found["MY001"].measured > 1
