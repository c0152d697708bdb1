"""Inside somebody's training loop: the passes of every N-th step, and the update that follows from them.

Nothing is run for it: on a watched step the user's own forward and backward passes are recorded, by hooks that are
attached when the step begins and gone when it ends. On the other steps nothing is attached at all. (Only a model whose
residual stream has to be discovered is run once more, in eval mode and without gradients, at its first watched pass.)
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from initlab.anatomy.declared import Sites
from initlab.anatomy.filters import chosen_modules, filtered
from initlab.anatomy.inputs import of_call
from initlab.anatomy.look import Anatomy, of
from initlab.anatomy.restoring import copied, depth, untouched
from initlab.anatomy.sites import Tap
from initlab.anatomy.sizes import vocabulary
from initlab.anatomy.unsharding import fully_sharded, resharded, unsharded
from initlab.anatomy.unwrapping import eagerly, unwrap
from initlab.errors import ConfigError, ProbeError
from initlab.measure.losses import logits_in, own_loss
from initlab.measure.merging import THIRD
from initlab.measure.moments import Preset
from initlab.measure.probe import own_logit
from initlab.measure.ranks import ALONE, Ranks
from initlab.measure.recorder import recording
from initlab.measure.statistics import Statistic
from initlab.measure.watch.backward import Backward
from initlab.measure.watch.drift import Origin
from initlab.measure.watch.tables import LABEL, Pass, Update, tables_of, weights_of
from initlab.schema import Tables


class Scaler(Protocol):
    """What is needed of a torch.amp.GradScaler."""

    def get_scale(self) -> float:
        """The number that the loss is multiplied with."""


class StepRecorder:
    """Counts steps and records every N-th one.

    The records of step k are of the forward passes with gradients enabled that are made with the weights after k
    updates, each with the first backward pass through it that accumulates gradients, and of the update that follows.
    Several are micro-batches of one batch. Passes that gradients don't go back through are left out, where they do
    through others.

    Args:
        model: may be compiled or wrapped, as `unwrap` takes it.
        every: step k is watched when k is a multiple of it.
        start_step: updates done before the first call of `step`.
        loss_scale: what the loss is multiplied with before backward(): a number, or a GradScaler.
        statistics: what is taken beside the moments, see `initlab.measure.statistics`.
        declared: where the residual stream runs, see `initlab.anatomy.declared`.
        modules: those that are recorded, see `initlab.anatomy.filters`; None: all.
        origin: weights that drift is measured from.
        ranks: the processes that train the model, each with its own batch, of which each records; all count alike.

    Attributes:
        done: updates so far.
        complaints: what was wrong with statistics in the last watched step, by their names; the rest of it is whole.

    Raises:
        ProbeError: the model can't be measured; see `unwrap`.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int,
        *,
        preset: Preset = "full",
        start_step: int = 0,
        loss_scale: float | Scaler = 1.0,
        statistics: Sequence[Statistic] = (),
        declared: Sites | None = None,
        modules: Any = None,
        origin: Origin | None = None,
        ranks: Ranks = ALONE,
    ):
        self.done = start_step
        self.complaints: dict[str, ConfigError] = {}
        self._statistics = (*statistics, *((THIRD,) if preset == "full" else ()))  # there may be micro-batches
        self._ranks = ranks
        self._model = model
        self._every = every
        self._preset: Preset = preset
        self._loss_scale = loss_scale
        self._declared = declared
        self._modules = modules
        self._origin = origin
        self._armed: ExitStack | None = None
        self._update: Update | None = None
        self._error: Exception | None = None
        self._seen: tuple[tuple[list[str], list[tuple[str, torch.Size]]], Anatomy] | None = None
        self._chosen: set[str] | None = None  # names of the modules among `modules`
        self._notes: list[str] = []
        unwrap(model, shards=True)
        self._sharded = fully_sharded(model)
        if self.done % every == 0:
            self._arm()

    @property
    def watched(self) -> bool:
        """Whether the step under way is recorded."""
        return self._armed is not None

    def step(self, loss: Tensor | float | None = None) -> Tables | None:
        """Count an update; the tables of the step that it ends, if that one was watched.

        Raises:
            ProbeError: a watched step could not be recorded. The step is counted, and nothing is left attached.
            ConfigError: `loss` isn't one number.
        """
        try:
            return None if self._armed is None else self._finish(loss)
        except Exception as error:
            self._ranks.tell(error)
            raise
        finally:
            if self._armed is not None:
                self.close()
            self.done += 1
            if self.done % self._every == 0:
                self._arm()

    def end(self) -> None:
        """Take everything off the model, and leave the other processes; nothing is recorded any more."""
        self.close()
        self._ranks.close()

    def close(self) -> None:
        """Take everything off the model; a step that is under way isn't recorded."""
        armed, self._armed, self._update, self._error = self._armed, None, None, None
        if armed is not None:
            armed.close()

    def _arm(self) -> None:
        """Wait for the forward pass: two hooks on the model itself, and nothing compiled until the step is over."""
        inside, notes = unwrap(self._model, shards=True)
        self._notes = [
            "compiled: watched steps run eagerly, as does whatever else is compiled; the others run compiled"
            if note.startswith("compiled")
            else note
            for note in notes
            if not (self._ranks.notes and note.startswith("wrapped"))
        ]
        self._notes += self._ranks.notes
        with ExitStack() as stack:
            stack.enter_context(eagerly(inside))
            for handle in (
                # before that of fully_shard, which puts whole weights in the place of shards
                inside.register_forward_pre_hook(_Hook(self._enter), with_kwargs=True, prepend=self._sharded),
                inside.register_forward_hook(_Hook(self._leave), always_call=True),
            ):
                stack.callback(handle.remove)
            self._armed = stack.pop_all()

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass. What goes wrong here must not stop a training run: `step` raises it."""
        if not torch.is_grad_enabled() or depth() or self._armed is None or self._error is not None:
            return
        self._give_way()
        try:
            self._begin(model, args, kwargs)
        except Exception as error:
            self._error = error

    def _leave(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After a forward pass, also one that raised: then the next one is recorded instead."""
        update = self._update
        made = None if update is None else next((each for each in update.passes if each.recorder.open), None)
        if update is None or made is None:
            return
        try:
            made.backward.watch(output)
            made.loss = own_loss(output)
            made.loss = None if made.loss is None else made.loss.detach()  # no graph is kept
            logits = logits_in(output, made.inputs.ids, vocabulary(model))
            if logits is not None:
                made.vocab_size = vocabulary(model) or logits.shape[-1]
                made.own_logit = own_logit(logits, made.inputs.ids)
                if update.owners is None and not any(tap.site == "logits" for tap in made.anatomy.sites.taps):
                    made.recorder.take(Tap("logits", "(output)", "out"), logits)
        except Exception as error:
            self._error = error
        made.hooks.close()
        made.recorder.close()
        if output is None and sys.exception() is not None:
            self._give_way(made)

    def _give_way(self, *dropped: Pass) -> None:
        """Drop passes: also those that were interrupted (a KeyboardInterrupt calls no hook), or have no loss."""
        update = self._update
        if update is None:
            return
        for made in [
            each for each in update.passes if each in dropped or each.recorder.open or each.backward.impossible
        ]:
            update.drop(made)
        if not update.passes:
            update.detach()
            self._update = None

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the forward pass that begins."""
        started = time.perf_counter()
        anatomy = self._look(model, args, kwargs)
        if self._update is None:
            self._update = self._begun(model)
        update = self._update
        gradients = update.gradients
        with ExitStack() as stack:

            def ended(kept: bool) -> None:
                gradients.ended(kept)
                if not kept:
                    recorder.forget_gradients()

            backward = Backward(ended, unheard=self._sharded)
            recorder = stack.enter_context(
                recording(model, anatomy.sites, self._preset, backward.arrived, self._statistics, update.scale)
            )
            made = Pass(
                anatomy=anatomy,
                recorder=recorder,
                backward=backward,
                inputs=of_call(model, args, kwargs),
                started=started,
                hooks=stack.pop_all(),
                mode="train" if model.training else "eval",
            )
        update.passes.append(made)
        gradients.backwards.append(backward)

    def _begun(self, model: nn.Module) -> Update:
        """The weights that the passes of this step are made with, of which gradients are heard from now on."""
        assert self._armed is not None
        owners = self._chosen
        resharded(model)
        trained = {
            name: p
            for name, p in model.named_parameters()
            if p.requires_grad and (owners is None or name.rpartition(".")[0] in owners)
        }
        scale = float(self._loss_scale if isinstance(self._loss_scale, int | float) else self._loss_scale.get_scale())
        update = Update(
            model=model,
            before={name: p.detach().clone() for name, p in trained.items()},
            scale=scale * self._ranks.size,  # gradients are averaged over the processes
            ranks=self._ranks,
            owners=owners,
            origin=self._origin,
            notes=list(self._notes),
        )
        self._armed.callback(update.detach)
        arrived: Callable[[Tensor], None] = update.gradients.note
        for name, p in trained.items():
            if self._sharded:
                before = None if p.grad is None else p.grad.detach().clone()
                arrived = partial(update.gradients.reduced, name, before)
            else:
                update.on_parameters.callback(p.register_hook(partial(update.gradients.take, name)).remove)
            update.on_parameters.callback(p.register_post_accumulate_grad_hook(arrived).remove)
        return update

    def _look(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Anatomy:
        """The model's anatomy; looked at again only when it has other modules or parameters than the last time."""
        names = [name for name, _ in model.named_modules()]
        shapes = [(name, p.shape) for name, p in model.named_parameters()]
        if self._seen is None or self._seen[0] != (names, shapes):
            looked = unsharded(model) if self._sharded else model
            anatomy = replace(_looked_at(looked, args, kwargs, self._declared), model=model)
            if self._modules is not None:
                self._chosen = chosen_modules(anatomy, self._modules)
                anatomy = replace(anatomy, sites=filtered(anatomy, self._chosen))
            self._seen = ((names, shapes), anatomy)
        return self._seen[1]

    def _finish(self, loss: Tensor | float | None) -> Tables:
        if self._error is not None:
            raise ProbeError(
                f"step {self.done} could not be recorded: {type(self._error).__name__}: {self._error}"
            ) from self._error
        update = self._update
        if update is None or not update.passes:
            raise ProbeError(
                f"step {self.done} was not recorded: the watched {type(self._model).__name__} wasn't called with "
                "gradients enabled; watch the module that the loop itself calls"
            )
        update.settle()
        value = number(_returned(update.passes) if loss is None else loss)
        weights = weights_of(update)
        self.complaints = {
            name: error for made in update.passes for name, error in made.recorder.moments.errors.items()
        }
        self.close()
        return tables_of(update, weights, f"{LABEL}-step{self.done}", self.done, value, self._preset)


