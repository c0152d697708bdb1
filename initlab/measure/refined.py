"""What moved a matrix's output between two steps: its own update, or what it is given.

W_t x_t - W_0 x_0 = (W_t - W_0) x_t + W_0 (x_t - x_0): the effective update, and the propagating one. A plain coord
check sees their sum, in which one may hide that the other fades or grows with width (Haas et al. 2025, 2505.22491).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.look import Anatomy
from initlab.anatomy.parameters import Parameter
from initlab.measure.moments import Moments, Preset
from initlab.recipes import Role
from initlab.recipes.base import VECTORS

KINDS = ("effective", "propagating")
_LINEAR = ("Linear", "Conv1D")  # torch's and Hugging Face's; both have `weight` and are affine in their input


class Refined:
    """Follows the matrices of a model over its steps.

    Args:
        model: before its first step.
        anatomy: of it.
        sample: takes the tokens of a tensor that are followed, (tokens, features).
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, sample: Callable[[Tensor], Tensor]) -> None:
        self._sample = sample
        self._places: dict[str, Parameter] = {}
        named = dict(model.named_parameters())
        places = {id(named[place.name]): place for place in anatomy.parameters if place.name in named}
        for name, module in model.named_modules():
            # of a tied head, the table's; torch's old weight_norm leaves no parameter of that name
            if type(module).__name__ in _LINEAR and "weight" in module._parameters:
                place = places.get(id(_weight(module)))
                if place is not None and place.role not in (Role.OTHER, *VECTORS):
                    self._places[name] = place
        self._modules = {name: model.get_submodule(name) for name in self._places}
        self._weights = {name: _weight(module).detach().clone() for name, module in self._modules.items()}
        self._given: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] | None = None

    @contextmanager
    def following(self) -> Iterator[None]:
        """Take what each matrix is given in the passes made within; the last of several."""
        handles = [
            module.register_forward_pre_hook(lambda module, args, name=name: self._take(name, args))
            for name, module in self._modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _take(self, name: str, args: Any) -> None:
        if args and isinstance(args[0], Tensor):
            self._given[name] = self._sample(args[0])

    def rows(self, preset: Preset) -> list[dict[str, Any]]:
        """Give the two updates of every matrix since the first pass that was followed; nothing after that one itself.

        Args:
            preset: of the statistics.

        Returns:
            site (the role), module, layer, kind and the statistics of each.
        """
        if self._first is None:
            self._first, self._given = self._given, {}
            return []
        moments, keys = Moments(preset), []
        with torch.no_grad():
            for name, x in self._given.items():
                if name not in self._first:
                    continue
                middle = self._through(name, self._weights[name], x)
                moments.add(self._through(name, _weight(self._modules[name]), x) - middle)
                moments.add(middle - self._through(name, self._weights[name], self._first[name]))
                place = self._places[name]
                keys += [{"site": place.role.value, "module": name, "layer": place.layer, "kind": k} for k in KINDS]
        return [key | values for key, values in zip(keys, moments.read(), strict=True)]

    def _through(self, name: str, weight: Tensor, x: Tensor) -> Tensor:
        # with the bias of now in both, which then leaves the difference
        module = self._modules[name]
        given = {"weight": weight} | {key: p for key, p in module.named_parameters() if key != "weight"}
        out: Tensor = torch.func.functional_call(_bare(module), given, (x.to(weight.dtype),))
        return out.float()


def _weight(module: nn.Module) -> Tensor:
    return module.get_parameter("weight")


def _bare(module: nn.Module) -> nn.Module:
    """The module without hooks: what stands around it multiplies both sides, and isn't its own."""
    twin = module.__new__(type(module))
    twin.__dict__ = module.__dict__ | {"_forward_hooks": {}, "_forward_pre_hooks": {}}
    return twin
