"""One model, one batch -> tables. The model is left exactly as it was found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from initlab import schema
from initlab.anatomy.declared import Sites
from initlab.anatomy.examples import example, raised_at, signature
from initlab.anatomy.filters import filtered
from initlab.anatomy.inputs import Inputs, of_ids
from initlab.anatomy.look import Anatomy, of
from initlab.anatomy.restoring import copied, untouched
from initlab.anatomy.saying import Said
from initlab.anatomy.sites import Tap
from initlab.anatomy.sizes import vocabulary
from initlab.anatomy.tensors import changed, tensors
from initlab.anatomy.unwrapping import eagerly, unwrap
from initlab.errors import InitlabError, ProbeError
from initlab.measure.draws import declared_rows, draw_rows
from initlab.measure.losses import take_loss
from initlab.measure.moments import Preset
from initlab.measure.ranks import ALONE, Ranks
from initlab.measure.reach import reached
from initlab.measure.recorder import recording
from initlab.measure.statistics import Statistic, columns_of
from initlab.measure.statistics.taking import Measurements
from initlab.measure.tables import activation_rows, coverage_rows, head_rows, n_head, scalars, weight_rows
from initlab.measure.unasked import left_out, unasked
from initlab.measure.wired import wiring_rows
from initlab.recipes import Recipe
from initlab.schema import UNASKED, Tables

LOOKED_AT = 128  # tokens of the pass in which a model's operations are followed, rounded up to whole sequences


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The key columns of a cell."""

    run_id: str
    recipe: str
    seed: int
    step: int = 0


def measure(
    model: nn.Module,
    idx: Tensor,
    targets: Tensor,
    identity: Identity,
    *,
    preset: Preset = "full",
    recipe: Recipe | None = None,
    autocast: torch.dtype | None = None,
    anatomy: Anatomy | None = None,
) -> Tables:
    """Measure token ids and targets, (B, T) int64 each, -1 where there is no target; else as `measure_inputs`."""
    inputs = of_ids(model, idx, targets)
    return measure_inputs(model, inputs, identity, preset=preset, recipe=recipe, autocast=autocast, anatomy=anatomy)


