"""The recorded passes of one step of somebody's training loop, and the tables that they become."""

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
from initlab.anatomy.unsharding import fully_sharded, resharded, whole
from initlab.measure.merging import THIRD
from initlab.measure.moments import Preset
from initlab.measure.ranks import Ranks
from initlab.measure.recorder import Recorder
from initlab.measure.statistics import columns_of
from initlab.measure.tables import activation_rows, coverage_rows, head_rows, n_head, scalars, scaled, weight_rows
from initlab.measure.watch.backward import Accumulated, Backward
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
    "no gradients: no backward pass of this step went through a forward pass of the watched module with gradients "
    "enabled; watch the module that the loop itself calls"
)


@dataclass(slots=True, eq=False)
class Pass:
    """A recorded forward pass, of one micro-batch, and the backward pass through it."""

    anatomy: Anatomy
    recorder: Recorder
    backward: Backward
    inputs: Inputs
    started: float
    hooks: ExitStack  # forward hooks, for as long as the forward pass runs
    own_logit: float = math.nan
    vocab_size: int = 0
    mode: str = ""
    loss: Tensor | None = None  # that the model returned

    def detach(self) -> None:
        """Take every hook off."""
        self.hooks.close()
        self.recorder.leaves.close()


@dataclass(slots=True, eq=False)
class Update:
    """The passes of one step, and the weights that they were made with."""

    model: nn.Module
    before: dict[str, Tensor]  # the trained weights
    scale: float  # of the loss, and what gradients are averaged over
    ranks: Ranks
    owners: set[str] | None = None  # modules whose parameters are recorded; None: all
    origin: Origin | None = None  # of drift
    gradients: Accumulated = field(default_factory=Accumulated)
    passes: list[Pass] = field(default_factory=list)
    on_parameters: ExitStack = field(default_factory=ExitStack)  # for as long as the step is watched
    notes: list[str] = field(default_factory=list)

    def records(self, name: str) -> bool:
        """Whether a parameter is one to record."""
        return self.owners is None or name.rpartition(".")[0] in self.owners

    def drop(self, made: Pass) -> None:
        """Take a pass out of the step."""
        made.detach()
        self.passes.remove(made)
        self.gradients.backwards.remove(made.backward)

    def settle(self) -> None:
        """Leave the passes that gradients went back through; where none did, the first."""
        through = [each for each in self.passes if each.backward.state == "done"] or self.passes[:1]
        if len(through) < len(self.passes):
            self.notes.append(
                f"{len(through)} of {len(self.passes)} forward passes of a step was recorded: no backward pass of the "
                "step went through the others; run those of which no loss is taken under torch.no_grad()"
            )
        for made in [each for each in self.passes if each not in through]:
            self.drop(made)
        if len(through) > 1:
            self.notes.append(f"of {len(through)} micro-batches, merged by their sums")

    def detach(self) -> None:
        """Take every hook off."""
        for made in self.passes:
            made.detach()
        self.on_parameters.close()


def weights_of(step: Update) -> list[dict[str, Any]]:
    """Statistics of every parameter as the passes used it, of its gradient, of what the step added to it, and of how
    far it is from its origin.

    The copies of the weights become the updates, in place.
    """
    rows = []
    first, ranks = step.passes[0], step.ranks
    moments = first.recorder.moments
    gradients = step.gradients.total
    sharded = fully_sharded(step.model)
    resharded(step.model)
    held = set().union(*ranks.gathered(list(gradients)))  # where some processes have none for a parameter
    for name, parameter in step.model.named_parameters():
        total = None
        if name in held:
            part = gradients.pop(name, None)
            if part is None:
                part = torch.zeros_like(parameter.detach())
            # what fully_shard has reduced is their mean already
            total = whole(part) * ranks.size if sharded else ranks.summed(part)
        if not step.records(name):
            continue
        now = whole(parameter.detach())
        before = step.before.pop(name, None)
        before = None if before is None else whole(before)
        if before is not None and (before.shape, before.dtype, before.device) != (now.shape, now.dtype, now.device):
            before = None  # another parameter has taken its place
        kinds = {"weight": moments.add(now if before is None else before, "weight", name)}
        if before is not None:
            if held:  # a backward pass that didn't reach it leaves it a gradient of 0
                gradient = torch.zeros_like(now) if total is None else total
                kinds["weight_grad"] = moments.add(gradient, "weight_grad", name, 1 / step.scale)
            origin = None if step.origin is None else step.origin.of(name, before)
            if origin is not None:
                kinds["origin"] = moments.add(origin, "origin", name)
                kinds["drift"] = moments.add(before - origin, "drift", name)
            kinds["update"] = moments.add(torch.sub(now, before, out=before), "update", name)
        rows += [
            {
                "name": name,
                "place": first.anatomy.places.get(name),
                "kind": kind,
                "tensor_dtype": str(now.dtype),
                "slot": slot,
            }
            for kind, slot in kinds.items()
        ]
    return rows


