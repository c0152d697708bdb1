"""What differs between two inits, as tables for a page and as terminal text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import pandas as pd

from initlab.judge.differences import Compared
from initlab.judge.rules.base import RULES
from initlab.judge.words import listed, number, plural, trimmed
from initlab.report.brief import layers_shown
from initlab.report.terminal import narrowed, plain_table, print_text, wrapped
from initlab.report.values import Table, TableCell
from initlab.report.verdict import GLYPHS

MOST = 100  # columns, on a wider terminal too
_COLUMNS = (
    ("activation", "resid_post", "residual"),
    ("activation", "attn_out", "attention\nwrites"),
    ("activation", "mlp_out", "MLP\nwrites"),
    ("grad", "resid_post", "gradient"),
)
# what the table has no column for, and what isn't the stream itself
_INNER = ("q", "k", "v", "attn_logits", "attn_pattern", "attn_z", "mlp_pre", "mlp_linear", "mlp_act", "mixer_out")
_MOST_SITES = 12  # of a model without blocks, or beside the table
_MOST_NAMES = 2
_NONE = "–"
_STATES = {"new": "+", "worse": "+", "better": "−", "gone": "−", "not judged in B": "·"}


def diff_text(found: Compared, *, width: int | None = None, color: bool = False) -> str:
    """Write what differs in a screenful: the answer first, then roles, sites, wiring and findings.

    Args:
        found: the comparison.
        width: columns; those of the terminal, and at most 100, unless given.
        color: whether escape codes colour it.
    """
    dim, bold = ("dim", "bold") if color else ("", "")

    def body(console: Any, columns: int) -> None:
        columns = min(columns, MOST)
        console.print(wrapped(f"initlab diff · A {found.names[0]} · B {found.names[1]}", columns, "  "), style=dim)
        console.print(wrapped(found.verdict, columns, "  "), style=bold)
        for note in found.notes:
            console.print(wrapped(f"! {note}", columns, "  "), style=dim)
        for lines in (_roles_text(found), _wiring_text(found)):
            if lines:
                console.print()
            for line in lines:
                console.print(wrapped(line, columns, "    "))
        console.print()
        if (table := site_table(found)).rows:
            console.print(wrapped(table.title, columns), style=bold)
            shown = plain_table(*table.heads)
            for row in table.rows:
                shown.add_row(*(cell.text for cell in row))
            console.print(narrowed(shown, columns))
        for line in _elsewhere(found):
            console.print(wrapped(line, columns, "  "))
        console.print(wrapped(f"{found.basis.words}.", columns, "  "), style=dim)
        console.print()
        for line in _findings_text(found):
            console.print(wrapped(line, columns, "    "))

    return print_text(body, min(width, MOST) if width else None, color)


def tables(found: Compared) -> list[Table]:
    """Make the tables of a page: roles, wiring, sites, findings; of what differs alone.

    Args:
        found: the comparison.
    """
    every = [role_table(found), wiring_table(found), site_table(found), finding_table(found)]
    return [table for table in every if table.rows]


def role_table(found: Compared) -> Table:
    """Make a row for each role and kind of change."""
    rows = found.roles[found.roles["differs"]]
    further = any(len(details) for details in rows["details"])
    heads = ("role", "parameters", "std A", "std B", "B ÷ A", *(["what else"] * further), "as")
    words = frozenset({0, 1, 5, 6})
    table = Table(heads, title="Drawn otherwise", words=words, note=_unchanged(found))
    for row in rows.itertuples():
        table.add(
            TableCell(str(row.role)),
            _count(row.n, row.of),
            _span(row.std_a, row.std_a_max),
            _span(row.std_b, row.std_b_max),
            _times(row.ratio, row.what),
            *(["; ".join(_details(row))] * further),
            listed(row.names, _MOST_NAMES),
        )
    return table


def wiring_table(found: Compared) -> Table:
    """Make a row for each thing that is wired otherwise."""
    table = Table(("of", "what", "A", "B", "blocks"), title="Wired otherwise", words=frozenset(range(5)))
    for row in found.wiring.itertuples():
        table.add(str(row.where), str(row.what), str(row.a), str(row.b), _ranges(row.layers))
    return table


def site_table(found: Compared) -> Table:
    """Make a row for each block, a star where a ratio is beyond chance; of a model without blocks for each site."""
    sites = found.sites
    note = f"{found.basis.words}."
    title = "Variance B ÷ A (* beyond chance)"
    blocks = sites.loc[sites["site"] == "resid_post", "layer"].dropna()
    if not len(blocks):
        table = Table(("site", "activation", "gradient"), title=title, note=note)
        far = sites[sites["differs"]] if (sites["site"] == "module").all() else sites
        for place in list(dict.fromkeys(zip(far["site"], far["module"], strict=True)))[:_MOST_SITES]:
            own = sites[(sites["site"] == place[0]) & (sites["module"] == place[1])]
            table.add(place[1] or place[0], *(_ratio(own[own["kind"] == kind]) for kind in ("activation", "grad")))
        return table
    table = Table(("after", *(head for _, _, head in _COLUMNS)), title=title, note=note)
    for layer, name in layers_shown(int(blocks.max()) + 1):
        cells = []
        for kind, site, _ in _COLUMNS:
            there = "embed" if layer is None and site == "resid_post" else site
            own = sites[(sites["kind"] == kind) & (sites["site"] == there)]
            cells.append(_ratio(own[own["layer"].isna() if layer is None else own["layer"] == layer]))
        table.add(name, *cells)
    for site in ("final_norm", "logits"):
        own = sites[sites["site"] == site]
        table.add(site, _ratio(own[own["kind"] == "activation"]), "", "", _ratio(own[own["kind"] == "grad"]))
    return table


def finding_table(found: Compared) -> Table:
    """Make a row for each finding that is new, gone or of another severity."""
    table = Table(("state", "check", "severity A → B", "says"), title="Findings", words=frozenset(range(4)))
    for row in found.findings[found.findings["state"] != "unchanged"].itertuples():
        severity = str(row.severity_b or row.severity_a)
        table.add(
            TableCell(str(row.state), severity, glyph=GLYPHS[severity]),
            f"{row.code} {row.name}",
            f"{row.severity_a or _NONE} → {row.severity_b or _NONE}",
            " ".join(filter(None, (_sentence(row), str(row.note)))),
        )
    return table


def _roles_text(found: Compared) -> list[str]:
    changed = found.roles[found.roles["differs"]]
    lines = []
    if len(changed):
        cells = [["drawn otherwise", "", "std A", "std B", "B ÷ A"]]
        cells += [
            [
                *(str(row.role), _count(row.n, row.of), _span(row.std_a, row.std_a_max)),
                *(_span(row.std_b, row.std_b_max), _times(row.ratio, row.what)),
            ]
            for row in changed.itertuples()
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        padded = ["  ".join(cell.ljust(size) for cell, size in zip(line, widths, strict=True)) for line in cells]
        lines.append(padded[0].rstrip())
        for line, row in zip(padded[1:], changed.itertuples(), strict=True):
            lines.append(line.rstrip())
            lines += [f"    {text}" for text in _details(row)]
            if row.n < row.of or str(row.what).startswith("only"):
                lines.append(f"    {listed(row.names, _MOST_NAMES + 1)}")
    return [*lines, *filter(None, [_unchanged(found)])]


def _unchanged(found: Compared) -> str:
    roles = found.roles
    changed = set(roles.loc[roles["differs"], "role"])
    alike = [role for role in dict.fromkeys(roles["role"]) if role not in changed]
    few = len(found.parameters) == int(found.parameters["identical"].sum()) > 0
    how = "the very same numbers" if few else "drawn alike"
    return f"{how}: {', '.join(alike)}" if alike else ""


def _details(row: Any) -> list[str]:
    """The first phrases of what differs beside the std, and how many more there are."""
    shown = list(row.details[:_MOST_NAMES])
    more = len(row.details) - len(shown)
    return shown + [f"and {plural(more, 'more such difference')}"] * bool(more)


def _wiring_text(found: Compared) -> list[str]:
    if not len(found.wiring):
        return []
    lines = ["wired otherwise"]
    for row in found.wiring.itertuples():
        blocks = f", {_ranges(row.layers)}" if row.layers else ""
        lines.append(f"  {row.where}: {row.what} {row.a} → {row.b}{blocks}")
    return lines


def _elsewhere(found: Compared) -> list[str]:
    """Sites inside the blocks that are beyond chance, each where it is the farthest."""
    far = found.sites[found.sites["differs"] & found.sites["site"].isin(_INNER)]
    parts = []
    for (kind, site), own in far.groupby(["kind", "site"], sort=False, observed=True):
        most = own.loc[own["ratio"].map(_distance).idxmax()]
        ratio = _ratio(own[own.index == most.name]).rstrip("* ")
        parts.append(f"{site}{' gradient' * (kind == 'grad')} {ratio} in block {most['layer']}")
    return [f"also beyond chance, at the most: {'; '.join(parts[:_MOST_SITES])}"] if parts else []


def _findings_text(found: Compared) -> list[str]:
    rows = found.findings
    lines = []
    for row in rows[rows["state"] != "unchanged"].itertuples():
        severity = str(row.severity_b or row.severity_a)
        moved = f" ({row.severity_a} → {row.severity_b})" if row.severity_a and row.severity_b else f" {severity}"
        head = f"{_STATES[str(row.state)]} {row.state}{moved} {row.code} {row.name}: {_sentence(row)}"
        lines.append(head + (f" ({row.note})" if row.note else ""))
        if row.state in ("new", "worse") and row.advice and severity != "info":
            lines.append(f"    help: {row.advice}")
    same = rows.loc[rows["state"] == "unchanged", "code"]
    if len(same):
        lines.append(f"{plural(len(same), 'finding')} unchanged: {', '.join(same)}")
    if not len(rows):
        lines.append(f"No finding in A or in B; {plural(len(RULES), 'check')}.")
    elif not lines:
        lines.append("The same findings.")
    return lines


def _sentence(row: Any) -> str:
    """What B says; of what B isn't judged by, what A says."""
    return str(row.message_a if row.state == "not judged in B" else row.message_b)


