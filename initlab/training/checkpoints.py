"""A run's state on disk, in the format of nanoGPT's ckpt.pt."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from initlab import schema
from initlab.errors import CheckpointError, ConfigError, RunError
from initlab.models import files
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import NanoGPT
from initlab.training.task import Task

_NANOGPTS = {"block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias"}  # fields of its GPTConfig
_OURS = {field.name: field.default for field in fields(NanoGPTConfig) if field.name not in _NANOGPTS}


@dataclass(frozen=True, slots=True)
class State:
    """What a run needs to go on, besides the weights and the optimizer, which `restore` puts in their place."""

    iter_num: int
    best_val_loss: float
    rows: list[dict[str, Any]]
    seconds: float


def save(
    path: Path,
    task: Task,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    state: State,
    config: dict[str, Any],
) -> None:
    """Write a whole checkpoint or leave the one before: nanoGPT's keys, and `initlab` with what else a run needs.

    Of a NanoGPT `model_args` are nanoGPT's; of another model what tells it apart.

    Args:
        path: of the file.
        task: whose model's weights are kept.
        optimizer: whose state is.
        scaler: whose state is.
        state: of the run.
        config: said of the run; `restore` refuses another's.

    Raises:
        RunError: the disk is full, or the folder can't be written.
    """
    args = task.identity
    if isinstance(task.model, NanoGPT):
        args = {key: value for key, value in args.items() if _OURS.get(key) != value}
    held = {
        "model": task.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "model_args": args,
        "iter_num": state.iter_num,
        "best_val_loss": state.best_val_loss,
        "config": config,
        "initlab": {"rows": state.rows, "seconds": state.seconds, "scaler": scaler.state_dict()},
    }
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(held, file)
            file.flush()
            os.fsync(file.fileno())
        _keep(path)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if (cause := _os_error(error)) is None:
            raise
        kept = "; the one before is kept" if path.exists() else ""
        raise RunError(
            f"could not write the checkpoint {path} after step {state.iter_num}: {cause.strerror or cause}{kept}"
        ) from None


def before(path: Path) -> Path:
    """Name the checkpoint that was written before the last one, which is kept beside it."""
    return path.with_name(f"{path.stem}-before{path.suffix}")


def _keep(path: Path) -> None:
    """Make the last checkpoint the one before, where it stays the last as well until another takes its place."""
    if not path.exists():
        return
    second = path.with_name(path.name + ".second")
    try:
        second.unlink(missing_ok=True)
        second.hardlink_to(path)
        second.replace(before(path))
    except OSError:  # a file system without such links
        path.replace(before(path))


def there(path: Path) -> bool:
    """Tell whether there is something to go on from: the last checkpoint, or the one before it."""
    return path.exists() or before(path).exists()


def _os_error(error: BaseException | None) -> OSError | None:
    """Find the disk's own error: torch's writer hides a full disk behind a RuntimeError about positions in the file."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def restore(
    path: Path,
    task: Task,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    config: dict[str, Any],
) -> State:
    """Put a checkpoint's weights and optimizer state in their place; nothing in the file is executed.

    A damaged file is warned of, and the one before it is taken.

    Args:
        path: of the file.
        task: whose model's weights are overwritten.
        optimizer: whose state is.
        scaler: whose state is.
        config: of this run, which must be the file's.

    Raises:
        CheckpointError: the file can't be read, wasn't written by `save`, or is of another model, other data or other
            settings.
    """
    path, held = _whole(path, {name for name, _ in task.model.named_parameters()}, config.get("steps"))
    sizes = held["model_args"]
    if not {"class", "shapes"} <= sizes.keys():
        try:
            sizes = asdict(NanoGPTConfig(**sizes))
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{path}: model_args describe no model that can be built: {error}") from None
    there = {f"model {key}": value for key, value in sizes.items()} | held["config"]
    there.pop("dataset", None)  # only a name, for nanoGPT's sample.py
    here = {f"model {key}": value for key, value in task.identity.items()} | config
    different = [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} now"
        for key in here | there
        if there.get(key) != here.get(key)
    ]
    if different:
        raise CheckpointError(
            f"{path} is of another run ({'; '.join(sorted(different)[:4])}); repeat the settings it was written with, "
            "or train into another folder"
        )
    try:
        task.model.load_state_dict(held["model"])
        optimizer.load_state_dict(held["optimizer"])
        scaler.load_state_dict(held["initlab"]["scaler"])
    except Exception as error:  # of what the file holds, which may be anything
        raise CheckpointError(f"{path}: its weights or optimizer state don't fit this model: {error}") from None
    ours = held["initlab"]
    return State(held["iter_num"], held["best_val_loss"], ours["rows"], ours["seconds"])


def _whole(path: Path, parameters: set[str], steps: int | None) -> tuple[Path, dict[str, Any]]:
    """The last checkpoint that is whole, and its content."""
    if not path.exists():  # killed as it was written
        path = before(path)
    try:
        held = _read(path)
        _check(path, held, parameters, steps)
    except CheckpointError as error:
        older = before(path)  # of the one before, nothing
        if not older.exists():
            raise
        held = _read(older)
        _check(older, held, parameters, steps)
        warnings.warn(f"{error}; went on from {older}, after step {held['iter_num']}", RuntimeWarning, stacklevel=2)
        return older, held
    return path, held


def _check(path: Path, held: dict[str, Any], parameters: set[str], steps: int | None) -> None:
    """Refuse what no run writes."""
    wrong = [
        name for name in ("model", "optimizer", "model_args", "config", "initlab") if not isinstance(held[name], dict)
    ]
    wrong = wrong or [name for name, value in held["model"].items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise CheckpointError(f"{path} is damaged: {', '.join(map(str, wrong[:4]))} of a type that no run writes")
    ours, iter_num = held["initlab"], held["iter_num"]
    if type(iter_num) is not int or iter_num < 1 or (type(steps) is int and iter_num > steps):
        raise CheckpointError(f"{path} is damaged: iter_num is {iter_num!r:.40}; expected 1 to {steps}")
    rows = ours.get("rows")
    numbers = all(isinstance(ours.get(key, held.get(key)), int | float) for key in ("seconds", "best_val_loss"))
    if not numbers or not isinstance(ours.get("scaler"), dict) or not _are_rows(rows):
        raise CheckpointError(f"{path} is damaged: the rows of the run, its seconds or its best loss are missing")
    bad = [name for name in held["model"] if name in parameters and bool(held["model"][name].isnan().any())]
    if bad:
        raise CheckpointError(f"{path} is damaged: the weight {bad[0]} holds NaN, which no run keeps")


def _are_rows(rows: Any) -> bool:
    names = schema.TRAINING.keys() - {"run_id"}
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(
            isinstance(row, dict)
            and row.keys() >= names
            and all(isinstance(value, int | float) for value in row.values())
            for row in rows
        )
    )


def _read(path: Path) -> dict[str, Any]:
    if member := files.damaged(path):
        raise CheckpointError(
            f"{path} is damaged: its part {member} isn't what was written; remove it to train from the start"
        )
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(
            f"{path} can't be read as a checkpoint ({type(error).__name__}); it was damaged, or isn't one: remove it "
            "to train from the start"
        ) from None
    expected = {"model", "optimizer", "model_args", "iter_num", "best_val_loss", "config", "initlab"}
    if not isinstance(held, dict) or not expected <= set(held):
        raise CheckpointError(
            f"{path} wasn't written by initlab's trainer, so it lacks what a run needs to go on exactly; train into "
            "another folder"
        )
    return held
