import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure
from variants import HOSTILE, variants

from initlab.report import figures
from initlab.report.svg import _TAG, _element, both
from initlab.report.theme import HEADING_HEIGHT, style


def render(name, case="zero init"):
    run = variants()[case]
    return both(figures.draw(name, run), name, "Title & more", "What <it> shows")[0]


@pytest.fixture(scope="module")
def residual():
    return render("residual")


def test_bytes_are_deterministic(residual):
    assert render("residual") == residual


def test_colours_follow_the_page(residual):
    assert "var(--ink)" in residual and "var(--s1)" in residual
    assert not re.search(r"#[0-9a-f]{6}", residual)


def test_it_is_well_formed_named_and_described(residual):
    root = ElementTree.fromstring(residual)
    assert root.get("role") == "img"
    assert root.find("title").text == "Title & more"
    assert root.find("desc").text == "What <it> shows"
    assert root.get("aria-labelledby") == "residual-title residual-desc"


def test_ids_are_prefixed_unique_and_every_reference_resolves(residual):
    ids = re.findall(r' id="([^"]+)"', residual)
    assert len(ids) == len(set(ids))
    assert all(found.startswith("residual-") for found in ids)
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', residual)) <= set(ids)


def test_nothing_leaks_into_the_page(residual):
    assert "<style" not in residual and "<metadata" not in residual
    assert "font-family" not in residual
    assert "http" not in residual


def test_text_is_never_taken_for_markup():
    svg = render("first-loss", "hostile")
    assert "<script" not in svg
    texts = [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]
    assert any(text.startswith(HOSTILE[:20]) for text in texts)
    tricky = _TAG.sub("", '<text style="fill:#1d2329">#1d2329 id="x" url(#y)</text>')
    assert tricky == '#1d2329 id="x" url(#y)'


def test_heatmaps_are_images_not_thousands_of_paths():
    svg = render("site-map")
    assert svg.count("<image") == 4
    assert len(svg) < 40_000


@pytest.mark.parametrize("name", ["residual", "site-map"])
def test_a_figure_is_drawn_once_for_both_files_and_is_left_as_it_was(name, monkeypatch):
    figure = figures.draw(name, variants()["zero init"])
    drawn, real = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: (drawn.append(1), real(self, renderer)))
    svg, pixels = both(figure, name, "title", "words")
    assert len(drawn) == 1
    picture = image.imread(io.BytesIO(pixels), format="png")
    width, height = figure.get_size_inches()
    assert picture.shape[:2] == (int(height * 144), int(width * 144))
    box = [float(each) for each in re.search(r'viewBox="([^"]+)"', svg)[1].split()]
    assert box == pytest.approx([0, 0, width * 72, (height - HEADING_HEIGHT) * 72])
    assert figure.dpi == 100 and figure.patch.get_visible() and all(text.get_visible() for text in figure.texts)
    # by itself, matplotlib draws the same but for texts' pixels, which are set for another size
    monkeypatch.undo()
    alone = io.BytesIO()
    with style("light"):
        figure.savefig(alone, format="png", dpi=144)
    alone.seek(0)
    difference = np.abs(image.imread(alone, format="png")[..., :3] - picture[..., :3])
    assert difference.mean() < 0.01


def test_what_lines_share_is_said_once_and_what_has_no_path_is_left_out():
    path = '<path d="M 0 0 L 1 {}" clip-path="url(#c)" style="{}"/>'

    def group(*styles):
        return _element(
            f'<svg><g id="a">{"".join(path.format(*each) for each in enumerate(styles))}</g></svg>', *"abcd"
        )

    alike = group("stroke: #0072b2; stroke-linecap: round", "stroke: #0072b2; stroke-linecap: round")
    assert '<g style="stroke:var(--s1);stroke-linecap:round" clip-path="url(#a-0)"><path d="M 0 0 1 0"/><path' in alike
    assert group("fill: none", "fill: red").count(" style=") == 2
    assert group("opacity: 0.5", "opacity: 0.5").count(" style=") == 2  # of a group, it is of what covers itself, too
    bar = '<g id="a"><path clip-path="url(#c)" style="fill: none"/></g>'
    assert "<path" not in _element(f"<svg>{bar}</svg>", *"abcd")
