"""The draws that a model's init code lost, for `fix` to give back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from initlab.judge import lost
from initlab.judge.remedies import Change
from initlab.judge.rules import Finding
from initlab.judge.rules.drawing import measure_overwritten
from initlab.results import Probe

if TYPE_CHECKING:
    from torch import nn


class LostDraws:
    """What DRW003 names of a model that was made while its init was heard.

    Attributes:
        changes: that give each parameter its own draw back; none without that finding.
        whole: whether they are all that it names; what a tensor held that is gone can't be given back.

    Args:
        model: as it was made.
        found: its probe.
        findings: that fail, of the rules in force.
        counted: of `drawing.census`.
    """

    def __init__(self, model: nn.Module, found: Probe, findings: Sequence[Finding], counted: Sequence[dict[str, Any]]):
        from initlab.drawing.tracing import left_by

        named = any(finding.code == lost.CODE for finding in findings)
        self._all = lost.lost_draws(measure_overwritten(found.run)) if named else []
        self._numbers = left_by(model)
        stds = {key: float(kept.double().std(correction=0)) for key, kept in self._numbers.items()}
        self.changes: list[Change] = list(lost.brought_back(self._all, counted, stds))
        names = {name for change in self.changes for name in change.names}
        self.whole = len(names) == len(self._all)
        self._possible = [each for each in self._all if each.name in names]

    def missing(self, model: nn.Module, counted: Sequence[dict[str, Any]]) -> bool:
        """Tell whether a copy lacks any of them.

        Args:
            model: the copy.
            counted: of `drawing.census`, of it.
        """
        import torch

        own = dict(model.named_parameters())
        orders = [(each.name, each.order) for each in self._possible if (each.name, each.order) in self._numbers]
        back = {key[0] for key in orders if torch.equal(own[key[0]].detach(), self._numbers[key].to(own[key[0]]))}
        return bool(lost.still_lost(self._possible, counted, back))

    def give_back(self, model: nn.Module, change: Change) -> None:
        """Put the numbers in place that the overwritten lines left.

        Args:
            model: to change.
            change: one of `changes` that has `orders`.
        """
        import torch

        with torch.no_grad():
            for name, order in zip(change.names, change.orders, strict=True):
                parameter = model.get_parameter(name)
                parameter.copy_(self._numbers[name, order].view_as(parameter))
