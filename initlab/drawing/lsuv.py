"""LSUV: every layer's output at unit variance on a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from initlab.drawing.apply import draw, orthonormal
from initlab.drawing.profiled import Subject
from initlab.errors import RecipeError
from initlab.recipes import Normal

NEAR = 0.1  # |std - 1| that is near enough
TRIES = 10


def lsuv(subject: Subject) -> set[str]:
    """Draw layers orthonormal and divide each by the std of its output; see `initlab.recipes.profiled`.

    Args:
        subject: the model, and the batch.

    Raises:
        RecipeError: there is no layer, or an output doesn't vary.
        ConfigError: the forward raises.
    """
    model = subject.model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers = {name: module for name, module in model.named_modules() if _is_layer(module)}
    if not layers:
        raise RecipeError(f"{type(model).__name__} has no linear or convolutional layer that LSUV could scale")
    changed: set[str] = set()
    with torch.no_grad():
        for module in layers.values():
            weight = module.weight
            assert isinstance(weight, Tensor)
            name = names[id(weight)]
            if name not in changed:  # a head that is another layer's matrix too
                normal = draw(Normal(1.0), torch.Size((len(weight), weight[0].numel())), name, subject.seed)
                weight.copy_(orthonormal(normal).view(weight.shape))
                changed.add(name)
            if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                bias.zero_()
                changed.add(names[id(bias)])
        for layer in _in_order(subject, layers):
            _scale(subject, layer, layers[layer])
    return changed


def _is_layer(module: nn.Module) -> bool:
    """Linear, a convolution, or what transformers calls Conv1D: a linear layer whose matrix is transposed."""
    own = {name: value for name, value in module._parameters.items() if value is not None}
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return "weight" in own and (isinstance(module, kinds) or type(module).__name__ == "Conv1D")


def _in_order(subject: Subject, layers: dict[str, nn.Module]) -> list[str]:
    order: dict[str, None] = {}  # those that a pass doesn't reach, as experts without a token, stay orthonormal
    with _heard(layers, lambda name, output: order.setdefault(name)):
        subject.run()
    return list(order)


def _scale(subject: Subject, name: str, module: nn.Module) -> None:
    assert isinstance(module.weight, Tensor)
    for _ in range(TRIES):
        heard: list[Tensor] = []
        with _heard({name: module}, functools.partial(_keep, heard)):
            subject.run()
        std = float(torch.cat(heard).std(correction=0)) if heard else 0.0
        if not 0 < std < float("inf"):
            raise RecipeError(
                f"LSUV can't scale {name}: the std of its output on this batch is {std:g}; expected a number above 0, "
                "from inputs that differ and weights before it that aren't 0"
            )
        if abs(std - 1) < NEAR:
            return
        module.weight.div_(std)


def _keep(heard: list[Tensor], name: str, output: Tensor) -> None:
    heard.append(output.detach().float().flatten())


@contextmanager
def _heard(layers: dict[str, nn.Module], hear: Callable[[str, Tensor], Any]) -> Iterator[None]:
    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def listen(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                hear(name, output)

        return listen

    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