def tables_of(
    step: Update, weights: list[dict[str, Any]], run_id: str, number: int, loss: float, preset: Preset
) -> Tables:
    """Make the tables of a step: those of its passes, merged, with the weights' rows."""
    first, *others = step.passes
    step.ranks.pool(first.recorder, *(each.recorder for each in others))
    keys = {"run_id": run_id, "recipe": LABEL, "seed": 0, "step": number}
    parts = [_of_pass(step, first, weights, keys, loss, preset)]
    parts += [_of_pass(step, each, [], keys, 0.0, preset) for each in others]
    tables = step.ranks.merged(*((part, made.inputs) for part, made in zip(parts, step.passes, strict=True)))
    tables.records = tables.records.drop(columns=THIRD.name, errors="ignore")
    return tables


def _of_pass(
    step: Update, made: Pass, weights: list[dict[str, Any]], keys: dict[str, Any], loss: float, preset: Preset
) -> Tables:
    """The tables of one pass."""
    sites, recorder, ids = made.anatomy.sites, made.recorder, made.inputs.ids
    values = recorder.moments.read()
    keys = keys | {"n_layer": sites.n_layer, "n_embd": sites.n_embd}
    shared = {**keys, "n_tokens": made.inputs.n_tokens, "targets": TARGETS}
    records = activation_rows(recorder, values, shared)
    records += weight_rows(weights, values, shared, None, first=len(sites.taps))
    records = [scaled(row, 1 / step.scale) if row["kind"] in ("grad", "weight_grad") else row for row in records]
    summary = {
        **shared,
        "n_head": n_head(sites, recorder),
        "block_size": 0 if ids is None else ids.shape[1],
        "vocab_size": made.vocab_size,
        "n_params": sum(p.numel() for p in step.model.parameters()),
        "mode": made.mode,
        "loss": loss / step.ranks.size,  # of its mean over the processes, its share
        "ln_vocab": math.log(made.vocab_size) if made.vocab_size else math.nan,
        "logit_std": next((row["std"] for row in records if row["site"] == "logits"), math.nan),
        "own_logit": made.own_logit,
        **scalars(recorder),
        "seconds": round(time.perf_counter() - made.started, 3),
    }
    said = [*step.notes, *sites.notes]
    if step.gradients.elsewhere and not any(row["kind"] == "weight_grad" for row in records) and weights:
        said.append(_ELSEWHERE)
    if step.scale != step.ranks.size:
        said.append("gradients are the loop's own, of the scaled loss, divided by its scale")
    updates = [row["abs_max"] for row in records if row["kind"] == "update"]
    if updates and not any(updates):
        said.append(_UNMOVED)
    said += recorder.moments.notes
    statistics = recorder.moments.statistics
    return Tables(
        records=schema.table("records", records, columns_of(statistics, "records")),
        heads=schema.table("heads", head_rows(recorder, keys), columns_of(statistics, "heads")),
        summary=schema.table("summary", [summary]),
        coverage=schema.table("coverage", coverage_rows(keys["run_id"], sites, recorder, weights, preset, said)),
        wiring=schema.table("wiring", wiring_rows(keys, made.anatomy)),
    )
