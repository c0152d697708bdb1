"""A recipe drawn into a model: `apply_recipe`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from initlab.api.gradients import with_gradients
from initlab.errors import ConfigError
from initlab.options import Text, checked_seed
from initlab.recipes import Base, Recipe, registry
from initlab.recipes.base import Rule

if TYPE_CHECKING:
    from torch import nn


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
            post-norm model ÷ Admin's ω, of the weights that are there).
        batch: that these look at, as `probe` takes it; a few sequences will do. None with any other recipe.
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
    from initlab.drawing.profiled import PROFILED, apply_profiled
    from initlab.measure.batches import inputs_for
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
        return apply_profiled(model, PROFILED.get(recipe), looked, inputs, seed)
    if batch is not None:
        raise ConfigError(f"batch is given, and only {', '.join(PROFILED.items())} look at one; leave it out")
    anatomy, entry = anatomy_of(model, roles), registry.get(recipe).at(base)
    return apply.apply_recipe(model, entry, seed, anatomy=anatomy, look=passed)
