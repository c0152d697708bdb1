"""Recipes trained, to see whether what a probe predicts comes true: `confirm`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from initlab.api.gradients import with_gradients
from initlab.api.grids import trained_grid
from initlab.api.reading import split_for, text_of
from initlab.errors import ConfigError, RecipeError
from initlab.models.config import WIRING, NanoGPTConfig
from initlab.options import RunOptions, Text, checked, checked_flag, with_fields
from initlab.recipes import Base, Recipe, registry
from initlab.report.waiting import drawn
from initlab.results import Comparison, Confirmation

if TYPE_CHECKING:
    from initlab.drawing.subject import Model


_SHARED = ("bias", "activation", "tie_weights", *WIRING)  # of a comparison's NanoGPTs


@with_fields
@drawn
@with_gradients()
def confirm(
    recipes: Any,
    *,
    model: Model | None = None,
    roles: Mapping[str, str | None] | None = None,
    depths: Sequence[int] | None = None,
    n_embd: int | None = None,
    base: Base | None = None,
    lrs: Sequence[float] | None = None,
    warmups: Sequence[int] | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    schedule: str = "cosine",
    weight_decay: float = 0.1,
    grad_clip: float = 1.0,
    eval_every: int = 0,
    text: Text = Text(),
    dtype: str | None = None,
    thorough: bool = False,
    run: RunOptions = RunOptions(),
) -> Confirmation:
    """Train small models from each recipe, over depths, learning rates, warmups and seeds, and judge the outcome.

    Every recipe is first measured at init at the same depths and seeds, as `compare` does; so what the probe says
    stands beside what training did. Runs are paired: at a seed, all recipes start from the same draw and read the same
    batches in the same order, and all are evaluated on the same windows.

    A model of one's own is trained on its own loss where its forward makes one of the next tokens, else on the cross
    entropy of its logits. A recipe that needs what it can't be given is left out, and the report says why.

    Args:
        recipes: one or several recipes, or functions that make models with an init of their own, as `compare` takes
            them; or a Comparison: then its recipes are trained, on models with its bias, activation and tied or untied
            head unless a model is given. Its depths, widths and text are not taken: models that are trained many times
            are smaller.
        model: what recipes are drawn into: a NanoGPTConfig; a function of n_layer and n_embd that returns a causal
            language model (torch.nn.Module), a NanoGPTConfig or a config of transformers; such a config; or a
            torch.nn.Module, which is copied. Default: the NanoGPT of `GRIDS["quick"]` of `initlab.training.protocol`,
            with thorough of `GRIDS["thorough"]`, and the text's vocabulary.
        roles: what parameters of `model` are for, by pattern of their names, where that isn't found or found wrongly,
            as `apply_recipe` takes it.
        depths: n_layer to sweep; default: a given config's and module's own, else the grid's.
        n_embd: width of the default's and of a function's models; default: the grid's.
        base: depth and width at which multipliers of recipes such as `mup` are 1. Default: the smallest model's.
        lrs: peak learning rates of AdamW.
        warmups: steps of linear warmup; 0 = none. Default: none, and about a quarter of the steps (thorough: a sixth).
        seeds: draws of weights and order of the data; intervals need at least 2.
        steps: of the optimizer, in each run.
        schedule: `cosine` to a tenth of the rate, or `constant`, after the warmup.
        weight_decay: of matrices, as in nanoGPT's train.py.
        grad_clip: largest 2-norm of the gradient; 0 = never clipped.
        eval_every: steps between evaluations; 0: before the first step and after the last.
        text: nine tenths are trained on, the rest is evaluated on, in the grid's batches unless it has a batch_size. A
            folder with nanoGPT's train.bin and val.bin has its own parts. Without a block_size windows are as long as
            a NanoGPT's, or what another model declares, at most 256 tokens, or 64 (thorough: 128) where it doesn't.
        dtype: of the forward pass; default float32, with thorough on a GPU bfloat16.
        thorough: models of up to 48 layers, wider and trained longer, for a GPU.
        run: device, jobs and engine, folder and progress; the same call with the same folder also tries again what
            failed.

    Raises:
        RecipeError, ConfigError, DataError: an argument can't be used; nothing was trained.
        RunError: `run.out` can't be written or holds another run, or the engine can't start.
        ProbeError: a function can't make a model, or makes the same at two sizes; or every cell failed. A single
            failing one is recorded in the manifest and the rest goes on. A run that diverges has not failed: it is in
            the tables as diverged.
    """
    from initlab.drawing.loading import choose_device
    from initlab.drawing.subject import check_list, subject_of
    from initlab.training.protocol import GRIDS, GridConfig, grid_values

    started = time.perf_counter()
    text, run = text_of(text), checked("run", run, RunOptions)
    lists = {"depths": depths, "lrs": lrs, "warmups": warmups}
    depths, lrs, warmups = (
        None if value is None else check_list(name, value, str(list(GRIDS["quick"][name])))
        for name, value in lists.items()
    )
    checked_flag("thorough", thorough)
    chosen = choose_device(run.device)
    if dtype is None:
        dtype = "bfloat16" if thorough and chosen.startswith("cuda") else "float32"
    kind = "thorough" if thorough else "quick"
    default: NanoGPTConfig = GRIDS[kind]["model"]
    if isinstance(recipes, Comparison):
        like = recipes.run.manifest["config"]
        if model is None and "model" in like:
            raise ConfigError(f"the comparison was of {like['model']}; say with model= what makes it")
        default = replace(default, **{name: like[name] for name in _SHARED if name in like})
        recipes = list(_recipes_of(recipes).values())
    widths = None if n_embd is None else (n_embd,)
    subject = subject_of(recipes, model, (depths, widths), default, (GRIDS[kind]["depths"], (default.n_embd,)))
    split, block_size = split_for(subject, text, default.block_size)
    grid = GridConfig(
        recipes=tuple(subject.items),
        **grid_values(
            kind,
            depths=subject.depths,
            lrs=lrs,
            warmups=warmups,
            seeds=seeds,
            steps=steps,
            batch_size=text.batch_size,
        )
        | {"model": subject.config, "widths": subject.widths},
        block_size=block_size,
        schedule=schedule,  # type: ignore[arg-type]  # GridConfig refuses others
        weight_decay=weight_decay,
        grad_clip=grad_clip,
        eval_every=eval_every,
        dtype=dtype,
        device=chosen,
    )
    options: dict[str, Any] = {"base": base, "roles": roles, "given": model is not None, "started": started}
    found, path = trained_grid("confirm", grid, subject, split, text, run, **options)
    return Confirmation(found, path)


def _recipes_of(given: Comparison) -> dict[str, Recipe]:
    """Recipes by id. Raises RecipeError."""
    return {id: given.recipes.get(id) or _again(id) for id in given.run.manifest["config"]["recipes"]}


def _again(id: str) -> Recipe:
    """A recipe of a comparison that was loaded from a folder."""
    try:
        return registry.get(id)
    except RecipeError:
        raise RecipeError(
            f"recipe {id!r} of the comparison was a function or object of its own, which a run's folder doesn't hold; "
            "pass the recipes themselves: confirm([…])"
        ) from None
