"""Runs as terminal text: what is wrong, where, what to do. Imports no plotting library."""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from initlab import schema
from initlab.judge.rules.base import Finding
from initlab.judge.updates import matrix_ratios, update_ratios
from initlab.report import digest, scale
from initlab.report.tables import narrowed, plain_table, print_text, wrapped
from initlab.rundir import Run

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold", "pass": "green", "not_applicable": "dim"}
_MOST_LAYERS = 16  # rows of the probe's table; deeper models show every k-th block
_MOST_STEPS = 20  # rows of a watch's table
_MOST_MODULES = 24  # rows, of a model without blocks
_ONE_SEED = "± half the 95 % interval of the fit, which needs three sizes; --seeds 3 gives one over seeds"
_QUIET_SECONDS = 30.0  # between lines where there is no terminal to redraw


def comparison_text(run: Run, findings: Sequence[Finding], *, width: int | None = None, color: bool = False) -> str:
    """One row per recipe, the findings, one sentence that sums up."""
    depths = run.tables.summary["n_layer"]
    exponent = (
        "what a block writes ∝ n_layer^x (attention's also grows with its input's correlation; RES001 allows for it)"
    )
    if depths.nunique() == 1:
        exponent = "needs two depths, as in --depths 4,8,16"
    footer = f"of the deepest model ({depths.max()} layers), median over seeds; depth exp.: {exponent}"
    return run_text(run, findings, _recipe_table(run, findings), width, color, footer if len(depths) else "")


def probe_text(run: Run, findings: Sequence[Finding], *, width: int | None = None, color: bool = False) -> str:
    """One row per block of the deepest model, the findings, one sentence that sums up."""
    has_stream = (run.tables.records["site"] == "resid_post").any()
    return run_text(run, findings, _layer_table(run) if has_stream else _module_table(run), width, color)


def watch_text(run: Run, findings: Sequence[Finding], *, width: int | None = None, color: bool = False) -> str:
    """One row per watched step, the findings of its first, one sentence that sums up."""
    footer = "update ratio: rms of what the step added to the weights / rms of the weights, of all matrices together"
    return run_text(run, findings, _step_table(run), width, color, footer)


def scaling_text(
    run: Run,
    findings: Sequence[Finding],
    slopes: pd.DataFrame,
    *,
    modules: str | None = None,
    width: int | None = None,
    color: bool = False,
) -> str:
    """The slopes of every recipe by step, the findings, one sentence that sums up."""
    tables = scale.slope_tables(slopes, modules)
    parts: list[RenderableType] = []
    for table in tables:
        parts += ["", _slope_table(table)] if parts else [_slope_table(table)]
    interval = "± half their 95 % interval over seeds" if (slopes["seeds"] > 1).any() else _ONE_SEED
    footer = (
        f"exponents of variance (half of one is the slope of mup's l1 = mean |x|) {interval}; mean over blocks, "
        "resid_post of the last; − init: change since step 0"
    )
    if not any(table.rows for table in tables):
        footer = f"no site or module is named {modules}" if modules else "no slope could be fitted"
    elif left_out := sum(table.left_out for table in tables):
        footer += f"; {left_out} more rows with --modules '*'"
    for note in scale.lost(run):
        parts.append(Text(f"! {note}", style="bold yellow"))
    return run_text(run, findings, Group(*parts), width, color, footer)


def _slope_table(table: scale.SlopeTable) -> Table:
    heads = [f"step {step}" if step else "at init" for step in table.steps]
    if table.foresees and heads:
        heads[1:1] = ["closed\nform"]
    shown = plain_table(f"var ∝ {table.axis}^x", *heads, f"verdict,\nstep {table.steps[-1]}")
    previous = None
    for row in table.rows:
        if row.recipe != previous:
            shown.add_row(Text(row.recipe, style="bold"))
            previous = row.recipe
        cells = [scale.slope_text(*row.cells[step]) if step in row.cells else "" for step in table.steps]
        if table.foresees:
            cells[1:1] = [scale.slope_text(row.expected, float("nan")) if row.expected == row.expected else ""]
        shown.add_row(f"  {row.name}", *cells, row.verdict)
    return shown


def run_text(
    run: Run, findings: Sequence[Finding], table: RenderableType, width: int | None, color: bool, footer: str = ""
) -> str:
    """A run in words: what it is, a table of it with its footer, the findings, one sentence that sums up."""

    def body(console: Console, width: int) -> None:
        console.print(wrapped(header(run), width), style="dim" if color else "")
        for note in digest.shortfall(run):
            console.print(wrapped(f"! {note}", width, "  "), style="bold yellow")
        for note in digest.model_notes(run):
            console.print(wrapped(note, width, "  "), style="dim" if color else "")
        console.print()
        for each in table.renderables if isinstance(table, Group) else [table]:
            console.print(narrowed(each, width) if isinstance(each, Table) else each)
        if footer:
            console.print(wrapped(footer, width), style="dim" if color else "")
        console.print()
        for finding in digest.failing(findings):
            _print_finding(console, finding, width)
        hint = " `initlab rules CODE` explains one." if digest.failing(findings) else ""
        console.print(wrapped(digest.count_sentence(run, findings) + hint, width))
        console.print(wrapped(digest.verdict(run, findings), width), style="bold")

    return print_text(body, width, color)


