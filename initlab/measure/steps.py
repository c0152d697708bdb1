"""Models of several sizes, measured before and after each of a few optimizer steps: coord check and depth check.

Every model is made for the check and every optimizer belongs to it: nothing that a user holds is stepped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from initlab import schema
from initlab.anatomy.inputs import Inputs
from initlab.anatomy.look import Anatomy
from initlab.anatomy.saying import Said
from initlab.anatomy.sizes import vocabulary
from initlab.anatomy.tensors import floats
from initlab.anatomy.unwrapping import eagerly
from initlab.drawing.groups import adam_groups
from initlab.drawing.subject import seeded
from initlab.errors import ConfigError, InitlabError, ProbeError
from initlab.measure.losses import take_loss
from initlab.measure.moments import Moments, Preset
from initlab.measure.probe import Identity, look, measure_inputs, own, untouched
from initlab.measure.refined import Refined
from initlab.measure.sweep import DTYPES, Cell, SweepConfig
from initlab.options import checked_count, checked_number
from initlab.recipes import Recipe
from initlab.schema import Tables

MakeModel = Callable[[Cell], nn.Module]
MakeInputs = Callable[[nn.Module, int], Inputs]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]

OPTIMIZERS = ("adamw", "sgd")
_KEPT_TOKENS = 256  # evenly spaced, of the tensors whose change is followed: they are kept from step 0 to the last


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleConfig(SweepConfig):
    """What a scale run measures: the widths at the smallest depth, and the depths at the smallest width."""

    steps: int = 3
    optimizer: str = "adamw"
    lr: float = 1e-2

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", checked_count("steps", self.steps, 0))
        object.__setattr__(self, "lr", checked_number("lr", self.lr, above_0=True))
        SweepConfig.__post_init__(self)
        if len(self.widths) < 2 and len(self.depths) < 2:
            raise ConfigError(
                f"widths is {self.widths[0]} and depths {self.depths[0]}: a slope needs two widths or more "
                "(--widths 64,128,256) or two depths or more (--depths 2,4,8)"
            )

    def cells(self) -> list[Cell]:
        """Small models first, recipes side by side, so that an interrupted run still compares."""
        width, depth = min(self.widths), min(self.depths)
        sizes = [(depth, n_embd) for n_embd in sorted(self.widths)]
        sizes += [(n_layer, width) for n_layer in sorted(self.depths) if n_layer != depth]
        return [
            Cell(recipe, n_layer, n_embd, seed)
            for n_layer, n_embd in sizes
            for seed in range(self.seeds)
            for recipe in self.recipes
        ]


def own_optimizer(name: str, lr: float) -> Callable[..., torch.optim.Optimizer]:
    """AdamW or SGD without weight decay, so that a step is the gradient's alone: of a model, its recipe and anatomy.

    eps is 1e-12 (as in CompleteP's depth checks, arXiv 2505.01618): a gradient of a deep or wide model may come near
    the default 1e-8, and its update would then seem to fade with size.

    Raises:
        ConfigError: unknown name.
    """
    if name == "adamw":
        return partial(_adamw, lr)
    if name == "sgd":
        return partial(_sgd, lr)
    raise ConfigError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}, or a function of the model")


def _sgd(
    lr: float, model: nn.Module, recipe: Recipe | None = None, anatomy: Anatomy | None = None
) -> torch.optim.Optimizer:
    return torch.optim.SGD(_trained(model), lr=lr)


def _adamw(
    lr: float, model: nn.Module, recipe: Recipe | None = None, anatomy: Anatomy | None = None
) -> torch.optim.Optimizer:
    groups = adam_groups(model, recipe, lr=lr, eps=1e-12, anatomy=anatomy) if _trained(model) else []
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.95))


def measure_steps(
    cell: Cell,
    config: ScaleConfig,
    make_model: MakeModel,
    make_inputs: MakeInputs,
    make_optimizer: MakeOptimizer,
    *,
    looked: Callable[[Anatomy], None] = lambda _: None,
    said_roles: Said | None = None,
) -> Tables:
    """Measure one model at steps 0 to `steps`, trained on the batch that it is measured on.

    Args:
        cell: the recipe, size and seed.
        config: what is measured, and how it is stepped.
        make_model: makes the model of a cell.
        make_inputs: of the model and a seed, what it is measured and trained on.
        make_optimizer: of the model.
        looked: gets what was seen of the model before the first step.
        said_roles: roles by the caller's own word, see `initlab.anatomy.saying`.

    Returns:
        records: activations and gradients at every step, weights at step 0 alone, and rows of kind `change`: the last
        residual stream and the logits minus those of step 0; of kind `effective` and `propagating`, see
        `initlab.measure.refined`. summary: a row per step, up to the first whose loss isn't
        finite. n_layer and n_embd are those asked for.

    Raises:
        ProbeError: the model can't be made, run or trained.
    """
    with seeded(cell.seed, config.device):
        model = make_model(cell)
        model.to(config.device)
        inputs = make_inputs(model, cell.seed).to(torch.device(config.device))
        optimizer = _optimizer(make_optimizer, model) if config.steps else None
        parts: list[Tables] = []
        before: list[_Followed] = []
        anatomy = look(model, inputs, seed=cell.seed, autocast=DTYPES[config.dtype], said_roles=said_roles)
        looked(anatomy)
        refined = Refined(model, anatomy, _sample)
        for step in range(config.steps + 1):
            started = time.perf_counter()
            if optimizer is not None and step:
                _step(model, inputs, optimizer, DTYPES[config.dtype])
            identity = Identity(run_id=cell.run_id, recipe=cell.recipe, seed=cell.seed, step=step)
            options: dict[str, Any] = {"preset": config.preset, "autocast": DTYPES[config.dtype], "anatomy": anatomy}
            tables = measure_inputs(model, inputs, identity, **options)
            with refined.following():
                now = _follow(model, inputs, tables.records, cell.seed, DTYPES[config.dtype])
            moved = refined.rows(config.preset)
            if step:
                moved = _changes(before, now, config.preset, tables.records) + moved
                tables = _after_a_step(tables, _completed(moved, tables.records))
            else:
                before = now
            for frame in (tables.records, tables.summary, tables.heads):
                frame["n_layer"], frame["n_embd"] = cell.n_layer, cell.n_embd
            tables.summary["seconds"] = round(time.perf_counter() - started, 3)
            parts.append(tables)
            if not torch.isfinite(torch.tensor(float(tables.summary["loss"].iloc[0]))):
                break  # later steps would only repeat it
    return Tables.concat(parts)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ProbeError(f"every parameter of {type(model).__name__} is frozen; steps need one that is trained")
    return trained


def _optimizer(make: MakeOptimizer, model: nn.Module) -> torch.optim.Optimizer:
    try:
        made = make(model)
    except InitlabError:
        raise
    except (Exception, SystemExit) as error:
        raise ProbeError(f"optimizer(model) raised {type(error).__name__}: {error}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ProbeError(f"optimizer(model) returned {type(made).__name__}; expected a torch.optim.Optimizer")
    return made


def _step(model: nn.Module, inputs: Inputs, optimizer: torch.optim.Optimizer, autocast: torch.dtype | None) -> None:
    optimizer.zero_grad(set_to_none=True)
    device = next(model.parameters()).device.type
    with eagerly(model):
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            output = own(inputs).call(model)
        take_loss(output, inputs, vocabulary(model)).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True, slots=True)
class _Followed:
    """A tensor whose change is followed, and the row of `records` that measured it."""

    site: str
    module: str
    value: Tensor  # (tokens, features)


def _follow(model: nn.Module, inputs: Inputs, records: Any, seed: int, autocast: torch.dtype | None) -> list[_Followed]:
    """The last residual stream, if there is one, and the logits, else the output."""
    rows = records[(records["site"] == "resid_post") & (records["kind"] == "activation")]
    stream = str(rows.sort_values("layer")["module"].iloc[-1]) if len(rows) else None
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        seen.extend(list(floats(output))[:1])

    handle = model.get_submodule(stream).register_forward_hook(hook) if stream is not None else None
    device = next(model.parameters()).device.type
    try:
        # the same masks of dropout at every step
        with untouched(model, seed), eagerly(model), torch.no_grad():
            with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
                output = own(inputs).call(model)
            judged = take_loss(output, inputs, vocabulary(model))
    finally:
        if handle is not None:
            handle.remove()
    found = [_Followed("resid_post", stream, _sample(seen[-1]))] if stream is not None and seen else []
    if judged.logits is not None:
        return [*found, _Followed("logits", "(output)", _sample(judged.logits))]
    return [*found, _Followed("module", "(output)", _sample(next(floats(output))))]


def _sample(x: Tensor) -> Tensor:
    x = x.detach().float()
    x = x.reshape(-1, x.shape[-1]) if x.dim() else x.reshape(1, 1)
    return x[:: max(1, -(-len(x) // _KEPT_TOKENS))].clone()


def _changes(before: list[_Followed], now: list[_Followed], preset: Preset, records: Any) -> list[dict[str, Any]]:
    moments = Moments(preset)
    for old, new in zip(before, now, strict=True):
        moments.add(new.value - old.value)
    last = records.loc[records["site"] == "resid_post", "layer"].max()
    return [
        {
            **values,
            "site": followed.site,
            "module": followed.module,
            "layer": int(last) if followed.site == "resid_post" else None,
            "kind": "change",
        }
        for followed, values in zip(now, moments.read(), strict=True)
    ]


def _completed(rows: list[dict[str, Any]], records: Any) -> list[dict[str, Any]]:
    """Fill in what all rows of a step share; n_layer and n_embd are set by the caller."""
    keys, first = records.iloc[0], int(records["position"].max()) + 1
    shared = {name: keys[name] for name in ("run_id", "recipe", "step", "seed", "n_tokens", "targets")}
    shared |= {"n_layer": 0, "n_embd": 0, "call": 0, "dtype": "float32"}
    return [{**shared, **row, "position": first + place} for place, row in enumerate(rows)]


def _after_a_step(tables: Tables, changes: list[dict[str, Any]]) -> Tables:
    """Weights are on record once; what was seen of the model doesn't change."""
    records = tables.records[tables.records["kind"].isin(["activation", "grad"])]
    made = schema.table("records", [{k: _plain(v) for k, v in row.items()} for row in changes])
    return replace(
        tables,
        records=Tables.concat([Tables(records=records), Tables(records=made)]).records,
        coverage=schema.table("coverage", []),
        wiring=schema.table("wiring", []),
    )


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
