"""The wiring that belongs to a recipe, given to a model that was built already.

Numbers that something is multiplied with, and learned ones, are put around modules by forward hooks, which is exact:
the model is looked at again, and has to be wired as the recipe says. Norms and their places can't be given from
outside; they have to be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.look import Anatomy
from initlab.drawing.wired import (
    Pieces,
    Place,
    Wanted,
    found_options,
    head_size,
    places,
    unknown_options,
    wrong_options,
)
from initlab.errors import RecipeError
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import NanoGPT
from initlab.models.wired import wired
from initlab.recipes import Dims, Recipe
from initlab.wiring import Wiring

Look = Callable[[nn.Module], Anatomy]
LEARNED = "initlab_scale"  # name of the parameter that is added to a module


@dataclass(frozen=True, slots=True)
class Multiplied:
    """A forward hook: a module's output times a number and what was learned.

    Attributes:
        factor: the number.
        learned: the module holds a parameter of this file's name to multiply with as well.
        pieces: of the last dimension what is multiplied, (first, one past the last); empty: all of it.
    """

    factor: float = 1.0
    learned: bool = False
    pieces: Pieces = ()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._of(module, output[0]), *output[1:])
        return self._of(module, output)

    def _of(self, module: nn.Module, output: Tensor) -> Tensor:
        if self.learned:
            output = output * getattr(module, LEARNED)
        if self.factor == 1 or not self.pieces:
            return output if self.factor == 1 else output * self.factor
        parts, at = [], 0
        for first, end in self.pieces:
            parts += [output[..., at:first]] * (first > at) + [output[..., first:end] * self.factor]
            at = end
        return torch.cat([*parts, output[..., at:]] if at < output.shape[-1] else parts, -1)


def wire(model: nn.Module, recipe: Recipe, dims: Dims, look: Look | None = None) -> None:
    """Give a model the wiring of a recipe, in place of one that it was given before.

    Args:
        model: any; a NanoGPT has to be built with it.
        recipe: drawn into it.
        dims: its sizes.
        look: looks at a model by a pass through it; None: only a NanoGPT can be told.

    Raises:
        RecipeError: the model can't be given an option, or that can't be told; then it is as it was.
        ConfigError: as `wired` raises it.
    """
    taken = list(_unwired(model))
    if recipe.wiring is None:
        return
    if isinstance(model, NanoGPT):
        _check_nanogpt(model, recipe)
        return
    try:
        if look is None:
            shown = ", ".join(f"{name}={_shown(value)}" for name, value in recipe.wired(dims).items())
            raise RecipeError(f"it needs {shown}, and how {type(model).__name__} is wired isn't known without a pass")
        wiring = _only(look(model))
        _give(model, wiring, recipe.wired(_with_heads(dims, wiring)), look)
    except BaseException as error:  # a forward that raises leaves nothing changed either
        for module, hooks, learned in taken:
            module._forward_hooks.clear()  # not another dict: handles know this one
            module._forward_hooks.update(hooks)
            if learned is not None:
                module.register_parameter(LEARNED, learned)
        if not isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"{recipe.id} is more than a draw, and {type(model).__name__} can't be given its wiring: {error}; write it "
            "into the model, and draw a recipe of your own, (role, dims) -> distribution, without it"
        ) from None


def fits(anatomy: Anatomy, recipe: Recipe, dims: Dims) -> bool:
    """Tell whether a model is known to be wired as the recipe has it.

    Args:
        anatomy: of the model.
        recipe: any; one without a wiring fits every model.
        dims: the model's sizes.
    """
    if recipe.wiring is None:
        return True
    try:
        if isinstance(anatomy.model, NanoGPT):
            return _fits_config(anatomy.model.config, recipe, dims)
        if len(anatomy.wirings) != 1:
            return False
        options, has = recipe.wired(dims), found_options(anatomy.wirings[0])
        if wrong_options(options, has) or unknown_options(options, has):
            return False
        return not any(True for _ in places(anatomy.wirings[0], Wanted.of(options)))
    except RecipeError:  # of a recipe of somebody's own, or the model has no place for an option
        return False


def _fits_config(config: NanoGPTConfig, recipe: Recipe, dims: Dims) -> bool:
    # most differ in something that is one number, or word, of every block: that is told by the first
    alone = recipe.wired(dims, blocks=1)
    given = {name: getattr(config, name, None) for name in alone}
    if any(given[name] != value and not isinstance(given[name], tuple) for name, value in alone.items()):
        return False
    return given == recipe.wired(dims)


def _check_nanogpt(model: NanoGPT, recipe: Recipe) -> None:
    other = wired(model.config, recipe)
    wrong = [name for name in vars(other) if getattr(other, name) != getattr(model.config, name)]
    if wrong:
        raise RecipeError(
            f"{recipe.id} needs {', '.join(f'{name}={_shown(getattr(other, name))}' for name in wrong)} in the "
            "NanoGPT's config; it can't be changed once the model is built"
        )


def _unwired(model: nn.Module) -> Iterator[tuple[nn.Module, dict[int, Any], nn.Parameter | None]]:
    """Take off what an earlier recipe put around modules; yield the hooks and the parameter that a module had."""
    for module in model.modules():
        hooks = dict(module._forward_hooks)
        mine = [key for key, hook in hooks.items() if isinstance(hook, Multiplied)]
        for key in mine:
            del module._forward_hooks[key]
        learned = module._parameters.pop(LEARNED, None)
        if mine or learned is not None:
            yield module, hooks, learned


def _with_heads(dims: Dims, wiring: Wiring) -> Dims:
    """As many heads as make up the width, by the size that ran: what a module says of them may be none of it."""
    size = head_size([wiring])
    return replace(dims, n_head=max(1, wiring.n_embd // size)) if size else dims


def _give(model: nn.Module, wiring: Wiring, options: dict[str, Any], look: Look) -> None:
    has = found_options(wiring)
    if wrong := wrong_options(options, has):
        needs = ", ".join(f"{name}={_shown(options[name])} (it has {_shown(has[name])})" for name in wrong)
        raise RecipeError(f"it needs {needs}, which can't be given from outside")
    wanted = Wanted.of(options)
    if others := unknown_options(options, has):
        raise RecipeError(f"{others[0]} is known of NanoGPTs alone")
    made: list[tuple[nn.Module, Any]] = []
    try:
        for place in places(wiring, wanted):
            made.append(_around(model, place))
        again = _only(look(model))
        for place in places(again, wanted):
            raise RecipeError(f"{place.what} isn't what {place.module or 'a module of its own'} gives alone")
        for before, after in zip(wiring.branches(), again.branches(), strict=True):
            if type(before.body) is not type(after.body):
                raise RecipeError(f"what {before.module} computes isn't understood once it is multiplied")
    except BaseException:
        for module, handle in made:
            handle.remove()
            module._parameters.pop(LEARNED, None)
        raise


def _around(model: nn.Module, place: Place) -> tuple[nn.Module, Any]:
    try:
        module = model.get_submodule(place.module) if place.module else None
    except AttributeError:
        module = None
    if module is None:
        raise RecipeError(f"{place.what} isn't the output of a module")
    if place.start_of is not None:
        device = next(model.parameters()).device
        start = torch.full((place.width,) if place.width else (), float(place.start_of), device=device)
        module.register_parameter(LEARNED, nn.Parameter(start))
    hook = Multiplied(place.factor, place.start_of is not None, place.pieces)
    return module, module.register_forward_hook(hook)


def _only(anatomy: Anatomy) -> Wiring:
    if len(anatomy.wirings) != 1:
        found = f"{len(anatomy.wirings)} stacks" if anatomy.wirings else "no stack of blocks that was understood"
        raise RecipeError(f"it has {found}; expected one")
    return anatomy.wirings[0]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{_shown(value[0])} to {_shown(value[-1])}"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
