"""Hooks: attach, record one forward and backward pass, detach.

Tensor hooks are registered inside forward hooks, never full_backward_hook: that one wraps the module's inputs and
outputs in a custom Function, which breaks on in-place activations and changes what the model computes on.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from initlab.anatomy.operations import Operation
from initlab.anatomy.restoring import depth
from initlab.anatomy.sites import HeadTap, SiteMap, Tap
from initlab.anatomy.tensors import floats, tensors
from initlab.measure.attention import SEQUENCES, Found
from initlab.measure.heads import HeadReader
from initlab.measure.hearing import Heard, Hearing, tensor_of
from initlab.measure.moments import Preset
from initlab.measure.positions import added, sum_factors
from initlab.measure.routing import RouterReader
from initlab.measure.statistics import Statistic
from initlab.measure.statistics.taking import Measurements


@dataclass(frozen=True, slots=True)
class Seen:
    """One measured tensor: which tap, forward or backward, and its place in the moments."""

    tap: Tap
    kind: str
    call: int
    dtype: str
    slot: int


class Recorder:
    """Records one pass of a model; use through `recording`.

    Args:
        sites: what to look at.
        preset: of the moments.
        arrived: called before each gradient is taken; says whether it is to be.
        statistics: what is taken beside the moments.
        loss_scale: what the loss is multiplied with before its gradients are taken.
    """

    def __init__(
        self,
        sites: SiteMap,
        preset: Preset,
        arrived: Callable[[], bool] = lambda: True,
        statistics: Iterable[Statistic] = (),
        loss_scale: float = 1.0,
    ):
        self.sites = sites
        self._arrived = arrived
        self._taken: list[tuple[list[tuple[Tap, int]], list[tuple[Tap, int]]]] = []
        self.moments = Measurements(preset, statistics)
        self._loss_scale = loss_scale
        self.seen: list[Seen] = []
        self.heads = HeadReader(sites, self.moments, self._note_heads)
        self.routers = RouterReader(sites)
        self.leaves = ExitStack()  # hooks on tensors that outlive the pass: parameters, inputs
        self.scalars: dict[str, Tensor] = {}
        self.alike: dict[tuple[Tap, int], Tensor] = {}
        self.dead: dict[tuple[Tap, int], Tensor] = {}  # of each call, every unit's largest output
        self._calls: Counter[Tap] = Counter()
        self._parts: dict[str, Tensor] = {}  # outputs of the embeddings, until their sum is seen
        self._known: dict[tuple[int, float], tuple[weakref.ref[Tensor], int, int, list[tuple[Tap, int]]]] = {}
        self._stored: dict[tuple[Any, ...], tuple[weakref.ref[Tensor], int, int]] = {}
        self._hearing: Hearing | None = None
        self._last_layer = sites.n_layer - 1
        self._full = preset == "full"
        self._open = True
        self._depth = depth()

    @property
    def open(self) -> bool:
        """Recording, and not in an aside that somebody else makes meanwhile."""
        return self._open and depth() == self._depth

    def close(self) -> None:
        """Stop recording; a forward that checkpointing runs again during backward isn't counted twice."""
        with self._aside():
            self.heads.settle()
        self._open = False
        if self._hearing is not None:
            self._hearing.close()

    def hears(self) -> Hearing | None:
        """What hears the operations that are to be measured; None where none is."""
        wanted: dict[tuple[str, Operation], list[Heard]] = {}
        for tap in self.sites.taps:
            if tap.operation is not None:
                wanted.setdefault((tap.module, tap.operation), []).append(partial(self._hear, tap))
        for module, operation, taker in self.heads.wanted() if self._full else ():
            wanted.setdefault((module, operation), []).append(taker)
        for module, operation, taker in self.routers.wanted() if self._full else ():
            wanted.setdefault((module, operation), []).append(partial(self._aside_from, taker))
        self._hearing = self.heads.hearing = Hearing(wanted, lambda: self.open) if wanted else None
        return self._hearing

    def _aside(self) -> AbstractContextManager[None]:
        return nullcontext() if self._hearing is None else self._hearing.aside()

    def _aside_from(self, taker: Heard, *call: Any) -> None:
        with self._aside():
            taker(*call)

    def take(self, tap: Tap, value: Any) -> None:
        """Measure what a hook was handed; nestings give their first floating-point tensor."""
        tensor = next(floats(value), None)
        if self.open and tensor is not None:
            with self._aside():
                self._take(tap, tensor)

    def _hear(self, tap: Tap, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tensor = tensor_of(operation, args, kwargs, output)
        if tensor is not None:
            self._take(tap, tensor)

    def _take(self, tap: Tap, tensor: Tensor) -> None:
        call = self._calls[tap]
        self._calls[tap] += 1
        taps = self._measure(tensor, tap, call) if tap.part is None else self._measure_part(tensor, tap, call)
        if taps is not None and tensor.requires_grad:
            handle = tensor.register_hook(partial(self._take_gradient, taps))
            if tensor.is_leaf:
                self.leaves.callback(handle.remove)
        if tap.site == "embed":
            self._settle_embedding(tensor.detach())
            if tensor.dim() == 3:
                self.scalars["embed_together"] = together(tensor.detach()[:SEQUENCES])
        if self._full and tap.site == "mlp_act" and tensor.dim() > 1 and tensor.numel():
            self.dead[tap, call] = tensor.detach().flatten(0, -2).amax(0)
        if tap.alike and tensor.dim() == 3:
            self.alike[tap, call] = together(tensor.detach()[:SEQUENCES])
        if tap.site == "resid_post" and tap.layer == self._last_layer and tensor.dim() == 3:
            self.scalars["token_cosine"] = token_cosine(tensor.detach())

    def take_embedding(self, name: str, output: Any) -> None:
        """Keep an embedding's output, `token` or `position`, until what enters the first block is seen."""
        tensor = next(tensors(output), None)
        if self.open and tensor is not None:
            self._parts[name] = tensor

    def _settle_embedding(self, embed: Tensor) -> None:
        """Mean squares of token and position embedding, as they enter their sum.

        Where the sum can't be taken apart, as behind a norm, a table of positions counts where the operations show that
        it is part of the sum, and how much it is multiplied with.
        """
        parts, self._parts = self._parts, {}
        if "token" not in parts:
            return
        token, position = parts["token"].detach(), parts.get("position")
        found = {"token": token.float().square().mean()}
        factors = None if position is None else sum_factors(embed, token, position.detach())
        if position is not None and factors is not None and factors[1] != 0:
            found["token"] = found["token"] * factors[0] ** 2
            found["position"] = position.detach().float().square().mean() * factors[1] ** 2
        elif (sum_of := added(embed, token)) is not None:
            found["token"] = found["token"] * sum_of[0] ** 2
            if sum_of[1]:
                found["position"] = torch.tensor(sum_of[1])
        elif position is not None and factors is None and self.sites.embedded is not None:
            found["token"] = found["token"] * self.sites.embedded[0] ** 2
            found["position"] = position.detach().float().square().mean() * self.sites.embedded[1] ** 2
        self.scalars.pop("position", None)
        self.scalars |= found

    def take_heads(self, take: Callable[[Any], None], output: Any) -> None:
        """Hand what a module gave to who reads heads from it."""
        if self.open:
            with self._aside():
                take(output)

    def _note_heads(self, tap: HeadTap, found: Found, dtype: torch.dtype) -> None:
        for site, values in (("attn_logits", found.logits), ("attn_pattern", found.pattern)):
            shown = Tap(site, tap.module, "out", tap.layer)
            slot = self.moments.add(values, "activation", tap.module, where=found.where)
            self._note(shown, "activation", self._calls[shown], dtype, slot)
            self._calls[shown] += 1

    def _measure(self, tensor: Tensor, tap: Tap, call: int) -> list[tuple[Tap, int]] | None:
        """Record a tensor; None when it was seen before at another site (a block's output is the next one's input)."""
        key = (id(tensor), tap.scale)
        known = self._known.get(key)
        # an in-place residual add keeps the object and changes what it holds, which its version tells
        if known is not None and known[0]() is tensor and known[1] == tensor._version:
            _, _, slot, taps = known
            taps.append((tap, call))
            self._note(tap, "activation", call, tensor.dtype, slot)
            return None
        slot = self._slot(tensor, tap)
        taps = [(tap, call)]
        self._known[key] = (weakref.ref(tensor), tensor._version, slot, taps)
        self._note(tap, "activation", call, tensor.dtype, slot)
        return taps

    def _slot(self, tensor: Tensor, tap: Tap) -> int:
        """Take the moments of a tensor, but of a view with all elements of one that was seen: gradients differ there,
        numbers don't."""
        place = None if self.moments.foreign else _place(tensor)
        if place is None:
            return self.moments.add(tensor, "activation", tap.module, tap.scale)
        owner, extent = place
        key = (id(owner), extent, tensor.dtype, tap.scale)
        known = self._stored.get(key)
        if known is not None and known[0]() is owner and known[1] == tensor._version:
            return known[2]
        slot = self.moments.add(tensor, "activation", tap.module, tap.scale)
        self._stored[key] = (weakref.ref(owner), tensor._version, slot)
        return slot

    def _measure_part(self, tensor: Tensor, tap: Tap, call: int) -> list[tuple[Tap, int]]:
        slot = self.moments.add(_part(tensor, tap), "activation", tap.module, tap.scale)
        self._note(tap, "activation", call, tensor.dtype, slot)
        return [(tap, call)]

    def forget_gradients(self) -> None:
        """Those that were taken are gone, and the next backward pass is recorded instead."""
        self.seen = [seen for seen in self.seen if seen.kind != "grad"]
        for taps, before in self._taken:
            taps[:] = before
        self._taken.clear()

    def _take_gradient(self, taps: list[tuple[Tap, int]], gradient: Tensor) -> None:
        if not self._arrived() or not taps:
            return
        self._taken.append((taps, taps.copy()))
        slot = None
        for tap, call in taps:
            if tap.part is not None or slot is None:
                own = gradient if tap.part is None else _part(gradient, tap)
                slot = self.moments.add(own, "grad", tap.module, 1 / (tap.scale * self._loss_scale))
            self._note(tap, "grad", call, gradient.dtype, slot)
        taps.clear()  # a second backward pass through the same graph isn't counted

    def _note(self, tap: Tap, kind: str, call: int, dtype: torch.dtype, slot: int) -> None:
        self.seen.append(Seen(tap, kind, call, str(dtype).removeprefix("torch."), slot))


@contextmanager
def recording(
    model: nn.Module,
    sites: SiteMap,
    preset: Preset,
    arrived: Callable[[], bool] = lambda: True,
    statistics: Iterable[Statistic] = (),
    loss_scale: float = 1.0,
) -> Iterator[Recorder]:
    """Attach a Recorder, which gets the other arguments; every hook is gone when the block ends, however it ends."""
    recorder = Recorder(sites, preset, arrived, statistics, loss_scale)
    modules = dict(model.named_modules())
    handles: list[RemovableHandle] = []
    try:
        for tap in sites.taps:
            module = modules.get(tap.module)
            if module is None:  # made by the pass of the look, and gone with it: it is said not to have fired
                continue
            if tap.where == "in":
                hook = partial(_pre_hook, recorder.take, tap)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            elif tap.where == "out":
                handles.append(module.register_forward_hook(partial(_hook, recorder.take, tap)))
        for name, path in (("token", sites.token_embedding), ("position", sites.position_embedding)):
            if path not in modules or not path:
                continue
            handles.append(modules[path].register_forward_hook(partial(_hook, recorder.take_embedding, name)))
        for path, take in recorder.heads.fused() if preset == "full" else ():
            handles.append(modules[path].register_forward_hook(partial(_hook, recorder.take_heads, take)))
        hearing = recorder.hears()
        with nullcontext() if hearing is None else hearing.following(model):
            yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _pre_hook(take: Any, tap: Tap, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    take(tap, (*args, *kwargs.values()))


def _hook(take: Any, key: Any, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    take(key, output)


def _place(tensor: Tensor) -> tuple[Tensor, Any] | None:
    """The tensor that a view is one of, and which of its elements it holds, in whatever order; None: not known."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_neg():
        return None
    owner = tensor if tensor._base is None else tensor._base
    runs: list[tuple[int, int]] = []  # stride and length, smallest stride first
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = (runs[-1][0], runs[-1][1] * size)
        else:
            runs.append((stride, size))
    return owner, (tensor.storage_offset(), tuple(runs))


def _part(tensor: Tensor, tap: Tap) -> Tensor:
    width = tensor.shape[-1] // tap.parts
    assert tap.part is not None
    return tensor[..., tap.part * width : (tap.part + 1) * width]


def together(x: Tensor) -> Tensor:
    """Mean product of the vectors of two different positions of a sequence, over their mean square: (B, T, C) -> ()."""
    x = x.float()
    return (x.sum(1).square().sum() / x.square().sum() - 1) / (x.shape[1] - 1)


def token_cosine(x: Tensor) -> Tensor:
    """Mean cosine between the vectors of two different positions of a sequence: (B, T, C) -> ()."""
    T = x.shape[1]
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    return ((unit.sum(1).square().sum(-1) - T) / max(T * (T - 1), 1)).mean()
