"""A run in a screenful, by its kind: what the terminal prints and the Markdown begins with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from initlab import schema
from initlab.judge.rules import Finding
from initlab.judge.rules.depth import BRANCHES
from initlab.judge.updates import matrix_ratios, update_ratios
from initlab.judge.words import number, signed
from initlab.report import scale
from initlab.report.values import Brief, Table, TableCell
from initlab.report.verdict import GLYPHS, tally
from initlab.report.view import View, middle, overview, recipes_of, view
from initlab.rundir import Run

if TYPE_CHECKING:
    import pandas as pd

_MOST_LAYERS = 16  # rows of a probe's table; deeper models show every k-th block
_MOST_STEPS = 20  # rows of a watch's table
_MOST_MODULES = 24  # rows, of a model without blocks


def brief(run: Run, findings: Sequence[Finding], modules: str | None = None) -> Brief:
    """Make the tables of a run, with what their heads mean.

    Args:
        run: of any kind but `confirm`, whose is `confirm.brief`.
        findings: of all rules.
        modules: of a scaling run, glob of the sites and modules to show; None for a selection.
    """
    match run.manifest.get("kind"):
        case "probe":
            has_stream = (run.tables.records["site"] == "resid_post").any()
            return Brief([_layer_table(run) if has_stream else _module_table(run)])
        case "watch":
            footer = "rms of what the step added to the weights / rms of the weights, of all matrices together"
            return Brief([_step_table(run)], footer=f"update ratio: {footer}")
        case "scale":
            return scale.brief(run, modules)
        case "train":
            return Brief([_runs_table(run)], footer=_losses_said(run))
    return Brief([_recipe_table(run, findings)], footer=_exponents_said(run))


def _exponents_said(run: Run) -> str:
    depths = run.tables.summary["n_layer"]
    exponent = (
        "what a block writes ∝ n_layer^x (attention's also grows with its input's correlation; RES001 allows for it)"
    )
    if depths.nunique() == 1:
        exponent = "needs two depths, as in --depths 4,8,16"
    footer = f"of the deepest model ({depths.max()} layers), median over seeds; depth exp.: {exponent}"
    return footer if len(depths) else ""


def _losses_said(run: Run) -> str:
    runs = run.tables.runs
    if runs.empty:
        return ""
    return (
        f"losses in nats, val: of the evaluation batches; ln V {runs['ln_vocab'].iloc[0]:.3f}, and "
        f"{runs['unigram_loss'].iloc[0]:.3f} for knowing how frequent tokens are and nothing else; "
        "findings are about the inits, before the first step; NUM001 to NUM004 about the trained model too"
    )


def _recipe_table(run: Run, findings: Sequence[Finding]) -> Table:
    table = Table(
        (
            "recipe",
            "residual var\nembed → last",
            "depth exp.\nattn   mlp",
            "grad var\nfirst/last",
            "loss\n− ln V",
            "checks\npassed",
        )
    )
    rows = overview(run)
    for index, row in enumerate(rows):
        status, checks = tally(findings, row.recipe)
        table.add(
            TableCell(row.recipe, note="(baseline)" if index == 0 and len(rows) > 1 else ""),
            f"{_or_dash(row.embed_var)} → {_or_dash(row.last_var)}",
            " ".join(signed(row.slopes[site][0]) if site in row.slopes else "–" for site in BRANCHES),
            _or_dash(row.grad_ratio),
            "–" if row.excess_loss is None else signed(row.excess_loss, 3),
            TableCell(checks, status, glyph=GLYPHS[status]),
        )
    return table


def _layer_table(run: Run) -> Table:
    """Where the signal is, block by block: level, against theory, what each branch writes, the gradient."""
    shown = view(run)
    caption = "not every block is shown; records.csv has them all" if shown.n_layer > _MOST_LAYERS else ""
    further = _further(run.tables.records)
    heads = ("after", "residual\nvar", "× closed\nform", "attention\nwrites", "MLP\nwrites", "grad\nvar", *further)
    table = Table(heads, caption=caption)
    for layer, name in layers_shown(shown.n_layer):
        site = "embed" if layer is None else "resid_post"
        stream = _value(shown, "activation", site, layer, "var")
        expected = _value(shown, "activation", site, layer, "expected_var")
        table.add(
            name,
            _or_dash(stream),
            number(stream / expected) if stream is not None and expected and expected > 0 else "–",
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
            table.add(site, _or_dash(level), "", "", "", back, *own)
    return table


def _module_table(run: Run) -> Table:
    """A model without a residual stream: its layers, in the order of their first use."""
    records = run.tables.records
    forward = records[records["kind"] == "activation"].sort_values("position")
    # of a module that two names reach, or a tensor that two add to, the first
    grads = records[records["kind"] == "grad"].drop_duplicates(["module", "call"]).set_index(["module", "call"])["var"]
    left_out = len(forward) - _MOST_MODULES
    caption = f"{left_out} more modules are in records.csv" if left_out > 0 else ""
    further = _further(records)
    table = Table(("module", "output\nvar", "largest\n|x|", "grad\nvar", *further), caption=caption)
    for row in forward.head(_MOST_MODULES).itertuples():
        table.add(
            str(row.module),
            number(float(row.var)),
            number(float(row.abs_max)),
            _or_dash(grads.get((row.module, row.call))),
            *(number(float(getattr(row, name))) for name in further),
        )
    return table


def _step_table(run: Run) -> Table:
    """What training does to the scales: loss, both ends of the stream and of its gradient, size of the updates."""
    heads = ("loss", "residual var\nembed → last", "grad var\nembed ← last", "update\nratio", "logit\nstd")
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
    caption = "not every watched step is shown; records.csv has them all" if every > 1 else ""
    shown = Table(("step", *heads), caption=caption)
    for place, row in enumerate(summary.itertuples()):
        if place % every and place != len(summary) - 1:
            continue
        first, final = (ends["first"].get(("activation", row.step)), ends["last"].get(("activation", row.step)))
        back, start = (ends["first"].get(("grad", row.step)), ends["last"].get(("grad", row.step)))
        shown.add(
            str(row.step),
            "–" if math.isnan(row.loss) else number(row.loss, 4),
            f"{_or_dash(first)} → {_or_dash(final)}",
            f"{_or_dash(back)} ← {_or_dash(start)}",
            _or_dash(ratios.get(row.step)),
            "–" if math.isnan(row.logit_std) else number(row.logit_std),
        )
    return shown


def _runs_table(run: Run) -> Table:
    table = Table(("recipe", "val loss", "best", "first\n− ln V", "gradient norm\nfirst → peak", "steps", "tokens/s"))
    runs, training = run.tables.runs, run.tables.training
    order = [recipe for recipe in recipes_of(run) if recipe in set(runs["recipe"])]
    for recipe in order:
        for row in runs[runs["recipe"] == recipe].itertuples():
            own = training[training["run_id"] == row.run_id].sort_values("step")
            diverged = math.isnan(float(row.val_loss))
            table.add(
                recipe,
                "diverged" if diverged else f"{row.val_loss:.4f}",
                _best(own),
                signed(float(row.first_loss) - float(row.ln_vocab), 3),
                _norms(own["grad_norm"]),
                f"{row.steps_done:,}" + (f" of {row.steps:,}" if row.steps_done < row.steps else ""),
                _rate(own["tokens_per_second"]),
            )
    return table


def _or_dash(value: float | None) -> str:
    return "–" if value is None else number(value)


def _further(records: pd.DataFrame) -> list[str]:
    """Columns of statistics that were asked for."""
    return [name for name in schema.extras("records", records) if records[name].dtype == float]


def layers_shown(n_layer: int) -> list[tuple[int | None, str]]:
    """The embedding (None) and the blocks that a table has room for, with their names; the last one among them."""
    step = -(-n_layer // _MOST_LAYERS)
    layers = sorted({*range(0, n_layer, step), n_layer - 1}) if n_layer else []
    rows: list[tuple[int | None, str]] = [(None, "embedding")]
    return rows + [(layer, f"block {layer}") for layer in layers]


def _value(shown: View, kind: str, site: str, layer: int | None, column: str) -> float | None:
    rows = shown.rows(kind, [site], shown.n_layer)
    rows = rows[rows["layer"].isna() if layer is None else (rows["layer"] == layer)]
    values = rows[column] if column == "var" else rows[column].dropna()
    return middle(values)


def _best(own: pd.DataFrame) -> str:
    losses = own.loc[own["val_loss"].notna(), ["step", "val_loss"]]
    if losses.empty:
        return "–"
    best = losses.loc[losses["val_loss"].idxmin()]
    return f"{best['val_loss']:.4f} at {int(best['step']):,}"


def _norms(norms: pd.Series) -> str:
    seen = norms.dropna()
    return "–" if seen.empty else f"{number(float(seen.iloc[0]))} → {number(float(seen.max()))}"


def _rate(rates: pd.Series) -> str:
    """The median: evaluations, the first steps and a machine that is shared leave it alone."""
    return "–" if rates.isna().all() else f"{rates.median():,.0f}"
