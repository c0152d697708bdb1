"""A callback for transformers' Trainer that watches what it trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from initlab.anatomy.restoring import depth
from initlab.anatomy.unwrapping import unwrap
from initlab.api.watch import Watcher, watch
from initlab.errors import RunError
from initlab.integrations.options import refuse_others

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from initlab.results import Watch


class WatchCallback(TrainerCallback):
    """Record every N-th update of a Trainer, as `initlab.watch` records it.

    ::

        watched = WatchCallback(every=100, out="runs/watch", on_failure=lambda step, finding: print(step, finding))
        trainer = Trainer(model, args, train_dataset=data, callbacks=[watched])
        trainer.train()
        watched.result.report()

    The loss is the mean over the update's micro-batches of what the model returned, also where the Trainer normalises
    by the items of all of them; NaN where the Trainer takes its own (label smoothing, `compute_loss_func`). Gradients
    are those that the optimizer gets, of all of them; see `initlab.watch`. A training that is resumed from a
    checkpoint goes on in the same `out`.

    Args:
        every: updates from one watched to the next.
        out: folder for the tables; None keeps them in memory.
        options: others of `initlab.watch`: stats, sites, modules, metrics, drift, callback, on_failure.

    Attributes:
        watcher: the watch of the last `train()`, None before it.

    Raises:
        ConfigError: an unknown option, or one that the Trainer knows (start_step, loss_scale).
    """

    def __init__(self, *, every: int = 100, out: str | Path | None = None, **options: Any):
        refuse_others(options)
        self.watcher: Watcher | None = None
        self._options = {"every": every, "out": out, **options}
        self._losses: list[tuple[Tensor, bool]] = []
        self._hook: RemovableHandle | None = None

    @property
    def result(self) -> Watch:
        """What was recorded so far.

        Raises:
            RunError: nothing was.
        """
        if self.watcher is None:
            raise RunError("no step was recorded yet: train() wasn't called")
        return self.watcher.result

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin the watch, after the updates that a checkpoint has.

        Args:
            args: of the Trainer.
            state: of the Trainer.
            control: of the Trainer.
            given: the model, the optimizer and others.
        """
        self._unhook()
        if self.watcher is not None:  # of a train() that raised, of which a callback isn't told
            self.watcher.__exit__(RuntimeError, None, None)
        scale = getattr(given.get("optimizer"), "scaler", None) or 1.0
        self.watcher = watch(given["model"], start_step=state.global_step, loss_scale=scale, **self._options)

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Before the first micro-batch: hear the losses of an update that is watched.

        Args:
            args: of the Trainer.
            state: of the Trainer.
            control: of the Trainer.
            given: the model and others.
        """
        if self.watcher is not None and self.watcher.watched:
            self._losses = []
            self._hook = unwrap(given["model"])[0].register_forward_hook(self._hear, with_kwargs=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """After the update: count it.

        Args:
            args: of the Trainer.
            state: of the Trainer.
            control: of the Trainer.
            given: the model and others.
        """
        losses, self._losses = self._losses, []
        self._unhook()
        if self.watcher is not None:
            self.watcher.step(_mean(losses))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """End the watch.

        Args:
            args: of the Trainer.
            state: of the Trainer.
            control: of the Trainer.
            given: the model and others.
        """
        self._unhook()
        if self.watcher is not None:
            self.watcher.close()

    def _hear(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        loss: Any = output.get("loss") if hasattr(output, "get") else next(iter(output), None)
        own = depth() > 0  # a pass by which the watch looks for the stream
        if not own and getattr(loss, "requires_grad", False) and loss.numel() == 1:  # an evaluation's has no gradient
            self._losses.append((loss.detach(), kwargs.get("num_items_in_batch") is not None))

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def _mean(losses: list[tuple[Tensor, bool]]) -> float | None:
    """Over the micro-batches: those that were divided by the items of all of them are parts of it."""
    if not losses:
        return None
    total = sum(float(loss) for loss, _ in losses)
    return total if losses[0][1] else total / len(losses)
