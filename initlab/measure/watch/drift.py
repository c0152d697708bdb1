"""How far training has taken the weights from where they were."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from initlab.anatomy.unsharding import resharded, whole
from initlab.anatomy.unwrapping import unwrap
from initlab.errors import ConfigError


class Origin:
    """The weights that drift is measured from, copied to the CPU.

    Args:
        model: what is watched.
        given: True: its weights as they are now; a state dict, or another model, for its weights.

    Raises:
        ConfigError: none of these, or no weight of the model in it.
    """

    def __init__(self, model: nn.Module, given: bool | Mapping[str, Tensor] | nn.Module):
        inside, _ = unwrap(model, shards=True)
        resharded(inside)
        found = inside if given is True else None
        if isinstance(given, nn.Module):
            found, _ = unwrap(given, shards=True)
        weights = given if isinstance(given, Mapping) else dict(found.named_parameters()) if found is not None else None
        if weights is None:
            raise ConfigError(f"drift is {given!r:.80}; expected True, a model, or a state dict of one")
        own = dict(inside.named_parameters())
        shared = {
            name: value
            for name, value in weights.items()
            if name in own and isinstance(value, Tensor) and value.shape == own[name].shape
        }
        if not shared:
            raise ConfigError(f"drift: no weight of {type(model).__name__} is among the {len(weights)} given, by name")
        self._weights = {name: whole(value.detach()).to("cpu", copy=True) for name, value in shared.items()}

    def of(self, name: str, now: Tensor) -> Tensor | None:
        """The weight as it was, where and as wide as it is now.

        Args:
            name: of the parameter.
            now: the weight.

        Returns:
            None where the origin holds no such weight, or one of another shape.
        """
        before = self._weights.get(name)
        return None if before is None or before.shape != now.shape else before.to(now.device, now.dtype)