def _count(n: int, of: int) -> str:
    return f"{n} of {of}" if of > 1 or n < of else "1"


def _span(low: float, high: float) -> str:
    if math.isnan(low) or math.isnan(high):
        return _NONE
    if f"{low:.2g}" == f"{high:.2g}" or low == 0 == high:
        return trimmed(math.sqrt(low * high))
    return f"{trimmed(low, 2)} to {trimmed(high, 2)}"


def _times(ratio: float, what: str) -> str:
    if str(what).startswith("only"):
        return str(what)
    if math.isnan(ratio):
        return _NONE
    if ratio == math.inf or ratio == 0:
        return "from 0" if ratio else "to 0"
    return f"×{number(ratio, 3)}"


def _ratio(rows: pd.DataFrame) -> str:
    """`×1.05` of a site's row, with a star beyond chance, else a blank of the same width."""
    if not len(rows):
        return ""
    row = rows.iloc[0]
    mark = "*" if row["differs"] else " "
    old, new = float(row["var_a"]), float(row["var_b"])
    if not math.isfinite(old) or not math.isfinite(new):
        return f"{number(old)} → {number(new)}{mark}"
    if old == 0 or new == 0:
        return f"{'0' if not new else 'from 0'}{mark}" if old != new else f"{_NONE}{mark}"
    return f"×{number(float(row['ratio']), 3)}{mark}"


def _distance(ratio: float) -> float:
    return abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf


def _ranges(layers: Iterable[int]) -> str:
    """`blocks 0 to 3 and 7`; of several branches of a block once."""
    layers = sorted(set(layers))
    if not layers or layers == [-1]:
        return ""
    parts = []
    for _, run in groupby(enumerate(layers), key=lambda each: each[1] - each[0]):
        own = [layer for _, layer in run]
        parts.append(str(own[0]) if len(own) == 1 else f"{own[0]} to {own[-1]}")
    return f"{'block' if len(layers) == 1 else 'blocks'} {listed(parts, 4)}"
