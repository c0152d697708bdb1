"""Recipes trained, to see whether what a probe predicts comes true: `confirm`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab import __version__
from initlab.api.compare import measured, refuse_no_list, refuse_no_recipes
from initlab.api.manifest import new_manifest
from initlab.api.run import Progress, Results, in_turn, run_cells
from initlab.engines import choose
from initlab.errors import ConfigError, ProbeError, RecipeError
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule
from initlab.recipes.tabulating import evaluate
from initlab.results import Comparison, Confirmation

if TYPE_CHECKING:
    from initlab.measure.sweep import Cell
    from initlab.schema import Tables


def confirm(
    recipes: Comparison | Sequence[str | Recipe | Rule],
    *,
    depths: Sequence[int] | None = None,
    lrs: Sequence[float] | None = None,
    warmups: Sequence[int] | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    n_embd: int | None = None,
    n_head: int | None = None,
    block_size: int | None = None,
    batch_size: int | None = None,
    vocab_size: int | None = None,
    bias: bool | None = None,
    activation: str | None = None,
    tie_weights: bool | None = None,
    schedule: str = "cosine",
    weight_decay: float = 0.1,
    grad_clip: float = 1.0,
    eval_every: int = 0,
    data: str | Path = "docstrings",
    tokenizer: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    thorough: bool = False,
    jobs: int | None = None,
    engine: str = "auto",
    out: str | Path | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> Confirmation:
    """Train small NanoGPTs from each recipe, over depths, learning rates, warmups and seeds, and judge the outcome.

    Every recipe is first measured at init at the same depths and seeds, as `compare` does; so what the probe says
    stands beside what training did. Runs are paired: at a seed, all recipes start from the same draw and read the same
    batches in the same order, and all are evaluated on the same windows.

    Args:
        recipes: as for `compare`, or a Comparison: then its recipes are trained, on models with its bias, activation
            and tied or untied head unless they are given. Its depths, widths and text are not taken: models that are
            trained many times are smaller.
        depths, n_embd, n_head, block_size, batch_size: of the models and their batches; default: `GRIDS["quick"]` of
            `initlab.training.protocol`, with thorough `GRIDS["thorough"]`.
        lrs: peak learning rates of AdamW.
        warmups: steps of linear warmup; 0 = none. Default: none, and about a quarter of the steps (thorough: a sixth).
        seeds: draws of weights and order of the data; intervals need at least 2.
        steps: of the optimizer, in each run.
        vocab_size: default: the tokenizer's.
        schedule: `cosine` to a tenth of the rate, or `constant`, after the warmup.
        weight_decay: of matrices, as in nanoGPT's train.py.
        grad_clip: largest 2-norm of the gradient; 0 = never clipped.
        eval_every: steps between evaluations; 0: before the first step and after the last.
        data, tokenizer: see `initlab.corpus.load_corpus`; nine tenths are trained on, the rest is evaluated on. A
            folder with nanoGPT's train.bin and val.bin has its own parts.
        dtype: of the forward pass; default float32, with thorough on a GPU bfloat16.
        device: `auto` is CUDA where there is a GPU, else the CPU.
        thorough: models of up to 48 layers, wider and trained longer, for a GPU.
        jobs: runs at the same time. Default: the cores on a CPU, 1 on a GPU.
        engine: where the runs are made: `processes`, each with one thread, `here`, one after another in this process,
            or one that a package adds (`initlab.engines`). `auto`: `processes` for several at a time, else `here`.
        out: folder for tables and run.json, written as each run finishes; the same call with the same folder resumes,
            and tries again what failed. None keeps everything in memory.
        progress: told about every cell.
        command: kept in the manifest; for the command line.

    Raises:
        RecipeError, ConfigError, DataError: an argument can't be used; nothing was trained.
        RunError: `out` can't be written or holds another run, or the engine can't start.
        ProbeError: every cell failed. A single failing one is recorded in the manifest and the rest goes on. A run
            that diverges has not failed: it is in the tables as diverged.
    """
    import torch

    from initlab.drawing.loading import choose_device
    from initlab.training.data import load_split
    from initlab.training.execution import Execution
    from initlab.training.protocol import GRIDS, GridConfig, TrainingCell, grid_values

    started = time.perf_counter()
    entries = _recipes_of(recipes)
    for name, value in (("depths", depths), ("lrs", lrs), ("warmups", warmups)):
        if value is not None:
            refuse_no_list(name, value, str(list(GRIDS["quick"][name])))
    if n_embd is not None and type(n_embd) is not int:
        raise ConfigError(f"n_embd is {n_embd!r}; expected a whole number: a grid is trained at one width")
    chosen = choose_device(device)
    if dtype is None:
        dtype = "bfloat16" if thorough and chosen.startswith("cuda") else "float32"
    split = load_split(data, tokenizer, vocab_size)
    like = recipes.run.manifest["config"] if isinstance(recipes, Comparison) else {}
    grid = GridConfig(
        recipes=tuple(entries),
        **grid_values(
            "thorough" if thorough else "quick",
            depths=depths,
            lrs=lrs,
            warmups=warmups,
            seeds=seeds,
            steps=steps,
            widths=None if n_embd is None else (n_embd,),
            n_head=n_head,
            block_size=block_size,
            batch_size=batch_size,
        ),
        vocab_size=split.vocab_size,
        bias=like.get("bias", True) if bias is None else bias,
        activation=like.get("activation", "gelu") if activation is None else activation,
        tie_weights=like.get("tie_weights", True) if tie_weights is None else tie_weights,
        schedule=schedule,  # type: ignore[arg-type]  # GridConfig refuses others
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        eval_every=eval_every,
        dtype=dtype,
        device=chosen,
    )
    split.check(grid.block_size)  # a text that is too short is refused before anything is written
    probes, runs = grid.cells(), grid.runs()
    made, jobs = choose(engine, jobs, chosen, len(runs))
    described = split.describe()
    evaluated = {
        id: evaluate(entry, grid.sizes(), bias=grid.bias, tied=grid.tie_weights) for id, entry in entries.items()
    }
    config = grid.as_dict() | {key: described[key] for key in ("label", "tokenizer", "sha256")}
    config["versions"] = f"initlab {__version__}, torch {torch.__version__}"  # a table of two compares nothing
    ids = [cell.run_id for cell in (*probes, *runs)]
    manifest = new_manifest("confirm", command, config, evaluated, described, ids)
    manifest["environment"]["jobs"] = jobs
    with Execution(grid, entries, split, made, jobs) as execution:

        def measure(cell: Cell) -> Tables:
            return measured(cell, grid, entries[cell.recipe], split.train, described)

        def results(cells: Sequence[Cell]) -> Results:
            yield from in_turn(measure)([cell for cell in cells if not isinstance(cell, TrainingCell)])
            yield from execution.results([cell for cell in cells if isinstance(cell, TrainingCell)])

        run, path = run_cells(
            [*probes, *runs],
            manifest,
            results,
            work=lambda cell: cell.flops(grid) * (cell.passes(grid) if isinstance(cell, TrainingCell) else 4),
            seconds=lambda cells: execution.seconds([cell for cell in cells if isinstance(cell, TrainingCell)]),
            out=out,
            progress=progress,
            started=started,
        )
    if run.tables.runs.empty:
        failed = run.manifest["failed"]
        raise ProbeError(f"every one of {len(runs)} runs failed; the first: {failed[runs[0].run_id]}")
    return Confirmation(run, path)


def _recipes_of(given: Any) -> dict[str, Recipe]:
    """Recipes by id. Raises ConfigError, RecipeError."""
    if isinstance(given, Comparison):
        return {id: given.recipes.get(id) or _again(id) for id in given.run.manifest["config"]["recipes"]}
    refuse_no_recipes(given)
    entries = [registry.get(recipe) for recipe in given]
    repeated = sorted(id for id in {entry.id for entry in entries} if [e.id for e in entries].count(id) > 1)
    if repeated:
        raise ConfigError(f"recipes has {repeated[0]!r} more than once")
    return {entry.id: entry for entry in entries}


def _again(id: str) -> Recipe:
    """A recipe of a comparison that was loaded from a folder."""
    try:
        return registry.get(id)
    except RecipeError as error:
        raise RecipeError(
            f"recipe {id!r} of the comparison was a function or object of its own, which a run's folder doesn't hold; "
            "pass the recipes themselves: confirm([…])"
        ) from error