class _Hook:
    """A hook that does nothing in a copy of the model: it may be deep-copied (as for an average of the weights) or
    pickled while a step is watched."""

    def __init__(self, call: Callable[..., None]):
        self._call = call

    def __call__(self, *given: Any) -> None:
        self._call(*given)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Hook, (_nothing,))


def _nothing(*given: Any) -> None:
    pass


def _returned(passes: Sequence[Pass]) -> float | None:
    """Mean of the losses that a model returned for the micro-batches of a step; None where it returned none."""
    losses = [float(made.loss) for made in passes if made.loss is not None]
    return sum(losses) / len(losses) if len(losses) == len(passes) else None


def number(loss: Tensor | float | None) -> float:
    """A step's loss, NaN without one.

    Raises:
        ConfigError: it isn't one number.
    """
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ConfigError(f"loss has shape {tuple(loss.shape)}; expected one number: step(loss=loss.mean())")
    try:
        return math.nan if loss is None else float(loss.detach() if isinstance(loss, Tensor) else loss)
    except (TypeError, ValueError, RuntimeError):
        found = repr(loss) if isinstance(loss, str) else type(loss).__name__
        raise ConfigError(f"loss is {found}; expected a number or a tensor of one element") from None


def _looked_at(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], declared: Sites | None = None
) -> Anatomy:
    """A look by a pass of our own, on copies of the arguments: it may fill a cache or write in place."""
    with untouched(model, 0):
        try:
            with torch.no_grad():
                own_args, own_kwargs = copied((args, kwargs))
        except Exception as error:
            missed = (
                f"the residual stream wasn't looked for: the loop's arguments can't be copied for a pass of our own "
                f"({type(error).__name__}: {error})"
            )
            return of(model, declared=declared, notes=[missed])
        return of(model, lambda: model(*own_args, **own_kwargs), declared)
