import math

import pandas as pd
import pytest
from synthetic_training import UNIGRAM, trained_run

from initlab.judge.outcomes import effects, outcomes, regrets
from initlab.judge.rules import evaluate
from initlab.report import confirm, console
from initlab.report.confirm import rate_text, seeds_text, verdict
from initlab.report.document import Document
from initlab.report.facts import shortfall
from initlab.report.view import overview, view
from initlab.rundir import Run
from initlab.schema import Tables

pytestmark = pytest.mark.integration


def judged(run):
    findings = evaluate(run)
    return (run, findings, regrets(run), effects(run), outcomes(run, findings))


def show(run, **options):
    return console.text(Document(run, evaluate(run)), **{"width": 80, **options})


@pytest.fixture(scope="module")
def usual():
    return trained_run(steps=60)


def small(loss=lambda r, n, lr, w, s: 2.5 + s / 1000, recipes=("nanogpt", "torch-default"), **more):
    usual = {"depths": (2,), "lrs": (1e-3, 1e-2), "warmups": (0, 5), "steps": 20, "probed": ("nanogpt",)}
    return trained_run(recipes, loss=loss, **{**usual, **more})


def squeezed(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_usual_confirmation(usual):
    lines = squeezed(show(usual, width=100))
    assert lines[0].startswith("initlab 0.1.0 confirm · n_layer 4, 16, n_embd 384")
    assert "60 steps of AdamW, lr 0.001, 0.003, 0.01, warmup none, 40" in " ".join(lines)
    assert "4 layers: 54 runs (3 rates, 2 warmups, 3 seeds)" in lines
    assert "torch-default 0.42 ±0.08 0.83 ±0.01 0.003: 3.327 18 0" in lines
    assert "nanogpt (baseline) 0.13 ±0.07 0.03 ±0.03 0.003: 2.509 0 0" in lines
    assert "nanogpt-no-depth-scale ! warning RES001 trains false alarm" in lines
    assert "nanogpt-no-depth-scale 16 40 +0.083 ±0.006 worse +0.088 ±0.006 worse" in lines
    assert "nanogpt-no-depth-scale +0.199 ±0.077 +0.500 ±0.106" in lines
    text = " ".join(lines)
    assert "nanogpt-no-depth-scale at 16 layers, no warmup +0.073 (4 seeds);" in text
    assert (
        "torch-default is stuck at every depth; nanogpt-no-depth-scale trains worse at 16 layers; the probe agrees "
        "with training in 3 of 6 cases, missed torch-default at every depth and gave a false alarm on "
        "nanogpt-no-depth-scale at 4 layers."
    ) in text
    assert "regret: mean over the rates" in text
    assert "(10 such groups, each with a 5 % chance of a false verdict)" in text


def test_every_run_fits_its_columns(usual):
    runs = {
        "usual": usual,
        "one seed, one rate, no warmup": small(seeds=1, lrs=(1e-3,), warmups=(0,)),
        "diverged": small(lambda *_: math.nan),
        "some missing": small(missing=lambda r, n, lr, w, s: r == "nanogpt" and w == 5),
        "nothing trained": small(missing=lambda *_: True),
        "three warmups": small(warmups=(0, 5, 10)),
        "four depths": small(depths=(1, 2, 3, 4), lrs=(1e-3,)),
        "nothing at all": Run(Tables(), {**usual.manifest, "cells": []}),
    }
    for name, run in runs.items():
        document = Document(run, evaluate(run))
        for width in (60, 100):
            text = console.text(document, width=width)
            assert max(map(len, text.splitlines())) <= width, name
            assert "nan" not in text.lower().replace("nanogpt", ""), name
            assert "\x1b" not in text


def test_a_narrow_terminal_leaves_columns_out_and_names_whole(usual):
    lines = squeezed(show(usual, width=60))
    assert "nanogpt (baseline) 0.13 ±0.07 0.03 ±0.03 0.003: 2.509" in lines
    assert "nanogpt-no-depth-scale 16 40 +0.083 ±0.006 worse" in lines
    assert "left out at 60 columns: runs stuck, diverged" in lines


def test_one_seed_says_that_nothing_can_be_separated():
    text = show(small(seeds=1, warmups=(0,)))
    assert "With one seed nothing can be separated" in text
    assert "±" not in text.split("regret: mean")[0]
    assert "what 5 steps" not in text


def test_no_warmup_swept_has_no_column_for_it():
    lines = squeezed(show(small(warmups=(0,))))
    assert "recipe no warmup and loss stuck diverged" in lines
    assert not any("of warmup gain" in line for line in lines)


def test_a_best_rate_at_the_end_of_the_sweep_is_marked():
    assert rate_text(1e-3, (1e-3, 1e-2)) == "≤0.001"
    assert rate_text(1e-2, (1e-3, 3e-3, 1e-2)) == "≥0.01"
    assert rate_text(3e-3, (1e-3, 3e-3, 1e-2)) == "0.003"
    assert rate_text(3e-3, (3e-3,)) == "0.003"
    assert rate_text(math.nan, (3e-3,)) == "–"


def test_seeds_beyond_a_hundred_are_not_counted():
    assert (seeds_text(5.0), seeds_text(math.inf)) == ("5 seeds", "> 100 seeds")


def test_few_seeds_more_come_first_and_long_lists_are_cut():
    rows = [
        {"question": "recipe", "recipe": f"r{n}", "n_layer": 2, "warmup": 0, "seeds": 3, "difference": 0.1}
        | {"verdict": "not separated", "seeds_needed": float(n)}
        for n in (50, 7, 9, 30, 4, 12, 11, math.inf)
    ]
    text = confirm.unseparated_sentence(pd.DataFrame(rows))
    assert text.startswith(
        "Not separated (seeds that it would take): r4 at 2 layers, no warmup +0.100 (4 seeds); r7 at"
    )
    assert text.endswith("r11 at 2 layers, no warmup +0.100 (11 seeds); 4 more in effects.csv.")


def test_stuck_and_diverged_are_counted():
    def loss(recipe, n_layer, lr, warmup, seed):
        return 2.5 if recipe == "nanogpt" else (math.nan if lr > 5e-3 and warmup == 0 else UNIGRAM)

    lines = squeezed(show(small(loss)))
    assert next(line for line in lines if line.startswith("torch-default")).endswith(" 9 3")


def outcome(recipe, n_layer, outcome, grade):
    return {"recipe": recipe, "n_layer": n_layer, "outcome": outcome, "grade": grade}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [outcome("a", 2, "trains", "agreed"), outcome("b", 2, "trains", "agreed")],
            "a and b train; the probe agrees with training in 2 of 2 cases.",
        ),
        ([outcome("a", 2, "trains", "agreed")], "a trains; the probe agrees with training in 1 of 1 case."),
        (
            [
                outcome("a", 2, "stuck", "missed"),
                outcome("b", 2, "stuck", "agreed"),
                outcome("a", 4, "trains", "agreed"),
            ],
            "a and b are stuck at 2 layers; the probe agrees with training in 2 of 3 cases and missed a at 2 layers.",
        ),
        (
            [outcome("a", 2, "undecided", "undecided"), outcome("b", 2, "trains", "false alarm")],
            "The probe agrees with training in 0 of 1 case and gave a false alarm on b at 2 layers; undecided: a at 2 "
            "layers.",
        ),
        (
            [outcome("a", 2, "diverges", "missed"), outcome("b", 2, "trains worse", "agreed")],
            "a diverges at 2 layers; b trains worse at 2 layers; the probe agrees with training in 1 of 2 cases and "
            "missed a at 2 layers.",
        ),
        (
            [outcome("a", 2, "not trained", "undecided")],
            "No recipe is trained at every rate, so that there is nothing to confirm.",
        ),
    ],
)
def test_the_verdict_in_words(usual, rows, sentence):
    assert verdict(usual, pd.DataFrame(rows)) == sentence


