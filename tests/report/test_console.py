import io

import pytest
from synthetic import synthetic_findings
from variants import variants

from initlab.report import console, progress
from initlab.report.document import Document
from initlab.report.progress import ProgressBar
from initlab.report.terminal import fact_lines, facts_wrapped, narrowed, plain_table, print_text
from initlab.rundir import Run


def show(case, kind="compare", **options):
    run = variants()[case]
    shown = Run(run.tables, {**run.manifest, "kind": kind})
    return console.text(Document(shown, synthetic_findings(run)), **{"width": 80, **options})


@pytest.mark.parametrize("case", list(variants()))
@pytest.mark.parametrize("kind", ["compare", "probe"])
@pytest.mark.parametrize("width", [80, 60, 45])
def test_every_run_fits_in_few_columns(case, kind, width):
    text = show(case, kind, width=width)
    assert "\x1b" not in text
    if case != "hostile":
        assert max(map(len, text.splitlines())) <= width
    assert text.endswith("\n") and not text.endswith("\n\n")
    assert all(line == line.rstrip() for line in text.splitlines())


def test_the_usual_comparison():
    lines = show("usual").splitlines()
    assert lines[0].startswith("initlab 0.1.0 compare · n_layer 4, 8, 16, n_embd 384")
    baseline = next(line for line in lines if line.startswith("nanogpt (baseline)"))
    assert " ".join(baseline.split()) == "nanogpt (baseline) 0.00079 → 0.018 -1.00 -1.00 22 +0.049 ✓ 3/3"
    assert "✗ DEP001 unscaled-residual-writes  nanogpt-no-depth-scale  (3/3 seeds)" in lines
    assert "  --> mlp_out" in lines
    assert "Found 1 error, 1 warning in 2 of 3 recipes; 7 checks passed, 3 not applicable." in lines


def test_a_narrow_terminal_gets_whole_columns_and_the_verdict():
    lines = show("usual", width=60).splitlines()
    baseline = next(line for line in lines if line.startswith("nanogpt (baseline)"))
    assert " ".join(baseline.split()) == "nanogpt (baseline) 0.00079 → 0.018 -1.00 -1.00 ✓ 3/3"
    assert "left out at 60 columns: grad var first/last, loss − ln V" in lines
    assert not any("left out" in line for line in show("usual").splitlines())


def test_a_name_is_broken_after_signs_alone():
    table = plain_table("recipe", "var", "verdict")
    name = "nanogpt-width-matched-with-long-name.of_mine"
    table.add_row(name, "1.0", "holds")
    text = print_text(lambda console, width: console.print(narrowed(table, width)), 34, False)
    parts = [line.split()[0] for line in text.splitlines()[1:]]
    assert len(parts) > 1 and "".join(parts) == name
    assert all(part.endswith(("-", ".", "_")) for part in parts[:-1])
    assert max(map(len, text.splitlines())) <= 34


def test_facts_are_a_line_each_but_for_those_in_brackets():
    assert fact_lines("a: b (c; d); e", 40) == "a: b (c; d)\ne"
    assert facts_wrapped("one two · three four", 17) == "one two ·\nthree four"


def test_what_did_not_apply_is_a_line_with_its_reason():
    line = next(line for line in show("usual").splitlines() if line.startswith("Not applicable"))
    assert "check" in line


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (["BEH001", "BEH002", "BEH003", "DRW001", "DRW002", "INI007"], "BEH001–BEH003, DRW001, DRW002, INI007"),
        (["ACT009", "ACT010", "ACT011", "ATT012"], "ACT009–ACT011, ATT012"),
        (["OWN1", "OWN2", "OWN4"], "OWN1, OWN2, OWN4"),
        ([], ""),
    ],
)
def test_codes_that_follow_each_other_are_one(codes, text):
    assert ", ".join(console._ranges(codes)) == text


def test_with_one_depth_the_missing_exponents_are_explained():
    assert "depth exp.: what a block writes" in " ".join(show("usual", width=400).split())
    assert "depth exp.: needs two depths, as in --depths 4,8,16" in show("no expectation", width=400)


def test_errors_come_before_warnings():
    text = show("usual")
    assert text.index("DEP001") < text.index("LOG001")


def test_a_row_per_recipe_and_none_wraps():
    text = show("nine recipes")
    for recipe in variants()["nine recipes"].manifest["config"]["recipes"]:
        assert sum(line.startswith((f"{recipe} ", f"{recipe}  ")) for line in text.splitlines()) == 1


def test_colour_is_optional():
    assert "\x1b[" in show("usual", color=True)


def test_a_probe_shows_blocks_and_says_when_not_all():
    text = show("probe", "probe")
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("embedding", "block"))] == [
        "embedding",
        *["block"] * 3,
    ]
    deep = show("deep probe", "probe")
    assert deep.count("\nblock ") <= 17
    assert "block 39" in deep
    assert "not every block is shown" in deep


def test_an_incomplete_run_says_so():
    assert "! Incomplete: 4 of 6 cells" in show("incomplete")
    assert "Nothing was measured." in show("nothing measured")


def test_non_finite_numbers_are_named():
    assert "NaN" in show("nothing finite")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_drawn_and_cleared(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with ProgressBar(2.0, "compare", stream) as progress:
        progress.advance(1.0, "nanogpt seed 1")
        progress.advance(1.0)
    assert "compare" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")


def test_progress_elsewhere_is_silent_for_half_a_minute(monkeypatch):
    clock = iter([0.0, 10.0, 31.0, 32.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with ProgressBar(4.0, "compare", stream) as bar:
        bar.advance(1.0, "a")
        assert stream.getvalue() == ""
        bar.advance(1.0, "b")
        bar.advance(1.0, "c")
    assert stream.getvalue() == "compare: 50%, about 31 s left  b\n"
