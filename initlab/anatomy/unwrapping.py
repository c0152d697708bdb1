"""From what a user trains to the module that can be measured: compiled, wrapped and unsupported models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from initlab.anatomy.unregistered import hidden_in
from initlab.anatomy.unsharding import fully_sharded
from initlab.errors import ConfigError, ProbeError
from initlab.options import shown

_SHARDED = "give it before it is sharded, or initlab.probe, on every process, one that fully_shard was applied to"


def unwrap(model: nn.Module, *, shards: bool = False) -> tuple[nn.Module, list[str]]:
    """Take torch.compile, DataParallel and DistributedDataParallel off a module, and say what was taken.

    Args:
        model: as the training loop calls it.
        shards: those of `fully_shard`, whose weights are in part on other processes, pass.

    Raises:
        ConfigError: not a model.
        ProbeError: a model whose weights can't be measured here: none at all, of no shape yet, on the meta device, on
            several devices, sharded, or quantised.
    """
    model, notes = bare(model)
    if any(module._compiled_call_impl is not None for module in model.modules()):
        notes.append("compiled in place: measured eagerly")
    if not (shards and fully_sharded(model)):
        refuse_shards(model)
    _refuse(model)
    return model, notes


def bare(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Take the same off a module whose weights needn't be measured.

    Raises:
        ConfigError: not a model, or one whose weights torch keeps out of sight: scripted, traced, or of quantised
            layers.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is {shown(model)}, of type {type(model).__name__}; expected a torch.nn.Module")
    notes = []
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            notes.append("compiled: measured eagerly, through the original with the same parameters")
        elif type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            inner = model.module
            notes.append(f"wrapped in {type(model).__name__}: measured the module inside, on this process alone")
        else:
            break
        assert isinstance(inner, nn.Module)
        model = inner
    for path, module in model.named_modules():
        name = f"{type(model).__name__}: {path}" if path else type(model).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise ConfigError(f"{name} is a script module of torch.jit; give the Python module it was made of")
        if ".quantized." in type(module).__module__ and type(module).__module__.startswith("torch."):
            raise ConfigError(f"{name} is quantised ({module._get_name()}); give the model before quantising it")
    return model, notes


def whole(model: nn.Module) -> nn.Module:
    """Take the same off a module whose weights are all here, on whatever device.

    Raises:
        ConfigError: see `bare`.
        ProbeError: a part of the weights is on other processes.
    """
    model, _ = bare(model)
    refuse_shards(model)
    return model


def refuse_shards(model: nn.Module) -> None:
    """Refuse a model whose weights are in part on other processes.

    Raises:
        ProbeError: it is one.
    """
    name = type(model).__name__
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ProbeError(f"{name} is sharded (FullyShardedDataParallel); {_SHARDED}")
    for path, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor" or hasattr(parameter, "_local_shard"):
            raise ProbeError(f"{name}: {path} is sharded ({type(parameter).__name__}); {_SHARDED}")


def refuse_inference(name: str, path: str, parameter: Tensor) -> None:
    """Refuse a parameter that torch neither writes to nor differentiates by. Raises ProbeError.

    Args:
        name: of the model.
        path: of the parameter in it.
        parameter: it.
    """
    if parameter.is_inference():
        raise ProbeError(
            f"{name}: {path} was made under torch.inference_mode, so it can have no gradient; make or load the model "
            "outside of it"
        )


def _refuse(model: nn.Module) -> None:
    name = type(model).__name__
    parameters = dict(model.named_parameters())
    if not parameters:
        held = [each.place for each in hidden_in(model) if each.place]
        why = f" ({'; '.join(held)} holds trainable tensors: register them, as nn.ModuleList and nn.ParameterDict do)"
        raise ProbeError(f"{name} has no parameters; there is nothing to measure{why if held else ''}")
    for path, parameter in parameters.items():
        if nn.parameter.is_lazy(parameter):  # a run here would draw the caller's weights
            raise ProbeError(f"{name}: {path} has no shape yet (a lazy module); run one batch through the model first")
        if parameter.device.type == "meta":
            raise ProbeError(f"{name}: {path} is on the meta device: it has a shape but no values to measure")
        refuse_inference(name, path, parameter)
        if not (parameter.is_floating_point() or parameter.is_complex()) or parameter.is_quantized:
            raise ProbeError(f"{name}: {path} is quantised ({parameter.dtype}); measure the model before quantising it")
    devices = sorted({str(parameter.device) for parameter in parameters.values()})
    if len(devices) > 1:
        raise ProbeError(f"{name} is on several devices ({', '.join(devices)}); move it to one with model.to(...)")


_eager = ExitStack()
_holders = 0


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """The stance is the process's, and each that is set restores the one before it: two watches that end in the order
    in which they began would leave everything eager for good. So the first one sets it, and the last one restores it.
    """
    global _holders
    if not _holders:
        _eager.enter_context(torch.compiler.set_stance("force_eager"))
    _holders += 1
    try:
        yield
    finally:
        _holders -= 1
        if not _holders:
            _eager.close()


@contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """Run modules that were compiled in place as if they weren't: hooks added after compilation don't fire."""
    compiled = [(module, module._compiled_call_impl) for module in model.modules() if module._compiled_call_impl]
    try:
        for module, _ in compiled:
            module._compiled_call_impl = None
        with _nothing_compiled():
            yield
    finally:
        for module, implementation in compiled:
            module._compiled_call_impl = implementation
