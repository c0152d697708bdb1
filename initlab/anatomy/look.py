"""One look at one model: everything that the rest of initlab knows of it.

Blocks are found twice over: by structure, which knows what a parameter is for, and by following the operations of a
pass, which knows where the residual stream runs. Here the two become one, with one number for each block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from torch import nn

from initlab.anatomy.declared import DECLARED, Sites, declared_blocks, declared_taps
from initlab.anatomy.families import nanogpt
from initlab.anatomy.parameters import Parameter, check_covered
from initlab.anatomy.roles import find_roles
from initlab.anatomy.saying import Said
from initlab.anatomy.sites import HeadTap, RouterTap, SiteMap, Tap, dropout_in_force, find_sites, site_map
from initlab.anatomy.stream import Stack, find_stacks
from initlab.anatomy.taps import Tapping
from initlab.anatomy.trace import traced
from initlab.anatomy.unregistered import Unregistered, unregistered
from initlab.anatomy.wirings import read_stacks
from initlab.errors import SiteError
from initlab.models.nanogpt import NanoGPT
from initlab.models.wiring import nanogpt_wiring
from initlab.recipes import Dims, Role
from initlab.wiring import Wiring


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What is known of a model; made by `of`.

    A block has one number, `layer`, for everything in it: first the blocks of the residual stream as a pass goes
    through them (an encoder's, then a decoder's), then those that no stream was found in, as the model holds them.

    Attributes:
        model: what was looked at.
        blocks: dotted names; `blocks[layer]` is the block of that number.
        stacks: the residual streams that were followed; empty for a layout that is known by heart.
        sites: which module shows which site, and what could not be verified.
        parameters: all of them with their roles, in the model's own order, tied ones once. Their `dims.layer` counts
            in their own stack, which is what recipes ask for.
        wirings: of the stacks whose way was understood.
        seen: of every stack as far as it was read, understood or not; what a branch is multiplied with, as it is when
            none is dropped by chance.
        layout: `nanogpt` for a NanoGPT, or a model laid out as one, module by module, that no pass was made of.
        notes: what was taken off the model before: torch.compile, DataParallel, DistributedDataParallel.
        unregistered: trainable tensors that the pass used and the model doesn't know; None where none was followed.
    """

    model: nn.Module
    blocks: tuple[str, ...]
    stacks: tuple[Stack, ...]
    sites: SiteMap
    parameters: tuple[Parameter, ...]
    wirings: tuple[Wiring, ...] = ()
    seen: tuple[Wiring, ...] = ()
    layout: Literal["nanogpt", ""] = ""
    notes: tuple[str, ...] = ()
    unregistered: tuple[Unregistered, ...] | None = None

    @cached_property
    def places(self) -> dict[str, Parameter]:
        """Parameters by name."""
        return {parameter.name: parameter for parameter in self.parameters}

    @property
    def dims(self) -> dict[str, Dims]:
        """What a recipe is asked with, by name of the parameter."""
        return {parameter.name: parameter.dims for parameter in self.parameters}

    def all_parameters(self) -> tuple[Parameter, ...]:
        """Give every parameter with its role, of a model that recipes can draw.

        Raises:
            RecipeError: a matrix is of no known role, or there are no parameters.
        """
        check_covered(self.model, self.parameters)
        return self.parameters


