"""Key numbers: a row per recipe, and no column that no recipe has a number for."""

from __future__ import annotations

from collections.abc import Sequence

from initlab.judge.rules import Finding
from initlab.judge.words import number, signed
from initlab.report.values import Table, TableCell
from initlab.report.verdict import GLYPHS, tally
from initlab.report.view import Overview, exponent_text, overview
from initlab.rundir import Run

HEADS = (
    "recipe",
    "residual variance,\nembedding → last block",
    "attention writes\nby depth",
    "MLP writes\nby depth",
    "gradient variance,\nembedding / last block",
    "first loss − ln V,\nnats",
    "checks\npassed",
)
_DIGITS = 3
_EXCESS = 5  # of the first loss over ln V


def key_numbers(run: Run, findings: Sequence[Finding]) -> Table:
    """Make the table; a cell without a number is a dash.

    Args:
        run: of any kind.
        findings: of all rules, which the last column counts.
    """
    rows = [_cells(row, findings) for row in overview(run)]
    if run.manifest.get("kind") == "watch":  # a loop doesn't have to show its loss, and NaN is that it didn't
        for cells in rows:
            cells[_EXCESS] = TableCell("") if cells[_EXCESS].text == "NaN" else cells[_EXCESS]
    kept = [at for at in range(len(HEADS)) if any(row[at].text for row in rows)]
    shown = [[row[at] if row[at].text else TableCell("–") for at in kept] for row in rows]
    return Table(tuple(HEADS[at] for at in kept), shown, "Key numbers")


def _cells(row: Overview, findings: Sequence[Finding]) -> list[TableCell]:
    worst, checked = tally(findings, row.recipe)
    ends = [_text(value) for value in (row.embed_var, row.last_var)]
    writes = [exponent_text(*row.slopes[site]) if site in row.slopes else "" for site in ("attn_out", "mlp_out")]
    ratio = "" if row.grad_ratio is None else f"×{number(row.grad_ratio, _DIGITS)}"
    # of a model that wasn't run to a loss there is none, of one that overflowed it is NaN
    excess = "" if row.excess_loss is None else signed(row.excess_loss, 3)
    cells = [" → ".join(end or "–" for end in ends) if any(ends) else "", *writes, ratio, excess]
    return [TableCell(row.recipe), *map(TableCell, cells), TableCell(checked, worst, glyph=GLYPHS[worst])]


def _text(value: float | None) -> str:
    return "" if value is None else number(value, _DIGITS)
