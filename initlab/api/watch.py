"""A model observed while somebody's own loop trains it: `watch`."""

from __future__ import annotations

import math
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from initlab import rundir
from initlab.api.alerts import Alerts, OnFailure
from initlab.api.callbacks import as_callbacks
from initlab.api.manifest import in_words, new_manifest
from initlab.api.watch_folder import open_folder, rank
from initlab.errors import ConfigError, RunError
from initlab.options import checked_choice, checked_count, checked_path, real, shown
from initlab.results import Watch, now
from initlab.rundir import Run, RunDir
from initlab.schema import Tables

if TYPE_CHECKING:
    from torch import Tensor, nn

    from initlab.anatomy.declared import Sites
    from initlab.judge.rules import Finding
    from initlab.measure.statistics import Metrics
    from initlab.measure.watch.steps import Scaler, StepRecorder


def watch(
    model: nn.Module,
    *,
    every: int = 100,
    out: str | Path | None = None,
    start_step: int = 0,
    stats: str = "full",
    loss_scale: float | Scaler = 1.0,
    sites: Sites | None = None,
    modules: Any = None,
    metrics: Metrics = None,
    drift: bool | nn.Module | Mapping[str, Tensor] = False,
    callback: Any = None,
    on_failure: OnFailure | None = None,
) -> Watcher:
    """Record every N-th step of a training loop: activations, gradients, weights, and how far the step moves them.

    ::

        with initlab.watch(model, every=100, out="runs/watch") as w:
            for x, y in loader:
                loss = model(x, y)[1]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                w.step(loss=loss)

    or `w = initlab.watch(model)`, `w.step()` in the loop, `w.close()` after it. Call `step` once per update, after
    `optimizer.step()`; before or after `zero_grad()` makes no difference. The records of step k are those of the passes
    that are made with the weights after k updates (k = 0 is the init) and of the update that follows from it; a step is
    watched when k is a multiple of `every`.

    On a watched step the loop's own forward and backward passes are recorded; none is added (but for the very first one
    of a model whose residual stream has to be found, which runs once more, in eval mode and without gradients). The
    weights and their gradients are copied, on their own device, until `step()`: 8 bytes per float32 parameter. Other
    steps cost a counter; nothing is attached to the model.

    Which passes: the forward passes of the step with gradients enabled, each with the first backward pass through it
    that adds to `.grad`. So with gradient accumulation all micro-batches, whose statistics are merged by their sums to
    those of the whole batch: tokens are summed up, weight gradients are what the optimizer gets, before they are
    unscaled or clipped; heads are of the first sequences of each, and statistics of your own, which have no sums, NaN
    where they are of activations. Evaluation under `torch.no_grad()` is never recorded, and checkpointed blocks are
    counted once. A compiled model runs eagerly on watched steps, with eager rounding, and
    compiled again on all others.

    Of several processes that train one model in DistributedDataParallel, or with `fully_shard` applied, each calls
    `watch` and `step`, and records its own part of the batch; rank 0 gets the tables of the whole, with gradients
    averaged over the processes, as training has them. Shards are gathered one weight after another when a watched step
    ends, and all of them once, for the first look. Any other model's is recorded by rank 0 alone, from its own part;
    the other processes count.

    A watch never stops a training run: what can't be recorded, written or handed on is warned of once, and training
    goes on, with the same weights, bit for bit, as without a watch.

    Args:
        model: what the loop calls; DDP, DataParallel and torch.compile are looked through.
        every: steps from one watched step to the next.
        out: folder for the tables, appended to at each watched step, so that a killed run can be loaded. Without it
            everything is kept in memory.
        start_step: updates done before, when training is resumed from a checkpoint. The same `out` then goes on
            after this step; rows of later steps, made before the training was set back, are dropped.
        stats: `full`, or `light` for mean, var, rms and abs_max alone, without attention heads.
        loss_scale: what the loss is multiplied with before `backward()` and the optimizer doesn't see, by which
            gradients are divided: the `torch.amp.GradScaler`, or a number. Gradients that overflow, as a GradScaler's
            first ones may, are recorded, and judged, as not finite.
        sites: where the residual stream runs, for a model whose blocks aren't found, as `probe` takes it.
        modules: record these alone, as `probe` takes them; checks that need the others don't apply.
        metrics: statistics beside the usual ones, as `probe` takes them; one that fails is warned of once, and NaN.
        drift: also measure how far the weights are from their init: from what they are when the watch begins, or from
            those of a given model or state dict (of a resumed training, or of a reference). Costs one more copy of the
            weights, on the CPU. See `Watch.drift`.
        callback: called as `callback(step, records)` after each watched step; or what gets the loss and tags such as
            `initlab/resid_post/3/var`: a TensorBoard SummaryWriter, a run of wandb or trackio, a logger of Lightning,
            an Accelerator; or a list of these.
        on_failure: called as `on_failure(step, finding)` when a rule fails at a watched step as an error or a warning,
            once, until it has passed again. Step 0 is judged as an init, later ones by the rules that see every step:
            NUM001 (NaN and infinities), NUM004 (updates that are rounded away), and the user's own with
            `later=("watch",)`. `Watcher.failing` holds what fails now.

    Raises:
        ConfigError: an argument can't be used.
        SiteError: `sites` names what the model doesn't have.
        ProbeError: the model can't be measured (meta device, several devices, sharded otherwise, quantised); replicas
            differ.
        RunError: `out` can't be written, holds another run, or holds steps of this one and start_step is 0.
    """
    from initlab.anatomy.declared import declared_blocks
    from initlab.anatomy.filters import refuse_unknown_modules
    from initlab.anatomy.unsharding import own_class
    from initlab.anatomy.unwrapping import unwrap
    from initlab.measure.across import alongside
    from initlab.measure.moments import PRESETS
    from initlab.measure.statistics import choose, meanings
    from initlab.measure.watch.drift import Origin
    from initlab.measure.watch.steps import StepRecorder
    from initlab.measure.watch.tables import LABEL, TARGETS

    every = checked_count("every", every, 1, "a whole number of steps")
    start_step = checked_count("start_step", start_step, 0, "a whole number of steps")
    preset = checked_choice("stats", stats, PRESETS)
    out = None if out is None else checked_path("out", out)
    if not (0 < loss_scale < math.inf if real(loss_scale) else hasattr(loss_scale, "get_scale")):
        raise ConfigError(f"loss_scale is {shown(loss_scale)}; expected a positive number or a torch.amp.GradScaler")
    loss_scale = float(loss_scale) if real(loss_scale) else loss_scale
    callbacks, alerts = as_callbacks(callback), Alerts(on_failure)
    statistics = choose(metrics, stats)
    inside, _ = unwrap(model, shards=True)
    sites = list(sites) if isinstance(sites, Iterator) else sites  # both are read more than once
    modules = list(modules) if isinstance(modules, Iterator) else modules
    if sites is not None:
        declared_blocks(inside, sites)
    refuse_unknown_modules(inside, modules)
    weight = next(inside.parameters())
    config = {
        "model": own_class(inside).__name__,
        "recipes": [LABEL],
        "every": every,
        "n_params": sum(p.numel() for p in inside.parameters()),
        "preset": stats,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(weight.device),
    }
    data = {"label": "the training loop's batches", "targets": TARGETS}
    for name, given in (("sites", sites), ("modules", modules)):
        if given is not None:
            config[name] = in_words(given, inside)
    if statistics:
        config["metrics"] = [each.name for each in statistics]
    manifest = new_manifest("watch", config, {}, data, [])
    if statistics:
        manifest["metrics"] = meanings(statistics)
    ranks = alongside(model)
    first = ranks.rank == 0 if ranks.size > 1 else not rank()
    if not first and ranks.size == 1:
        return Watcher(None, manifest, None, [], alerts)
    folder: RunDir | None = None
    try:
        ranks.same(
            "arguments",
            {
                "every": every,
                "start_step": start_step,
                "stats": stats,
                "metrics": config.get("metrics"),
                "drift": drift is not False,
                "sites": sites is not None,
                "modules": modules is not None,
            },
        )
        origin = None if drift is False else Origin(model, drift)  # of shards all processes gather it
        folder = open_folder(out, manifest, start_step) if out is not None and first else None
        options: dict[str, Any] = {"start_step": start_step, "loss_scale": loss_scale, "statistics": statistics}
        options |= {"declared": sites, "modules": modules, "origin": origin, "ranks": ranks}
        recorder = StepRecorder(model, every, preset=preset, **options)
    except BaseException as error:
        if folder is not None:
            folder.close()
        if isinstance(error, Exception):
            ranks.tell(error)
        ranks.close()
        raise
    return Watcher(recorder, manifest, folder, callbacks if first else [], alerts, silent=not first)


