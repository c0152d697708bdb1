"""A recipe drawn into a model: `apply_recipe`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from initlab.api.gradients import with_gradients
from initlab.errors import ConfigError
from initlab.options import Text, checked_seed
from initlab.recipes import Base, Recipe, registry
from initlab.recipes.base import Rule
from initlab.recipes.profiled import PROFILED
from initlab.report.waiting import drawn, heard

if TYPE_CHECKING:
    from torch import nn


@drawn
@with_gradients()
def apply_recipe(
    model: nn.Module,
    recipe: str | Recipe | Rule,
    *,
    batch: Any = None,
    base: Base | None = None,
    seed: int = 0,
    roles: Mapping[str, str | None] | None = None,
) -> tuple[str, ...]:
    """Re-initialise any model in place, by the role of each parameter; paired draws as `compare` makes them.

    A recipe with a wiring (`initlab recipes NAME` shows it) is drawn into a model that has it. Multipliers, and learned
    ones such as LayerScale, are put around a model's modules by forward hooks where that is exact: the model is run
    once more, and has to be wired so. What an earlier recipe put there is taken off. Optimizers that were made before
    don't know the learned ones. A recipe's rates are the optimizer's: `initlab.adam_groups`.

    Args:
        model: torch.nn.Module on any device but meta, also compiled or wrapped; its parameters are overwritten.
        recipe: id, `file.py:name`, Recipe, or function `(role, dims) -> distribution`; or an init that looks at a
            batch: `lsuv` (every layer orthonormal, then at unit variance), `admin-profiled` (every branch of a
            post-norm model ÷ Admin's ω) and `gradinit` (every parameter × a scale that makes a first step of Adam
            lower the loss most), both of the weights that are there. `initlab recipes gradinit` says more of one.
        batch: that these look at, as `probe` takes it; a few sequences will do, for gradinit dozens. None with any
            other recipe.
        base: depth and width that a recipe such as `mup` is relative to. Default: its own.
        seed: of the draw; a parameter's numbers depend on it and on the parameter's name alone.
        roles: what parameters are for, by pattern of their names, where that isn't found or found wrongly:
            `{"blocks.*.mix.merge": "attn_out", "blocks.*.keyval": "attn_k"}`; None leaves one as it is.

    Returns:
        names of the parameters that stayed as they were: gates and LayerScale that the recipe has no answer for,
        vectors of no known role, and what `roles` says None of; with a batch, whatever the init doesn't touch.

    Raises:
        ConfigError: not a model, a seed that is none, a batch that is missing, can't be used, or isn't asked for.
        RecipeError: unknown recipe, matrices of no known role, or `roles` that don't fit; then nothing was changed.
        ProbeError: the model is sharded, or was made under torch.inference_mode.
    """
    from initlab.anatomy.unwrapping import refuse_inference, whole
    from initlab.api.looking import anatomy_of, passed
    from initlab.drawing import apply
    from initlab.drawing.profiled import apply_profiled
    from initlab.measure.batches import inputs_for
    from initlab.measure.losses import loss_for
    from initlab.measure.probe import look

    model, seed = whole(model), checked_seed(seed)
    for name, parameter in model.named_parameters():
        refuse_inference(type(model).__name__, name, parameter)
    if isinstance(recipe, str) and recipe in PROFILED:
        if batch is None:
            raise ConfigError(
                f"{recipe} looks at what the model does with a batch, and none was given: "
                f"apply_recipe(model, {recipe!r}, batch=ids), as probe takes it"
            )
        inputs, _ = inputs_for(model, batch, text=Text(), seed=seed)
        looked = look(model, inputs, seed=seed, said_roles=roles)
        return apply_profiled(model, PROFILED.get(recipe), looked, inputs, seed, loss_for(model, recipe), _told())
    if batch is not None:
        raise ConfigError(f"batch is given, and only {', '.join(PROFILED.items())} look at one; leave it out")
    anatomy, entry = anatomy_of(model, roles), registry.get(recipe).at(base)
    return apply.apply_recipe(model, entry, seed, anatomy=anatomy, look=passed)


def _told() -> Callable[[int], None]:
    """Of every step of an init that takes many: the bar of this call."""
    bar, done = heard(None), 0

    def told(steps: int) -> None:
        nonlocal done
        if bar is None:
            return
        if not done:
            bar.start(float(steps), steps, 0.0)
        done += 1
        bar.advance(1.0, f"step {done} of {steps}")

    return told