def measure_inputs(
    model: nn.Module,
    inputs: Inputs,
    identity: Identity,
    *,
    preset: Preset = "full",
    recipe: Recipe | None = None,
    autocast: torch.dtype | None = None,
    anatomy: Anatomy | None = None,
    chosen: set[str] | None = None,
    statistics: Sequence[Statistic] = (),
    ranks: Ranks = ALONE,
) -> Tables:
    """Record every site of a model, forward and backward, and its weights and weight gradients.

    Args:
        model: measured in the mode (train or eval) that it is in.
        inputs: one call of its forward; moved to the model's device.
        identity: the key columns.
        preset: which statistics.
        recipe: what the weights should have been drawn from; gives the weight rows their expected_var.
        autocast: run the forward pass under autocast to this dtype.
        anatomy: of the model, where it was looked at before; see `look`.
        chosen: names of the modules whose activations to look at, see `initlab.anatomy.filters`; None: every one.
            Weights are measured all the same.
        statistics: what is taken beside the moments, see `initlab.measure.statistics`; their columns come last.
        ranks: the processes of which each is here with the same model and its own inputs; they all get the tables of
            the whole batch.

    Returns:
        records, heads and routing (preset `full`), summary (one row), coverage, wiring and, before any step, draws and
        declared; other `expected_*` columns are NaN.

    Raises:
        ProbeError: the model's own forward or backward raised (chained), or its weights can't be measured.
        ConfigError: nothing is measured at any of the chosen modules; a statistic raised, returned something else than
            it should, or wrote into its tensor.
    """
    started = time.perf_counter()
    statistics = (*statistics, *ranks.also(preset))
    anatomy = look(model, inputs, seed=identity.seed, autocast=autocast) if anatomy is None else anatomy
    model, notes = anatomy.model, list(anatomy.notes)
    sites = anatomy.sites if chosen is None else filtered(anatomy, chosen)
    inputs = inputs.to(next(model.parameters()).device)
    known = vocabulary(model)
    with (
        untouched(model, identity.seed),
        eagerly(model),
        recording(model, sites, preset, statistics=statistics) as recorder,
        recorder.leaves,
    ):
        judged = take_loss(_run(model, inputs, autocast), inputs, known)
        if judged.logits is not None and not any(tap.site == "logits" for tap in sites.taps):
            recorder.take(Tap("logits", "(output)", "out"), judged.logits)
        recorder.close()
        loss, targets, logits = ranks.share(judged, inputs), judged.targets, judged.logits
        vocab_size = 0 if logits is None else known or logits.shape[-1]
        own = _own_logit(logits, inputs.ids)
        del judged, logits  # as large as the rest together, and not needed by every backward pass
        weights = _weights(anatomy, loss, recorder.moments, ranks)
    recorder.moments.raise_first()
    values = recorder.moments.read()
    ranks.pool(recorder)
    notes += _follow_up(model, inputs, weights, values, autocast, identity.seed)
    keys = {
        "run_id": identity.run_id,
        "recipe": identity.recipe,
        "seed": identity.seed,
        "step": identity.step,
        "n_layer": sites.n_layer,
        "n_embd": sites.n_embd,
    }
    shared = {**keys, "n_tokens": inputs.n_tokens, "targets": targets}
    records = activation_rows(recorder, values, shared)
    records += weight_rows(weights, values, shared, recipe, first=len(sites.taps))
    ids = inputs.ids
    summary = {
        **shared,
        "n_head": n_head(sites, recorder),
        "block_size": 0 if ids is None else ids.shape[1],
        "vocab_size": vocab_size,
        "n_params": sum(p.numel() for p in model.parameters()),
        "mode": "train" if model.training else "eval",
        "loss": float(loss.detach()),
        "ln_vocab": math.log(vocab_size) if vocab_size else math.nan,
        "logit_std": next((row["std"] for row in records if row["site"] == "logits"), math.nan),
        "own_logit": math.nan if own is None else float(own),
        "repeat_rate": _share_equal(ids, inputs.targets),
        **scalars(recorder),
        "seconds": round(time.perf_counter() - started, 3),
    }
    if not vocab_size and inputs.ids is not None:
        notes.append(f"no logits (B, T, V) in what the model returned: the loss is {targets}")
    notes = [*notes, *inputs.notes, *sites.notes, *recorder.moments.notes]
    coverage = coverage_rows(identity.run_id, sites, recorder, weights, preset, notes)
    tables = Tables(
        records=schema.table("records", records, columns_of(statistics, "records")),
        heads=schema.table("heads", head_rows(recorder, keys), columns_of(statistics, "heads")),
        summary=schema.table("summary", [summary]),
        coverage=schema.table("coverage", coverage),
        wiring=schema.table("wiring", wiring_rows(keys, anatomy)),
        routing=schema.table("routing", recorder.routers.rows(keys)),
        draws=schema.table("draws", [] if identity.step else draw_rows(keys, anatomy)),
        declared=schema.table("declared", [] if identity.step else declared_rows(keys, anatomy)),
    )
    return ranks.merged((tables, inputs))


def look(
    model: nn.Module,
    inputs: Inputs,
    *,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    declared: Sites | None = None,
    said_roles: Said | None = None,
) -> Anatomy:
    """Look at a model by a pass over these inputs; the model is left as it was.

    Args:
        model: see `initlab.anatomy.look.of`.
        inputs: one call of its forward; moved to the model's device.
        seed: of what the pass draws.
        autocast: run the pass under autocast to this dtype.
        declared: where the stream runs, see `initlab.anatomy.declared`; None: it is found.
        said_roles: roles by the caller's own word, see `initlab.anatomy.saying`.

    Raises:
        ProbeError: the model can't be measured, or its forward raised.
        SiteError: `declared` names what the model doesn't have.
    """
    inside, taken = unwrap(model)
    inputs = inputs.to(next(inside.parameters()).device)

    @contextmanager
    def around() -> Iterator[None]:
        with untouched(inside, seed), eagerly(inside):
            yield

    options: dict[str, Any] = {"around": around, "taken": taken, "said_roles": said_roles}
    few = _few(inputs)
    if few is not None:
        with suppress(ProbeError):  # it may take no other batch than the whole
            return of(inside, lambda: _run(inside, few, autocast), declared, **options)
    return of(inside, lambda: _run(inside, inputs, autocast), declared, **options)


