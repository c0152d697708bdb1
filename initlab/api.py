"""The public functions: the only place that joins the half that measures and the half that judges and shows.

torch is imported inside the functions, so that loading a saved run, and the command line's help, don't pay for it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from initlab import __version__, environment, rundir, schema
from initlab.errors import ConfigError, InitlabError, ProbeError
from initlab.judge import theory
from initlab.judge.rules import SEVERITIES, Severity
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule
from initlab.recipes.tabulating import evaluate
from initlab.results import Comparison, Description, Probe, json_ready, now
from initlab.rundir import Run, RunDir
from initlab.schema import Tables

if TYPE_CHECKING:
    from torch import nn

    from initlab.measure.sweeping import Cell, SweepConfig


class Progress(Protocol):
    """Told how a comparison advances; the command line draws it."""

    def start(self, work: float, cells: int, seconds: float) -> None:
        """Before the first cell: all work, in any unit, the number of cells, and an estimate of the seconds."""

    def advance(self, work: float, text: str) -> None:
        """After each cell."""


def probe(
    model: nn.Module,
    batch: Any = None,
    *,
    recipe: str | Recipe | Rule | None = None,
    data: str | Path = "docstrings",
    tokenizer: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    stats: str = "full",
    dtype: str = "float32",
    command: str = "",
) -> Probe:
    """Measure forward and backward scale at every site of one model, whatever it is.

    Answers: does the signal keep its scale from embedding to logits, and the gradient on the way back?

    The residual stream is found by following the numbers (see `initlab.measure.discovery`); what was found, and what
    could not be verified, is in `.coverage`.

    Args:
        model: probed in the mode it is in and left exactly as found, also after an error. A compiled model is measured
            eagerly, through the original with the same parameters.
        batch: token ids (B, T), whose targets are the next tokens; (ids, targets), -1 where there is no target; a
            tuple of arguments; a dict of keyword arguments; or a loader of any of these. Default: about 1024 tokens of
            `data` for a model with a vocabulary, else Gaussian inputs in the shape of its first layer.
        recipe: id of the recipe that the model should have been drawn from. With it, predictions answer «was it
            initialised as intended?»; without, they follow from the weights' own scale and answer «does it behave
            as its weights imply?» Predictions exist for nanoGPT's layout.
        data, tokenizer: text for the default batch; see `initlab.corpus.load_corpus`. A vocabulary too small for it
            is a DataError where either was named, and gets uniform random ids where neither was.
        batch_size: sequences of the default batch.
        seed: of the default batch and of dropout.
        stats: `full`, or `light` for mean, var, rms and abs_max alone, without attention heads.
        dtype: `bfloat16` or `float16` run the forward pass under autocast.
        command: kept in the manifest; for the command line.

    Returns:
        Probe. Variances are over every element of a tensor; gradients are of a mean loss, so they scale as 1/(B·T).

    Raises:
        ProbeError: the model's forward or backward raised, or its weights can't be measured (meta device, several
            devices, sharded, quantised).
        RecipeError, DataError, ConfigError: an argument can't be used, or no batch can be made for the model.
    """
    from initlab.measure.batches import inputs_for
    from initlab.measure.moments import PRESETS
    from initlab.measure.probing import Identity, measure_inputs
    from initlab.measure.sites import activation_name, dropout_in_force, has_nanogpt_layout
    from initlab.measure.sweeping import DTYPES
    from initlab.measure.unwrapping import unwrap

    started = time.perf_counter()
    if stats not in PRESETS:
        raise ConfigError(f"unknown stats {stats!r}; known: {', '.join(PRESETS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    entry = registry.get(recipe) if recipe is not None else None
    inside, _ = unwrap(model)
    inputs, described = inputs_for(inside, batch, data=data, tokenizer=tokenizer, batch_size=batch_size, seed=seed)
    label = entry.id if entry else "as-found"
    step = getattr(inside, "iter_num", 0)
    step = step if isinstance(step, int) else 0
    identity = Identity(run_id=f"{label}-s{seed}", recipe=label, seed=seed, step=step)
    tables = measure_inputs(model, inputs, identity, preset=stats, recipe=entry, autocast=DTYPES[dtype])
    summary = tables.summary.iloc[0]
    roles = set(tables.records["role"].dropna())
    tied, bias = "unembed" not in roles, "bias" in roles
    known = has_nanogpt_layout(inside)
    activation = activation_name(inside) if known and not step else None  # the closed form is about init
    size: dict[str, Any] = {
        "n_layer": int(summary["n_layer"]),
        "n_embd": int(summary["n_embd"]),
        "n_head": int(summary["n_head"]),
        "block_size": int(summary["block_size"]),
        "vocab_size": int(summary["vocab_size"]),
    }
    if activation is not None:
        text: dict[str, Any] = {
            "activation": activation,
            "dropout": dropout_in_force(inside),
            "sum_p2": described["sum_p2"],
            "repeat_rate": float(summary["repeat_rate"]),
        }
        if entry is not None:
            setting = theory.from_recipe(entry, **size, bias=bias, tied=tied, **text)
        else:
            weights = tables.records[tables.records["kind"] == "weight"]
            setting = theory.from_weights(weights, context=size["block_size"], **text)
        _annotate(tables, setting)
    config = {
        "model": type(inside).__name__,
        "recipes": [label],
        "depths": [size["n_layer"]],
        "widths": [size["n_embd"]],
        "seeds": 1,
        "seed": seed,
        "n_head": size["n_head"],
        "block_size": size["block_size"],
        "batch_size": inputs.ids.shape[0] if inputs.ids is not None else inputs.n_tokens,
        "vocab_size": size["vocab_size"],
        "bias": bias,
        "activation": activation,
        "tie_weights": tied,
        "mode": str(summary["mode"]),
        "step": step,
        "preset": stats,
        "dtype": _dtype(inside, dtype),
        "device": str(next(inside.parameters()).device),
        "fingerprint": _fingerprint(tables),
    }
    recipes = {label: evaluate(entry, [size], bias=bias, tied=tied)} if entry and known else {}
    manifest = _manifest("probe", command, config, recipes, described, [identity.run_id])
    manifest.update(finished=now(), seconds=round(time.perf_counter() - started, 1))
    return Probe(Run(tables, manifest))


def compare(
    recipes: Sequence[str | Recipe | Rule],
    *,
    depths: Sequence[int] = (4, 8, 16),
    widths: Sequence[int] = (384,),
    seeds: int = 3,
    n_head: int | None = None,
    block_size: int = 256,
    batch_size: int = 4,
    vocab_size: int | None = None,
    bias: bool = True,
    activation: str = "gelu",
    tie_weights: bool = True,
    data: str | Path = "docstrings",
    tokenizer: str | None = None,
    stats: str = "full",
    dtype: str = "float32",
    device: str = "auto",
    out: str | Path | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> Comparison:
    """Measure init recipes side by side on NanoGPT, over depths, widths and seeds.

    Every recipe sees the same draw (one standard normal per parameter name and seed) and the same text.

    Args:
        recipes: ids, `file.py:name`, Recipe objects, or functions `(role, dims) -> distribution`; the first is the
            baseline of the report.
        depths, widths: n_layer and n_embd to sweep.
        seeds: draws of weights and text.
        n_head: default: heads of 64, or of the next smaller divisor of n_embd.
        vocab_size: default: the tokenizer's.
        data, tokenizer: see `initlab.corpus.load_corpus`.
        device: `auto` is CUDA where there is a GPU, else the CPU.
        out: folder for tables and run.json, written as each cell finishes; the same call with the same folder
            resumes. None keeps everything in memory.
        progress: told about every cell.
        command: kept in the manifest; for the command line.

    Raises:
        RecipeError, ConfigError, DataError: an argument can't be used; nothing was measured.
        RunError: `out` can't be written or holds another run.
        ProbeError: every cell failed. A single failing cell is recorded in the manifest and the rest goes on.
    """
    import torch

    from initlab.corpus import load_corpus
    from initlab.measure.sweeping import SweepConfig, matmul_rate, measure_cell
    from initlab.models.loading import choose_device

    started = time.perf_counter()
    if isinstance(recipes, str) or not isinstance(recipes, Sequence):
        raise ConfigError(f"recipes is {recipes!r}; expected a list, as in ['nanogpt', 'xavier']")
    for name, value in (("depths", depths), ("widths", widths)):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{name} is {value!r}; expected a list, as in [4, 8, 16]")
    entries = {entry.id: entry for entry in map(registry.get, recipes)}
    corpus = load_corpus(data, tokenizer, vocab_size)
    sweep = SweepConfig(
        recipes=tuple(entry.id for entry in map(registry.get, recipes)),
        depths=tuple(depths),
        widths=tuple(widths),
        seeds=seeds,
        n_head=n_head,
        block_size=block_size,
        batch_size=batch_size,
        vocab_size=corpus.vocab_size,
        bias=bias,
        activation=activation,
        tie_weights=tie_weights,
        preset=stats,  # type: ignore[arg-type]  # SweepConfig refuses others
        dtype=dtype,
        device=choose_device(device),
    )
    described = corpus.describe()
    corpus.batch(batch_size, block_size, 0)  # a text that is too short is refused before anything is written
    evaluated = {id: evaluate(entry, sweep.sizes(), bias=bias, tied=tie_weights) for id, entry in entries.items()}
    config = sweep.as_dict() | {key: described[key] for key in ("label", "tokenizer", "sha256")}
    config["versions"] = f"initlab {__version__}, torch {torch.__version__}"  # a table of two compares nothing
    cells = sweep.cells()
    manifest = _manifest("compare", command, config, evaluated, described, [cell.run_id for cell in cells])
    folder = RunDir.open(out, manifest) if out is not None else None
    kept = rundir.load(folder.path).tables if folder else Tables()
    done = set(kept.summary["run_id"])
    todo = [cell for cell in cells if cell.run_id not in done]
    if progress is not None:
        work = sum(cell.flops(sweep) for cell in todo)
        rate = matmul_rate(sweep.device, max(sweep.widths), batch_size * block_size) if todo else 1.0
        progress.start(work, len(todo), _estimate(work, rate, todo))
    parts, failed = [kept], {}
    for cell in todo:
        try:
            tables = measure_cell(cell, sweep, entries[cell.recipe], corpus)
        except (InitlabError, torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            failed[cell.run_id] = f"{type(error).__name__}: {error}"
            if folder:
                folder.fail(cell.run_id, failed[cell.run_id])
        else:
            _annotate(tables, _setting(cell, sweep, entries[cell.recipe], described, tables))
            parts.append(tables)
            if folder:
                folder.append(tables)
        if progress is not None:
            progress.advance(cell.flops(sweep), cell.run_id)
    if failed and len(failed) == len(cells):
        raise ProbeError(f"every one of {len(cells)} cells failed; the first: {next(iter(failed.values()))}")
    seconds = time.perf_counter() - started
    if folder is not None:
        return Comparison(folder.finish(now(), seconds), folder.path)
    manifest.update(finished=now(), seconds=round(seconds, 1), failed=failed)
    return Comparison(Run(Tables.concat(parts), manifest))


def assert_healthy(model: nn.Module, batch: Any = None, *, fail_on: Severity = "error", **options: Any) -> Probe:
    """Fail a test when signal propagation at init is broken; the message is the findings.

    Args:
        model, batch, options: as `probe` takes them.
        fail_on: the lowest severity that fails: `error`, `warning` or `info`.

    Returns:
        The probe, for further assertions.

    Raises:
        AssertionError: a finding of that severity or above.
    """
    if fail_on not in SEVERITIES:
        raise ConfigError(f"fail_on is {fail_on!r}; expected {', '.join(SEVERITIES)}")
    found = probe(model, batch, **options)
    counted = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    broken = [f for f in found.findings if f.status == "fail" and f.severity in counted]
    if broken:
        lines = [f"{f.severity} {f.code} {f.name}: {f.message}\n  help: {f.advice}" for f in broken]
        raise AssertionError("\n".join([f"{type(model).__name__} isn't healthy at init:", *lines]))
    return found


def describe_init(model: nn.Module) -> Description:
    """What the model was initialised with: the std found per role, the recipes that fit, and what doesn't.

    Works on any model; its `str` is the table, `.rows` the data, `.mismatches` the sentences.
    """
    from initlab.models import describing

    rows = describing.describe(model)
    return Description(rows, describing.mismatches(rows), describing.describe_text(rows))


def apply_recipe(model: nn.Module, recipe: str | Recipe | Rule, *, seed: int = 0) -> None:
    """Re-initialise any model in place, by the role of each parameter; paired draws as `compare` makes them.

    Raises:
        RecipeError: unknown recipe, or a model whose parameters' roles are unknown; then nothing was changed.
    """
    from initlab.models import apply

    apply.apply_recipe(model, registry.get(recipe), seed)


def _setting(
    cell: Cell, sweep: SweepConfig, recipe: Recipe, described: dict[str, Any], tables: Tables
) -> theory.Setting:
    size = next(s for s in sweep.sizes() if (s["n_layer"], s["n_embd"]) == (cell.n_layer, cell.n_embd))
    return theory.from_recipe(
        recipe,
        **size,
        bias=sweep.bias,
        tied=sweep.tie_weights,
        activation=sweep.activation,
        sum_p2=described["sum_p2"],
        repeat_rate=float(tables.summary["repeat_rate"].iloc[0]),
    )


def _annotate(tables: Tables, setting: theory.Setting) -> None:
    tables.records, tables.summary = theory.annotate(tables.records, tables.summary, theory.predict(setting))


def _manifest(
    kind: str,
    command: str,
    config: dict[str, Any],
    recipes: dict[str, Any],
    described: dict[str, Any],
    cells: list[str],
) -> dict[str, Any]:
    return json_ready(
        {
            "schema_version": schema.SCHEMA_VERSION,
            "initlab_version": __version__,
            "kind": kind,
            "command": command or f"initlab.{kind}(…)",
            "created": now(),
            "finished": None,
            "seconds": 0.0,
            "config": config,
            "recipes": recipes,
            "data": described,
            "environment": environment.describe(config["device"]),
            "git": environment.git(Path.cwd()),
            "cells": cells,
            "failed": {},
        }
    )


def _estimate(work: float, rate: float, cells: list[Cell]) -> float:
    """Seconds. A model and its statistics reach about a third of a bare matrix product's rate; drawing takes some 10 ns
    a weight (measured on two x86 cores)."""
    draws = sum(12 * cell.n_embd**2 * cell.n_layer for cell in cells)
    return 3 * work / rate + 1e-8 * draws


def _dtype(model: nn.Module, autocast: str) -> str:
    own = str(next(model.parameters()).dtype).removeprefix("torch.")
    return own if autocast == "float32" else f"{own}, autocast {autocast}"


def _fingerprint(tables: Tables) -> str:
    """Of everything measured, so that another model's or batch's tables aren't taken for these."""
    values = tables.records[["mean", "var", "abs_max"]].to_numpy(dtype=float)
    return hashlib.sha256(values.round(12).tobytes()).hexdigest()[:16]
