"""Roles by the caller's own word: `roles={"mix.merge": "attn_out", "blocks.*.keyval": "attn_k", "registers": None}`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import Tensor

from initlab.errors import RecipeError
from initlab.options import shown
from initlab.recipes import Role
from initlab.recipes.base import VECTORS

Said = Mapping[str, str | None]
_OF_VECTORS = (*VECTORS, Role.GATE)


def by_word(roles: Said, named: Mapping[str, Tensor]) -> dict[str, Role | None]:
    """Find the parameters that are meant; of several patterns that fit one the last holds.

    Args:
        roles: by pattern of names, in which * stands for anything and `.weight` may be left out; None: the
            parameter stays as it is.
        named: the model's parameters.

    Raises:
        RecipeError: a pattern that fits no parameter, no such role, or a matrix's role for a vector.
    """
    found: dict[str, Role | None] = {}
    if not isinstance(roles, Mapping):
        raise RecipeError(
            f"roles is {shown(roles)}; expected a dict from names to roles, as in {{'*.merge': 'attn_out'}}"
        )
    for pattern, text in roles.items():
        if not isinstance(pattern, str):
            raise RecipeError(f"roles holds {shown(pattern)}; expected names of parameters, in which * is anything")
        names = [n for n in named if fnmatchcase(n, pattern) or fnmatchcase(n.removesuffix(".weight"), pattern)]
        if not names:
            close = difflib.get_close_matches(str(pattern), named, n=3, cutoff=0.3) or list(named)[:3]
            raise RecipeError(f"roles: no parameter is named {pattern!r}; there are {', '.join(close)}")
        if text is not None and text not in Role.__members__.values():
            raise RecipeError(f"roles: {pattern!r} is {text!r}; expected None or one of {', '.join(Role)}")
        role = None if text in (None, Role.OTHER) else Role(text)
        for name in names:
            vector = named[name].squeeze().dim() < 2
            if role is not None and vector != (role in _OF_VECTORS) and min(named[name].shape, default=1) > 1:
                what = "a vector" if vector else f"a matrix, {'×'.join(map(str, named[name].shape))}"
                raise RecipeError(f"roles: {name} is {what}, which can't be {role}")
            found[name] = role
    return found
