"""What a model's parameters are for, for the commands that draw or describe them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from initlab.errors import InitlabError
from initlab.options import Text
from initlab.recipes import Role

if TYPE_CHECKING:
    from torch import nn

    from initlab.anatomy.look import Anatomy


def anatomy_of(model: nn.Module, roles: Mapping[str, str | None] | None = None) -> Anatomy:
    """Look at a model; run it once on a small batch only where its structure and names leave matrices without a role.

    Args:
        model: any module, unwrapped; left as it was.
        roles: what parameters are for, by the caller's own word, see `initlab.apply_recipe`.

    Raises:
        RecipeError: `roles` don't fit the model.
    """
    from initlab.anatomy.look import of

    found = of(model, said_roles=roles)
    named = dict(model.named_parameters())
    left = [p.name for p in found.parameters if p.role == Role.OTHER and not p.kept and named[p.name].dim() > 1]
    if not left or any(parameter.is_meta for parameter in named.values()):
        return found
    try:
        return passed(model, roles)
    except InitlabError:  # no batch can be made for it, or it can't be run
        return found


def passed(model: nn.Module, roles: Mapping[str, str | None] | None = None) -> Anatomy:
    """Look at a model by a pass over a small batch of random ids.

    Args:
        model: any module, unwrapped; left as it was.
        roles: see `anatomy_of`.

    Raises:
        ConfigError, DataError, ProbeError: no batch can be made for it, or it can't be run.
        RecipeError: `roles` don't fit the model.
    """
    from initlab.measure.batches import inputs_for
    from initlab.measure.probe import look

    inputs, _ = inputs_for(model, None, text=Text("uniform"), seed=0)
    return look(model, inputs, said_roles=roles)
