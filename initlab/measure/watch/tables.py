"""The recorded pass of one step of somebody's training loop, and the tables that it becomes."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from initlab import schema
from initlab.anatomy.inputs import Inputs
from initlab.anatomy.look import Anatomy
from initlab.anatomy.restoring import depth
from initlab.measure.moments import Preset
from initlab.measure.ranks import Ranks
from initlab.measure.recorder import Recorder
from initlab.measure.statistics import columns_of
from initlab.measure.tables import activation_rows, coverage_rows, head_rows, n_head, scalars, scaled, weight_rows
from initlab.measure.watch.backward import Backward
from initlab.measure.watch.drift import Origin
from initlab.measure.wired import wiring_rows
from initlab.schema import Tables

TARGETS = "the training loop's"
LABEL = "as-found"  # recipe of a model that is watched
_UNMOVED = (
    "no weight changed on a watched step: a learning rate of 0, an optimizer step that the GradScaler skipped, or "
    "step() called before optimizer.step()"
)
_ELSEWHERE = (
    "no gradients: the backward pass of this step didn't go through the recorded forward pass, the first with "
    "gradients enabled; run passes of which no loss is taken under torch.no_grad()"
)


@dataclass(slots=True, eq=False)
class Pass:
    """The recorded forward and backward pass of one step."""

    model: nn.Module
    anatomy: Anatomy
    recorder: Recorder
    backward: Backward
    inputs: Inputs
    before: dict[str, Tensor]  # the trained weights that the pass was made with
    scale: float  # of the loss, and what gradients are averaged over
    ranks: Ranks
    started: float
    hooks: ExitStack  # forward hooks, for as long as the forward pass runs
    on_parameters: ExitStack  # for as long as the step is watched
    own_logit: float = math.nan
    vocab_size: int = 0
    mode: str = ""
    again: int = 0  # further forward passes of the step
    gradients: dict[str, int] = field(default_factory=dict)  # parameter -> place in the moments
    parts: dict[str, Tensor] = field(default_factory=dict)  # of gradients that are summed up over processes
    owners: set[str] | None = None  # modules whose parameters are recorded; None: all
    origin: Origin | None = None  # of drift

    def records(self, name: str) -> bool:
        """Whether a parameter is one to record."""
        return self.owners is None or name.rpartition(".")[0] in self.owners

    def take_gradient(self, name: str, gradient: Tensor) -> None:
        """Of one parameter, of this backward pass alone: before it is accumulated, averaged, unscaled or clipped."""
        if depth() != self.backward.depth:
            return
        if self.backward.state != "running":
            self.backward.elsewhere = True
        elif name not in self.gradients:
            dense = gradient if gradient.layout == torch.strided else gradient.to_dense()
            if self.ranks.size > 1:
                self.parts[name] = dense.detach().clone()
                self.gradients[name] = -1  # none yet
            else:
                self.gradients[name] = self.recorder.moments.add(dense, "weight_grad", name, 1 / self.scale)

    def sum_up(self) -> None:
        """Take the gradients' sums over the processes, of which some may have none for a parameter."""
        named = dict(self.model.named_parameters())
        held = set().union(*self.ranks.gathered(list(self.gradients)))
        for name in (each for each in named if each in held):
            part = self.parts.pop(name) if name in self.gradients else torch.zeros_like(named[name].detach())
            total = self.ranks.summed(part)
            self.gradients[name] = self.recorder.moments.add(total, "weight_grad", name, 1 / self.scale)

    def note_accumulation(self, parameter: Tensor) -> None:
        """After a gradient went into a parameter's `.grad`, as those of torch.autograd.grad don't."""
        if depth() == self.backward.depth:
            self.backward.accumulated = True

    def detach(self) -> None:
        """Take every hook off."""
        self.hooks.close()
        self.on_parameters.close()
        self.recorder.leaves.close()


