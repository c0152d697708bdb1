"""Key numbers: a row per recipe, and no column without a number."""

import re

from synthetic import synthetic_findings, synthetic_run
from variants import variants

from initlab.report.document import Document
from initlab.report.keys import HEADS, key_numbers


def cells(run):
    table = key_numbers(run, synthetic_findings(run))
    return table.heads, {row[0].text: [cell.text for cell in row] for row in table.rows}


def test_every_column_over_depths_and_three_digits():
    heads, rows = cells(variants()["usual"])
    assert heads == HEADS
    assert set(rows) == {"nanogpt", "nanogpt-no-depth-scale", "torch-default"}
    assert re.fullmatch(r"0\.\d{3} → 1\.\d\d", rows["torch-default"][1])
    assert rows["nanogpt"][3].startswith("L^-1.00")


def test_a_model_of_one_depth_has_no_column_of_exponents():
    heads, rows = cells(variants()["probe"])
    assert [head for head in heads if "by depth" in head] == []
    assert "–" not in rows["nanogpt"]


def test_what_is_not_finite_is_said():
    _, rows = cells(variants()["nothing finite"])
    assert "NaN" in " ".join(rows["nanogpt"])


def test_a_model_as_it_was_given_is_called_by_its_class_in_figures_too():
    run = synthetic_run(("as-found",), depths=(2,), seeds=1, kind="probe")
    run.manifest["config"]["model"] = "Llama"
    document = Document(run, [])
    residual = next(each for each in document.drawings if each.name == "residual")
    assert "Llama" in residual.svg and "as-found" not in residual.svg + residual.words
    assert run.tables.summary["recipe"].unique().tolist() == ["as-found"]
