"""What a command measures side by side: recipes drawn into models of many sizes, and models with inits of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from initlab.anatomy.look import Anatomy, of
from initlab.anatomy.restoring import random_state_kept
from initlab.anatomy.unwrapping import unwrap
from initlab.drawing.apply import apply_recipe, copied
from initlab.drawing.configs import blocks_of, is_config
from initlab.drawing.makers import (
    Maker,
    ModelFunction,
    hashed,
    maker_of,
    maker_of_config,
    makes_models,
    name_of,
    parameters_of,
    steady,
)
from initlab.drawing.wired import head_size
from initlab.errors import ConfigError, ProbeError
from initlab.models.config import Configs, NanoGPTConfig, config_at
from initlab.models.nanogpt import empty_model
from initlab.models.wired import wired
from initlab.options import shown, whole
from initlab.recipes import Base, Recipe, registry

Model = NanoGPTConfig | ModelFunction | nn.Module
Axes = tuple[Sequence[int] | None, Sequence[int] | None]  # depths and widths


@dataclass(slots=True)
class Subject:
    """Recipes with the model that they are drawn into, and functions that make models of their own.

    Attributes:
        items: a recipe, or what makes models with an init of their own, by name; the first is the baseline.
        base: makes the models that recipes are drawn into; None where these are NanoGPTs, or where there are none.
        config: of the NanoGPTs that recipes are drawn into, at (n_layer, n_embd); None where there are none.
        depths, widths: n_layer and n_embd to make.
        look: tells what the parameters of `base`'s models are for.
        passed: looks at one of them by a pass through it; None: recipes with a wiring are refused.
    """

    items: dict[str, Recipe | Maker]
    base: Maker | None
    config: Configs | None
    depths: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    look: Callable[[nn.Module], Anatomy] = of
    passed: Callable[[nn.Module], Anatomy] | None = None

    @property
    def recipes(self) -> dict[str, Recipe]:
        """What is drawn, by id."""
        return {name: item for name, item in self.items.items() if isinstance(item, Recipe)}

    @property
    def makers(self) -> list[Maker]:
        """Everything that makes models which aren't NanoGPTs of `config`."""
        return [item for item in (self.base, *self.items.values()) if isinstance(item, Maker)]

    def sized(self, name: str) -> Maker | None:
        """What makes the models of an item; None for NanoGPTs of `config`."""
        item = self.items[name]
        return item if isinstance(item, Maker) else self.base

    def make(self, name: str, n_layer: int, n_embd: int, seed: int, device: str) -> nn.Module:
        """Make the model of an item, as `drawn` does, without what was seen of it."""
        return self.drawn(name, n_layer, n_embd, seed, device)[0]

    def drawn(self, name: str, n_layer: int, n_embd: int, seed: int, device: str) -> tuple[nn.Module, Anatomy | None]:
        """Make the model of an item on a device, with its recipe drawn into it.

        Args:
            name: of `items`.
            n_layer: its depth.
            n_embd: its width.
            seed: of the draw; a function's own init follows torch's global random state, which is the caller's.
            device: where it is put.

        Returns:
            the model, and what was seen of it before the draw, where its roles had to be looked for.

        Raises:
            ProbeError: a function can't make it.
            RecipeError: the recipe can't be drawn into it.
        """
        item, maker = self.items[name], self.sized(name)
        model: nn.Module
        anatomy = None
        if maker is not None:
            model = maker.module(n_layer, n_embd)
        else:
            assert self.config is not None and isinstance(item, Recipe)
            model = empty_model(wired(config_at(self.config, n_layer, n_embd), item), device)
        if isinstance(item, Recipe):
            anatomy = None if maker is None else self.look(model)
            apply_recipe(model, item, seed, anatomy=anatomy, look=self.passed)
        return model.to(device), anatomy

    def relative_to(self, base: Base | None) -> None:
        """Take every recipe that is relative to a base relative to this one.

        Args:
            base: None: the smallest of the models, with its heads.

        Raises:
            ConfigError: it is no Base.
            ProbeError: a function can't make it.
        """
        if not isinstance(base, Base | None):
            raise ConfigError(f"base is {shown(base)}; expected initlab.recipes.Base(n_layer=…, n_embd=…)")
        relative = {name: recipe for name, recipe in self.recipes.items() if recipe.base is not None}
        if base is None and relative:
            base = self._smallest()
        for name, recipe in relative.items():
            self.items[name] = recipe.at(base)

    def _smallest(self) -> Base:
        n_layer, n_embd = min(self.depths), min(self.widths)
        if callable(self.config):  # a function may keep the number of heads
            return Base(n_layer=n_layer, n_embd=n_embd, head_size=self.config(n_layer, n_embd).head_size)
        if self.base is None or self.passed is None:  # heads of NanoGPTs keep their size
            return Base(n_layer=n_layer, n_embd=n_embd)
        with random_state_kept(torch.device("cpu")):
            seen = self.passed(self.base.module(n_layer, n_embd)).seen
        return Base(n_layer=n_layer, n_embd=n_embd, head_size=head_size(seen))

    def read(self, **sizes: int) -> None:
        """Give the NanoGPTs what a text decides: vocab_size, block_size."""
        config = self.config
        if isinstance(config, NanoGPTConfig):
            self.config = replace(config, **sizes)  # type: ignore[arg-type]
        elif config is not None:
            self.config = lambda n_layer, n_embd: replace(config(n_layer, n_embd), **sizes)  # type: ignore[arg-type]


