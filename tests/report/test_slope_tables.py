"""The slopes of a run in tables and figures."""

import math

import numpy as np
import pandas as pd
import pytest

from initlab import schema
from initlab.judge.slopes import COLUMNS
from initlab.report import figures
from initlab.report.scale import lost, shown_steps, slope_tables, slope_text
from initlab.rundir import Run
from initlab.schema import Tables

KEYS = {"n_layer": 2, "n_head": 1, "block_size": 4, "vocab_size": 4, "n_params": 1, "n_tokens": 4, "position": 0}
RECIPES = ("nanogpt", "xavier")
EXPONENTS = {("mlp_pre", "nanogpt"): 1.0, ("logits", "nanogpt"): 2.0}


def scale_run(recipes=RECIPES, sites=("mlp_pre", "resid_post", "logits"), steps=(0, 1), axis="n_embd", broken=()):
    rows, summary = [], []
    for recipe in recipes:
        for size in (64, 128, 256):
            for seed in range(2):
                for step in steps:
                    key = KEYS | {"n_embd": 64, axis: size, "recipe": recipe, "seed": seed, "step": step}
                    key["run_id"] = f"{recipe}-{size}-{seed}"
                    summary.append(_only(key, schema.SUMMARY) | {"loss": math.nan if (recipe, step) in broken else 1.0})
                    for site in sites:
                        var = (1 + seed / 10) * float(size) ** EXPONENTS.get((site, recipe), 0.0)
                        row = _only(key, schema.RECORDS) | {"site": site, "module": f"net.{site}", "var": var}
                        row |= {"call": 0, "numel": 4, "layer": None if site == "logits" else 1}
                        rows += [row | {"kind": kind} for kind in ("activation", "change")[: 2 if step else 1]]
    tables = Tables(records=schema.table("records", rows), summary=schema.table("summary", summary))
    return Run(tables, {"kind": "scale", "config": {"recipes": list(recipes)}, "cells": [], "failed": {}})


def _only(key, columns):
    return {name: value for name, value in key.items() if name in columns}


def frame(rows):
    base = dict.fromkeys(COLUMNS, 0.0) | {
        "recipe": "r",
        "axis": "n_embd",
        "kind": "activation",
        "module": "",
        "step": 0,
        "expected": math.nan,
        "verdict": "flat",
    }
    return pd.DataFrame([base | row for row in rows], columns=list(COLUMNS))


def test_a_selection_is_shown_and_the_rest_is_counted():
    sites = ["embed", "ln_1", "mlp_pre", "k"]
    (table,) = slope_tables(frame([{"site": site} for site in sites]))
    assert [row.name for row in table.rows] == ["embed", "mlp_pre"] and table.left_out == 2
    (table,) = slope_tables(frame([{"site": site} for site in sites]), every=True)
    assert [row.name for row in table.rows] == sites and table.left_out == 0
    (table,) = slope_tables(frame([{"site": site} for site in sites]), "*_1")
    assert [row.name for row in table.rows] == ["ln_1"]


def test_layers_without_a_sites_name_go_by_their_own():
    rows = [{"site": "module", "module": f"net.{place}"} for place in range(20)]
    change = {"site": "module", "module": "(output)", "kind": "change"}
    (table,) = slope_tables(frame([change, *rows]))
    assert [row.name for row in table.rows] == [f"net.{place}" for place in range(11)] + ["(output) − init"]
    assert table.left_out == 9


def test_the_verdict_is_that_of_the_last_step():
    rows = [{"site": "q", "step": step, "slope": step, "high": step + 0.5} for step in range(6)]
    rows[-1]["verdict"] = "grows"
    (table,) = slope_tables(frame(rows))
    assert table.steps == [0, 2, 3, 5]
    assert table.rows[0].verdict == "grows" and table.rows[0].cells[5] == (5.0, 0.5)
    rows[-1]["slope"] = math.nan
    assert slope_tables(frame(rows))[0].rows[0].verdict == "not fitted"


def test_texts():
    assert slope_text(-0.001, 0.05) == "+0.00 ±0.05"
    assert slope_text(1.0, math.nan) == "+1.00"
    assert slope_text(math.nan, math.nan) == "–"
    assert shown_steps([0, 1, 2]) == [0, 1, 2]


def test_lost_sizes_are_named():
    notes = lost(scale_run(broken={("xavier", 1)}))
    assert notes[0] == (
        "xavier at n_embd 64, n_layer 2: the loss isn't finite from step 1 on (2 of 2 seeds); fitted without"
    )
    assert len(notes) == 3


def test_coord_has_a_row_per_site_a_column_per_step_and_slopes_at_the_lines():
    figure = figures.draw("coord", scale_run())
    assert len(figure.axes) == 6
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["mlp_pre", "resid_post", "logits"]
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["at init", "1 step"]
    assert {text.get_text() for text in figure.axes[-1].texts} == {"nanogpt +2.0", "xavier +0.0"}
    assert {text.get_text() for text in figure.axes[0].texts} == {"+1.0", "+0.0"}
    spans = {round(float(np.diff(np.log10(axes.get_ylim()))[0]), 6) for axes in figure.axes}
    assert len(spans) == 1  # equal slopes look equal in every row
    for left, right in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        assert left.get_ylim() == right.get_ylim()


def test_the_depth_check_shows_what_steps_changed():
    run = scale_run(axis="n_layer")
    figure = figures.draw("coord-depth", run)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 4  # no change at step 0
    assert "resid_post − init n_layer^+0.00" in figures.FIGURES.get("coord-depth").words(run)


def test_a_fifth_recipe_is_not_drawn_and_that_is_said():
    run = scale_run(("a", "b", "c", "d", "e"))
    assert len(figures.draw("coord", run).axes[-1].texts) == 4
    assert "1 further recipe not drawn" in figures.FIGURES.get("coord").words(run)


@pytest.mark.parametrize("name", ["coord", "coord-depth"])
def test_runs_without_steps_say_what_to_run(name):
    run = scale_run()
    run.manifest["kind"] = "compare"
    assert "initlab scale --" in figures.FIGURES.get(name).needs(run)
    empty = scale_run()
    empty.tables.records["var"] = math.nan
    assert figures.FIGURES.get(name).needs(empty) != ""