def test_a_run_in_which_nothing_was_learned_confirms_nothing():
    run = small(lambda *_: UNIGRAM, depths=(2, 3), probed=None)
    text = " ".join(show(run).split())
    assert "agrees" not in text
    assert "No recipe learned more than token frequencies at 2 and 3 layers: more steps or other rates would" in text


def test_what_is_missing_is_said():
    run = small(missing=lambda r, n, lr, w, s: s == 2)
    run.manifest["finished"] = None
    text = " ".join(show(run).split())
    assert "! Incomplete: 3 of 6 models probed, 16 of 24 runs trained; the same command" in text
    assert "So far, 19 of 30 cells: " in text


def test_cells_that_failed_alike_share_a_sentence():
    run = small()
    ids = [f"torch-default-L2-d384-s{seed}-lr0.01-w0" for seed in range(4)]
    run.manifest["failed"] = dict.fromkeys(ids, "out of memory") | {"nanogpt-L2-d384-s0": "a cable is loose"}
    assert shortfall(run)[-2:] == [
        f"Cells {ids[0]}, {ids[1]} and 2 more could not be trained: out of memory",
        "Cell nanogpt-L2-d384-s0 could not be measured: a cable is loose",
    ]


def test_figures_and_numbers_of_the_probe_are_those_before_training(usual):
    shown = view(usual)
    assert set(shown.summary["step"]) == {0}
    assert shown.depths == [4, 16]
    assert len(shown.summary) == 18
    # a run that broke in its first step has a row at step 0 of its own
    summary = usual.tables.summary.copy()
    summary.loc[summary["step"] > 0, "step"] = 0
    early = Run(Tables(**{**dict(usual.tables.items()), "summary": summary}), usual.manifest)
    assert len(view(early).summary) == 18
    assert overview(early) == overview(usual)
