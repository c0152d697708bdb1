"""Inside somebody's training loop: the passes of every N-th step, and the update that follows from them.

Nothing is run for it: on a watched step the user's own forward and backward pass are recorded, by hooks that are
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
from initlab.anatomy.unwrapping import eagerly, unwrap
from initlab.errors import ConfigError, ProbeError
from initlab.measure.losses import logits_in
from initlab.measure.moments import Preset
from initlab.measure.probe import own_logit
from initlab.measure.ranks import ALONE, Ranks
from initlab.measure.recorder import recording
from initlab.measure.statistics import Statistic
from initlab.measure.watch.backward import Backward
from initlab.measure.watch.drift import Origin
from initlab.measure.watch.tables import LABEL, Pass, tables_of, weights_of
from initlab.schema import Tables


class Scaler(Protocol):
    """What is needed of a torch.amp.GradScaler."""

    def get_scale(self) -> float:
        """The number that the loss is multiplied with."""


class StepRecorder:
    """Counts steps and records every N-th one.

    The records of step k are of the first forward pass with gradients enabled that is made with the weights after k
    updates, of the first backward pass through it that accumulates gradients, and of the update that follows. A pass
    that was interrupted, or whose graph is gone before a backward pass, gives way to the next one.

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
        self._statistics = (*statistics, *ranks.also(preset))
        self._ranks = ranks
        self._model = model
        self._every = every
        self._preset: Preset = preset
        self._loss_scale = loss_scale
        self._declared = declared
        self._modules = modules
        self._origin = origin
        self._armed: ExitStack | None = None
        self._pass: Pass | None = None
        self._error: Exception | None = None
        self._seen: tuple[tuple[list[str], list[tuple[str, torch.Size]]], Anatomy] | None = None
        self._chosen: set[str] | None = None  # names of the modules among `modules`
        self._notes: list[str] = []
        unwrap(model)
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
        armed, self._armed, self._pass, self._error = self._armed, None, None, None
        if armed is not None:
            armed.close()

    def _arm(self) -> None:
        """Wait for the forward pass: two hooks on the model itself, and nothing compiled until the step is over."""
        inside, notes = unwrap(self._model)
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
                inside.register_forward_pre_hook(_Hook(self._enter), with_kwargs=True),
                inside.register_forward_hook(_Hook(self._leave), always_call=True),
            ):
                stack.callback(handle.remove)
            self._armed = stack.pop_all()

    def _enter(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass. What goes wrong here must not stop a training run: `step` raises it."""
        if not torch.is_grad_enabled() or depth() or self._armed is None or self._error is not None:
            return
        if self._pass is not None and (self._pass.recorder.open or self._pass.backward.impossible):
            # it was interrupted (a KeyboardInterrupt calls no hook), or no loss is taken of it: another one is
            self._pass.detach()
            self._pass = None
        if self._pass is not None:
            self._pass.again += 1
            return
        try:
            self._pass = self._begin(model, args, kwargs)
        except Exception as error:
            self._error = error

    def _leave(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After a forward pass, also one that raised: then the next one is recorded instead."""
        made = self._pass
        if made is None or not made.recorder.open:
            return
        try:
            made.backward.watch(output)
            logits = logits_in(output, made.inputs.ids, vocabulary(model))
            if logits is not None:
                made.vocab_size = vocabulary(model) or logits.shape[-1]
                made.own_logit = own_logit(logits, made.inputs.ids)
                if made.owners is None and not any(tap.site == "logits" for tap in made.anatomy.sites.taps):
                    made.recorder.take(Tap("logits", "(output)", "out"), logits)
        except Exception as error:
            self._error = error
        made.hooks.close()
        made.recorder.close()
        if output is None and sys.exception() is not None:
            made.detach()
            self._pass = None

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass:
        started = time.perf_counter()
        anatomy = self._look(model, args, kwargs)
        owners = self._chosen
        trained = {
            name: p
            for name, p in model.named_parameters()
            if p.requires_grad and (owners is None or name.rpartition(".")[0] in owners)
        }
        scale = float(self._loss_scale if isinstance(self._loss_scale, int | float) else self._loss_scale.get_scale())
        scale *= self._ranks.size  # gradients are averaged over the processes
        assert self._armed is not None
        with ExitStack() as stack:
            gradients: dict[str, int] = {}

            def forget() -> None:
                gradients.clear()
                recorder.forget_gradients()

            backward = Backward(forget)
            recorder = stack.enter_context(
                recording(model, anatomy.sites, self._preset, backward.arrived, self._statistics, scale)
            )
            made = Pass(
                model=model,
                anatomy=anatomy,
                recorder=recorder,
                backward=backward,
                inputs=of_call(model, args, kwargs),
                before={name: p.detach().clone() for name, p in trained.items()},
                scale=scale,
                ranks=self._ranks,
                started=started,
                hooks=ExitStack(),
                on_parameters=ExitStack(),
                mode="train" if model.training else "eval",
                gradients=gradients,
                owners=owners,
                origin=self._origin,
            )
            self._armed.callback(made.detach)
            for name, p in trained.items():
                made.on_parameters.callback(p.register_hook(partial(made.take_gradient, name)).remove)
                made.on_parameters.callback(p.register_post_accumulate_grad_hook(made.note_accumulation).remove)
            made.hooks = stack.pop_all()
            return made

    def _look(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Anatomy:
        """The model's anatomy; looked at again only when it has other modules or parameters than the last time."""
        names = [name for name, _ in model.named_modules()]
        shapes = [(name, p.shape) for name, p in model.named_parameters()]
        if self._seen is None or self._seen[0] != (names, shapes):
            anatomy = _looked_at(model, args, kwargs, self._declared)
            if self._modules is not None:
                self._chosen = chosen_modules(anatomy, self._modules)
                anatomy = replace(anatomy, sites=filtered(anatomy, self._chosen))
            self._seen = ((names, shapes), anatomy)
        return self._seen[1]

    def _finish(self, loss: Tensor | float | None) -> Tables:
        value = number(loss)
        if self._error is not None:
            raise ProbeError(
                f"step {self.done} could not be recorded: {type(self._error).__name__}: {self._error}"
            ) from self._error
        if self._pass is None:
            raise ProbeError(
                f"step {self.done} was not recorded: the watched {type(self._model).__name__} wasn't called with "
                "gradients enabled; watch the module that the loop itself calls"
            )
        made = self._pass
        weights = weights_of(made)
        self.complaints = made.recorder.moments.errors
        self.close()
        return tables_of(made, weights, f"{LABEL}-step{self.done}", self.done, value, self._preset, self._notes)


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
