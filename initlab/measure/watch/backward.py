"""Which of a loop's backward passes belong to the recorded forward passes, and what they add up to."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from initlab.anatomy.restoring import depth
from initlab.anatomy.tensors import floats


@dataclass(slots=True, eq=False)
class Backward:
    """Which backward pass is recorded: the first that goes through a recorded forward pass and accumulates gradients.

    It begins when a gradient arrives at a tensor of that forward pass. One that accumulates none (torch.autograd.grad,
    for a penalty) is forgotten when it ends.
    """

    ended: Callable[[bool], None]  # told whether it accumulated
    unheard: bool = False  # gradients that wait to be reduced come to no hook: every pass is taken to accumulate
    depth: int = field(default_factory=depth)
    state: Literal["awaited", "running", "done"] = "awaited"
    accumulated: bool = False
    ends: list[weakref.ref[_Arrival]] = field(default_factory=list)

    def arrived(self) -> bool:
        """A gradient is at a tensor of the recorded pass; whether it is of the backward pass to record."""
        if depth() != self.depth:
            return False
        if self.state == "awaited":
            self.state, self.accumulated = "running", False
            # the engine's own way to say that a backward pass is over; DistributedDataParallel and FSDP use it
            torch.autograd.Variable._execution_engine.queue_callback(self.over)
        return self.state == "running"

    def over(self) -> None:
        """The backward pass that was running has ended."""
        kept = self.accumulated or self.unheard
        self.state = "done" if kept else "awaited"
        self.ended(kept)

    def watch(self, output: Any) -> None:
        """Wait at the ends of the graph, the tensors that the model returned."""
        for tensor in floats(output):
            if tensor.requires_grad:
                arrival = _Arrival(self)
                tensor.register_hook(arrival)
                self.ends.append(weakref.ref(arrival))

    @property
    def impossible(self) -> bool:
        """The graph is gone, since nobody kept what the model returned: no backward pass can come."""
        return self.state == "awaited" and bool(self.ends) and all(end() is None for end in self.ends)


@dataclass(slots=True, eq=False)
class Accumulated:
    """The gradients of a step's recorded backward passes, summed up as the optimizer gets them, by parameter.

    Attributes:
        backwards: of the step's recorded forward passes.
        total: sums so far, before they are averaged, unscaled or clipped.
        elsewhere: parameters got gradients of other passes.
    """

    depth: int = field(default_factory=depth)
    backwards: list[Backward] = field(default_factory=list)
    total: dict[str, Tensor] = field(default_factory=dict)
    elsewhere: bool = False
    _arriving: dict[str, Tensor] = field(default_factory=dict)  # of the backward pass that is running

    def take(self, name: str, gradient: Tensor) -> None:
        """Take the gradient of a parameter on its way to `.grad`; one of another backward pass is none of the step's.

        Args:
            name: of the parameter.
            gradient: what is added to its `.grad`, which may hold it and change it from then on.
        """
        if depth() != self.depth:
            return
        if not any(each.state == "running" for each in self.backwards):
            self.elsewhere = True
        elif name not in self._arriving:
            dense = gradient if gradient.layout == torch.strided else gradient.to_dense()
            self._arriving[name] = dense.detach().clone()

    def note(self, parameter: Tensor) -> None:
        """After a gradient went into a parameter's `.grad`, as those of torch.autograd.grad don't."""
        if depth() == self.depth:
            for each in self.backwards:
                each.accumulated = True

    def reduced(self, name: str, before: Tensor | None, parameter: Tensor) -> None:
        """After `fully_shard` put a shard of the gradient, averaged over the processes, into a parameter's `.grad`.

        Args:
            name: of the parameter.
            before: what `.grad` was when the step began.
            parameter: the shard; torch calls hooks on it itself, as autograd doesn't.
        """
        self.note(parameter)
        if parameter.grad is not None:
            now = parameter.grad.detach()
            self.total[name] = now.clone() if before is None else now - before

    def ended(self, kept: bool) -> None:
        """Keep, or drop, what arrived, after a backward pass.

        Args:
            kept: it accumulated.
        """
        arriving, self._arriving = self._arriving, {}
        for name, gradient in arriving.items() if kept else ():
            held = self.total.get(name)
            self.total[name] = gradient if held is None else held.add_(gradient)


class _Arrival:
    """A hook that lives as long as the graph it is on."""

    def __init__(self, backward: Backward):
        self._backward = backward

    def __call__(self, gradient: Tensor) -> None:
        self._backward.arrived()
