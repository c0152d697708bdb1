"""What a run tells: its rows, what came of it, and a watch of its updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import Tensor

TrainingRow = dict[str, Any]


class StepWatch(Protocol):
    """What `initlab.watch` returns: a context manager that is told of every update."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...

    def step(self, loss: Tensor) -> None: ...


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of a run.

    Attributes:
        rows: of the table `training`, but run_id. Row k: the loss of the batch of step k with the weights after k
            updates, the learning rate and the gradient norm (before clipping) of the update that followed. A run that
            was not cut short by a loss that isn't finite ends with a row at step = steps with a val_loss alone.
        first_loss: val_loss before the first update, nats.
        val_loss: after the last, nats; NaN where the run diverged.
        steps_done: updates made while loss and gradient were finite.
        tokens: trained on.
        seconds: wall time, evaluations and runs that were resumed among it.
    """

    rows: list[TrainingRow]
    first_loss: float
    val_loss: float
    steps_done: int
    tokens: int
    seconds: float
