"""A model that several processes train together: whether it is one, and its weights as a whole."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from initlab.errors import ProbeError

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number
_CHUNK = 1 << 22  # elements


def replicated(model: nn.Module) -> Any:
    """Find the DistributedDataParallel around a model, through torch.compile; None where there is none.

    Args:
        model: as the training loop calls it.
    """
    model = _uncompiled(model)
    return model if type(model).__name__ == "DistributedDataParallel" else None


def fully_sharded(model: nn.Module) -> bool:
    """Tell whether `torch.distributed.fsdp.fully_shard` was applied to a model or to parts of it.

    Args:
        model: as the training loop calls it.
    """
    kind = _fsdp_module()
    return kind is not None and any(isinstance(module, kind) for module in model.modules())


def unsharded(model: nn.Module) -> nn.Module:
    """Gather the shards of a model into an ordinary copy; what FSDP itself had gathered is freed, nothing else is done.

    Every process calls it, for the same model. The copy has the model's own classes and hooks, without those of FSDP:
    it computes in the precision of the shards, whatever `mp_policy` says.

    Args:
        model: with `fully_shard` applied, to all of it or to parts.

    Raises:
        ProbeError: something in it can't be copied.
    """
    model = _uncompiled(model)
    resharded(model)
    memo: dict[int, Any] = {}
    with torch.no_grad():
        parameters: list[Any] = list(model.parameters())
        for parameter in parameters:
            values = whole(parameter) if _is_sharded(parameter) else parameter.detach().clone()
            memo[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
    for module in model.modules():
        memo[id(module)] = object.__new__(own_class(module))
    for path, module in model.named_modules():
        try:
            memo[id(module)].__dict__.update(copy.deepcopy(_own_state(module), memo))
        except Exception as error:
            where = f"{type(model).__name__}: {path}" if path else type(model).__name__
            raise ProbeError(
                f"{where} can't be copied, and a sharded model is measured on a copy with whole weights: "
                f"{type(error).__name__}: {error}"
            ) from error
    found: nn.Module = memo[id(model)]
    return found


def resharded(model: nn.Module) -> None:
    """Free what FSDP has gathered: after a forward pass alone whole weights stand there, in the dtype of `mp_policy`.

    Args:
        model: with `fully_shard` applied, or any other, of which nothing is gathered.
    """
    kind = _fsdp_module()
    for module in model.modules() if kind is not None else ():
        if isinstance(module, kind):
            module.reshard()


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without what `fully_shard` puts before it.

    Args:
        module: of any kind.
    """
    kind, mro = _fsdp_module(), type(module).__mro__
    return mro[mro.index(kind) + 1] if kind in mro else type(module)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor of which each process has a shard, which all of them do in one order; any other is returned.

    Args:
        tensor: a parameter, or what belongs to one.
    """
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def check_shards(model: nn.Module) -> None:
    """Refuse shards that aren't those of FSDP, or a copy with whole weights and gradients that wouldn't fit a GPU.

    Args:
        model: with `fully_shard` applied.

    Raises:
        ProbeError: tensor parallelism; too little memory.
    """
    model = _uncompiled(model)
    needed = 0
    parameters: list[tuple[str, Any]] = list(model.named_parameters())
    for path, parameter in parameters:
        needed += parameter.numel() * parameter.element_size()  # of a DTensor: of the whole
        if not _is_sharded(parameter):
            continue
        *outer, last = parameter.placements
        plain = all(each.is_replicate() for each in outer) and (last.is_replicate() or type(last).__name__ == "Shard")
        if not plain or parameter.device_mesh.size() != torch.distributed.get_world_size():
            raise ProbeError(
                f"{type(model).__name__}: {path} is sharded as {parameter.placements} over "
                f"{parameter.device_mesh.size()} processes; expected fully_shard alone over all "
                f"{torch.distributed.get_world_size()}: tensor and pipeline parallelism can't be measured"
            )
    device = next(model.parameters()).device
    if device.type != "cuda":
        return
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if 2 * needed > free:
        raise ProbeError(
            f"{type(model).__name__} is measured with whole weights and gradients on each process: "
            f"{2 * needed / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free on {device}; probe it before there is "
            "an optimizer, in bfloat16, or with fewer blocks"
        )


def fingerprints(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Tell parameters and buffers, so that those of two processes can be compared: by shape, dtype and bits.

    Args:
        model: whose tensors are whole.

    Returns:
        by dotted name; of a parameter also whether it is trained, of a buffer None in its place.
    """
    named: list[tuple[str, Tensor, bool | None]] = [(name, p, p.requires_grad) for name, p in model.named_parameters()]
    named += [(name, buffer, None) for name, buffer in model.named_buffers()]
    sums = [_sums_of_bits(tensor.detach()) for _, tensor, _ in named]
    numbers = torch.stack(sums).tolist() if sums else []
    return {
        name: (trained, tuple(tensor.shape), str(tensor.dtype), *bits)
        for (name, tensor, trained), bits in zip(named, numbers, strict=True)
    }


def _sums_of_bits(tensor: Tensor) -> Tensor:
    """Sum of a tensor's bits as integers, and the same with each times its place: exact in any order."""
    x = (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(-1)
    x = x.view(_INTEGERS[x.element_size()])
    total = torch.zeros(2, dtype=torch.int64, device=x.device)
    for number, piece in enumerate(x.split(_CHUNK)):
        wide = piece.long()
        place = torch.arange(1, len(wide) + 1, device=x.device) + number * _CHUNK
        total += torch.stack([wide.sum(), (wide * place).sum()])
    return total.cpu()


def _own_state(module: nn.Module) -> dict[str, Any]:
    """A module's attributes without what FSDP, or compilation, has put among them."""
    state = {}
    for name, value in module.__dict__.items():
        if name.startswith(("__composable_api_state_key", "_fsdp", "_is_fsdp")) or name == "_compiled_call_impl":
            continue
        if isinstance(value, dict) and name.endswith("_hooks"):
            value = type(value)((key, hook) for key, hook in value.items() if not _of_distributed(hook))
        if not _of_distributed(value):
            state[name] = value
    return state


def _of_distributed(value: Any) -> bool:
    """Whether a function, or what is bound or wrapped, was written in torch.distributed."""
    value = getattr(value, "func", value)
    code = getattr(getattr(value, "__func__", value), "__code__", None)
    return code is not None and Path(code.co_filename).is_relative_to(Path(torch.distributed.__file__).parent)


def _is_sharded(parameter: Tensor) -> Any:
    return type(parameter.data).__name__ == "DTensor"


def _fsdp_module() -> Any:
    """The class that `fully_shard` mixes into a module's; None where nobody has imported it."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)


def _uncompiled(model: nn.Module) -> nn.Module:
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model
