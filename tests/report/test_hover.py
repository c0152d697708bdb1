import pickle
import re
from functools import cache
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from synthetic import synthetic_run
from trained_variants import trained
from variants import HOSTILE, variants

from initlab.judge.words import number
from initlab.report import figures, hover
from initlab.report.figures.data import best_runs, by_recipe, stream
from initlab.report.figures.dots import _heads, _losses
from initlab.report.figures.heatmaps import _site_grids
from initlab.report.svg import both
from initlab.report.theme import short
from initlab.report.view import view


@cache
def drawn(name, case="usual"):
    return both(figures.draw(name, variants()[case]), name, "title", "words")[0]


def places(svg):
    """What pointing says, each as its lines, by the element that it is said by."""
    titled = (each for each in ElementTree.fromstring(svg).iter() if each.tag in ("circle", "path"))
    return [(each, each.find("title").text.split("\n")) for each in titled if each.find("title") is not None]


def said(svg):
    """`name: position: value`, a text for every point, however many share a place."""
    found = []
    for _, lines in places(svg):
        if len(lines) > 1 and ": " not in lines[0]:
            parts = [line.rpartition(": ") for line in lines[1:]]
            lines = [" · ".join(filter(None, (name, f"{lines[0]}: {value}"))) for name, _, value in parts]
        found += lines
    return found


def shown(draw, height=3.0):
    """What pointing at axes says that `draw` draws on."""
    figure = Figure(figsize=(4, height))
    draw(figure.subplots())
    return said(both(figure, "a", "title", "words")[0])


def test_a_line_says_every_point_of_every_recipe_and_of_its_closed_form():
    run, expected = view(variants()["usual"]), []
    for n_layer in run.depths:
        for recipe, line in by_recipe(run, stream(run, "activation", n_layer), "after").items():
            for block, value in zip(line.x, line.median, strict=True):
                expected.append(f"{recipe} · after block {block:.0f}: {number(value, 3)}")
    found = said(drawn("residual"))
    assert sorted(each for each in found if "closed form" not in each) == sorted(expected)
    assert sum("closed form" in each for each in found) > len(run.recipes) * len(run.depths)


def test_a_place_lies_on_the_mark_whose_value_it_says():
    tree = ElementTree.fromstring(drawn("residual"))
    marks = np.array([[float(use.get("x")), float(use.get("y"))] for use in tree.iter("use")])
    circles = [each for each, lines in places(drawn("residual")) if "closed form" not in lines[0]]
    assert len(circles) > 40
    centres = np.array([[float(each.get("cx")), float(each.get("cy"))] for each in circles])
    assert np.abs(centres[:, None] - marks[None]).max(axis=2).min(axis=1).max() < 0.11  # both are rounded to tenths


def test_places_do_not_hide_each_other():
    for axes in (drawn("residual"), drawn("attention")):
        circles = [[float(each.get(key)) for key in ("cx", "cy", "r")] for each, _ in places(axes)]
        x, y, r = np.array(circles).T
        apart = np.hypot(x[:, None] - x, y[:, None] - y)
        np.fill_diagonal(apart, np.inf)
        assert (apart > r[:, None] + r - 0.25).all()
        assert r.min() > 1.1 and r.max() <= 6


def test_dots_say_which_head_they_are():
    run = variants()["probe"]
    heads, _ = _heads(run)
    expected = [
        f"block {row.layer}, head {row.head}: {number(row.entropy_frac, 4)}" for row in heads.itertuples(index=False)
    ]
    assert len(expected) == 3 * 6
    assert sorted(said(drawn("attention", "probe"))) == sorted(expected)


