"""The figures of training runs: what they show, and that no odd run breaks or clips them."""

import re

import numpy as np
import pytest
from synthetic import synthetic_run
from synthetic_training import LN_VOCAB, UNIGRAM
from trained_variants import CASES, trained

from initlab.judge.outcomes import regrets, run_measures
from initlab.report import figures
from initlab.report.figures import FIGURES
from initlab.report.figures.data import best_runs

pytestmark = pytest.mark.integration

TRAINED = (
    "losses",
    "rates",
    "regret",
    "warmup",
    "grad-norms",
    "schedule",
    "trained-residual",
    "trained-gradient",
)


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def clipped(figure):
    """Texts that stick out of the picture; ticks beyond an axis' limits are never drawn."""
    hidden = {
        id(label)
        for axes in figure.axes
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()))
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(limits) <= tick.get_loc() <= max(limits)
    }
    found = []
    for text in figure.findobj(lambda artist: hasattr(artist, "get_window_extent") and hasattr(artist, "get_text")):
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden:
            box = text.get_window_extent()
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
            found += [] if inside else [text.get_text()]
    return found


@pytest.fixture(scope="module")
def usual():
    return trained("usual")


@pytest.mark.parametrize("case", list(CASES))
def test_every_figure_is_described_or_says_why_not(case):
    run = trained(case)
    for name in TRAINED:
        if not FIGURES.get(name).needs(run):
            words = FIGURES.get(name).words(run)
            assert words.endswith(".") and not re.search(r"-0\.0+\b", words)
            assert not re.search(r"\bnan\b", words)


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("usual", TRAINED),
        ("eight recipes", ("losses", "rates", "regret", "warmup", "trained-residual")),
        ("one seed", ("warmup",)),
        ("diverged", TRAINED),
        ("all diverged", ("losses", "rates", "regret", "trained-residual")),
        ("missing cells", ("losses", "regret", "warmup")),
        ("hostile", ("losses", "regret")),
        ("train, one diverged", TRAINED),
        ("train, eight recipes", ("losses", "schedule")),
    ],
)
def test_no_text_is_clipped(case, names):
    run = trained(case)
    for name in names:
        if not FIGURES.get(name).needs(run):
            assert clipped(figures.draw(name, run)) == [], name


def test_a_clipped_text_is_found():
    figure = figures.draw("schedule", trained("train"))
    figure.text(0.99, 0.5, "too far to the right to be read")
    assert clipped(figure) == ["too far to the right to be read"]


@pytest.mark.parametrize(
    ("case", "figure", "reason"),
    [
        ("one rate", "rates", "needs two or more learning rates, this run has one: --lrs 1e-3,3e-3,1e-2"),
        ("one warmup", "warmup", "needs runs with and without warmup: --warmups 0,50"),
        ("nothing trained", "losses", "no training run has finished"),
        ("train", "regret", "needs a grid of recipes, rates and seeds: initlab confirm"),
        ("no records", "trained-residual", "no variance of the residual stream after training was recorded"),
        ("train", "rates", "needs a grid of recipes, rates and seeds: initlab confirm"),
        ("usual", "schedule", "of single runs: initlab train"),
    ],
)
def test_reasons(case, figure, reason):
    assert FIGURES.get(figure).needs(trained(case)) == reason


def test_a_run_that_was_only_probed_has_none_of_them():
    run = synthetic_run(("nanogpt",), depths=(2,), seeds=1)
    assert {FIGURES.get(name).needs(run) for name in TRAINED} == {
        "needs training runs: initlab confirm, or initlab train"
    }


def test_loss_curves_have_a_panel_per_depth_and_the_two_levels(usual):
    figure = figures.draw("losses", usual)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["2 blocks", "8 blocks"]
    shown = texts(figure)
    assert {"ln V", "unigram"} <= set(shown)
    assert any(text.startswith("nanogpt\nlr 0.0") for text in shown)
    levels = {line.get_ydata()[0] for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1}
    assert {LN_VOCAB, UNIGRAM} <= levels
    low, high = figure.axes[0].get_ylim()
    assert low < 3 and LN_VOCAB < high < LN_VOCAB + 1.5


def test_the_runs_shown_are_those_at_the_best_rate_with_warmup(usual):
    shown = best_runs(usual)
    best = regrets(usual).query("warmup == 40").set_index(["recipe", "n_layer"])["best_lr"]
    assert set(shown["warmup"]) == {40}
    assert len(shown) == 3 * 2 * 3
    for (recipe, n_layer), own in shown.groupby(["recipe", "n_layer"]):
        assert set(own["lr"]) == {best[recipe, n_layer]}


