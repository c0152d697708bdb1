"""What a watched step is handed on to: functions, and the writers of trackers of experiments. No dependency."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd

from initlab.errors import ConfigError
from initlab.judge.updates import by_role, drift_by_role, drifts, update_ratios
from initlab.schema import RESIDUAL_SITES, Tables, extras

Callback = Callable[[int, Tables], Any]
_X = "initlab/step"


def as_callbacks(given: Any) -> list[Callback]:
    """Functions (step, records), and writers as such functions, which are handed a step's tables.

    `add_scalar` is TensorBoard's; `log_metrics` that of Lightning's loggers; `log` that of wandb, trackio, and
    accelerate's Accelerator.

    Args:
        given: one of these, a list of them, or None.

    Raises:
        ConfigError: something that is none.
    """
    several = given if isinstance(given, list | tuple) else [] if given is None else [given]
    return [_as_callback(each) for each in several]


def _as_callback(given: Any) -> Callback:
    if callable(getattr(given, "add_scalar", None)):
        return partial(_to_tensorboard, given)
    if callable(getattr(given, "log_metrics", None)):
        return partial(_to_lightning, given)
    if callable(getattr(given, "log", None)):
        return partial(_to_wandb if _is_wandb(given) else _to_log, given)
    if callable(given):
        return lambda step, tables: given(step, tables.records)
    raise ConfigError(
        f"callback is {type(given).__name__}; expected a function (step, records), a TensorBoard SummaryWriter, a "
        "run of wandb or trackio, a logger of Lightning, an Accelerator, or a list of these"
    )


def scalars(records: pd.DataFrame, summary: pd.DataFrame | None = None) -> dict[str, float]:
    """The numbers of one watched step that are worth a curve, by tag; those that aren't finite are left out.

    `initlab/loss` and `initlab/logit_std`; `initlab/resid_post/3/var` for the residual stream and what is written to it
    (`…/grad_var` for the gradient); `initlab/update_ratio/mlp_out` and, where drift is measured, `initlab/drift/…` and
    `initlab/cosine/…` per role: at most 2 × 8 sites × blocks, and a few dozen of roles. Statistics that were asked for
    go with var, as `initlab/resid_post/3/abs_median`.

    Args:
        records: of the step.
        summary: of the step.
    """
    found: dict[str, float] = {}
    if summary is not None and len(summary):
        found |= {f"initlab/{name}": float(summary[name].iloc[0]) for name in ("loss", "logit_std")}
    stream = records[records["site"].isin(RESIDUAL_SITES) & (records["call"] == 0)]
    for kind, prefix in (("activation", ""), ("grad", "grad_")):
        for row in stream[stream["kind"] == kind].itertuples():
            block = "" if pd.isna(row.layer) else f"/{row.layer}"
            for name in ("var", *extras("records", records)):
                found.setdefault(f"initlab/{row.site}{block}/{prefix}{name}", float(getattr(row, name)))
    for row in by_role(update_ratios(records)).itertuples():
        found[f"initlab/update_ratio/{row.role}"] = float(row.ratio)
    for row in drift_by_role(drifts(records)).itertuples():
        found |= {f"initlab/drift/{row.role}": float(row.distance), f"initlab/cosine/{row.role}": float(row.cosine)}
    return {tag: value for tag, value in found.items() if math.isfinite(value)}


def _of(tables: Tables) -> dict[str, float]:
    return scalars(tables.records, tables.summary)


def _to_tensorboard(writer: Any, step: int, tables: Tables) -> None:
    for tag, value in _of(tables).items():
        writer.add_scalar(tag, value, step)


def _to_lightning(logger: Any, step: int, tables: Tables) -> None:
    logger.log_metrics(_of(tables), step=step)


def _to_log(run: Any, step: int, tables: Tables) -> None:
    run.log(_of(tables), step=step)


def _is_wandb(given: Any) -> bool:
    return type(given).__module__.partition(".")[0] == "wandb" or getattr(given, "__name__", "") == "wandb"


def _to_wandb(given: Any, step: int, tables: Tables) -> None:
    """Log into the row that is open: wandb drops what is logged for a row before it, and a loop that logs without a
    step, or more than once a step, is ahead of the steps. Curves have `initlab/step` as their axis."""
    run = getattr(given, "run", given) if getattr(given, "__name__", "") == "wandb" else given
    values: Mapping[str, float] = _of(tables)
    run.define_metric(_X, hidden=True)
    run.define_metric("initlab/*", step_metric=_X)
    run.log({_X: step, **values}, step=max(step, int(run.step)))
