"""What the page says of training."""

import itertools
import re
from functools import cache

import pytest
from page import Page
from synthetic import synthetic_run
from trained_variants import CASES, trained
from variants import HOSTILE

from initlab import schema
from initlab.judge.outcomes import PROBE, effects, outcomes, rankings, regrets
from initlab.judge.rules import evaluate
from initlab.report import confirm
from initlab.report import train as section
from initlab.report.document import Document
from initlab.report.html import page as written

pytestmark = pytest.mark.integration


@cache
def judged(case):
    return evaluate(trained(case))


@cache
def told(case):
    return Document(trained(case), judged(case)).trained


@cache
def render(case):
    return written(Document(trained(case), judged(case)))


def plain(text):
    return re.sub(r"\s+", " ", "".join(Page(text).words))


def texts(row):
    return [cell.text for cell in row]


def table(case, title):
    return next(each for each in told(case).tables if each.title == title)


@pytest.mark.parametrize("case", sorted({*CASES} - {"one depth", "one warmup", "no warmup", "one rate", "no records"}))
def test_every_run_has_its_words(case):
    found = told(case)
    assert found.sentence.endswith(".") and found.limits.endswith(".")
    for each in found.tables:
        for row in each.rows:
            cells = [cell.text for cell in row]
            assert len(cells) == len(each.heads), each.title
            assert not any(re.search(r"\bnan\b|-0\.0+\b", cell) for cell in cells), (each.title, cells)


@pytest.mark.parametrize("case", ["usual", "nothing trained", "train, one diverged", "hostile"])
def test_the_page_is_whole(case):
    text = render(case)
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for _, attrs in page.tags if attrs.get("href", "").startswith("#")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.all("h1", "h2", "h3", "h4")]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert "undefined" not in text.lower() and len(page.all("script")) == 1  # the page's own, which sorts tables
    assert len(text.encode()) < 1.5 * 2**20
    assert text.index('id="training"') < text.index('id="numbers"')
    assert "this is the model before its first update" not in text


@pytest.mark.slow
def test_eight_recipes_fit_a_page():
    assert len(render("eight recipes").encode()) < 1.5 * 2**20


def test_a_run_without_training_has_no_such_section():
    run = synthetic_run(("nanogpt",), depths=(2,), seeds=1)
    assert Document(run, []).trained is None
    assert 'id="training"' not in written(Document(run, []))


def test_predictions_stand_beside_outcomes_with_glyph_word_and_sentence():
    expected = outcomes(trained("usual"), judged("usual"))
    found = told("usual").outcomes
    assert [(row["recipe"], row["n_layer"]) for row in found] == [
        (recipe, depth) for recipe in trained("usual").manifest["config"]["recipes"] for depth in (2, 8)
    ]
    words = plain(render("usual"))
    for row in expected.itertuples():
        assert row.why in words
    for row in found:
        assert f"{row['graded'][1]} {row['grade']}" in words
    assert section.look("agreed") == ("pass", "✓")
    assert section.look("missed") == ("error", "✗")
    assert section.look("false alarm") == ("warning", "!")
    assert section.look("undecided") == ("not_applicable", "–")


def test_the_sentence_counts_the_grades():
    graded = outcomes(trained("usual"), judged("usual"))["grade"].value_counts()
    sentence = told("usual").sentence
    assert sentence.startswith(f"Training agrees with {graded.get('agreed', 0)} of 6 predictions")
    for grade in ("missed", "undecided"):
        assert (f"{graded.get(grade)} {grade}" in sentence) == bool(graded.get(grade))


def test_training_that_taught_nothing_is_not_called_agreement():
    assert told("all diverged").sentence.startswith("No run of any recipe learned")
    assert "72 of 72 runs diverged." in told("all diverged").sentence
    assert told("nothing trained").sentence == "No training run has finished."


def test_effects_are_all_there_and_the_fold_names_the_separated():
    run = trained("usual")
    found = effects(run)
    shown = table("usual", "What is warmup worth?")
    own = found[found["question"] == "warmup"]
    assert len(shown.rows) == len(own) == 6
    sure = own[own["verdict"] != "not separated"]
    assert shown.summary.startswith(f"6 comparisons, {len(sure)} separated")
    assert all(row.recipe in shown.summary for row in sure.itertuples())
    assert table("usual", "Is another init better? Mean over the rates").folded is False
    needed = {row[-2].text: row[-1].text for row in shown.rows}
    assert needed.pop("not separated") and set(needed.values()) == {""}


