"""Which of a loop's backward passes belongs to the recorded forward pass."""

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
    """Which backward pass is recorded: the first that goes through the recorded forward pass and accumulates gradients.

    It begins when a gradient arrives at a tensor of that forward pass. One that accumulates none (torch.autograd.grad,
    for a penalty) is forgotten when it ends.
    """

    forget: Callable[[], None]
    depth: int = field(default_factory=depth)
    state: Literal["awaited", "running", "done"] = "awaited"
    accumulated: bool = False
    elsewhere: bool = False  # parameters got gradients of other passes
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
        if self.accumulated:
            self.state = "done"
        else:
            self.forget()
            self.state = "awaited"

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


class _Arrival:
    """A hook that lives as long as the graph it is on."""

    def __init__(self, backward: Backward):
        self._backward = backward

    def __call__(self, gradient: Tensor) -> None:
        self._backward.arrived()
