"""The figure over the steps of a watch."""

import re

import numpy as np
import pandas as pd
import pytest
from synthetic import synthetic_run

from initlab.judge.rules import evaluate
from initlab.report import console, figures, html
from initlab.report.document import Document
from initlab.report.svg import both
from initlab.report.view import steps_of
from initlab.rundir import Run
from initlab.schema import Tables, cast

pytestmark = pytest.mark.integration

STEPS = (0, 10, 20)


@pytest.fixture(scope="module")
def run():
    """A probe that is told three times, each time at another step and ten times as loud, with updates."""
    probe = synthetic_run(recipes=("nanogpt",), depths=(8,), seeds=1, kind="watch")
    parts = []
    for place, step in enumerate(STEPS):
        frames = {name: frame.assign(run_id=f"as-found-step{step}") for name, frame in probe.tables.items()}
        for name in ("records", "heads", "summary"):
            frames[name] = frames[name].assign(step=step)
        records = frames["records"]
        records["var"] *= 10.0**place
        weights = records[records["kind"] == "weight"]
        updates = weights.assign(kind="update", rms=1e-2 * weights["rms"] / 2**place)
        frames["records"] = pd.concat([records.astype({"kind": str}), updates.astype({"kind": str})])
        parts.append(Tables(**{name: cast(name, frame) for name, frame in frames.items()}))
    config = {**probe.manifest["config"], "every": 10}
    return Run(Tables.concat(parts), {**probe.manifest, "config": config, "cells": [], "command": "initlab.watch(…)"})


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_a_panel_each_for_stream_gradient_and_updates_with_direct_labels(run):
    figure = figures.draw("watch", run, "dark")
    assert [axes.get_yscale() for axes in figure.axes] == ["log"] * 3
    shown = texts(figure)
    for text in ("embedding", "block 7", "mlp_out", "10⁻³, a rule of thumb", "step (updates done)"):
        assert text in shown
    assert "bias" not in shown  # starts at 0
    stream = figure.axes[0].lines
    named = [line.get_xdata() for line in stream if len(line.get_xdata()) == len(STEPS)]
    between = [line[:, 0] for drawn in figure.axes[0].collections for line in drawn.get_segments()]
    assert len(named) == 4 and len(named + between) == 9  # the embedding and 8 blocks
    for xs in named + between:
        np.testing.assert_array_equal(xs, STEPS)
    np.testing.assert_array_equal(stream[0].get_xdata(), STEPS)


def test_the_thin_lines_between_say_which_block_they_are(run):
    svg = both(figures.draw("watch", run), "watch", "title", "words")[0]
    said = "\n".join(re.findall("<title>(.*?)</title>", svg, re.DOTALL))
    assert all(f"block {block}" in said for block in range(8)) and "mlp_out" in said


def test_words_state_both_ends(run):
    words = figures.FIGURES.get("watch").words(run)
    assert words.startswith("From step 0 to step 20. Residual stream, after each block: embedding ")
    assert "mlp_in 0.010 to 0.0025" in words and words.endswith(".")


def test_values_that_are_not_finite_are_marked_not_dropped(run):
    records = run.tables.records.copy()
    records.loc[(records["step"] == 20) & (records["site"] == "resid_post"), "var"] = np.nan
    broken = Run(Tables(records, run.tables.heads, run.tables.summary, run.tables.coverage), run.manifest)
    assert "not finite" in texts(figures.draw("watch", broken))
    assert "to NaN" in figures.FIGURES.get("watch").words(broken)


def test_what_is_missing_is_said(run):
    assert figures.FIGURES.get("watch").needs(synthetic_run()) == "needs a training loop under `initlab.watch`"
    one = Run(run.tables.of("as-found-step0"), run.manifest)
    assert figures.FIGURES.get("watch").needs(one) == "needs two watched steps or more"
    empty = Run(Tables(run.tables.records.iloc[:0], summary=run.tables.summary), run.manifest)
    assert figures.FIGURES.get("watch").needs(empty) == "no variance and no update was recorded"


def test_page_and_terminal_tell_steps(run):
    findings = evaluate(run)
    page = html.page(Document(run, findings))
    for text in ("Recorded inside a training loop", "Steps watched (3)", "One row per watched step"):
        assert text in page
    lines = console.text(Document(run, findings), width=110).splitlines()
    table = [line.split() for line in lines if line[:3].strip() in ("0", "10", "20")]
    assert [row[0] for row in table] == ["0", "10", "20"]
    assert steps_of(run) == list(STEPS)


def test_rules_of_an_init_are_given_the_first_step_alone(run):
    records = run.tables.records.copy()
    late = (records["step"] == 20) & (records["kind"] == "weight_grad")
    records.loc[late, "abs_max"] = 0.0
    spoilt = Run(Tables(records, run.tables.heads, run.tables.summary, run.tables.coverage), run.manifest)
    status = {finding.code: finding.status for finding in evaluate(spoilt)}
    assert status["GRD001"] == "pass"
    records.loc[late, "frac_nonfinite"] = 0.5
    numbers = next(finding for finding in evaluate(spoilt) if finding.code == "NUM001")
    assert numbers.status == "fail" and "step 20" in numbers.message
