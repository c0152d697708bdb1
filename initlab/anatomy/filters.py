"""Which modules of a model are looked at: `modules=`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from initlab.anatomy.look import Anatomy, of
from initlab.anatomy.names import nearest
from initlab.anatomy.sites import SiteMap
from initlab.errors import ConfigError
from initlab.recipes import Role
from initlab.recipes.base import QKV


def chosen_modules(anatomy: Anatomy, modules: Any) -> set[str]:
    """Choose modules by a filter; those that hold parameters are among them.

    Args:
        anatomy: of the model.
        modules: a glob over dotted names (`*` crosses dots: `*.mlp.*`), a compiled regular expression (searched for), a
            function `(name, module) -> bool`, a class of modules (`nn.Linear`), a module of the model, a role
            (`Role.MLP_OUT` or `"mlp_out"`: the modules that hold such a parameter), or a list of these.

    Returns:
        their dotted names.

    Raises:
        ConfigError: something in it is none of these, or takes no module.
    """
    return set().union(*(_chosen(anatomy, part) for part in _parts(modules)))


def refuse_unknown_modules(model: nn.Module, modules: Any) -> None:
    """Refuse a filter that takes nothing, before anything runs; roles are known only after a look.

    Args:
        model: any module.
        modules: as `chosen_modules` takes it; None: no filter.

    Raises:
        ConfigError: as `chosen_modules` raises it.
    """
    if modules is None:
        return
    anatomy = of(model)
    for part in _parts(modules):
        if not (isinstance(part, str) and part in list(Role)):
            _chosen(anatomy, part)


def filtered(anatomy: Anatomy, chosen: set[str]) -> SiteMap:
    """Leave out the taps of modules that weren't chosen, and note how many were left.

    Args:
        anatomy: of the model.
        chosen: dotted names, as `chosen_modules` gives them.

    Raises:
        ConfigError: nothing is measured at any of the chosen, as with a list of modules.
    """
    sites = anatomy.sites
    taps = tuple(tap for tap in sites.taps if tap.module in chosen)
    owners = {name.rpartition(".")[0] for name, _ in anatomy.model.named_parameters(remove_duplicate=False)}
    if not taps and chosen.isdisjoint(owners):
        name = min(chosen, key=len)
        inside = f"{name}.*" if name else "*"
        raise ConfigError(
            f"modules: nothing is measured at {name or 'the model as a whole'!r} itself: it has no parameter, and no "
            f"activation that is looked at; for what is inside, use {inside!r}"
        )
    note = f"modules=: {len(taps)} of {len(sites.taps)} activations looked at"
    heads = tuple(tap for tap in sites.heads if tap.module in chosen)
    return replace(sites, taps=taps, heads=heads, notes=(*sites.notes, note))


def _parts(modules: Any) -> list[Any]:
    one = isinstance(modules, str | bytes | nn.Module) or not isinstance(modules, Iterable)  # a ModuleList is one too
    parts = [modules] if one else list(modules)
    if not parts:
        raise ConfigError("modules is empty; leave it out to look at every module")
    return parts


def _chosen(anatomy: Anatomy, part: Any) -> set[str]:
    model = anatomy.model
    named = dict(model.named_modules())
    if isinstance(part, str) and part in list(Role):
        wanted = {Role.ATTN_QKV, *QKV} if part == Role.ATTN_QKV else {part}
        held = {p.name: {p.role, *(role for _, role, _ in p.parts)} for p in anatomy.parameters}
        found = {name.rpartition(".")[0] for name, roles in held.items() if roles & wanted}
        if not found:
            raise ConfigError(f"modules: {type(model).__name__} has no parameter of role {part!s}")
        return found
    if isinstance(part, nn.Module):
        found = {name for name, module in model.named_modules(remove_duplicate=False) if module is part}
        if not found:
            raise ConfigError(f"modules: the {type(part).__name__} given is no module of {type(model).__name__}")
        return found
    if isinstance(part, str):
        takes: Callable[[str, nn.Module], Any] = lambda name, _: fnmatchcase(name, part)  # noqa: E731
    elif isinstance(part, re.Pattern):
        takes = lambda name, _: part.search(name) is not None  # noqa: E731
    elif isinstance(part, type) and issubclass(part, nn.Module):
        takes = lambda _, module: isinstance(module, part)  # noqa: E731
    elif callable(part) and not isinstance(part, type):
        takes = part
    else:
        raise ConfigError(
            f"modules holds {part!r}; expected a glob, a compiled regular expression, a function (name, module), a "
            "class of modules, a module, a role"
        )
    found = set()
    for name, module in named.items():
        try:
            if takes(name, module):
                found.add(name)
        except Exception as error:
            raise ConfigError(
                f"modules: {part!r} raised {type(error).__name__} at module {name!r}: {error}; expected a function "
                "(name, module) -> bool, or an expression that searches text"
            ) from error
    if not found:
        raise ConfigError(f"modules: {part!r} takes no module of {type(model).__name__}; {nearest(part, named)}")
    return found
