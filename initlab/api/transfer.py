"""Whether the best learning rate of a small model holds for a larger one: `transfer`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from initlab.api.gradients import with_gradients
from initlab.api.grids import trained_grid
from initlab.api.reading import split_for, text_of
from initlab.models.config import NanoGPTConfig
from initlab.options import RunOptions, Text, checked, checked_count, checked_flag, real, with_fields
from initlab.recipes import Base
from initlab.report.waiting import drawn
from initlab.results.trained import Transfer

if TYPE_CHECKING:
    from initlab.drawing.subject import Model


@with_fields
@drawn
@with_gradients()
def transfer(
    recipes: Any,
    *,
    model: Model | None = None,
    roles: Mapping[str, str | None] | None = None,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    lrs: Sequence[float] | None = None,
    base: Base | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    warmup: int | None = None,
    schedule: str = "cosine",
    weight_decay: float = 0.1,
    grad_clip: float = 1.0,
    text: Text = Text(),
    dtype: str | None = None,
    thorough: bool = False,
    run: RunOptions = RunOptions(),
) -> Transfer:
    """Train recipes at several widths or depths and rates, and say whether the best rate of the smallest holds.

    The widths are trained at the smallest depth, and the depths at the smallest width. Runs are paired: at a seed, all
    sizes read the same batches, and all are evaluated on the same windows. The rate is the one that a user sets;
    recipes with an optimizer part multiply it by role and size, relative to a base.

    Args:
        recipes: one or several recipes, or functions that make models with an init of their own, as `compare` takes
            them; the first is the baseline.
        model: what recipes are drawn into, as `confirm` takes it, but for a torch.nn.Module, which has one size.
            Default: NanoGPTs of `GRIDS["quick"]` of `initlab.training.transfer`, with thorough of `GRIDS["thorough"]`,
            whose heads keep their size.
        roles: what parameters of `model` are for, by pattern of their names, where that isn't found or found wrongly,
            as `apply_recipe` takes it.
        widths: n_embd to sweep.
        depths: n_layer to sweep.
        lrs: peak learning rates of AdamW, three or more; an octave apart by default.
        base: depth and width at which recipes' multipliers are 1. Default: the smallest of the grid, with its heads.
        seeds: draws of weights and order of the data; intervals need at least 2, or three sizes.
        steps: of the optimizer, in each run.
        warmup: steps of linear warmup. Default: a fifth of the steps.
        schedule: `cosine` to a tenth of the rate, or `constant`, after the warmup.
        weight_decay: of matrices.
        grad_clip: largest 2-norm of the gradient; 0 = never clipped.
        text: nine tenths are trained on, the rest is evaluated on.
        dtype: of the forward pass; default float32, with thorough on a GPU bfloat16.
        thorough: wider models, trained longer, for a GPU.
        run: device, jobs and engine, folder and progress; the same call with the same folder goes on.

    Returns:
        Transfer: `.transfers`, a row per recipe and axis with drift, verdict and cost; `.optima`, the best rates.

    Raises:
        RecipeError, ConfigError, DataError: an argument can't be used; nothing was trained.
        RunError: `run.out` can't be written or holds another run, or the engine can't start.
        ProbeError: every cell failed. A single failing one is recorded in the manifest and the rest goes on.
    """
    from initlab.drawing.loading import choose_device
    from initlab.drawing.subject import check_list, subject_of
    from initlab.training.transfer import GRIDS, TransferConfig

    started = time.perf_counter()
    text, run = text_of(text), checked("run", run, RunOptions)
    lists = {"widths": widths, "depths": depths, "lrs": lrs}
    widths, depths, lrs = (None if value is None else check_list(name, value) for name, value in lists.items())
    if isinstance(model, NanoGPTConfig) and depths is None:
        depths = (model.n_layer,)
    checked_flag("thorough", thorough)
    chosen = choose_device(run.device)
    if dtype is None:
        dtype = "bfloat16" if thorough and chosen.startswith("cuda") else "float32"
    preset = GRIDS["thorough" if thorough else "quick"]
    default: NanoGPTConfig = preset["model"]
    one = depths is not None and len(depths) > 1  # then the depths are what is asked about
    if widths is None and isinstance(model, NanoGPTConfig):
        widths = (model.n_embd,) if one else preset["widths"]
    usual = (default.n_embd,) if one else preset["widths"]
    subject = subject_of(recipes, model, (depths, widths), default, (preset["depths"], usual))
    split, block_size = split_for(subject, text, default.block_size)
    steps = checked_count("steps", preset["steps"] if steps is None else steps)
    lrs = preset["lrs"] if lrs is None else lrs
    if all(real(lr) for lr in lrs):  # TransferConfig refuses others
        lrs = sorted(lrs)
    grid = TransferConfig(
        recipes=tuple(subject.items),
        model=subject.config,
        depths=subject.depths,
        widths=subject.widths,
        lrs=tuple(lrs),
        warmups=(steps // 5 if warmup is None else warmup,),
        seeds=preset["seeds"] if seeds is None else seeds,
        steps=steps,
        batch_size=text.batch_size or preset["batch_size"],
        block_size=block_size,
        schedule=schedule,  # type: ignore[arg-type]  # GridConfig refuses others
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        dtype=dtype,
        device=chosen,
    )
    options: dict[str, Any] = {"base": base, "roles": roles, "given": model is not None, "started": started}
    found, path = trained_grid("transfer", grid, subject, split, text, run, **options)
    return Transfer(found, path)