class Watcher:
    """A watch in progress; made by `watch`."""

    def __init__(
        self,
        recorder: StepRecorder | None,
        manifest: dict[str, Any],
        folder: RunDir | None,
        callbacks: list[Any],
        alerts: Alerts,
        *,
        silent: bool = False,
    ):
        self._recorder = recorder
        self._silent = silent or recorder is None
        self._manifest = manifest if folder is None else folder.manifest
        self._folder = folder
        self._callbacks = callbacks
        self._alerts = alerts
        self._parts: list[Tables] = []
        self._warned: set[str] = set()
        self._started = time.perf_counter()
        if recorder is not None:  # also when nobody closes it, at the latest before the interpreter goes down
            weakref.finalize(self, recorder.end)

    def step(self, loss: Tensor | float | None = None) -> None:
        """Count one update; call it after `optimizer.step()`. After `close()` it does nothing.

        Args:
            loss: the step's mean loss, for the summary; it is read on watched steps only. None: what the model
                returned, where that holds a loss (the mean over micro-batches).
        """
        recorder = self._recorder
        if recorder is None:
            return
        number = recorder.done
        if recorder.watched:
            loss = self._read(loss)
        try:
            tables = recorder.step(loss)
        except Exception as error:
            self._fail(number, error)
            return
        if tables is None or self._silent:
            return
        for name, complaint in recorder.complaints.items():
            self._warn(f"statistic {name}", str(complaint))
        try:
            if self._folder is None:
                self._parts.append(tables)
            else:
                self._folder.append(tables)
        except RunError as error:
            self._warn("writing", str(error))
        for place, callback in enumerate(self._callbacks):
            try:
                callback(number, tables)
            except Exception as error:
                self._warn(f"callback {place}", f"{type(error).__name__}: {error}")
        self._judge(number, tables)

    def _judge(self, number: int, tables: Tables) -> None:
        what = "judging"
        try:
            began = self._alerts.judge(number, tables, self._manifest)
            what = "on_failure"
            for finding in began:
                self._alerts.tell(number, finding)
        except Exception as error:
            self._warn(what, f"{type(error).__name__}: {error}")

    @property
    def watched(self) -> bool:
        """Whether the step under way is recorded."""
        return self._recorder is not None and self._recorder.watched

    @property
    def failing(self) -> list[Finding]:
        """What fails now, by the last watched step that judged it; empty without `on_failure`."""
        return list(self._alerts.failing.values())

    def _read(self, loss: Tensor | float | None) -> float | None:
        """The loss as a number; NaN, and a warning, if it is none: the rest of the step is recorded all the same."""
        from initlab.measure.watch.steps import number

        try:
            return None if loss is None else number(loss)
        except ConfigError as error:
            self._warn("reading the loss", str(error))
            return math.nan

    def close(self) -> None:
        """End the watch: everything is off the model, and the run is marked as finished."""
        self._end(finished=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(finished=kind is None)

    def _end(self, *, finished: bool) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        recorder.end()
        seconds = self._manifest["seconds"] + time.perf_counter() - self._started
        self._manifest.update(seconds=round(seconds, 1), finished=now() if finished else None)
        if self._folder is not None:
            try:
                self._folder.write_manifest()
                self._folder.close()
            except RunError as error:
                self._warn("writing", str(error))

    def _fail(self, number: int, error: Exception) -> None:
        self._warn("recording", f"{type(error).__name__}: {error}")
        try:
            if self._folder is None:
                self._manifest["failed"][f"step {number}"] = str(error)
            else:
                self._folder.fail(f"step {number}", str(error))
        except RunError as unwritten:
            self._warn("writing", str(unwritten))

    def _warn(self, what: str, text: str) -> None:
        """Once for each cause; the warning points at the line that called `step`."""
        if what not in self._warned:
            self._warned.add(what)
            message = f"initlab.watch goes on after an error in {what}, and won't repeat this: {text}"
            warnings.warn(message, RuntimeWarning, stacklevel=4)

    @property
    def result(self) -> Watch:
        """What was recorded so far.

        Raises:
            RunError: nothing was.
        """
        if self._folder is not None:
            run = rundir.load(self._folder.path)
        else:
            run = Run(Tables.concat(self._parts), self._manifest)
        if run.tables.summary.empty:
            failed = "; ".join(run.manifest["failed"].values())
            reason = "another process (rank 0) records" if self._silent else failed or "call step() after each update"
            raise RunError(f"no step was recorded yet: {reason}")
        return Watch(run, None if self._folder is None else self._folder.path)

    @property
    def records(self) -> pd.DataFrame:
        """`result.records`."""
        return self.result.records

    def report(self, out: str | Path | None = None) -> Path:
        """`result.report(out)`: the page, the figures, the tables; returns the path of the page."""
        return self.result.report(out)

    def _repr_html_(self) -> str | None:
        try:
            return self.result._repr_html_()
        except RunError:  # nothing was recorded yet: the repr says so
            return None

    def __repr__(self) -> str:
        if self._recorder is None:
            return "<initlab.watch, closed>"
        return f"<initlab.watch of {self._manifest['config']['model']}, {self._recorder.done} updates seen>"
