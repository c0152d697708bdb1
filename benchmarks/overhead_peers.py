"""What others do to see statistics of a pass: the same pass as bare, and of each tensor mean, variance and largest |x|.

Naive hooks, as one writes them, take these of every module's output and of its gradient. TransformerLens' bridge and
torchlens keep tensors, nnsight's cache those of every module; the statistics are taken afterwards. mup's own hook
records the mean |x| of every leaf module's output. torchlens and nnsight see the forward pass alone: the backward pass
is run beside them. A peer that isn't installed is left out.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a bridge of a model at hand needs nothing of the hub


@dataclass(frozen=True)
class Way:
    """One pass, forward and backward, to see something of it.

    Attributes:
        run: it; gives the number of records.
        before, after: what puts torch into the state that it needs, and back; not timed.
    """

    run: Callable[[], int]
    before: Callable[[], Any] = lambda: None
    after: Callable[[], Any] = lambda: None


def peers(
    model: nn.Module, ids: Tensor, loss: Callable[[], Tensor], *, transformers: bool
) -> Iterator[tuple[str, Way]]:
    """Yield the name of each way that is there, and what runs it.

    Args:
        model: which is measured.
        ids: that it reads, for those that call it themselves.
        loss: runs its forward pass.
        transformers: it is a model of transformers, called as `model(ids)`.
    """

    def backward(of: Tensor) -> None:
        torch.autograd.grad(of, list(model.parameters()))

    def naive() -> int:
        rows: list[tuple[float, ...]] = []

        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                rows.append(statistics(output))
                if output.requires_grad:
                    output.register_hook(lambda gradient: rows.append(statistics(gradient)))

        with ExitStack() as stack:
            for module in model.modules():
                stack.callback(module.register_forward_hook(hook).remove)
            backward(loss())
        return len(rows)

    yield "naive hooks", Way(naive)
    if find_spec("mup"):
        from mup.coord_check import _record_coords

        def mup() -> int:
            rows: list[dict[str, Any]] = []
            with ExitStack() as stack:
                for name, module in model.named_modules():
                    if not any(True for _ in module.children()):
                        stack.callback(module.register_forward_hook(_record_coords(rows, 0, name, 0)).remove)
                backward(loss())
            return len(rows)

        yield "mup's hooks, forward", Way(mup)
    if not transformers:
        return
    if find_spec("transformer_lens"):
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        bridge = build_bridge_from_module(copy.deepcopy(model), type(model).__name__, hf_config=model.config)

        def lens() -> int:
            _, cache = bridge.run_with_cache(ids, return_type="loss", incl_bwd=True)
            bridge.zero_grad(set_to_none=True)
            return len([statistics(value) for value in cache.values() if value.is_floating_point()])

        yield "TransformerLens", Way(lens)
    if find_spec("torchlens"):
        import torchlens
        from torchlens.backends.torch.wrappers import unwrap_torch, wrap_torch

        def traced() -> int:
            trace = torchlens.trace(model, ids)
            found = [op.out for op in trace if isinstance(op.out, Tensor) and op.out.is_floating_point()]
            count = len([statistics(value) for value in found])
            backward(loss())
            return count

        yield "torchlens, forward", Way(traced, wrap_torch, unwrap_torch)  # else it slows all others
    if find_spec("nnsight"):
        import nnsight

        watched = nnsight.NNsight(model)

        def cached() -> int:
            with watched.trace(ids) as tracer:
                cache = tracer.cache().save()
            found = [cache[key].output for key in cache.keys()]  # noqa: SIM118 - no mapping
            count = len([statistics(each) for each in found if isinstance(each, Tensor) and each.is_floating_point()])
            backward(loss())
            return count

        yield "nnsight, forward", Way(cached)


def statistics(tensor: Tensor) -> tuple[float, ...]:
    """Take mean, variance and largest |x|, as one writes it."""
    values = tensor.detach().float()
    if not values.numel():
        return math.nan, math.nan, math.nan
    return values.mean().item(), values.var(correction=0).item(), values.abs().max().item()
