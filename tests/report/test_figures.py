import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic import synthetic_run
from variants import variants

import initlab
from initlab.errors import ConfigError
from initlab.report import figures
from initlab.report.document import Document
from initlab.report.figures import FIGURES, dots, in_order
from initlab.report.figures.data import curve
from initlab.report.files import write_report
from initlab.report.svg import both
from initlab.report.theme import new_figure, style
from initlab.results import Comparison

pytestmark = pytest.mark.integration

ORDER = [
    "watch",
    "losses",
    "rates",
    "transfer",
    "transfer-width",
    "transfer-depth",
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
    assert [spec.name for spec in in_order()] == ORDER
    assert all(spec.title and spec.question.endswith((".", "?")) for spec in FIGURES)


def test_unknown_figure_lists_the_known_ones(usual):
    with pytest.raises(ConfigError, match=r"unknown figure 'rms'; .*known: watch, losses, "):
        figures.draw("rms", usual)


def test_a_figure_that_lacks_its_data_says_so():
    with pytest.raises(ConfigError, match="depth can't be drawn: needs models of two or more depths"):
        figures.draw("depth", variants()["probe"])


@pytest.mark.parametrize("case", [case for case in variants() if case not in ("usual", "nine recipes")])
def test_every_figure_is_described_or_says_why_not(case):
    run = variants()[case]
    for spec in FIGURES:
        reason = spec.needs(run)
        if not reason:
            assert spec.words(run).endswith(".")
            assert "-0.00" not in spec.words(run)


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
    assert reason in FIGURES.get(figure).needs(variants()[case])


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
    assert [line.seeds[:, 0].min(), line.median[0], line.seeds[:, 0].max()] == pytest.approx(list(first))
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
    words = FIGURES.get("depth").words(usual)
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
    words = FIGURES.get("residual").words(usual)
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
    figure = figures.draw("first-loss", usual)
    assert figure.get_suptitle() == "First loss"
    assert "First loss" not in both(figure, "a", "title", "words")[0]


@pytest.fixture
def widths():
    """A figure as a script outside initlab adds one."""
    with FIGURES.temporary():

        @figures.figure(
            "widest",
            place=125,
            title="Widest",
            question="How wide is the widest?",
            words=lambda run: "The widest has 384 channels.",
            kinds=("compare",),
            otherwise="needs recipes side by side",
        )
        def draw_widest(run, theme):
            with style(theme) as palette:
                figure = new_figure(1.0, "Widest")
                axes = figure.subplots()
                axes.plot([0, 1], color=palette["s1"])
                axes.set(xlabel="depth, blocks", ylabel="width, channels")
            return figure

        yield


def test_a_figure_from_outside_stands_where_it_says_on_the_page_and_among_the_files(widths, usual, tmp_path):
    page = write_report(Document(usual, []), tmp_path).read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "widest.png").read_bytes()[:4] == b"\x89PNG"
    assert "How wide is the widest?" in page and "The widest has 384 channels." in page
    at = [page.index(f'id="fig-{name}"') for name in ("residual", "widest", "branches")]
    assert at == sorted(at)
    assert 'href="#fig-widest"' in page and "var(--s1)" in page[at[1] : at[2]]
    assert FIGURES.get("widest").needs(variants()["probe"]) == "needs recipes side by side"
    with pytest.raises(ConfigError, match="figure 'widest' exists already"):
        figures.figure("widest", place=1, title="", question="", words=str)(figures.draw)


def test_every_figure_is_drawn_once_for_page_and_file(usual, tmp_path, monkeypatch):
    drawn = []
    for spec in FIGURES:

        def counted(run, theme, spec=spec):
            drawn.append(spec.name)
            return spec.draw(run, theme)

        monkeypatch.setitem(FIGURES._found, spec.name, dataclasses.replace(spec, draw=counted))
    write_report(Document(usual, []), tmp_path)
    assert sorted(drawn) == sorted({path.stem for path in (tmp_path / "figures").iterdir()})


PLUGIN = """
from initlab.report.figures import figure

@figure("plugged", place=1, title="Plugged", question="Is it in?", words=lambda run: "It is in.")
def draw(run, theme):
    from matplotlib.figure import Figure
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    return figure
"""


def test_an_installed_package_adds_a_figure_by_entry_point(tmp_path):
    (tmp_path / "plugged.py").write_text(PLUGIN)
    info = tmp_path / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[initlab.figures]\nplugged = plugged\n")
    code = "from initlab.report.figures import in_order; print(*[spec.name for spec in in_order()])"
    path = os.pathsep.join([str(tmp_path), str(Path(initlab.__file__).parents[1])])
    shown = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True, text=True
    )
    assert shown.stdout.split() == ["plugged", *ORDER]


def test_neither_seaborn_nor_matplotlib_is_imported_until_a_figure_is_drawn():
    code = (
        "import sys, initlab.cli, initlab.results; from initlab.report import console, figures\n"
        "assert len(figures.in_order()) > 10\n"
        "sys.exit(', '.join({'seaborn', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("function", "words", "message"),
    [
        (lambda run, theme: 1 / 0, lambda run: "", "figure 'mine' raised ZeroDivisionError: division by zero"),
        (lambda run, theme: None, lambda run: "", "figure 'mine' returned NoneType; expected a matplotlib Figure"),
        (lambda run, theme: Figure(), lambda run: 1 / 0, "figure 'mine' raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_figure_that_breaks_is_named(usual, tmp_path, function, words, message):
    with FIGURES.temporary():
        figures.figure("mine", title="Mine", question="", place=500, words=words)(function)
        with pytest.raises(ConfigError, match=message):
            Comparison(usual).report(tmp_path)


def test_a_figure_has_the_name_of_a_file():
    with pytest.raises(ConfigError, match=r"a figure is named '\.\./mine'; expected small letters"):
        figures.figure("../mine", title="Mine", question="", place=500, words=lambda run: "")
