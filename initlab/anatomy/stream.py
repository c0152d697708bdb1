"""Finding the residual stream of a model that nobody described, and proving it.

One forward pass in eval mode records a few thousand elements of every tensor that enters or leaves a module with the
shape of the stream. A tensor that equals an earlier state of the stream plus multiples of a few modules' outputs, to
rounding, is a state of the stream too, and those modules write to it; nothing is guessed from names. The norm of a
state may take its place (post-norm blocks). Where plain sums don't explain a block, the skip may be scaled too, and
then the write channel by channel. What can't be explained this way is reported as unverified.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from initlab.anatomy.fitting import Array, Fit, fit_channels, fit_scaled_sum, fit_sum, sample
from initlab.anatomy.tensors import floats


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor was seen: entering (`in`) or leaving (`out`) the call-th use of a module."""

    module: str
    where: Literal["in", "out"]
    call: int = 0


@dataclass(frozen=True, slots=True)
class Write:
    """A module whose output is added to the stream, times `scale`: of its rms, if every channel has its own.

    `handed_on` names the modules around it that gave the very same tensor, as an attention its projection's.
    """

    place: Place
    scale: float
    per_channel: bool = False
    handed_on: tuple[str, ...] = ()


@dataclass(slots=True)
class Block:
    """One block of a stack, and how its stream was explained."""

    name: str
    states: list[Place] = field(default_factory=list)  # from resid_pre to resid_post
    writes: list[Write] = field(default_factory=list)  # in the order of the sums
    skips: list[float] = field(default_factory=list)  # what a sum multiplied the stream with, where that isn't 1
    verified: bool = False
    note: str = ""
    width: int = 0  # of the stream; 0 where the block wasn't called with one


@dataclass(slots=True)
class Stack:
    """Blocks that hand a stream on to one another."""

    name: str
    blocks: list[Block]
    final_norm: str = ""  # a norm outside the blocks that was handed the last block's output

    @property
    def verified(self) -> float:
        """Share of the blocks whose stream was reproduced."""
        return sum(block.verified for block in self.blocks) / len(self.blocks)


@dataclass(slots=True, eq=False)
class _Seen:
    place: Place
    values: Array
    eps: float  # of the tensor's dtype
    norm: bool  # the output of a normalisation
    width: int  # its last dimension


def find_stacks(
    model: nn.Module, forward: Callable[[], Any], declared: Mapping[str, Sequence[str]] | None = None
) -> list[Stack]:
    """Find every residual stack of a model, outermost first, in the order of the forward pass.

    Args:
        model: any module; run once, in eval mode and without gradients, and left as it was.
        forward: runs the model on a batch.
        declared: name of a stack -> its blocks, where the caller knows them; kept even if nothing can be verified.
    """
    candidates = _candidates(model) if declared is None else {name: list(blocks) for name, blocks in declared.items()}
    trace, norms = _trace(model, candidates, forward)
    stacks = []
    for name, blocks in candidates.items():
        found = [_explain(block, trace.get(block, [])) for block in blocks]
        if declared is not None or any(block.verified for block in found):
            last = trace[blocks[-1]][-1].values if trace.get(blocks[-1]) else np.empty(0)
            final = next((seen.place.module for seen in norms if _same(seen.values, last)), "")
            stacks.append(Stack(name, found, final))
    first = {block: order for order, block in enumerate(trace)}
    return sorted(stacks, key=lambda stack: first.get(stack.blocks[0].name, len(first)))


def _candidates(model: nn.Module) -> dict[str, list[str]]:
    """Containers whose members could be blocks: lists and sequences, those inside another's members left out."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{block}.") for blocks in found.values() for block in blocks)
        if inside or not isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            continue
        members = [f"{name}.{key}" if name else key for key, child in module.named_children() if _is_block(child)]
        if members:
            found[name] = members
    return found


def _is_block(module: nn.Module) -> bool:
    """Blocks are called, unlike lists, and hold two modules or more with weights of their own (norm, projection)."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    return sum(1 for part in module.modules() if any(True for _ in part.parameters(recurse=False))) >= 2