def subject_of(given: Any, model: Any, axes: Axes, default: NanoGPTConfig, sizes: Axes) -> Subject:
    """Sort out what a command was given.

    Args:
        given: one or several of: recipes as `registry.get` takes them; functions that make models, with a parameter
            n_layer or n_embd, or with none at all; `file.py:name` of either.
        model: what recipes are drawn into; None: NanoGPTs of the default config.
        axes: depths and widths as they were given; None: a config's and a module's own, else those of `sizes`.
        default: the config without a model.
        sizes: depths and widths of a function's models, and without a model.

    Raises:
        ConfigError: something was given twice, is no model, or has a size of its own beside those that were given.
        RecipeError: an unknown recipe.
        ProbeError: a function can't make a model.
    """
    subject = Subject(_items(given), None, None)
    if model is not None and not subject.recipes:
        raise ConfigError(
            f"a model to draw recipes into was given, but no recipe: {_listed(subject.items)} "
            f"{'make' if len(subject.items) > 1 else 'makes'} models with an init of their own"
        )
    if is_config(model):
        model = model() if isinstance(model, type) else model
    if isinstance(model, NanoGPTConfig):
        subject.config = model
    elif is_config(model):
        subject.base = maker_of_config(model)
    elif isinstance(model, nn.Module):
        inside = unwrap(model)[0]
        shapes = [(name, tuple(parameter.shape)) for name, parameter in inside.named_parameters()]
        shown = f"{shapes} {inside} {getattr(inside, 'config', '')}"  # heads and activation have no shape
        name = type(inside).__name__
        subject.base = Maker(name, functools.partial(copied, inside), (), f"{name} {hashed(steady(shown))}")
    elif callable(model):
        subject.base = maker_of(name_of(model), model)
    elif model is not None:
        raise ConfigError(
            f"model is {model!r:.80}; expected a NanoGPTConfig, a function of n_layer and n_embd, or a torch.nn.Module "
            "(or a config of transformers)"
        )
    elif subject.recipes:
        subject.config = default
    with random_state_kept(torch.device("cpu")):
        subject.depths, subject.widths = _axes(subject, axes, sizes, model)
        base = subject.base
        if base is not None and isinstance(base(min(subject.depths), min(subject.widths)), NanoGPTConfig):
            subject.config, subject.base = functools.partial(_config, base), None
    return subject


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Draw random numbers from a seed, the caller's random state untouched."""
    with random_state_kept(torch.device(device), seed), torch.enable_grad():
        yield


