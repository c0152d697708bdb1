import itertools
import math

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from initlab.errors import ConfigError
from initlab.report import theme
from initlab.report.theme import DARK, LIGHT, Label, log_limits, log_ticks, place_labels, series, spread, tick_text

SERIES = ("s1", "s2", "s3", "s4")

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(colour):
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """WCAG 2 contrast ratio."""
    light, dark = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] for c in (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# Ottosson 2020: linear RGB -> cone responses -> Lab.
TO_LMS = np.array(
    [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.6806995, 0.10739696], [0.08830246, 0.28171884, 0.6299787]]
)
TO_LAB = np.array(
    [[0.21045426, 0.7936178, -0.00407205], [1.9779985, -2.4285922, 0.4505937], [0.02590404, 0.7827718, -0.80867577]]
)


def oklab(rgb):
    return TO_LAB @ np.cbrt(TO_LMS @ rgb)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["bg", "card"])
def test_text_and_lines_stand_out(palette, ground):
    for token in ("ink", "muted", "error", "warning", "ok"):
        assert contrast(palette[token], palette[ground]) >= 4.5, token
    for token in (*SERIES, "faint"):
        assert contrast(palette[token], palette["bg"]) >= 3.0, token


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("kind", list(BLINDNESS))
def test_series_stay_apart_for_colour_blind_readers(palette, kind):
    seen = {token: oklab(np.clip(BLINDNESS[kind] @ linear(palette[token]), 0, 1)) for token in SERIES}
    for a, b in itertools.combinations(SERIES, 2):
        assert 100 * np.linalg.norm(seen[a] - seen[b]) >= 8, (a, b)


def test_text_on_the_strongest_cells_is_readable():
    for end in (theme.LESS, theme.MORE):
        assert contrast(end, theme.ON_CELL) >= 3.5
        assert min(contrast(end, LIGHT["bg"]), contrast(end, DARK["bg"])) >= 3


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("end", [theme.LESS, theme.MORE], ids=["less", "more"])
def test_text_on_any_cell_is_readable_on_its_page(palette, end):
    ground, strongest = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (palette["bg"], end))
    for share in np.linspace(0, 1, 41):  # colours are laid over the page as browsers do it, in sRGB
        cell = "#" + "".join(f"{round(x):02x}" for x in share * strongest + (1 - share) * ground)
        assert contrast(cell, theme.ON_CELL if share > theme.STRONG else palette["ink"]) >= 3.4, share


def test_themes_have_the_same_tokens_and_a_light_colour_is_of_one_token_alone():
    assert list(LIGHT) == list(DARK)
    assert len({*LIGHT.values(), theme.LESS, theme.MORE, theme.ON_CELL}) == len(LIGHT) + 3  # svg.py tells them apart
    with pytest.raises(ConfigError, match="unknown theme 'sepia'; themes: light, dark"):
        theme.colours("sepia")


def test_style_leaves_the_users_settings_alone():
    before = dict(matplotlib.rcParams)
    with theme.style("dark"):
        assert matplotlib.rcParams["text.color"] == DARK["ink"]
    assert dict(matplotlib.rcParams) == before


def test_a_recipe_keeps_its_look_and_a_fifth_gets_no_new_hue():
    four = series(["a", "b", "c", "d"])
    assert [look.token for look in four.values()] == list(SERIES)
    five = series(["a", "b", "c", "d", "e"])
    assert [look.token for look in five.values()] == ["s1", "s2", "s2", "s2", "s2"]
    assert len({look.marker for look in series([str(i) for i in range(9)]).values()}) == 9


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (0.03, "0.03"),
        (0.001, "0.001"),
        (1000, "1000"),
        (1e-4, "10⁻⁴"),
        (3e-5, "3·10⁻⁵"),
        (1e5, "10⁵"),
        (0, "0"),
    ],
)
def test_tick_text(value, text):
    assert tick_text(value) == text


@pytest.mark.parametrize(("low", "high"), [(0.5, 2), (1e-3, 1), (1e-9, 1e-6), (1e-30, 1e30), (0.9, 1.1)])
def test_log_ticks_are_few_and_inside(low, high):
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)


@pytest.mark.parametrize("low", np.logspace(0, 1, 40))
def test_the_narrowest_log_axis_has_two_ticks_or_more(low):
    assert len(log_ticks(low, 4 * low)) >= 2


def test_log_limits_never_magnify_noise_and_ignore_what_has_no_logarithm():
    low, high = log_limits([1.0, 1.001, 0.0, -1.0, math.nan, math.inf])
    assert high / low == pytest.approx(4, rel=0.01)
    assert log_limits([math.nan]) == (0.1, 10.0)


def test_spread_keeps_what_fits_and_moves_what_collides():
    assert spread([1.0, 5.0], [1, 1], 0, 10) == [1.0, 5.0]
    assert spread([5.0, 5.0], [2, 2], 0, 10) == [4.0, 6.0]
    assert spread([0.0, 0.1, 10.0], [1, 1, 1], 0, 10) == [0.5, 1.5, 9.5]


def test_spread_never_overlaps_and_keeps_the_order():
    rng = np.random.default_rng(0)
    for _ in range(100):
        wanted = list(rng.uniform(-2, 12, 6))
        heights = list(rng.uniform(0.5, 1.5, 6))
        placed = spread(wanted, heights, 0, 10)
        order = np.argsort(wanted)
        for a, b in itertools.pairwise(order):
            assert placed[b] - placed[a] >= (heights[a] + heights[b]) / 2 - 1e-9
        assert placed[order[0]] >= heights[order[0]] / 2 - 1e-9
        assert placed[order[-1]] <= 10 - heights[order[-1]] / 2 + 1e-9


def test_labels_are_drawn_apart():
    with theme.style("light") as palette:
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        axes.set_ylim(0, 1)
        place_labels(figure, [(axes, [Label(1, 0.5, "a", "s1"), Label(1, 0.501, "b\nc", "s2")])], palette)
        boxes = [text.get_window_extent() for text in axes.texts]
    assert not boxes[0].overlaps(boxes[1])


@pytest.mark.parametrize("last", [0, 1, 3, 7, 11, 15, 31, 47, 95])
def test_block_ticks_are_whole_few_and_show_the_last_block(last):
    axes = Figure().subplots()
    theme.block_axis(axes, 0, last)
    ticks = list(axes.get_xticks())
    assert ticks[0] == 0 and ticks[-1] == last
    assert len(ticks) <= 11