def _trace(
    model: nn.Module, candidates: dict[str, list[str]], forward: Callable[[], Any]
) -> tuple[dict[str, list[_Seen]], list[_Seen]]:
    """Samples of every stream-shaped tensor seen in the first use of each block, in order; blocks in order of their
    use. And of what norms outside the blocks were given."""
    trace: dict[str, list[_Seen]] = {}
    norms: list[_Seen] = []
    shapes: dict[str, tuple[int, int]] = {}
    calls: dict[str, int] = defaultdict(int)
    handles = []

    def see(block: str, place: Place, value: Any, norm: bool) -> None:
        for tensor in floats(value):
            if (tensor.numel(), tensor.shape[-1]) == shapes[block]:
                trace[block].append(_seen(place, tensor, norm))
                return

    def enter(block: str, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, *kwargs.values())
        if name == block and not calls[block]:
            stream = next((t for t in floats(given) if t.dim() >= 2), None)
            if stream is None:
                return
            trace[block], shapes[block] = [], (stream.numel(), stream.shape[-1])
        if block in trace and not calls[block]:
            see(block, Place(name, "in", calls[name]), given, norm=False)

    def leave(block: str, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if block in trace and not calls[block]:
            see(block, Place(name, "out", calls[name]), output, norm=_is_norm(module))
        calls[name] += 1

    def outside(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = next(floats((*args, *kwargs.values())), None)
        if tensor is not None:
            norms.append(_seen(Place(name, "in"), tensor, norm=False))

    members = [block for blocks in candidates.values() for block in blocks]
    try:
        for block in members:
            for path, module in model.get_submodule(block).named_modules():
                name = f"{block}.{path}" if path else block
                handles.append(module.register_forward_pre_hook(partial(enter, block, name), with_kwargs=True))
                handles.append(module.register_forward_hook(partial(leave, block, name)))
        for name, module in model.named_modules():
            if _is_norm(module) and not any(name.startswith(f"{block}.") for block in members):
                handles.append(module.register_forward_pre_hook(partial(outside, name), with_kwargs=True))
        with _evaluating(model), torch.no_grad(), warnings.catch_warnings(action="ignore"):
            forward()  # the measuring pass will warn, if there is something to warn of
    finally:
        for handle in handles:
            handle.remove()
    return trace, norms


def _is_norm(module: nn.Module) -> bool:
    """Named as a norm, and without a matrix: a block's part in a model called PreLayerNorm isn't one."""
    named = "norm" in type(module).__name__.lower()
    return isinstance(module, nn.LayerNorm) or (named and all(p.dim() < 2 for p in module.parameters()))


def _seen(place: Place, tensor: Tensor, norm: bool) -> _Seen:
    return _Seen(place, sample(tensor), torch.finfo(tensor.dtype).eps, norm, tensor.shape[-1])


def _explain(name: str, seen: list[_Seen]) -> Block:
    """Follow the stream through one block, with the plainest kind of sum that explains it."""
    start = next((s for s in seen if s.place == Place(name, "in")), None)
    end = next((s for s in reversed(seen) if s.place.module == name and s.place.where == "out"), None)
    if start is None or end is None:
        return Block(name, note="not called with a tensor of the stream's shape, or returned none")
    inside = [s for s in seen[seen.index(start) + 1 :] if s is not end] + [end]
    plain = _follow(name, start, inside, "plain")
    if plain.verified:
        return plain
    others = (_follow(name, start, inside, kind) for kind in ("scaled", "channels"))
    return next((block for block in others if block.verified), plain)


def _follow(name: str, start: _Seen, inside: list[_Seen], kind: str) -> Block:
    """Which of the tensors seen are states of the stream, and which modules brought them about."""
    block = Block(name, [start.place], width=start.width)
    end = inside[-1]
    bases = [start]  # the stream's present state, and its norms: post-norm blocks go on with one
    outputs: list[_Seen] = []  # what hasn't been written yet
    handed_on: dict[Place, list[str]] = defaultdict(list)
    for current in inside:
        if any(_same(current.values, base.values) for base in bases):
            continue
        if current.norm and _is_norm_of(current, bases[0], inside):
            bases.append(current)
            outputs.append(current)
            continue
        first = next((output for output in outputs if _same(current.values, output.values)), None)
        if first is not None:
            if current.place.where == "out":
                handed_on[first.place].append(current.place.module)
            continue
        for base in bases:
            others = [output for output in outputs if output is not base]
            found = _as_sum(current, base, others, kind, closing=current is end)
            if found is not None:
                written = [others[term] for term in found.terms]
                writes = [
                    Write(w.place, s, found.per_channel, tuple(handed_on[w.place]))
                    for w, s in zip(written, found.scales, strict=True)
                ]
                block.writes += writes[::-1]  # fits name the latest first
                block.skips += [found.keep] if found.keep != 1 else []
                block.states.append(current.place)
                outputs = [output for output in others if output not in written and output not in bases]
                bases = [current]
                break
        else:
            if current.place.where == "out":
                outputs.append(current)
    block.verified = any(_same(end.values, base.values) for base in bases)
    if block.verified and block.states[-1] != end.place:
        block.states.append(end.place)
    if not block.verified:
        block.note = "the block's output isn't its input plus what its modules gave"
    elif not block.writes:
        block.note = "every write is exactly 0, so which modules write can't be seen"
    return block


def _as_sum(target: _Seen, base: _Seen, outputs: list[_Seen], kind: str, *, closing: bool) -> Fit | None:
    """target = base + outputs times numbers; in the other kinds also with a scaled base, or a scale per channel."""
    given = target.values, base.values, [output.values for output in outputs], max(target.eps, base.eps)
    found = fit_sum(*given)
    if found is None and kind == "scaled":
        found = fit_scaled_sum(*given, alone=closing)
    if found is None and kind == "channels":
        found = fit_channels(*given)
    return found


def _is_norm_of(norm: _Seen, base: _Seen, seen: list[_Seen]) -> bool:
    """The norm was handed the stream's present state."""
    given = Place(norm.place.module, "in", norm.place.call)
    return any(s.place == given and _same(s.values, base.values) for s in seen)


def _same(a: Array, b: Array) -> bool:
    return bool(np.array_equal(a, b))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; each gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        # nn.TransformerEncoderLayer's fused path in eval mode calls none of its parts
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes:
            module.training = training