def _few(inputs: Inputs) -> Inputs | None:
    """The first sequences of a batch of tokens, enough to see what a model does; None if there is no less."""
    if inputs.ids is None:
        return None
    B, T = inputs.ids.shape
    count = max(1, -(-LOOKED_AT // T))
    given = list(tensors((inputs.args, inputs.kwargs)))
    if count >= B or any(tensor.dim() == 0 or len(tensor) != B for tensor in given):
        return None
    args, kwargs = changed((inputs.args, inputs.kwargs), lambda tensor: tensor[:count])
    return replace(inputs, args=args, kwargs=kwargs)


def _run(model: nn.Module, inputs: Inputs, autocast: torch.dtype | None) -> Any:
    device = next(model.parameters()).device.type
    inputs = own(inputs)
    try:
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            return inputs.call(model)
    except InitlabError:
        raise
    except (Exception, SystemExit) as error:
        raise ProbeError(
            f"{type(model).__name__} raised in its forward pass{raised_at(error)}: {type(error).__name__}: {error} "
            f"(forward{signature(model)}); pass batch= with what it needs, as in {example(model)}"
        ) from error


def own(inputs: Inputs) -> Inputs:
    """Copy the inputs of one pass, so that what it writes into them reaches neither the caller nor the next pass.

    Args:
        inputs: of which what the forward is given is copied.

    Raises:
        ProbeError: they hold an object that can't be copied.
    """
    try:
        args, kwargs = copied((inputs.args, inputs.kwargs))
    except Exception as error:
        raise ProbeError(
            f"the batch can't be copied, and a pass could change it: {type(error).__name__}: {error}; pass tensors, or "
            "objects that copy.deepcopy takes"
        ) from error
    return replace(inputs, args=args, kwargs=kwargs)


def _share_equal(ids: Tensor | None, targets: Tensor | None) -> float:
    """Share of the targets that are the token just read; positions without a target don't count."""
    if ids is None or targets is None:
        return math.nan
    counted = targets >= 0
    return float((torch.eq(ids, targets) & counted).sum() / counted.sum())


def own_logit(logits: Tensor | None, ids: Tensor | None) -> float:
    """Mean logit of the token just read."""
    own = _own_logit(logits, ids)
    return math.nan if own is None else float(own)


def _own_logit(logits: Tensor | None, ids: Tensor | None) -> Tensor | None:
    """`own_logit`, on the logits' device."""
    if logits is None or ids is None:
        return None
    return logits.detach().gather(2, ids[..., None]).float().mean()


def _follow_up(
    model: nn.Module,
    inputs: Inputs,
    weights: list[dict[str, Any]],
    values: list[dict[str, float]],
    autocast: torch.dtype | None,
    seed: int,
) -> list[str]:
    """Tell gradient rows that are 0 whether a further pass gives them one, see `reach`; what there is to say of it."""
    lacking = {
        row["name"]: row for row in weights if row["kind"] == "weight_grad" and values[row["slot"]]["abs_max"] == 0
    }
    if not lacking:
        return []
    device = next(model.parameters()).device.type

    def run(call: Callable[..., Any]) -> Any:
        given = own(inputs)
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            return call(*given.args, **given.kwargs)

    try:
        with eagerly(model):
            found = reached(model, lacking, inputs, run, seed)
            dead = lacking.keys() - found
            aside = unasked(model, dead, inputs, run, seed) if dead else set()
    except (Exception, SystemExit) as error:
        return [
            f"whether parameters without a gradient wait behind a zero isn't known: {type(error).__name__}: {error}"
        ]
    for name, row in lacking.items():
        row["reached"] = UNASKED if name in aside else float(name in found)
    if aside and (arguments := left_out(model, inputs)):
        return [f"arguments left out, which parts without a gradient may read: {', '.join(arguments[:6])}"]
    return []


def _weights(anatomy: Anatomy, loss: Tensor, moments: Measurements, ranks: Ranks) -> list[dict[str, Any]]:
    """Statistics of every parameter and of its gradient."""
    named = dict(anatomy.model.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    gradients: dict[str, Tensor | None] = {}
    if loss.requires_grad:
        try:
            found = list(torch.autograd.grad(loss, list(trained.values()), allow_unused=True))
        except (Exception, SystemExit) as error:
            # .backward() would do, but it fires the hooks that users put on parameters, some of which step optimizers
            hint = "; checkpoint with use_reentrant=False to measure it" if "use_reentrant" in str(error) else ""
            raise ProbeError(f"the backward pass raised: {type(error).__name__}: {error}{hint}") from error
        ranks.agreed()
        for name in trained:
            gradient = found.pop(0)
            # None: nothing leads from the loss to the parameter, which is a gradient of 0
            gradients[name] = ranks.summed(torch.zeros_like(trained[name]) if gradient is None else gradient)
    rows = []
    for name, parameter in named.items():
        pairs = [("weight", parameter), ("weight_grad", gradients.get(name))]
        rows += [
            {
                "name": name,
                "place": anatomy.places.get(name),
                "kind": kind,
                "tensor_dtype": str(value.dtype),
                "slot": moments.add(value, kind, name),
            }
            for kind, value in pairs
            if value is not None
        ]
    return rows
