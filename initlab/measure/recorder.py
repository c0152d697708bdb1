"""Hooks: attach, record one forward and backward pass, detach.

Tensor hooks are registered inside forward hooks, never full_backward_hook: that one wraps the module's inputs and
outputs in a custom Function, which breaks on in-place activations and changes what the model computes on.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initlab.anatomy.restoring import depth
from initlab.anatomy.sites import SiteMap, Tap
from initlab.anatomy.tensors import floats, tensors
from initlab.measure.attention import head_statistics
from initlab.measure.moments import Preset
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
        self.heads: list[Tensor] = []  # per block, (3, nh): see head_statistics
        self.scalars: dict[str, Tensor] = {}
        self.dead: list[Tensor] = []
        self._calls: Counter[Tap] = Counter()
        self._parts: dict[str, Tensor] = {}  # outputs of the embeddings, until their sum is seen
        self._known: dict[tuple[int, float], tuple[weakref.ref[Tensor], int, int, list[tuple[Tap, int]]]] = {}
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
        self._open = False

    def take(self, tap: Tap, value: Any) -> None:
        """Measure what a hook was handed; nestings give their first floating-point tensor."""
        tensor = next(floats(value), None)
        if not self.open or tensor is None:
            return
        call = self._calls[tap]
        self._calls[tap] += 1
        taps = self._measure(tensor, tap, call) if tap.part is None else self._measure_part(tensor, tap, call)
        if taps is not None and tensor.requires_grad:
            tensor.register_hook(partial(self._take_gradient, taps))
        if tap.site == "embed":
            self._settle_embedding(tensor.detach())
        if self._full and tap.site == "mlp_act":
            self.dead.append((tensor.detach().flatten(0, -2).amax(0) <= 0).float().mean())
        if tap.site == "resid_post" and tap.layer == self._last_layer and tensor.dim() == 3:
            self.scalars["token_cosine"] = token_cosine(tensor.detach())

    def take_embedding(self, name: str, output: Any) -> None:
        """Mean square of an embedding's output, `token` or `position`."""
        tensor = next(tensors(output), None)
        if self.open and tensor is not None:
            self.scalars[name] = tensor.detach().float().square().mean()
            self._parts[name] = tensor

    def _settle_embedding(self, embed: Tensor) -> None:
        """Scale the embeddings' mean squares by what the model multiplied them with, where their sum tells.

        A table that isn't trained (a sinusoid) may be for rotations: unless it is seen in the sum, it doesn't count.
        """
        parts, self._parts = self._parts, {}
        if set(parts) != {"token", "position"}:
            return
        fixed = parts["token"].requires_grad and not parts["position"].requires_grad
        factors = sum_factors(embed, parts["token"].detach(), parts["position"].detach())
        if factors is not None and factors[1] != 0:
            for name, factor in zip(("token", "position"), factors, strict=True):
                self.scalars[name] = self.scalars[name] * factor**2
        elif factors is not None or fixed:
            del self.scalars["position"]

    def take_attention(self, layer: int, module: str, output: Any) -> None:
        """Entropy and logits of one block's heads, from the output of its c_attn."""
        qkv = next(tensors(output), None)
        if not self.open or qkv is None or qkv.dim() != 3 or qkv.shape[1] < 2:
            return
        also = self.moments.add_heads(len(self.heads), module)
        per_head, logits, pattern = head_statistics(qkv, self.sites.n_head, also)
        self.heads.append(per_head)
        for site, values in (("attn_logits", logits), ("attn_pattern", pattern)):
            tap = Tap(site, module, "out", layer)
            self._note(tap, "activation", 0, qkv.dtype, self.moments.add(values, "activation", module))

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
        slot = self.moments.add(tensor, "activation", tap.module, tap.scale)
        taps = [(tap, call)]
        self._known[key] = (weakref.ref(tensor), tensor._version, slot, taps)
        self._note(tap, "activation", call, tensor.dtype, slot)
        return taps

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
    handles = []
    try:
        for tap in sites.taps:
            module = modules[tap.module]
            if tap.where == "in":
                hook = partial(_pre_hook, recorder, tap)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(partial(_hook, recorder.take, tap)))
        for name, path in (("token", sites.token_embedding), ("position", sites.position_embedding)):
            if path not in modules or not path:
                continue
            handles.append(modules[path].register_forward_hook(partial(_hook, recorder.take_embedding, name)))
        if preset == "full":
            for layer, path in enumerate(sites.attention):
                take = partial(recorder.take_attention, layer)
                handles.append(modules[path].register_forward_hook(partial(_hook, take, path)))
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _pre_hook(recorder: Recorder, tap: Tap, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    recorder.take(tap, (*args, *kwargs.values()))


def _hook(take: Any, key: Any, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    take(key, output)


def _part(tensor: Tensor, tap: Tap) -> Tensor:
    width = tensor.shape[-1] // 3
    assert tap.part is not None
    return tensor[..., tap.part * width : (tap.part + 1) * width]


def sum_factors(total: Tensor, token: Tensor, position: Tensor) -> tuple[float, float] | None:
    """(a, b) of total = a·token + b·position, (B, T, C) each or broadcast to it; None where it isn't that.

    Elements that are 0 (dropped out) don't count. b is 0 where the positions aren't in the sum.
    """
    try:
        token, position = token.expand_as(total), position.expand_as(total)
    except RuntimeError:  # of another width, or of another order of dimensions
        return None
    stride = max(1, total.numel() // 4096) | 1  # odd, so that it meets all channels
    # NumPy's arithmetic doesn't wake torch's threads, which takes longer than all of it
    flat = torch.stack([x.reshape(-1)[::stride].double() for x in (total, token, position)]).cpu().numpy()
    kept = flat[0] != 0
    target, terms = flat[0][kept], flat[1:, kept].T
    if len(target) < 16 or not (np.isfinite(target).all() and np.isfinite(terms).all()):
        return None
    solved = np.linalg.lstsq(terms, target, rcond=None)[0]
    rest = target - terms @ solved
    size = 0.01 * np.linalg.norm(target)
    if not np.linalg.norm(rest) <= size:  # 16-bit sums round by less
        return None
    seen = np.linalg.norm(terms[:, 1] * solved[1]) > size
    return float(solved[0]), float(solved[1]) if seen else 0.0


def token_cosine(x: Tensor) -> Tensor:
    """Mean cosine between the vectors of two different positions of a sequence: (B, T, C) -> ()."""
    T = x.shape[1]
    unit = torch.nn.functional.normalize(x.float(), dim=-1)
    return ((unit.sum(1).square().sum(-1) - T) / max(T * (T - 1), 1)).mean()