def test_validation_losses_are_marked_at_their_own_steps(usual):
    figure = figures.draw("losses", usual)
    marks = [line for line in figure.axes[0].lines if line.get_linestyle() == "None"]
    assert [list(line.get_xdata()) for line in marks] == [[0, 50, 100, 150]] * 3
    measured = best_runs(usual).query("recipe == 'nanogpt' and n_layer == 2")
    assert marks[0].get_ydata()[-1] == pytest.approx(measured["val_loss"].median())


def test_a_curve_ends_where_half_of_its_seeds_have_diverged():
    run = trained("all diverged")
    line = next(each for each in figures.draw("losses", run).axes[0].lines if each.get_linewidth() == 1.8)
    drawn = line.get_xdata()[np.isfinite(line.get_ydata())]
    assert drawn.max() == 29  # of 60 steps; NaN from step 30 on
    assert "diverged at" in FIGURES.get("losses").words(run)


def test_no_spike_is_lost_when_lines_are_thinned_out():
    run = trained("one seed")
    training = run.tables.training.copy()
    shown = best_runs(run).query("n_layer == 4").iloc[0]
    training.loc[(training["run_id"] == shown["run_id"]) & (training["step"] == 31), "grad_norm"] = 99.0
    spiked = type(run)(type(run.tables)(**{**dict(run.tables.items()), "training": training}), run.manifest)
    assert "99 at most" in FIGURES.get("grad-norms").words(spiked)


def test_the_valley_has_a_panel_per_depth_and_warmup(usual):
    figure = figures.draw("rates", usual)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["2 blocks, no warmup", "8 blocks, no warmup", "2 blocks, warmup 40", "8 blocks, warmup 40"]
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    measured = run_measures(usual).query("recipe == 'nanogpt' and n_layer == 2 and warmup == 0")
    medians = measured.groupby("lr")["loss"].median()
    line = next(each for each in figure.axes[0].lines if each.get_marker() == "o")
    assert list(line.get_xdata()) == pytest.approx(list(medians.index))
    assert list(line.get_ydata()) == pytest.approx(list(medians))


def test_diverged_runs_do_not_flatten_the_valley():
    figure = figures.draw("rates", trained("diverged"))
    assert figure.axes[0].get_ylim()[1] < 3.6 < LN_VOCAB


def test_regret_shows_dot_interval_and_what_a_mean_hides(usual):
    figure = figures.draw("regret", usual)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["no warmup", "warmup 40"]
    shown = texts(figure)
    assert "nanogpt · 8 blocks" in shown and any("9 of 9 stuck" in text for text in shown)
    row = regrets(usual).query("recipe == 'nanogpt' and n_layer == 8 and warmup == 0").iloc[0]
    bars = [list(line.get_xdata()) for line in figure.axes[0].lines if line.get_linewidth() == 2.2]
    assert pytest.approx([row["low"], row["high"]]) in bars
    assert "2 of 6 diverged" in " ".join(texts(figures.draw("regret", trained("diverged"))))


def test_the_gain_of_warmup_has_a_zero_line_and_grows_with_depth_here(usual):
    figure = figures.draw("warmup", usual)
    (axes,) = figure.axes
    assert any(list(line.get_xdata()) == [0, 0] for line in axes.lines)
    words = FIGURES.get("warmup").words(usual)
    assert words.startswith("What warmup takes off the loss, nats")
    assert "torch-default" in words and "not separated" in words
    assert "warmup helps →" in texts(figure)


def test_before_and_after_share_their_axis(usual):
    figure = figures.draw("trained-residual", usual)
    before, after = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["8 blocks, at init", "after 150 steps"]
    assert before.get_ylim() == after.get_ylim()
    first = next(line for line in before.lines if line.get_marker() == "o").get_ydata()
    last = next(line for line in after.lines if line.get_marker() == "o").get_ydata()
    assert last / first == pytest.approx(np.full(9, 10.0))  # as the synthetic run grows
    left, right = figures.draw("trained-gradient", usual).axes[0].get_xlim()
    assert left > right


def test_single_runs_show_their_schedule():
    run = trained("train")
    (axes,) = figures.draw("schedule", run).axes
    line = next(each for each in axes.lines if each.get_linewidth() == 1.8)
    planned = run.tables.training.query("step < 60").groupby("step")["lr"].first()
    assert list(line.get_ydata()) == pytest.approx(list(planned))
    assert FIGURES.get("schedule").words(run) == "Peak learning rate: every run 0.001, 20 steps of warmup, 60 steps."
    assert "nanogpt\nand all others" in texts(axes.figure)


def test_eight_recipes_get_a_panel_each_beside_the_baseline():
    figure = figures.draw("losses", trained("eight recipes"))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 7
    assert {line.get_marker() for line in shown[0].lines} >= {"o", "s"}
