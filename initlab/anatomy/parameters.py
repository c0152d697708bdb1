"""A parameter's place in its model: what a recipe needs to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from initlab.anatomy.names import starred
from initlab.errors import RecipeError
from initlab.recipes import Dims, Role

_SHOWN = 5  # names in an error


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter's place in the model."""

    name: str
    role: Role
    layer: int | None  # 0-based block, None outside the blocks
    dims: Dims
    stack: str = ""  # path of the container of its block
    # of a fused matrix, in order: (rows, role and sizes of this part); of one that isn't fused nothing
    parts: tuple[tuple[int, Role, Dims], ...] = ()
    axis: int = 0  # the dimension that `parts` divide
    offset: float = 0.0  # the module adds this to the parameter when it uses it (Gemma's norms: 1)
    padding_row: int | None = None  # of an embedding: the row that is zero and gets no gradient
    kept: bool = False  # by the caller's word it is to stay as it is

    def asked(self) -> tuple[tuple[int, Role, Dims], ...]:
        """List what a recipe is asked for it: (share, role, sizes) of each part, or of the whole."""
        return self.parts or ((1, self.role, self.dims),)


@dataclass(frozen=True, slots=True)
class Roles:
    """Every parameter with its role, in the model's own order.

    `layer` counts in each container by itself, as recipes do; `initlab.anatomy.look` numbers over all of them.
    """

    parameters: tuple[Parameter, ...]
    blocks: tuple[str, ...] = ()  # that hold parameters, of all containers, in the model's own order


def check_covered(model: nn.Module, parameters: Sequence[Parameter]) -> None:
    """Refuse a model that a recipe can't draw whole: vectors of no known role are left as they are, matrices aren't.

    Args:
        model: named in the error.
        parameters: all of its.

    Raises:
        RecipeError: a matrix has no role, or the model has no parameters.
    """
    kind = type(model).__name__
    if not parameters:
        raise RecipeError(f"{kind} has no parameters: there is nothing to draw")
    named = dict(model.named_parameters())
    left = [
        place.name
        for place in parameters
        if place.role == Role.OTHER and not place.kept and sum(size > 1 for size in named[place.name].shape) > 1
    ]
    if not left:
        return
    shown = ", ".join(left[:_SHOWN]) + (f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else "")
    like = starred(left[0])
    one = len(left) == 1
    roles = ", ".join(role for role in Role if role not in (Role.MLP_IN, Role.OTHER))
    raise RecipeError(
        f"{kind}: what {shown} {'is' if one else 'are'} for isn't known, so no recipe says how to draw "
        f"{'it' if one else 'them'}; say it by role, as in roles={{{like!r}: 'mlp_in'}}, in a shell --roles "
        f"'{like}=mlp_in' (or {roles}), or None to leave {'it' if one else 'them'} as {'it is' if one else 'they are'}"
    )