def test_a_dot_of_a_row_says_whose_it_is_and_a_bar_where_it_ends():
    losses = _losses(variants()["usual"])
    found = said(drawn("first-loss"))
    row = losses.iloc[0]
    assert f"{row['recipe']} · {row['n_layer']} blocks: {number(row['middle'], 3)} nats" in found
    assert f"closed form · {row['recipe']} · {row['n_layer']} blocks: {number(row['expected'], 3)} nats" in found
    ends = sum(each.startswith("end of range over seeds") for each in found)
    assert ends == 2 * len(losses)
    assert not [each for each in said(drawn("first-loss", "probe")) if "range" in each]  # of one seed


def test_a_cell_of_a_heatmap_says_its_row_block_and_value():
    run = synthetic_run(("nanogpt",), depths=(20,), seeds=1)
    sites, grids = _site_grids(view(run))
    (grid,) = grids.values()
    expected = [
        f"{sites[row]}, block {block}: ×{number(2 ** grid[row, block], 3)}"
        for row, block in np.argwhere(np.isfinite(grid))
    ]
    assert len(expected) > 20
    found = places(both(figures.draw("site-map", run), "site-map", "title", "words")[0])
    assert [lines for _, lines in found] == [[each] for each in expected]
    # rows go down, blocks to the right
    corners = [[int(each) for each in re.findall(r"-?\d+", path.get("d"))] for path, _ in found]
    assert [corners[0][0], corners[0][1]] == [min(each[0] for each in corners), min(each[1] for each in corners)]
    assert corners[1][0] == corners[0][2] and corners[1][1] == corners[0][1]
    assert all(left < right and top < bottom for left, top, right, bottom, _ in corners)


def test_training_and_validation_are_told_apart_and_have_their_unit():
    run = trained("one depth")
    found = said(both(figures.draw("losses", run), "losses", "title", "words")[0])
    assert all(re.fullmatch(r"\S+, (training|validation) · step \d+: \d\.\d\d nats per token", each) for each in found)
    own = best_runs(run)
    rows = run.tables.training
    rows = rows[rows["run_id"].isin(own.loc[own["recipe"] == "nanogpt", "run_id"]) & rows["val_loss"].notna()]
    step, value = next(iter(rows.groupby("step")["val_loss"].median().items()))
    assert f"nanogpt, validation · step {step}: {number(value, 3)} nats per token" in found


def test_names_are_text_and_not_markup():
    svg = drawn("residual", "hostile")
    assert "<script" not in svg
    assert any(each.startswith(short(HOSTILE)) for each in said(svg))


@pytest.mark.parametrize("name", ["residual", "branches"])
@pytest.mark.parametrize("case", ["not finite", "zero init", "no expectation"])
def test_what_is_not_drawn_says_nothing(name, case):
    found = said(drawn(name, case))
    assert found
    assert not [each for each in found if re.search(r": (?:0|NaN|-?inf)$", each)]


def test_a_cell_with_its_number_in_it_says_nothing_more():
    assert "×" not in "".join(said(drawn("site-map", "probe")))


def test_bytes_are_deterministic():
    run = variants()["usual"]
    for name in ("attention", "gradients"):
        assert both(figures.draw(name, run), name, "title", "words")[0] == drawn(name)


def test_a_figure_of_anybody_has_values_where_its_lines_have_labels():
    def draw(axes):
        axes.plot([1, 2.5, np.nan, 4, 5], [1e-3, 0.02, 1, np.nan, 70], "o", label="mine")
        axes.plot([1, 2], [1, 2], "o")
        axes.axhline(3, label="a guide")
        axes.plot([0.1, 0.2], [0.3, 0.4], "o", transform=axes.transAxes, label="of the axes")
        axes.set(xlabel="depth, blocks", yscale="log", ylim=(1e-4, 10))

    assert shown(draw) == ["mine · depth 1: 0.00100", "mine · depth 2.5: 0.0200"]