def header(run: Run) -> str:
    """What was run, in a line."""
    facts = dict(digest.facts(run))
    recipes = len(digest.recipes_of(run))
    parts = [f"initlab {run.manifest.get('initlab_version', '')} {run.manifest.get('kind', '')}".strip()]
    if facts.get("model"):
        parts.append(facts["model"])
    parts.append(", ".join(f"{name} {facts[name]}" for name in ("n_layer", "n_embd") if name in facts))
    if facts.get("vocabulary"):
        parts.append(f"vocabulary {facts['vocabulary']}")
    if recipes > 1:
        parts.append(f"{recipes} recipes")
    parts.append(digest.plural(int(facts.get("seeds", 1)), "seed"))
    if facts.get("optimizer"):
        parts.append(f"{digest.plural(int(facts.get('steps', 0)), 'step')} of {facts['optimizer']}")
    parts.append(f"{facts['mode']} mode" if facts.get("mode") else "")
    parts.append(" ".join(filter(None, (facts.get("dtype"), facts.get("device")))))
    parts.append(f"batch {facts['batch']}" if facts.get("batch") else "")
    parts.append(facts.get("data", ""))
    parts.append(f"judged by {facts['judged by']}" if facts.get("judged by") else "")
    return " · ".join(filter(None, parts))


def _recipe_table(run: Run, findings: Sequence[Finding]) -> Table:
    table = plain_table(
        "recipe",
        "residual var\nembed → last",
        "depth exp.\nattn   mlp",
        "grad var\nfirst/last",
        "loss\n− ln V",
        "checks\npassed",
    )
    rows = digest.overview(run, findings)
    for index, row in enumerate(rows):
        name = Text(row.recipe)
        if index == 0 and len(rows) > 1:
            name.append(" (baseline)", style="dim")
        table.add_row(
            name,
            f"{_or_dash(row.embed_var)} → {_or_dash(row.last_var)}",
            " ".join(
                digest.signed(row.slopes[site][0]) if site in row.slopes else "–" for site in ("attn_out", "mlp_out")
            ),
            _or_dash(row.grad_ratio),
            "–" if row.excess_loss is None else digest.signed(row.excess_loss, 3),
            Text(f"{digest.GLYPHS[row.status]} {row.checks}", style=STYLES[row.status]),
        )
    return table


def _or_dash(value: float | None) -> str:
    return "–" if value is None else digest.number(value)


def _layer_table(run: Run) -> Table:
    """Where the signal is, block by block: level, against theory, what each branch writes, the gradient."""
    shown = digest.view(run)
    further = _further(run.tables.records)
    heads = ("residual\nvar", "× closed\nform", "attention\nwrites", "MLP\nwrites", "grad\nvar")
    table = plain_table("after", *heads, *further)
    for layer, name in layers_shown(shown.n_layer):
        site = "embed" if layer is None else "resid_post"
        stream = _value(shown, "activation", site, layer, "var")
        expected = _value(shown, "activation", site, layer, "expected_var")
        table.add_row(
            name,
            _or_dash(stream),
            digest.number(stream / expected) if stream is not None and expected and expected > 0 else "–",
            "" if layer is None else _or_dash(_value(shown, "activation", "attn_out", layer, "var")),
            "" if layer is None else _or_dash(_value(shown, "activation", "mlp_out", layer, "var")),
            _or_dash(_value(shown, "grad", site, layer, "var")),
            *(_or_dash(_value(shown, "activation", site, layer, name)) for name in further),
        )
    for site in ("final_norm", "logits"):
        level = _value(shown, "activation", site, None, "var")
        if level is not None:
            back = _or_dash(_value(shown, "grad", site, None, "var"))
            own = (_or_dash(_value(shown, "activation", site, None, name)) for name in further)
            table.add_row(site, _or_dash(level), "", "", "", back, *own)
    if shown.n_layer > _MOST_LAYERS:
        table.caption, table.caption_justify = "not every block is shown; records.csv has them all", "left"
    return table


def _module_table(run: Run) -> Table:
    """A model without a residual stream: its layers, in the order of their first use."""
    records = run.tables.records
    forward = records[records["kind"] == "activation"].sort_values("position")
    grads = records[records["kind"] == "grad"].set_index(["module", "call"])["var"]
    further = _further(records)
    table = plain_table("module", "output\nvar", "largest\n|x|", "grad\nvar", *further)
    for row in forward.head(_MOST_MODULES).itertuples():
        table.add_row(
            str(row.module),
            digest.number(float(row.var)),
            digest.number(float(row.abs_max)),
            _or_dash(grads.get((row.module, row.call))),
            *(digest.number(float(getattr(row, name))) for name in further),
        )
    if len(forward) > _MOST_MODULES:
        table.caption, table.caption_justify = f"{len(forward) - _MOST_MODULES} more modules are in records.csv", "left"
    return table