def check_list(name: str, values: Any, example: str = "[4, 8, 16]") -> list[Any]:
    """Return a list as one; numpy's are. Raises ConfigError where it is one value, or a text."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise ConfigError(f"{name} is {shown(values)}; expected a list, as in {example}")
    return list(values)


def check_axis(name: str, values: Sequence[Any]) -> None:
    """Refuse an axis of a sweep that is empty or holds a value twice. Raises ConfigError."""
    if not values:
        raise ConfigError(f"{name} is empty; give at least one")
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise ConfigError(f"{name} has {repeated[0]!r} more than once")


def check_sizes(name: str, values: Any) -> tuple[int, ...]:
    """Return different whole numbers. Raises ConfigError where it is no list of them."""
    values = check_list(name, values)
    check_axis(name, values)
    wrong = [value for value in values if not whole(value)]
    if wrong:
        raise ConfigError(f"{name} holds {shown(wrong[0])}; expected whole numbers")
    return tuple(int(value) for value in values)


def _items(given: Any) -> dict[str, Recipe | Maker]:
    items: dict[str, Recipe | Maker] = {}
    whole = registry.listed(given)
    for place, item in enumerate(whole):
        file = item if isinstance(item, str) and ".py:" in item else None
        found = registry.RECIPES.from_file(file) if file else item
        if isinstance(found, nn.Module):
            raise ConfigError(
                f"a {type(found).__name__} was given among recipes: it has one size and one draw; give the function "
                "that makes it, draw recipes into it by model=, or measure it by initlab.probe"
            )
        if isinstance(found, type) and issubclass(found, nn.Module) and not makes_models(found):
            raise ConfigError(
                f"{found.__name__}({', '.join(parameters_of(found))}) is a class of models; give a function of n_layer "
                "and n_embd that makes one"
            )
        new: Recipe | Maker
        if makes_models(found):
            name = name_of(found)
            new = maker_of(file if file and name in items else name, found)
        else:
            new = registry.get(registry.of_file(file, found) if file else found)
        name = new.name if isinstance(new, Maker) else new.id
        if name in items or (file and file in whole[:place]):
            what = "" if isinstance(new, Maker) else "recipe "
            raise ConfigError(f"{what}{name!r} was given more than once; rename one of them")
        items[name] = new
    return items


def _axes(subject: Subject, axes: Axes, sizes: Axes, model: Any) -> list[tuple[int, ...]]:
    """The depths and widths: of those that nothing takes, the model's own."""
    names, found = ("n_layer", "n_embd"), dict[str, tuple[int, ...]]()
    makers = subject.makers
    taken = names if subject.config is not None else {name for maker in makers for name in maker.takes}
    for axis, word, values, usual in zip(names, ("depths", "widths"), axes, sizes, strict=True):
        values = None if values is None else check_sizes(word, values)
        if values is not None and axis not in taken:
            raise ConfigError(
                f"{word} was given, but {_listed(m.name for m in makers)} takes no {axis}; leave {word} out, or give a "
                f"function of {axis}"
            )
        if axis in taken:
            own = (getattr(model, axis),) if isinstance(model, NanoGPTConfig) else usual
            own = (blocks_of(model) or 0,) if is_config(model) else own
            found[axis] = tuple((own or ()) if values is None else values)
    if len(found) < len(names):
        whole = own_size(of(makers[0].module(*(min(found.get(axis, (0,))) for axis in names))))
        found = {axis: found.get(axis, (size,)) for axis, size in zip(names, whole, strict=True)}
    return [found[axis] for axis in names]


def own_size(anatomy: Anatomy) -> tuple[int, int]:
    """Tell blocks and width by the parameters' roles; 0 where they don't say."""
    dims = [parameter.dims for parameter in anatomy.parameters]
    return max((each.n_layer for each in dims), default=0), dims[0].n_embd if dims else 0


def _config(base: Maker, n_layer: int, n_embd: int) -> NanoGPTConfig:
    made = base(n_layer, n_embd)
    if not isinstance(made, NanoGPTConfig):
        raise ProbeError(f"{base.name} returned {type(made).__name__} after a NanoGPTConfig; expected one kind")
    return made


def _listed(names: Any) -> str:
    return " and ".join(names)
