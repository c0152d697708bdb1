"""Finding recipes by id, or a user's own by `file.py:name`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from initlab.errors import ConfigError, RecipeError
from initlab.recipes.base import Base, Optimizer, Recipe, Rule, Wire
from initlab.recipes.profiled import refuse_profiled
from initlab.registry import Registry

_MODELS = ("open_models", "speedruns", "vision")
_FAMILIES = ("gpt2", "megatron", "llama", "olmo", "fans", "transfer", "depth", "gated", *_MODELS, "frameworks")
RECIPES: Registry[Recipe] = Registry("recipe", tuple(f"initlab.recipes.{name}" for name in _FAMILIES), RecipeError)


def register(entry: Recipe) -> Recipe:
    """Add a recipe. Raises RecipeError on an id that exists: an overwrite would falsify a comparison."""
    return RECIPES.add(entry.id, entry)


def recipe(
    id: str,
    *,
    family: str,
    source: str,
    wiring: Wire | None = None,
    optimizer: Optimizer | None = None,
    base: Base | None = None,
    note: str = "",
) -> Callable[[Rule], Recipe]:
    """Turn `(role, dims) -> distribution` into a registered Recipe; the docstring's first line is its summary.

    Args:
        id: by which it is found.
        family: under which it is listed.
        source: where the numbers were read.
        wiring: see `Recipe`.
        optimizer: see `Recipe`.
        base: see `Recipe`.
        note: see `Recipe`.
    """

    def wrap(rule: Rule) -> Recipe:
        parts = {"wiring": wiring, "optimizer": optimizer, "base": base, "note": note}
        return register(replace(_wrapped(rule, id, source), family=family, **parts))  # type: ignore[arg-type]

    return wrap


def all_recipes() -> dict[str, Recipe]:
    """List every recipe by id, in the order of the catalogue; those of installed packages last."""
    return RECIPES.items()


def get(name: str | Recipe | Rule) -> Recipe:
    """Get the recipe of this id, of the user's own `file.py:name`, or of a function `(role, dims) -> distribution`.

    Raises:
        RecipeError: no such recipe (with the closest matches), one that looks at a batch, or the file or name can't be
            used.
    """
    known = all_recipes()
    if isinstance(name, str) and ".py:" in name:
        name = of_file(name, RECIPES.from_file(name))
    if inspect.isfunction(name) and name.__name__ != "<lambda>":  # a recipe needs a name to be shown by
        name = _wrapped(name, name.__name__, f"{name.__module__}.{name.__qualname__}")
    if isinstance(name, Recipe):
        own = known.get(name.id, name)
        if replace(own, base=name.base) != name:  # with another base it is the same recipe, and run.json has the base
            raise RecipeError(f"recipe {name.id!r} exists already (source: {known[name.id].source}); rename yours")
        return name
    if not isinstance(name, str):
        raise RecipeError(f"recipe is {name!r}; expected an id, file.py:name, a Recipe, or a function (role, dims)")
    if name in known:
        return known[name]
    refuse_profiled(name)
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise RecipeError(
        f"unknown recipe {name!r}; {hint}`initlab recipes` lists all {len(known)}; your own: path/to/file.py:name"
    )


def listed(given: Any) -> list[Any]:
    """Wrap one recipe or model function into a list; take a sequence as it is. Raises ConfigError on an empty one."""
    alone = isinstance(given, str | Recipe) or callable(given) or not isinstance(given, Sequence)
    if not alone and not given:
        raise ConfigError("recipes is empty; give at least one")
    return [given] if alone else list(given)


def of_file(name: str, found: Any) -> Recipe:
    """Make a recipe of what `file.py:name` holds. Raises RecipeError where that is neither a Recipe nor a function."""
    if isinstance(found, Recipe):
        return found
    if not callable(found):
        location, _, attribute = name.rpartition(":")
        raise RecipeError(f"recipe {name!r}: {location} has no function or Recipe named {attribute!r}")
    return _wrapped(found, name, name)


def _wrapped(rule: Rule, id: str, source: str) -> Recipe:
    if inspect.isroutine(rule) and {"n_layer", "n_embd"} & set(inspect.signature(rule).parameters):
        raise RecipeError(
            f"{id} makes models of a size, which take the place of a recipe; expected a function (role, dims)"
        )
    summary = (inspect.getdoc(rule) or "").split("\n")[0]
    return Recipe(id=id, family="user", summary=summary, source=source, rule=rule)
