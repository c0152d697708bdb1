import numpy as np
import pytest
from synthetic import synthetic_run
from variants import variants

from initlab.errors import ConfigError
from initlab.report import figures
from initlab.report.figures import FIGURES, dots
from initlab.report.figures.data import curve

ORDER = [
    "watch",
    "losses",
    "rates",
    "regret",
    "warmup",
    "grad-norms",
    "schedule",
    "trained-residual",
    "trained-gradient",
    "coord",
    "coord-depth",
    "residual",
    "branches",
    "depth",
    "gradients",
    "gradient-roles",
    "first-loss",
    "attention",
    "site-map",
]


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


@pytest.fixture(scope="module")
def usual():
    return variants()["usual"]


def test_the_figures_and_their_order():
    assert list(FIGURES) == ORDER
    assert all(spec.title and spec.question.endswith((".", "?")) for spec in FIGURES.values())


def test_unknown_figure_lists_the_known_ones(usual):
    with pytest.raises(ConfigError, match="unknown figure 'rms'; figures: watch, losses, rates, regret"):
        figures.draw("rms", usual)


def test_a_figure_that_lacks_its_data_says_so():
    with pytest.raises(ConfigError, match="depth can't be drawn: needs models of two or more depths"):
        figures.draw("depth", variants()["probe"])


@pytest.mark.parametrize("case", [case for case in variants() if case not in ("usual", "nine recipes")])
def test_every_figure_is_described_or_says_why_not(case):
    run = variants()[case]
    for spec in FIGURES.values():
        reason = spec.needs(run)
        if not reason:
            assert spec.describe(run).endswith(".")
            assert "-0.00" not in spec.describe(run)


@pytest.mark.parametrize(
    ("case", "figure", "reason"),
    [
        ("no expectation", "site-map", "no activation has a closed-form prediction"),
        ("light", "attention", "no attention pattern was recorded"),
        ("nothing measured", "residual", "no variance of the residual stream was recorded"),
        ("nothing finite", "residual", "every variance of the residual stream is zero or not finite"),
        ("nothing finite", "first-loss", "no finite loss"),
    ],
)
def test_reasons(case, figure, reason):
    assert reason in FIGURES[figure].needs(variants()[case])


def test_residual_has_a_panel_per_depth_and_labels_at_the_deepest(usual):
    figure = figures.draw("residual", usual)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["4 blocks", "8 blocks", "16 blocks"]
    assert [text.get_text() for text in figure.axes[-1].texts] == usual.manifest["config"]["recipes"]
    assert figure.axes[0].get_legend() is None
    assert figure.axes[0].get_ylabel() == "variance of the residual stream"


def test_median_and_range_over_seeds_and_zero_and_nan():
    run = synthetic_run(("nanogpt",), depths=(2,), seeds=3)
    rows = run.tables.records
    rows = rows[(rows["site"] == "resid_post") & (rows["kind"] == "activation")]
    line = curve(rows, "layer")
    first = np.sort(rows.loc[rows["layer"] == 0, "var"].to_numpy())
    assert [line.low[0], line.median[0], line.high[0]] == pytest.approx(list(first))
    broken = rows.copy()
    broken.loc[(broken["layer"] == 0) & (broken["seed"] == 1), "var"] = np.nan
    broken.loc[broken["layer"] == 1, "var"] = 0.0
    line = curve(broken, "layer")
    assert np.isnan(line.median[0])
    assert list(line.drawable) == [False, False]


def test_depth_check_prints_the_exponents(usual):
    shown = texts(figures.draw("depth", usual))
    assert any("nanogpt\nL^-1.0" in text and "±" in text for text in shown)
    assert {"slope 0", "slope -1"} <= set(shown)
    words = FIGURES["depth"].describe(usual)
    assert "nanogpt MLP writes L^-1.0" in words
    assert "nanogpt-no-depth-scale MLP writes L^-0.01 ± 0.01" in words


def test_gradients_read_from_output_to_input(usual):
    axes = figures.draw("gradients", usual).axes[-1]
    left, right = axes.get_xlim()
    assert left > right


def test_five_recipes_become_one_panel_each_beside_the_baseline():
    run = variants()["five recipes, one depth"]
    baseline, *others = run.manifest["config"]["recipes"]
    figure = figures.draw("residual", run)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == others
    assert [text.get_text() for axes in shown for text in axes.texts] == [baseline]


def test_zero_branches_are_marked_not_dropped():
    assert "nanogpt (0)" in texts(figures.draw("branches", variants()["zero init"]))


def test_what_is_not_finite_is_named():
    assert "torch-default (not finite)" in texts(figures.draw("depth", variants()["not finite"]))
    assert "not finite" in texts(figures.draw("residual", variants()["not finite"]))


def test_a_broken_first_loss_does_not_flatten_the_others():
    run = synthetic_run(("nanogpt", "torch-default"), depths=(2,), seeds=2)
    broken = run.tables.summary["recipe"] == "torch-default"
    run.tables.summary.loc[broken, "loss"] = 234.5
    assert figures.draw("first-loss", run).axes[0].get_xscale() == "symlog"
    assert figures.draw("first-loss", variants()["probe"]).axes[0].get_xscale() == "linear"
    assert "torch-default +228.955" in dots.describe_first_loss(run)


def test_descriptions_state_numbers(usual):
    words = FIGURES["residual"].describe(usual)
    assert "nanogpt 0.00079 to 0.018 (×23)" in words
    assert "16-block model" in words


def test_the_widest_model_is_shown():
    run = variants()["two widths"]
    values = run.tables.records
    values = values[
        (values["n_embd"] == 128)
        & (values["n_layer"] == 4)
        & (values["recipe"] == "nanogpt")
        & (values["site"] == "embed")
        & (values["kind"] == "activation")
    ]["var"]
    line = figures.draw("residual", run).axes[-1].lines[0]
    assert line.get_ydata()[0] == pytest.approx(np.median(values))


def test_pictures_carry_their_title_and_pages_do_not(usual):
    assert figures.draw("first-loss", usual, "light").get_suptitle() == "First loss"
    assert figures.draw("first-loss", usual, "svg").get_suptitle() == ""
