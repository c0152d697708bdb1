"""Which modules of a model are looked at: `modules=`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from initlab.errors import ConfigError
from initlab.measure.sites import SiteMap
from initlab.models.roles import find_roles
from initlab.recipes import Role


def chosen_modules(model: nn.Module, modules: Any) -> set[str]:
    """Names of the modules that a filter takes, those of the parameters among them.

    Args:
        modules: a glob over dotted names (`*` crosses dots: `*.mlp.*`), a compiled regular expression (searched for), a
            function `(name, module) -> bool`, a role (`Role.MLP_OUT` or `"mlp_out"`: the modules that hold such a
            parameter), or a list of these.

    Raises:
        ConfigError: something in it is none of these, or takes no module.
    """
    parts = list(modules) if isinstance(modules, Iterable) and not isinstance(modules, str) else [modules]
    if not parts:
        raise ConfigError("modules is empty; leave it out to look at every module")
    return set().union(*(_chosen(model, part) for part in parts))


def filtered(sites: SiteMap, chosen: set[str]) -> SiteMap:
    """The site map without the taps of other modules, and a note of how many were left."""
    taps = tuple(tap for tap in sites.taps if tap.module in chosen)
    note = f"modules=: {len(taps)} of {len(sites.taps)} activations looked at"
    attention = tuple(name for name in sites.attention if name in chosen)
    # heads are numbered by block, so they are all there or none
    kept = attention if len(attention) == len(sites.attention) else ()
    return replace(sites, taps=taps, attention=kept, notes=(*sites.notes, note))


def _chosen(model: nn.Module, part: Any) -> set[str]:
    named = dict(model.named_modules())
    if isinstance(part, str) and part in list(Role):
        found = {p.name.rpartition(".")[0] for p in find_roles(model).assigned if p.role == part}
        if not found:
            raise ConfigError(f"modules: {type(model).__name__} has no parameter of role {part!s}")
        return found
    if isinstance(part, str):
        takes: Callable[[str, nn.Module], bool] = lambda name, _: fnmatchcase(name, part)  # noqa: E731
    elif isinstance(part, re.Pattern):
        takes = lambda name, _: part.search(name) is not None  # noqa: E731
    elif callable(part):
        takes = part
    else:
        raise ConfigError(
            f"modules holds {part!r}; expected a glob, a compiled regular expression, a function (name, module), a role"
        )
    found = {name for name, module in named.items() if takes(name, module)}
    if not found:
        raise ConfigError(f"modules: {part!r} takes no module of {type(model).__name__}; {nearest(part, named)}")
    return found


def nearest(wanted: Any, named: Iterable[str]) -> str:
    """A sentence on the names that exist, those most like the wanted one first."""
    names = [name for name in named if name]
    close = difflib.get_close_matches(str(wanted), names, n=4, cutoff=0.4)
    shown = close or names[:4]
    return f"its modules are named like {', '.join(shown)}" if shown else "it has no modules inside"
