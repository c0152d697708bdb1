"""One look at one model: everything that the rest of initlab knows of it.

Blocks are found twice over: by structure, which knows what a parameter is for, and by following the numbers of a pass,
which knows where the residual stream runs. Here the two become one, with one number for each block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from torch import nn

from initlab.anatomy.declared import Sites, declared_stream
from initlab.anatomy.roles import Parameter, check_assigned, find_roles
from initlab.anatomy.sites import SiteMap, Tap, find_sites, site_map
from initlab.anatomy.stream import Stack, find_stacks
from initlab.errors import SiteError
from initlab.recipes import Dims, Role


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
        parameters: those whose role is known, in the model's own order, tied ones once. Their `dims.layer` counts in
            their own stack, which is what recipes ask for.
        unassigned: names of the other parameters.
        layout: `nanogpt` where the model is laid out as nanoGPT's GPT, module by module.
        notes: what was taken off the model before: torch.compile, DataParallel, DistributedDataParallel.
    """

    model: nn.Module
    blocks: tuple[str, ...]
    stacks: tuple[Stack, ...]
    sites: SiteMap
    parameters: tuple[Parameter, ...]
    unassigned: tuple[str, ...]
    layout: Literal["nanogpt", ""] = ""
    notes: tuple[str, ...] = ()

    @cached_property
    def places(self) -> dict[str, Parameter]:
        """Parameters whose role is known, by name."""
        return {parameter.name: parameter for parameter in self.parameters}

    @property
    def dims(self) -> dict[str, Dims]:
        """What a recipe is asked with, by name of the parameter."""
        return {parameter.name: parameter.dims for parameter in self.parameters}

    def all_parameters(self) -> tuple[Parameter, ...]:
        """Give every parameter with its role.

        Raises:
            RecipeError: one has none, or there are no parameters.
        """
        check_assigned(self.model, self.parameters, self.unassigned)
        return self.parameters


def of(
    model: nn.Module,
    forward: Callable[[], Any] | None = None,
    declared: Sites | None = None,
    *,
    taken: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Anatomy:
    """Look at a model.

    Args:
        model: any module, unwrapped; left as it was.
        forward: runs the model once on a batch, to follow its residual stream; None: what runs isn't looked at, so
            that only a known layout has a stream.
        declared: where the stream runs by the caller's own word, see `initlab.anatomy.declared`.
        taken: what `initlab.anatomy.unwrapping.unwrap` took off.
        notes: what the caller has to say of the stream, among the notes of the sites.

    Raises:
        SiteError: `declared` names what the model doesn't have.
    """
    roles = find_roles(model)
    sites = None
    stacks: list[Stack] = []
    stream: list[Tap] | None = None
    said = list(notes)
    if declared is not None and forward is not None:
        stacks, stream, missed = declared_stream(model, declared, forward)
        said += missed
    else:
        try:
            sites = find_sites(model)
        except SiteError:
            stacks = find_stacks(model, forward) if forward is not None else []
    if sites is not None:
        followed = [f"transformer.h.{layer}" for layer in range(sites.n_layer)]
    else:
        followed = [block.name for stack in stacks for block in stack.blocks]
    # a container that holds stream blocks, or is inside one, is numbered by them
    blocks = tuple(followed + [name for name in roles.blocks if not any(_related(name, other) for other in followed)])
    layers = _Layers(blocks)
    parameters = tuple(replace(parameter, layer=layers.of(parameter.name)) for parameter in roles.assigned)
    if sites is None:
        embeddings: dict[Role, str] = {
            parameter.role: parameter.name.removesuffix(".weight")
            for parameter in parameters
            if parameter.role in (Role.TOKEN_EMBED, Role.POS_EMBED)
        }
        sites = site_map(model, stacks, embeddings, layers.of, stream, said)
        layout: Literal["nanogpt", ""] = ""
    else:
        layout = "nanogpt"
    return Anatomy(
        model=model,
        blocks=blocks,
        stacks=tuple(stacks),
        sites=sites,
        parameters=parameters,
        unassigned=tuple(roles.unassigned),
        layout=layout,
        notes=tuple(taken),
    )


def _related(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.")


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