def _step_table(run: Run) -> Table:
    """What training does to the scales: loss, both ends of the stream and of its gradient, size of the updates."""
    heads = ("loss", "residual var\nembed → last", "grad var\nembed ← last", "update\nratio", "logit\nstd")
    shown = plain_table("step", *heads)
    records = run.tables.records
    ratios = matrix_ratios(update_ratios(records))
    last = records["n_layer"] - 1
    ends = {
        name: records[(records["call"] == 0) & keep].set_index(["kind", "step"])["var"]
        for name, keep in (
            ("first", records["site"] == "embed"),
            ("last", (records["site"] == "resid_post") & (records["layer"] == last)),
        )
    }
    summary = run.tables.summary.sort_values("step")
    every = -(-len(summary) // _MOST_STEPS)
    for place, row in enumerate(summary.itertuples()):
        if place % every and place != len(summary) - 1:
            continue
        first, final = (ends["first"].get(("activation", row.step)), ends["last"].get(("activation", row.step)))
        back, start = (ends["first"].get(("grad", row.step)), ends["last"].get(("grad", row.step)))
        shown.add_row(
            str(row.step),
            "–" if math.isnan(row.loss) else digest.number(row.loss, 4),
            f"{_or_dash(first)} → {_or_dash(final)}",
            f"{_or_dash(back)} ← {_or_dash(start)}",
            _or_dash(ratios.get(row.step)),
            "–" if math.isnan(row.logit_std) else digest.number(row.logit_std),
        )
    if every > 1:
        shown.caption, shown.caption_justify = "not every watched step is shown; records.csv has them all", "left"
    return shown


def _further(records: pd.DataFrame) -> list[str]:
    """Columns of statistics that were asked for."""
    return [name for name in schema.extras("records", records) if records[name].dtype == float]


def layers_shown(n_layer: int) -> list[tuple[int | None, str]]:
    """The embedding (None) and the blocks that a table has room for, with their names; the last one among them."""
    step = -(-n_layer // _MOST_LAYERS)
    layers = sorted({*range(0, n_layer, step), n_layer - 1}) if n_layer else []
    rows: list[tuple[int | None, str]] = [(None, "embedding")]
    return rows + [(layer, f"block {layer}") for layer in layers]


def _value(shown: digest.View, kind: str, site: str, layer: int | None, column: str) -> float | None:
    rows = shown.rows(kind, [site], shown.n_layer)
    rows = rows[rows["layer"].isna() if layer is None else (rows["layer"] == layer)]
    values = rows[column] if column == "var" else rows[column].dropna()
    return digest.middle(values)


def _print_finding(console: Console, finding: Finding, width: int) -> None:
    head = Text(f"{digest.GLYPHS[finding.severity]} {finding.code}", style=STYLES[finding.severity])
    head.append(f" {finding.name}", style="bold")
    head.append(f"  {finding.recipe or 'every recipe'}")
    if finding.seeds_total > 1:
        head.append(f"  ({finding.seeds_failing}/{digest.plural(finding.seeds_total, 'seed')})", style="dim")
    console.print(head)
    limit = f" (limit {finding.limit})" if finding.limit else ""
    lines = [("", f"{finding.message}{limit}"), ("--> ", digest.where(finding)), ("help: ", finding.advice)]
    for label, body in lines if finding.severity != "info" else lines[:1]:  # a note asks for nothing
        if body:
            text = textwrap.fill(
                label + body,
                width,
                initial_indent="  ",
                subsequent_indent="  " + " " * len(label),
                break_long_words=False,
                break_on_hyphens=False,
            )
            console.print(text)
    console.print()


class Progress:
    """How far a run is and how long it will take, on stderr so that stdout stays clean.

    On a terminal a bar that vanishes when done; elsewhere a line every half minute.
    """

    def __init__(self, total_work: float, label: str, stream: TextIO | None = None):
        self._total = max(total_work, 1e-12)
        self._label = label
        self._stream = stream or sys.stderr
        self._done = 0.0
        self._started = self._spoke = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            self._bar = self._make_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, work: float, text: str = "") -> None:
        """Count work as done; `text` says what comes or came."""
        self._done += work
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=work, note=text)
            return
        now = time.monotonic()
        if now - self._spoke >= _QUIET_SECONDS:
            self._spoke = now
            share = min(self._done / self._total, 1.0)
            left = (now - self._started) * (1 - share) / share if share > 0 else 0.0
            line = f"{self._label}: {share:.0%}, about {left:.0f} s left  {text}".rstrip()
            print(line, file=self._stream, flush=True)

    def _make_bar(self) -> RichProgress:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns: list[Any] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[note]}", markup=False),
        ]
        console = Console(file=self._stream, highlight=False, emoji=False)
        return Progress(*columns, console=console, transient=True)