def test_dots_and_cells_need_no_label_and_a_colour_bar_has_none():
    def draw(axes):
        axes.scatter([1, 2], [3, 4])
        mesh = axes.pcolormesh([0, 1, 2], [5, 6, 7], np.ma.masked_equal([[1, 2], [0, 400]], 0))
        axes.figure.colorbar(mesh)
        axes.set(xlabel="x", ylim=(0, 7))

    assert shown(draw) == ["1.00", "2.00", "400", "x 1: 3.00", "x 2: 4.00"]


def test_own_words_for_a_point_are_those_that_matplotlib_shows():
    def draw(axes):
        axes.plot([1, 2], [3, 4], "o", label="a & b")
        hover.read(axes, lambda x, y: f"at {x:g}: <{y:g}>")
        assert axes.format_coord(1, 3) == "at 1: <3>"

    assert shown(draw) == ["a & b · at 1: <3>", "a & b · at 2: <4>"]


def test_lines_of_a_collection_have_names_of_their_own():
    def draw(axes):
        lines = LineCollection([[(0, 0), (1, 1)], [(0, 1), (1, 0)]])
        hover.name(lines, "up", "down")
        axes.add_collection(lines)
        axes.add_collection(LineCollection([[(0, 0.5), (1, 0.5)], [(0, 0.2), (1, 0.2)]], label="both"))
        axes.add_collection(LineCollection([[(0, 0.7), (1, 0.7)]]))
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="x")

    ends = [("up", 0, 1), ("down", 1, 0), ("both", 0.5, 0.5), ("both", 0.2, 0.2)]
    expected = [f"{name} · x {x}: {number(ends[x], 3)}" for name, *ends in ends for x in (0, 1)]
    assert shown(draw) == expected


def test_marks_at_one_place_share_a_tooltip_that_says_the_position_once():
    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    for index in range(12):
        axes.plot([1, 2], [1, 2 + index], "o", label=f"line {index}")
    axes.set(xlabel="step")
    lines = places(both(figure, "a", "title", "words")[0])[0][1]
    assert lines == ["step 1", *(f"line {index}: 1.00" for index in range(6)), "and 6 more"]


def test_what_is_dense_is_thinned_out_or_left_alone():
    many = np.linspace(0, 1, 300)

    def crowd(axes):
        axes.plot(many, many**2, label="without marks")
        axes.plot(many, many, "o", label="too dense", markevery=[0])
        axes.scatter(np.arange(5000) / 5000, np.arange(5000) / 5000)

    found = shown(lambda axes: axes.plot(many, many, label="unmarked"))
    assert len(found) == 12 and found[0] == "unmarked · 0: 0"
    assert {each.split(" · ")[0] for each in shown(crowd)} == {"without marks", "too dense"}
    several = shown(lambda axes: [axes.plot(many, many + at, "o", label=f"{at}") for at in range(4)], height=9)
    assert len(several) == 400
    mixed = shown(lambda axes: [axes.plot(many[:at], many[:at], "o", label=f"{at}") for at in (10, 300, 300)], height=9)
    assert sum(each.startswith("10 ") for each in mixed) == 10  # the long ones make room
    every = shown(lambda axes: axes.plot(many, many, "o", label="a", markevery=100))
    assert len(every) == 3


def test_of_many_cells_those_that_stand_out_have_values():
    values = np.random.default_rng(0).standard_normal((30, 30))
    found = shown(lambda axes: axes.pcolormesh(values, vmin=-4, vmax=4))
    least = np.sort(np.abs(values).ravel())[-400]
    assert found == [number(value, 3) for value in values.ravel() if abs(value) >= least]
    assert shown(lambda axes: axes.pcolormesh(np.zeros((70, 70)))) == []


def test_a_figure_can_be_kept_by_who_got_it():
    for name in ("residual", "site-map", "attention", "first-loss"):
        assert isinstance(pickle.loads(pickle.dumps(figures.draw(name, variants()["probe"]))), Figure)


def test_a_figure_without_data_has_nothing_over_it():
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([1, 2])
    assert "pointer-events" not in both(figure, "a", "title", "words")[0]
