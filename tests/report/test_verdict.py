import dataclasses
import math

import pytest
from synthetic import synthetic_findings, synthetic_run
from variants import variants

from initlab.judge.words import listed, number, signed
from initlab.report import console
from initlab.report.document import Document
from initlab.report.facts import model_notes, shortfall
from initlab.report.verdict import count_sentence, failing, measured, verdict, where
from initlab.report.view import exponent_text, overview, recipes_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.000803, "0.00080"),
        (0.0999, "0.10"),
        (1.0, "1.0"),
        (22.4, "22"),
        (6142.0, "6142"),
        (1e-9, "1.0e-9"),
        (-3.2e-7, "-3.2e-7"),
        (2e12, "2.0e12"),
        (math.nan, "NaN"),
        (-math.inf, "-inf"),
        (None, "NaN"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(-0.001, "+0.00"), (0.049, "+0.05"), (-1.0, "-1.00"), (math.nan, "NaN")])
def test_signed_never_reads_minus_zero(value, text):
    assert signed(value) == text


def test_exponent_text():
    assert exponent_text(-0.999, 0.021) == "L^-1.00 ± 0.02"
    assert exponent_text(-0.001, math.nan) == "L^0.00"


def test_listed():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a", "b", "c", "d", "e"]) == "a, b and 3 more"


def test_measured_rounds_to_its_uncertainty():
    finding = synthetic_findings(variants()["usual"])[0]
    assert measured(finding) == "-1.00 ± 0.02 exponent"
    assert measured(dataclasses.replace(finding, measured=0.17, uncertainty=None, unit="nats")) == "0.17 nats"
    assert measured(dataclasses.replace(finding, measured=None)) == ""


def test_where():
    finding = synthetic_findings(variants()["usual"])[0]
    assert where(finding) == "mlp_out"
    assert where(dataclasses.replace(finding, layer_first=3)) == "mlp_out, block 3"
    assert where(dataclasses.replace(finding, layer_first=3, layer_last=11)) == "mlp_out, blocks 3–11"


def test_failures_are_sorted_by_severity_then_effect():
    base = synthetic_findings(variants()["usual"])[0]
    make = [("warning", 9.0), ("error", 1.0), ("info", 5.0), ("error", 2.0)]
    findings = [dataclasses.replace(base, status="fail", severity=severity, effect=effect) for severity, effect in make]
    assert [(f.severity, f.effect) for f in failing(findings)] == [
        ("error", 2.0),
        ("error", 1.0),
        ("warning", 9.0),
        ("info", 5.0),
    ]


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("probe", "nanogpt passes all checks that apply (2/2)."),
        ("nothing measured", "Nothing was measured."),
    ],
)
def test_verdict(case, sentence):
    run = variants()[case]
    assert verdict(run, synthetic_findings(run)) == sentence


def test_verdict_without_failures_and_without_findings():
    run = variants()["usual"]
    passes = [f for f in synthetic_findings(run) if f.status != "fail"]
    assert verdict(run, passes) == "All 3 recipes pass every error and warning check that applies to them."
    assert verdict(run, []) == "Measured, not judged: no check applies to this run."


def test_verdict_of_one_recipe_that_fails():
    run = variants()["probe"]
    failed = [dataclasses.replace(f, status="fail") if f.code == "LOG001" else f for f in synthetic_findings(run)]
    assert verdict(run, failed) == "nanogpt draws 1 warning: logits."


def test_a_note_on_one_model_is_counted_as_one():
    run = variants()["probe"]
    noted = [
        dataclasses.replace(f, status="fail", severity="info", seeds_failing=1, seeds_total=1)
        if f.code == "LOG001"
        else f
        for f in synthetic_findings(run)
    ]
    assert verdict(run, noted) == "nanogpt passes all checks that apply (1/2; 1 note)."
    assert count_sentence(run, noted).startswith("Found 1 note; 1 check passed")
    assert "1/1 seed" not in console.text(Document(run, noted), width=80)


def test_overview_of_a_run_that_broke():
    rows = {row.recipe: row for row in overview(variants()["not finite"])}
    assert math.isnan(rows["torch-default"].last_var)
    assert rows["torch-default"].slopes == {}
    assert rows["nanogpt"].slopes["mlp_out"][0] == pytest.approx(-1, abs=0.1)


def test_recipes_keep_the_given_order():
    assert recipes_of(variants()["usual"]) == ["nanogpt", "nanogpt-no-depth-scale", "torch-default"]


def test_what_was_not_seen_is_said() -> None:
    run = synthetic_run()
    assert shortfall(run) == []
    coverage = run.tables.coverage
    at = coverage["site"] == "attn_out"
    coverage.loc[at, "fired"] = 0
    coverage.loc[at, "note"] = "not reached by the pass"
    (sentence,) = shortfall(run)
    assert sentence.startswith("Not everything was seen: activation attn_out 0 of ")
    assert sentence.endswith("(not reached by the pass).")


def test_a_comparison_of_functions_says_what_it_does_not_judge():
    run = synthetic_run(("nanogpt", "mine"), depths=(2,), seeds=1)
    assert model_notes(run) == []
    run.manifest["config"]["sources"] = ["mine.make 0123"]
    run.manifest["recipes"] = {"nanogpt": {}}
    assert [note for note in model_notes(run) if "the init code of mine did isn't judged here" in note]
