import pytest
from synthetic_transfer import transfer_run, valley

from initlab.judge.rules import evaluate
from initlab.report import console, figures, transfer
from initlab.report.document import Document
from initlab.results import Transfer

pytestmark = pytest.mark.integration


def shown(run, width=110):
    text = console.text(Document(run, evaluate(run)), width=width, color=False)
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture(scope="module")
def usual():
    return transfer_run()


def test_the_verdict_names_what_holds_and_what_a_drift_costs(usual):
    sentence = transfer.verdict(usual)
    assert sentence.startswith("The best rate of mup holds over width; of nanogpt (n_embd^-1.0")
    assert "which costs +0.2" in sentence and sentence.endswith("nats) drifts over width.")


def test_the_terminal_shows_both_ends_the_drift_and_the_cost(usual):
    lines = shown(usual)
    assert "Over width: n_embd 64, 128, 256" in lines
    (row,) = [line for line in lines if line.startswith("nanogpt 0.00")]
    assert "drifts" in row and "n_embd^-1.0" in row
    assert any(line.startswith("drift: exponent x of best rate ∝ size^x") for line in lines)


def test_what_isnt_resolved_says_why_and_how_many_seeds_it_would_take():
    lines = shown(transfer_run(("a",), valley(0.0, noise=0.7, at=2**-7.5)))
    (why,) = [line for line in lines if line.startswith("a over width: the interval holds 0 and reaches beyond ±0.5")]
    assert why.endswith("seeds.") and "it would take" in why
    assert "The best rate of a isn't resolved over width." in lines


def test_two_axes_have_a_table_each_and_one_sentence():
    run = transfer_run(("a",), valley(-1.0, noise=0.05, depth_drift=0.0), depths=(2, 8, 32))
    sentence = transfer.verdict(run)
    assert "drifts over width; of a holds over depth." in sentence
    assert [line for line in shown(run) if line.startswith("Over ")] == [
        "Over width: n_embd 64, 128, 256",
        "Over depth: n_layer 2, 8, 32",
    ]


def test_a_run_of_which_little_is_there_says_so():
    run = transfer_run(("a",), valley(0.0), missing=lambda r, n, d, lr, s: d > 64)
    assert "So far, 24 of 72 cells: No recipe is finished at every rate of two sizes" in transfer.verdict(run)
    assert any("No recipe is finished at every rate of two sizes." in line for line in shown(run))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["transfer", "transfer-width", "transfer-depth"])
def test_the_figures_have_a_panel_for_each_recipe_or_axis(name, theme):
    run = transfer_run(("a", "b"), valley(-0.5, noise=0.1), depths=(2, 8))
    axes = figures.draw(name, run, theme).axes
    titles = [each.get_title() or each.get_title("left") for each in axes]
    assert titles == (["over width", "over depth"] if name == "transfer" else ["a", "b"])


def test_more_sizes_than_hues_show_the_ends_and_some_between():
    run = transfer_run(("a",), valley(0.0), widths=(32, 64, 128, 256, 512, 1024))
    (axes,) = figures.draw("transfer-width", run).axes
    texts = {text.get_text() for text in axes.figure.findobj(lambda item: hasattr(item, "get_text"))}
    assert {"n_embd 32", "n_embd 1024"} <= texts
    assert "n_embd 64" not in texts


@pytest.mark.parametrize("count", [1, 4, 5, 7])
def test_any_number_of_recipes_fits(count):
    run = transfer_run([f"recipe-{at}" for at in range(count)], valley(0.0, noise=0.1), widths=(64, 128), seeds=1)
    for name in ("transfer", "transfer-width"):
        assert figures.draw(name, run)


def test_the_page_has_the_tables_and_their_definitions(usual, tmp_path):
    result = Transfer(usual)
    page = result.report(tmp_path / "run").read_text()
    assert "Over width: n_embd 64, 128, 256" in page
    assert "half of what theory has the standard parametrisation drift by" in page
    assert (tmp_path / "run" / "transfers.csv").read_text().startswith("recipe,axis,sizes")
    assert (tmp_path / "run" / "optima.csv").exists()

    assert len(result.transfers) == 2
