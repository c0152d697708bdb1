"""Coord check and depth check: `scale`."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab import __version__
from initlab.api.compare import expect_cell, refuse_no_list
from initlab.api.manifest import new_manifest
from initlab.api.run import Progress, estimate, in_turn, run_cells
from initlab.errors import ConfigError
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule
from initlab.recipes.tabulating import evaluate
from initlab.results import Scaling
from initlab.schema import Tables

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from initlab.corpus import Corpus
    from initlab.measure.inputs import Inputs
    from initlab.measure.steps import ScaleConfig
    from initlab.measure.sweep import Cell

ModelFunction = Callable[..., Any]

WIDTH_LR = 1e-2  # large on purpose, after mup's README: a coord check then tells the parametrisations apart
DEPTH_LR = 1e-3  # of CompleteP's depth checks


def scale(
    subject: str | Recipe | ModelFunction | Sequence[str | Recipe | Rule | ModelFunction],
    *,
    widths: Sequence[int] = (64, 128, 256),
    depths: Sequence[int] = (4,),
    steps: int = 3,
    seeds: int = 3,
    lr: float | None = None,
    optimizer: str | Callable[[nn.Module], Optimizer] = "adamw",
    batch: Any = None,
    n_head: int | None = None,
    head_size: int | None = None,
    block_size: int = 64,
    batch_size: int = 4,
    vocab_size: int | None = None,
    bias: bool = True,
    activation: str = "gelu",
    tie_weights: bool = True,
    data: str | Path = "docstrings",
    tokenizer: str | None = None,
    stats: str = "light",
    dtype: str = "float32",
    device: str = "auto",
    out: str | Path | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> Scaling:
    """How activations go with width, and updates with depth, before and after a few optimizer steps.

    Answers: does a learning rate found on a small model hold for a wider or deeper one? mup's coord check, and
    CompleteP's depth check, as fitted exponents with intervals.

    Each model is made for the check, measured, and trained by an optimizer of its own; nothing of the caller's is
    stepped. The widths are measured at the smallest depth, and the depths at the smallest width. Every size sees the
    same text at a seed, and recipes the same draw; a model is trained on the batch that it is measured on.

    Args:
        subject: recipes as `compare` takes them, drawn into NanoGPTs; a function of `n_embd` and `n_layer` that returns
            a fresh torch.nn.Module, called after torch.manual_seed(seed); or a list of either. In a list, functions
            with a parameter `n_embd` or `n_layer` make models, others are recipes.
        widths, depths: n_embd and n_layer; two or more of one of them.
        steps: of the optimizer, on one batch.
        seeds: draws of weights and text; with 3 or more the intervals are useful.
        lr: default 0.01 where several widths are given (rather large, as mup advises), else 0.001.
        optimizer: `adamw` (betas 0.9 and 0.95, eps 1e-12, no weight decay), `sgd`, or a function from a fresh model to
            a torch optimizer of its own, such as mup's with a learning rate per group; then `lr` isn't used.
        batch: for models of functions, as `probe` takes it; default: text, ids or Gaussian inputs as they declare.
        n_head, head_size: of NanoGPTs; default: heads of 64, or of the next smaller divisor of n_embd.
        block_size, batch_size, vocab_size, bias, activation, tie_weights: of NanoGPTs, as in `compare`.
        stats: `light`, or `full` for mean |x| and more.
        out: folder for tables and run.json; the same call with the same folder resumes.

    Returns:
        Scaling; `.slopes` is a row per recipe, axis, site and step. Exponents are of variance: half of one is the
        slope of mup's l1 = mean |x|.

    Raises:
        RecipeError, ConfigError, DataError: an argument can't be used; nothing was measured.
        ProbeError: a function's model can't be made or has the same parameters at every size; or every cell failed.
        RunError: `out` can't be written or holds another run.
    """
    import torch

    from initlab.drawing.apply import apply_recipe
    from initlab.drawing.loading import choose_device
    from initlab.measure import steps as stepping
    from initlab.measure.sweep import empty_model, matmul_rate

    started = time.perf_counter()
    entries, functions = _sorted_out(subject)
    for name, value in (("depths", depths), ("widths", widths)):
        refuse_no_list(name, value)
    if batch is not None and entries:
        raise ConfigError("batch= is for models of functions; NanoGPTs drawn from recipes read `data`")
    corpus = _corpus(data, tokenizer, vocab_size) if entries else None
    own = optimizer if callable(optimizer) else None
    lr = (WIDTH_LR if len(widths) > 1 else DEPTH_LR) if lr is None else lr
    config = stepping.ScaleConfig(
        recipes=(*entries, *functions),
        functions=tuple(functions),
        sources=tuple(map(_source, [*functions.values(), *([own] if own else [])])),
        depths=tuple(depths),
        widths=tuple(widths),
        seeds=seeds,
        steps=steps,
        lr=lr,
        optimizer=getattr(own, "__name__", "own") if own else str(optimizer),
        n_head=n_head,
        head_size=head_size,
        block_size=block_size,
        batch_size=batch_size,
        vocab_size=corpus.vocab_size if corpus else vocab_size or 256,
        bias=bias,
        activation=activation,
        tie_weights=tie_weights,
        preset=stats,  # type: ignore[arg-type]  # SweepConfig refuses others
        dtype=dtype,
        device=choose_device(device),
    )
    make_optimizer = own or stepping.own_optimizer(config.optimizer, lr)
    by_name = {name: _by_name(name, function) for name, function in functions.items()}

    def make(cell: Cell) -> nn.Module:
        if cell.recipe in entries:
            model: nn.Module = empty_model(cell.config(config), config.device)
            apply_recipe(model, entries[cell.recipe], cell.seed)
            return model
        size = {"n_embd": cell.n_embd, "n_layer": cell.n_layer}
        return stepping.call_maker(cell.recipe, functions[cell.recipe], **size, by_name=by_name[cell.recipe])

    made = functools.partial(_inputs_of, batch=batch, data=data, tokenizer=tokenizer)
    if corpus is not None:
        corpus.batch(batch_size, block_size, 0)  # a text that is too short is refused before anything is written
    parameters, described = _survey(config, make, made)
    described = corpus.describe() if corpus else described

    def measure(cell: Cell) -> Tables:
        def inputs(model: nn.Module, seed: int) -> Inputs:
            from initlab.measure.inputs import of_ids

            if cell.recipe in functions or corpus is None:
                return made(model, seed)[0]
            return of_ids(model, *corpus.batch(batch_size, block_size, seed))

        tables = stepping.measure_steps(cell, config, make, inputs, make_optimizer)
        if cell.recipe not in entries or corpus is None:
            return tables
        first = tables.at_step(0)
        expect_cell(first, cell, config, entries[cell.recipe], corpus, described)
        rest = [tables.at_step(step) for step in tables.summary["step"] if step]
        return Tables.concat([first, *(Tables(part.records, part.heads, part.summary) for part in rest)])

    def work(cell: Cell) -> float:
        passes = 1 + 3 * config.steps  # each step is a pass, its measurement another, and a forward for the change
        if cell.recipe in entries:
            return passes * cell.flops(config)
        return passes * 6.0 * parameters[cell.recipe, cell.n_layer, cell.n_embd] * 1024

    def seconds(todo: Sequence[Cell]) -> float:
        rate = matmul_rate(config.device, max(config.widths), batch_size * block_size) if todo else 1.0
        fixed = sum(_OVERHEAD * cell.n_layer * (config.steps + 1) for cell in todo)
        return estimate(sum(map(work, todo)), rate, todo) + fixed

    evaluated = {id: evaluate(entry, config.sizes(), bias=bias, tied=tie_weights) for id, entry in entries.items()}
    kept = config.as_dict() | {key: described.get(key) for key in ("label", "tokenizer", "sha256")}
    kept["versions"] = f"initlab {__version__}, torch {torch.__version__}"  # a table of two compares nothing
    cells = config.cells()
    manifest = new_manifest("scale", command, kept, evaluated, described, [cell.run_id for cell in cells])
    run, path = run_cells(
        cells, manifest, in_turn(measure), work=work, seconds=seconds, out=out, progress=progress, started=started
    )
    return Scaling(run, path)


# Seconds a block and step for tables and small kernels. A guess: 16 s were estimated for a run of 12 s on an idle core.
_OVERHEAD = 0.012


def _sorted_out(subject: Any) -> tuple[dict[str, Recipe], dict[str, ModelFunction]]:
    """Recipes, and functions that make models, by id in the order given."""
    alone = isinstance(subject, str | Recipe) or callable(subject)
    if not alone and (not isinstance(subject, Sequence) or not subject):
        raise ConfigError(f"{subject!r} can't be scaled; expected recipes, as in ['nanogpt'], or a function of n_embd")
    entries: dict[str, Recipe] = {}
    functions: dict[str, ModelFunction] = {}
    for item in [subject] if alone else subject:
        if callable(item) and not isinstance(item, Recipe) and (alone or _makes_models(item)):
            name = getattr(item, "__name__", type(item).__name__).strip("<>")
        else:
            entry = registry.get(item)
            name = entry.id
        if name in entries or name in functions:
            raise ConfigError(f"{name!r} was given more than once; rename one of them")
        if callable(item) and not isinstance(item, Recipe) and (alone or _makes_models(item)):
            functions[name] = item
        else:
            entries[name] = entry
    return entries, functions


def _makes_models(function: ModelFunction) -> bool:
    return bool({"n_embd", "n_layer"} & set(_parameters(function)))


def _by_name(name: str, function: ModelFunction) -> bool:
    """Whether the function takes n_embd and n_layer by name; by position otherwise. Raises ConfigError on neither."""
    parameters = _parameters(function)
    if {"n_embd", "n_layer"} <= set(parameters) or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return True
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if len(required) <= 2 <= len(positional):
        return False
    raise ConfigError(f"{name}({', '.join(parameters)}) can't make models of a size; expected n_embd and n_layer")


def _parameters(function: ModelFunction) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def _source(function: ModelFunction) -> str:
    """Hash of a function's own source, so that a run isn't resumed by another one; its name where there is none."""
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        return name
    return f"{name} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _corpus(data: str | Path, tokenizer: str | None, vocab_size: int | None) -> Corpus:
    from initlab.corpus import load_corpus

    return load_corpus(data, tokenizer, vocab_size)


def _inputs_of(model: nn.Module, seed: int, *, batch: Any, data: Any, tokenizer: Any) -> tuple[Inputs, dict[str, Any]]:
    from initlab.measure.batches import inputs_for

    return inputs_for(model, batch, data=data, tokenizer=tokenizer, batch_size=None, seed=seed)


def _survey(
    config: ScaleConfig,
    make: Callable[[Cell], nn.Module],
    made: Callable[[nn.Module, int], tuple[Inputs, dict[str, Any]]],
) -> tuple[dict[tuple[str, int, int], int], dict[str, Any]]:
    """Make every size of every function once: its parameters, and what its batch is made of."""
    from initlab.errors import ProbeError
    from initlab.measure.steps import seeded

    counts: dict[tuple[str, int, int], int] = {}
    described: dict[str, Any] = {}
    for name in config.functions:
        for size in (cell for cell in config.cells() if cell.recipe == name and cell.seed == 0):
            with seeded(0, config.device):
                model = make(size)
                counts[name, size.n_layer, size.n_embd] = sum(p.numel() for p in model.parameters())
                described = described or made(model, 0)[1]
        for axis, sizes in (("n_embd", sorted(config.widths)), ("n_layer", sorted(config.depths))):
            for small, large in itertools.pairwise(sizes):
                at = [
                    (name, min(config.depths), size) if axis == "n_embd" else (name, size, min(config.widths))
                    for size in (small, large)
                ]
                if counts[at[0]] >= counts[at[1]]:
                    raise ProbeError(
                        f"{name} made {counts[at[0]]} parameters at {axis} {small} and {counts[at[1]]} at {large}; "
                        f"expected more at the larger: does it use {axis}?"
                    )
    return counts, described
