"""A callback for Lightning's Trainer that watches what it trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:  # the package of the same classes under its older name
    from pytorch_lightning.callbacks import Callback

from initlab.api.watch import Watcher, watch
from initlab.errors import ConfigError, RunError
from initlab.integrations.options import refuse_others

if TYPE_CHECKING:
    from initlab.results import Watch


class WatchCallback(Callback):
    """Record every N-th update of a Lightning Trainer, as `initlab.watch` records it.

    ::

        watched = WatchCallback(every=100, out="runs/watch")
        L.Trainer(callbacks=[watched]).fit(module, loader)
        watched.result.report()

    The loss is the mean over the update's micro-batches of what `training_step` returned; gradients are those that
    the optimizer gets, of all of them. Curves go to the Trainer's loggers, as those of Lightning's own monitors do.

    Args:
        every: updates from one watched to the next.
        out: folder for the tables; None keeps them in memory.
        module: dotted name, inside the LightningModule, of the model that `training_step` calls; "" for itself.
            Default: the only module right inside that has parameters, itself where there are several.
        loggers: whether the Trainer's loggers get the curves.
        options: others of `initlab.watch`: stats, sites, modules, metrics, drift, callback, on_failure.

    Attributes:
        watcher: the watch of the last `fit()`, None before it.

    Raises:
        ConfigError: an unknown option, or one that the Trainer knows (start_step, loss_scale).
    """

    def __init__(
        self,
        *,
        every: int = 100,
        out: str | Path | None = None,
        module: str | None = None,
        loggers: bool = True,
        **options: Any,
    ):
        refuse_others(options)
        self.watcher: Watcher | None = None
        self._options = {"every": every, "out": out, **options}
        self._module = module
        self._loggers = loggers
        self._done = 0
        self._losses: list[Any] = []

    @property
    def result(self) -> Watch:
        """What was recorded so far.

        Raises:
            RunError: nothing was.
        """
        if self.watcher is None:
            raise RunError("no step was recorded yet: fit() wasn't called")
        return self.watcher.result

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the watch, after the updates that a checkpoint has.

        Args:
            trainer: Lightning's.
            pl_module: that it trains.
        """
        model = _named(pl_module, self._module)
        scale = getattr(trainer.precision_plugin, "scaler", None) or 1.0
        callback = self._options.get("callback")
        several = list(callback) if isinstance(callback, list | tuple) else [] if callback is None else [callback]
        several += list(trainer.loggers) if self._loggers else []
        options = self._options | {"callback": several, "loss_scale": scale, "start_step": trainer.global_step}
        self._done, self._losses = trainer.global_step, []
        self.watcher = watch(model, **options)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a micro-batch: count the update, where it made one.

        Args:
            trainer: Lightning's.
            pl_module: that it trains.
            outputs: of `training_step`; Lightning has divided the loss by the number of micro-batches.
            batch: that it read.
            batch_idx: its number.
        """
        if self.watcher is None:
            return
        loss = outputs.get("loss") if hasattr(outputs, "get") else outputs
        if self.watcher.watched and loss is not None:
            self._losses.append(loss.detach())
        if trainer.global_step > self._done:
            self._done = trainer.global_step
            losses, self._losses = self._losses, []
            self.watcher.step(sum(losses) if losses else None)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the watch.

        Args:
            trainer: Lightning's.
            pl_module: that it trained.
        """
        if self.watcher is not None:
            self.watcher.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the watch of a training that raised; the run isn't marked as finished.

        Args:
            trainer: Lightning's.
            pl_module: that it trained.
            exception: what was raised.
        """
        if self.watcher is not None:
            self.watcher.__exit__(type(exception), exception, None)


def _named(whole: nn.Module, name: str | None) -> nn.Module:
    """The model inside a LightningModule."""
    if name is not None:
        try:
            return whole.get_submodule(name)
        except AttributeError as error:
            raise ConfigError(f"module: {type(whole).__name__} has no module {name!r}: {error}") from None
    held = [child for child in whole.children() if next(child.parameters(), None) is not None]
    return held[0] if len(held) == 1 and not isinstance(held[0], nn.ModuleList | nn.ModuleDict) else whole
