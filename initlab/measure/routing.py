"""How many tokens each expert of a mixture gets, beside what routers drawn anew give on the very same tokens.

A fresh router is a random matrix, but tokens aren't independent: those that are alike go to the same experts. So what
chance gives is counted, not computed: the same tokens, scored by other random matrices. The scores' size is no matter,
as the choice is of the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from initlab.anatomy.operations import Operation
from initlab.anatomy.sites import RouterTap, SiteMap
from initlab.anatomy.tensors import tensors
from initlab.measure.hearing import Heard, tensor_of

DRAWS = 16  # routers, drawn from a seed of their own


class RouterReader:
    """Counts the tokens of the experts of every router that a model's sites name.

    Args:
        sites: of the model.
    """

    def __init__(self, sites: SiteMap) -> None:
        self._taps = sites.routers
        self._given: dict[RouterTap, Tensor] = {}
        self._loads: dict[RouterTap, tuple[int, Tensor]] = {}

    def wanted(self) -> Sequence[tuple[str, Operation, Heard]]:
        """List the operations to hear of, and what takes each."""
        given = [(*tap.given, partial(self._enter, tap)) for tap in self._taps]
        return given + [(*tap.choice, partial(self._choose, tap)) for tap in self._taps]

    def _enter(self, tap: RouterTap, operation: Operation, args: Any, kwargs: Any, output: Any) -> None:
        tensor = tensor_of(operation, args, kwargs, output)
        if tensor is not None and tap not in self._loads:
            self._given[tap] = tensor.detach()

    def _choose(self, tap: RouterTap, operation: Operation, args: Any, kwargs: Any, output: Any) -> None:
        picked = next((x for place, x in enumerate(tensors(output)) if place == operation.output), None)
        given = self._given.pop(tap, None)
        if picked is None or given is None or picked.is_floating_point():
            return
        given = given.flatten(0, -2)
        picked = picked[..., : tap.chosen] if picked.dim() and picked.shape[-1] == tap.experts else picked
        if picked.numel() == given.shape[0] * tap.chosen:
            with torch.no_grad(), torch.autocast(given.device.type, enabled=False):
                loads = torch.stack([_count(picked, tap.experts), *_by_chance(given.float(), tap)])
            self._loads[tap] = given.shape[0], loads

    def loads(self) -> dict[RouterTap, tuple[int, Tensor]]:
        """Give what was counted, on the CPU: tokens, and those of each expert, then the same under random routers."""
        return {tap: (n_tokens, loads.cpu()) for tap, (n_tokens, loads) in self._loads.items()}

    def count_instead(self, parts: Iterable[dict[RouterTap, tuple[int, Tensor]]]) -> None:
        """Put the sums of several counts in the place of this one's.

        Args:
            parts: of `loads`; routers drawn at random are the same in each.
        """
        self._loads = {}
        for tap, (n_tokens, loads) in (each for part in parts for each in part.items()):
            before = self._loads.get(tap, (0, torch.zeros_like(loads)))
            self._loads[tap] = before[0] + n_tokens, before[1] + loads

    def rows(self, keys: dict[str, Any]) -> list[dict[str, Any]]:
        """Make a row of the table `routing` for each router that was heard.

        Args:
            keys: the cell's key columns.
        """
        return [keys | _row(tap, n_tokens, loads.double().cpu()) for tap, (n_tokens, loads) in self._loads.items()]


def _count(picked: Tensor, experts: int) -> Tensor:
    loads = torch.zeros(experts, dtype=torch.int64, device=picked.device)
    return loads.scatter_add_(0, picked.flatten().long(), torch.ones_like(picked.flatten(), dtype=torch.int64))


def _by_chance(given: Tensor, tap: RouterTap) -> list[Tensor]:
    """The loads under each of DRAWS random routers."""
    seeded = torch.Generator().manual_seed(0)
    shape = (tap.experts, given.shape[-1])
    drawn = (torch.randn(shape, generator=seeded).to(given.device) for _ in range(DRAWS))
    return [_count((given @ each.T).topk(tap.chosen, -1).indices, tap.experts) for each in drawn]


def _row(tap: RouterTap, n_tokens: int, loads: Tensor) -> dict[str, Any]:
    shares = loads / loads.sum(-1, keepdim=True)
    effective = 1 / shares.square().sum(-1)
    evenness = (effective - tap.chosen) / (tap.experts - tap.chosen)
    return {
        "layer": tap.layer,
        "module": tap.weight,
        "n_tokens": n_tokens,
        "experts": tap.experts,
        "chosen": tap.chosen,
        "most": float(loads[0].max()) / n_tokens,
        "never": int((loads[0] == 0).sum()),
        "never_by_chance": float((loads[1:] == 0).sum(-1).double().mean()),
        "load_var_by_chance": float(loads[1:].var(unbiased=False)),
        "evenness": float(evenness[0]),
        "evenness_by_chance": float(evenness[1:].mean()),
        "evenness_std_by_chance": float(evenness[1:].std()),
    }