def weights_of(made: Pass) -> list[dict[str, Any]]:
    """Statistics of every parameter as the pass used it, of its gradient, of what the step added to it, and of how far
    it is from its origin.

    The copies of the weights become the updates, in place.
    """
    rows = []
    moments = made.recorder.moments
    if made.ranks.size > 1:
        made.sum_up()
    for name, parameter in made.model.named_parameters():
        if not made.records(name):
            continue
        now = parameter.detach()
        before = made.before.pop(name, None)
        if before is not None and (before.shape, before.dtype, before.device) != (now.shape, now.dtype, now.device):
            before = None  # another parameter has taken its place
        kinds = {"weight": moments.add(now if before is None else before, "weight", name)}
        if before is not None:
            if made.gradients:  # a backward pass that didn't reach it leaves it a gradient of 0
                slot = made.gradients.get(name)
                if slot is None:
                    slot = moments.add(torch.zeros_like(now), "weight_grad", name)
                kinds["weight_grad"] = slot
            origin = None if made.origin is None else made.origin.of(name, before)
            if origin is not None:
                kinds["origin"] = moments.add(origin, "origin", name)
                kinds["drift"] = moments.add(before - origin, "drift", name)
            kinds["update"] = moments.add(torch.sub(now, before, out=before), "update", name)
        rows += [
            {
                "name": name,
                "place": made.anatomy.places.get(name),
                "kind": kind,
                "tensor_dtype": str(now.dtype),
                "slot": slot,
            }
            for kind, slot in kinds.items()
        ]
    return rows


def tables_of(
    made: Pass, weights: list[dict[str, Any]], run_id: str, step: int, loss: float, preset: Preset, notes: list[str]
) -> Tables:
    sites, recorder, ids = made.anatomy.sites, made.recorder, made.inputs.ids
    values = recorder.moments.read()
    made.ranks.pool(recorder)
    keys = {
        "run_id": run_id,
        "recipe": LABEL,
        "seed": 0,
        "step": step,
        "n_layer": sites.n_layer,
        "n_embd": sites.n_embd,
    }
    shared = {**keys, "n_tokens": made.inputs.n_tokens, "targets": TARGETS}
    records = activation_rows(recorder, values, shared)
    records += weight_rows(weights, values, shared, None, first=len(sites.taps))
    records = [scaled(row, 1 / made.scale) if row["kind"] in ("grad", "weight_grad") else row for row in records]
    summary = {
        **shared,
        "n_head": n_head(sites, recorder),
        "block_size": 0 if ids is None else ids.shape[1],
        "vocab_size": made.vocab_size,
        "n_params": sum(p.numel() for p in made.model.parameters()),
        "mode": made.mode,
        "loss": loss / made.ranks.size,  # of its mean over the processes, its share
        "ln_vocab": math.log(made.vocab_size) if made.vocab_size else math.nan,
        "logit_std": next((row["std"] for row in records if row["site"] == "logits"), math.nan),
        "own_logit": made.own_logit,
        **scalars(recorder),
        "seconds": round(time.perf_counter() - made.started, 3),
    }
    said = [*notes, *sites.notes]
    if made.again:
        said.append(f"1 of {made.again + 1} forward passes of a step was recorded, the first, with its backward pass")
    if made.backward.elsewhere and not made.gradients:
        said.append(_ELSEWHERE)
    if made.scale != made.ranks.size:
        said.append("gradients are the loop's own, of the scaled loss, divided by its scale")
    updates = [row["abs_max"] for row in records if row["kind"] == "update"]
    if updates and not any(updates):
        said.append(_UNMOVED)
    said += recorder.moments.notes
    statistics = recorder.moments.statistics
    tables = Tables(
        records=schema.table("records", records, columns_of(statistics, "records")),
        heads=schema.table("heads", head_rows(recorder, keys), columns_of(statistics, "heads")),
        summary=schema.table("summary", [summary]),
        coverage=schema.table("coverage", coverage_rows(run_id, sites, recorder, weights, preset, said)),
        wiring=schema.table("wiring", wiring_rows(keys, made.anatomy)),
    )
    return made.ranks.merged(tables, made.inputs)