def of(
    model: nn.Module,
    forward: Callable[[], Any] | None = None,
    declared: Sites | None = None,
    *,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    taken: Sequence[str] = (),
    notes: Sequence[str] = (),
    said_roles: Said | None = None,
) -> Anatomy:
    """Look at a model.

    Args:
        model: any module, unwrapped; left as it was.
        forward: runs the model once on a batch, to follow its residual stream; None: what runs isn't looked at, so
            that only a known layout has a stream.
        declared: where the stream runs by the caller's own word, see `initlab.anatomy.declared`.
        around: what the pass is made in, to leave the model as it was; roles are those of what it was.
        taken: what `initlab.anatomy.unwrapping.unwrap` took off.
        notes: what the caller has to say of the stream, among the notes of the sites.
        said_roles: roles by the caller's own word, see `initlab.anatomy.saying`.

    Raises:
        SiteError: `declared` names what the model doesn't have.
        RecipeError: `said_roles` does.
    """
    # a copy of nanoGPT may be wired otherwise, which a pass tells
    other = model.config if isinstance(model, NanoGPT) and not model.config.plain else None
    known = other is None if forward is None else declared is None and _is_nanogpt(model)
    sites = _by_heart(model) if known else None
    stacks: list[Stack] = []
    stream: list[Tap] = []
    heads: list[HeadTap] = []
    routers: list[RouterTap] = []
    wirings: list[Wiring] = []
    seen: list[Wiring] = []
    strangers: tuple[Unregistered, ...] | None = None
    said = list(notes)
    if sites is None and forward is not None:
        named, places = (None, {}) if declared is None else declared_blocks(model, declared)
        with around():
            trace = traced(model, forward)
        strangers = unregistered(model, trace.strangers)
        stacks = find_stacks(model, trace, None if named is None else {DECLARED: named})
        readings = read_stacks(trace, stacks)
        tapping = Tapping(trace, stacks, readings)
        stream, heads, routers = tapping.taps(), tapping.heads(), tapping.routers()
        if named is not None:
            stream, missed = declared_taps(stacks[0], places, stream, trace)
            said += missed
        wirings = [each.wiring for each in readings if each.wiring is not None]
        seen = [each.seen for each in readings if each.seen is not None]
        if model.training and any(_uneven(each) for each in seen):
            with around():
                seen = _without_chance(model, forward, seen)
        said += [sentence for wiring in wirings for sentence in wiring.unknown]
    elif other is not None:
        wirings = seen = [nanogpt_wiring(other, dropout=dropout_in_force(model))]
    roles = find_roles(model, wirings, said_roles)
    if sites is not None:
        followed = [f"transformer.h.{layer}" for layer in range(sites.n_layer)]
    else:
        followed = [block.name for stack in stacks for block in stack.blocks]
    # a container that holds stream blocks, or is inside one, is numbered by them
    of_stream = set(followed)
    holding = {prefix for name in followed for prefix in _prefixes(name)}
    apart = [name for name in roles.blocks if name not in holding and _prefixes(name).isdisjoint(of_stream)]
    blocks = (*followed, *apart)
    layers = _Layers(blocks)
    parameters = tuple(replace(parameter, layer=layers.of(parameter.name)) for parameter in roles.parameters)
    if sites is None:
        embeddings: dict[Role, str] = {
            parameter.role: parameter.name.removesuffix(".weight")
            for parameter in parameters
            if parameter.role in (Role.TOKEN_EMBED, Role.POS_EMBED)
        }
        terms = {term.weight: term.scale for each in seen for term in each.terms or () if term.weight is not None}
        sites = site_map(model, stacks, stream, heads, embeddings, layers.of, said, terms, routers)
        layout: Literal["nanogpt", ""] = ""
    else:
        layout = "nanogpt"
        wiring = nanogpt(model, {parameter.name: parameter for parameter in parameters})
        wirings = seen = [] if wiring is None else [wiring]
    return Anatomy(
        model=model,
        blocks=blocks,
        stacks=tuple(stacks),
        sites=sites,
        parameters=parameters,
        wirings=tuple(wirings),
        seen=tuple(seen),
        layout=layout,
        notes=tuple(taken),
        unregistered=strangers,
    )


def _uneven(wiring: Wiring) -> bool:
    """Whether what branches are multiplied with differs between blocks."""
    return len({tuple(branch.scale for branch in block.branches()) for block in wiring.blocks}) > 1


def _without_chance(model: nn.Module, forward: Callable[[], Any], seen: list[Wiring]) -> list[Wiring]:
    """Read the stacks again with nothing dropped: stochastic depth multiplies by 0 or more than 1, as chance has it."""
    model.eval()
    trace = traced(model, forward)
    again = [each.seen for each in read_stacks(trace, find_stacks(model, trace)) if each.seen is not None]
    alike = [[len(tuple(block.branches())) for block in each.blocks] for each in again]
    if alike != [[len(tuple(block.branches())) for block in each.blocks] for each in seen]:
        return seen
    return again


def _by_heart(model: nn.Module) -> SiteMap | None:
    try:
        return find_sites(model)
    except SiteError:
        return None


def _is_nanogpt(model: nn.Module) -> bool:
    """Whether it is wired as nanoGPT, and nothing was taken out or given another forward since it was made."""
    if not isinstance(model, NanoGPT) or not model.config.plain:
        return False
    return not any("forward" in vars(module) or isinstance(module, nn.Identity) for module in model.modules())


def _prefixes(name: str) -> set[str]:
    """Itself, and the modules that it is in."""
    steps = name.split(".")
    return {".".join(steps[:count]) for count in range(1, len(steps) + 1)}


class _Layers:
    """The number of the block that something is in."""

    def __init__(self, blocks: Sequence[str]):
        self._numbers = {block: layer for layer, block in reversed(list(enumerate(blocks)))}

    def of(self, name: str) -> int | None:
        """Of a module or parameter by its dotted name; None outside the blocks, and of a block itself."""
        while "." in name:
            name = name.rpartition(".")[0]
            if name in self._numbers:
                return self._numbers[name]
        return None