def test_sensitivity_stands_beside_regret_with_its_trap():
    shown = table("usual", "Regret and sensitivity")
    assert "A trap" in shown.note and "stuck" in shown.heads
    first = regrets(trained("usual")).query("recipe == 'nanogpt' and n_layer == 2 and warmup == 0").iloc[0]
    assert f"{first['regret']:.3f} ({first['low']:.3f} to {first['high']:.3f})" in texts(shown.rows[0])
    assert f"{first['sensitivity']:.3f}" in texts(shown.rows[0])
    stuck = [row for row in shown.rows if row[0].text == "torch-default"]
    assert all(row[-1].text == "9 of 9" for row in stuck)


def test_rankings_name_every_metric_and_the_depth_held_out():
    shown = table("usual", "Which probe metrics rank recipes?")
    assert len(shown.rows) == 12
    assert shown.heads == ("metric", "2 blocks held out", "8 blocks held out")
    assert shown.note.endswith("Here: 3 recipes.")


def test_how_far_a_metric_is_behind_the_probe_stands_beside_it(monkeypatch):
    found = rankings(trained("usual"))
    compared = (found["metric"] != PROBE) & (found["depth"] == 2)
    values = {"behind": 0.5, "behind_low": 0.1, "behind_high": 0.9}
    found = found.assign(**{name: compared.map({True: value, False: float("nan")}) for name, value in values.items()})
    monkeypatch.setattr(section.judged, "rankings", lambda run: found)
    shown = next(each for each in told.__wrapped__("usual").tables if each.title == "Which probe metrics rank recipes?")
    assert shown.heads[-2:] == ("behind, 2 blocks", "behind, 8 blocks")
    rows = {row[0].text: [cell.text for cell in row[-2:]] for row in shown.rows}
    assert rows.pop(PROBE) == ["–", "–"]
    assert set(map(tuple, rows.values())) == {("+0.50 (+0.10 to +0.90)", "–")}
    assert "paired bootstrap" in shown.note and "better than" in shown.note


def test_diverged_and_failed_runs_are_named():
    assert told("usual").broken == []
    broken = told("diverged").broken
    assert "nanogpt, 2 blocks, rate 0.01, warmup 0: 1 of 2 seeds diverged, the first after 30 steps." in broken
    assert "nanogpt-no-depth-scale, 4 blocks, rate 0.01, warmup 40: 2 of 2 seeds diverged" in " ".join(broken)
    assert any(text.endswith("failed: RuntimeError: out of memory.") for text in told("missing cells").broken)


def test_scope_says_runs_tokens_and_machine():
    scope = dict(told("usual").scope)
    assert scope["training runs"] == "108 of 108"
    assert scope["seeds"] == "3"
    assert scope["tokens per run"] == "76.8 thousand"
    assert scope["machine"] == "cpu, Linux x86_64"
    assert scope["training time"] == "5 min, all runs together"
    planned, done = len(trained("missing cells").manifest["cells"]) - 12, len(trained("missing cells").tables.runs)
    assert dict(told("missing cells").scope)["training runs"] == f"{done} of {planned}"


def test_every_flag_is_defined_and_so_are_the_columns():
    words = plain(render("usual"))
    for name in ("diverged", "escaped", "stuck", "overshoot", "spikes", "grad_norm_peak", "false alarm"):
        assert name in told("usual").definitions["Measures of a run"] or name in words
    for name in ("training", "runs"):
        assert f"{name}.csv" in words
        assert all(column in words for column in schema.TABLES[name])


def test_single_runs_are_a_table_and_nothing_is_graded():
    found = told("train")
    assert found.outcomes == [] and [each.title for each in found.tables] == ["Every training run"]
    assert found.sentence == "2 of 2 runs learn more than how often tokens come."
    (first, second) = told("train, one diverged").tables[0].rows
    assert {"diverged"} <= {*texts(first), *texts(second)}
    assert "2 of 2 runs diverged." in told("train, one diverged").sentence


def test_a_recipe_id_is_text_and_never_markup():
    text = render("hostile")
    assert "<script>alert" not in text and text.count("<script") == 1
    assert HOSTILE in "".join(Page(text).words)


def test_the_heading_says_what_training_did():
    run = trained("usual")
    expected = confirm.verdict(run, outcomes(run, judged("usual")))
    assert "probe agrees with training" in expected
    assert expected in plain(render("usual"))
