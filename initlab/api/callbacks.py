"""What a watched step is handed on to: functions, TensorBoard writers and Weights & Biases runs. No dependency."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from initlab.errors import ConfigError
from initlab.judge.updates import by_role, update_ratios
from initlab.schema import RESIDUAL_SITES, extras

Callback = Callable[[int, pd.DataFrame], Any]


def as_callbacks(given: Any) -> list[Callback]:
    """Functions (step, records), and writers as such functions: `add_scalar` is TensorBoard's, `log` wandb's.

    Raises:
        ConfigError: something that is neither.
    """
    several = given if isinstance(given, list | tuple) else [] if given is None else [given]
    return [_as_callback(each) for each in several]


def _as_callback(given: Any) -> Callback:
    if callable(getattr(given, "add_scalar", None)):
        return partial(_to_tensorboard, given)
    if callable(getattr(given, "log", None)):
        return partial(_to_wandb, given)
    if callable(given):
        return given
    raise ConfigError(
        f"callback is {type(given).__name__}; expected a function (step, records), a TensorBoard SummaryWriter, a "
        "wandb run, or a list of these"
    )


def scalars(records: pd.DataFrame) -> dict[str, float]:
    """The numbers of one watched step that are worth a curve, by tag; those that aren't finite are left out.

    `initlab/resid_post/3/var` for the residual stream and what is written to it (`…/grad_var` for the gradient), and
    `initlab/update_ratio/mlp_out` per role: at most 2 × 8 sites × blocks, and a dozen roles. Statistics that were asked
    for go with var, as `initlab/resid_post/3/abs_median`.
    """
    found: dict[str, float] = {}
    stream = records[records["site"].isin(RESIDUAL_SITES) & (records["call"] == 0)]
    for kind, prefix in (("activation", ""), ("grad", "grad_")):
        for row in stream[stream["kind"] == kind].itertuples():
            block = "" if pd.isna(row.layer) else f"/{row.layer}"
            for name in ("var", *extras("records", records)):
                found.setdefault(f"initlab/{row.site}{block}/{prefix}{name}", float(getattr(row, name)))
    for row in by_role(update_ratios(records)).itertuples():
        found[f"initlab/update_ratio/{row.role}"] = float(row.ratio)
    return {tag: value for tag, value in found.items() if math.isfinite(value)}


def _to_tensorboard(writer: Any, step: int, records: pd.DataFrame) -> None:
    for tag, value in scalars(records).items():
        writer.add_scalar(tag, value, step)


def _to_wandb(run: Any, step: int, records: pd.DataFrame) -> None:
    run.log(scalars(records), step=step)
