"""A checkpoint's weights put into a model that was made without them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.unwrapping import bare
from initlab.errors import CheckpointError
from initlab.models import files

INDEX = ".safetensors.index.json"  # which file of several holds which weight
_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_HELD_UNDER = ("state_dict", "model", "model_state_dict", "module")  # where trainers keep it beside their own state
_DEEPEST = 3  # dicts in dicts: a file can hold one that holds itself
_MOST = 5  # names in an error


def load_weights(model: nn.Module, path: Path) -> None:
    """Overwrite a model's weights with a checkpoint's; nothing in the file is executed.

    Args:
        model: its parameters and buffers are overwritten, once all of them are known to fit.
        path: .safetensors, or the .safetensors.index.json of several; or a file of torch.save's (.pt, .pth, .bin,
            .ckpt): a state_dict, or a dict that holds one under state_dict, model, model_state_dict or module.

    Raises:
        CheckpointError: the file can't be read, holds no weights, or its weights aren't this model's.
    """
    model, _ = bare(model)
    own = model.state_dict()
    found = _unwrapped(_state(path), own)
    tied = _tied(model)
    missing = [name for name in own if name not in found and not found.keys() & tied.get(name, set())]
    unexpected = [name for name in found if name not in own]
    problems = [f"it lacks {_some(missing)}"] * bool(missing)
    problems += [f"the model has no {_some(unexpected)}"] * bool(unexpected)
    problems = problems or _misfits(found, own) or _untied(found, tied)
    if not problems:
        try:
            model.load_state_dict(found, strict=False)  # strict would ask for both names of a tied matrix
        except Exception as error:  # whatever a module's own way of loading raises
            problems = [f"{type(error).__name__}: {error}"]
    if problems:
        raise CheckpointError(f"{path} doesn't fit this {type(model).__name__}: {'; '.join(problems)}")


def _state(path: Path) -> dict[str, Tensor]:
    """The file's weights by name."""
    if path.suffix == ".safetensors":
        held: Any = _safetensors(path)
    elif path.name.endswith(INDEX):
        held = _sharded(path)
    elif path.suffix in _TORCH:
        held = files.read(path, f"weights to load ({', '.join(_TORCH)} or .safetensors)", "state_dict")
    else:
        raise CheckpointError(
            f"{path} is no checkpoint by its name; expected .safetensors, {INDEX}, {', '.join(_TORCH)}"
        )
    state = held
    for _ in range(_DEEPEST):
        if isinstance(state, Mapping) and not any(isinstance(value, Tensor) for value in state.values()):
            state = next((state[key] for key in _HELD_UNDER if isinstance(state.get(key), Mapping)), None)
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        what = f"a dict of {_some(list(held))}" if isinstance(held, Mapping) and held else f"a {type(held).__name__}"
        raise CheckpointError(
            f"{path} holds {what} without weights; expected a state_dict, or a dict with one under "
            f"{', '.join(_HELD_UNDER)}"
        )
    others = [
        str(name) for name, value in state.items() if not isinstance(value, Tensor) and "_extra_state" not in name
    ]
    if others:
        raise CheckpointError(f"{path}: {_some(others)} among its weights is no tensor; save the state_dict alone")
    return {str(name): value for name, value in state.items()}


def _safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; expected weights to load")
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise CheckpointError(
            f"{path} needs the package safetensors, which isn't installed: pip install 'initlab[hf]'"
        ) from None
    try:
        loaded: dict[str, Tensor] = load_file(path)
    except Exception as error:  # the header is the file's own word
        raise CheckpointError(
            f"{path} can't be read as safetensors ({type(error).__name__}: {error}): it was cut short, damaged, or "
            "isn't one"
        ) from None
    return loaded


def files_of(path: Path) -> list[Path]:
    """List a checkpoint's files: itself, and those that an index names.

    Args:
        path: of the checkpoint.

    Raises:
        CheckpointError: the index can't be read, or names files elsewhere.
    """
    if not path.name.endswith(INDEX):
        return [path]
    names = sorted(set(_places(path).values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{path} names the file {name!r}; expected files beside it")
    return [path, *(path.with_name(name) for name in names)]


def _places(path: Path) -> dict[str, str]:
    """Which file holds which weight, by an index."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; expected the index of weights to load")
    try:
        return {str(name): str(file) for name, file in json.loads(path.read_text("utf-8"))["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} can't be read as an index ({type(error).__name__}: {error}); expected weight_map, from names of "
            "weights to files"
        ) from None


def _sharded(path: Path) -> dict[str, Tensor]:
    """Of several files, as Hugging Face's libraries write large models."""
    places = _places(path)
    found: dict[str, Tensor] = {}
    for file in files_of(path)[1:]:
        found |= _safetensors(file)
    if found.keys() != places.keys():
        lacking, more = [name for name in places if name not in found], [name for name in found if name not in places]
        what = f"its files lack {_some(lacking)}" if lacking else f"its files also hold {_some(more)}"
        raise CheckpointError(f"{path} doesn't say what its files hold: {what}; save the model again")
    return found


def _unwrapped(found: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Without what torch.compile and DistributedDataParallel put before names, unless the model has it itself."""
    found = {name.replace("_orig_mod.", "") if name not in own else name: value for name, value in found.items()}
    if all(name.startswith("module.") for name in found) and not found.keys() & own.keys():
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return found


def _tied(model: nn.Module) -> dict[str, set[str]]:
    """The other names of each parameter that has several."""
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {name: group - {name} for group in names.values() if len(group) > 1 for name in group}


def _misfits(found: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Shapes and kinds of numbers that aren't the model's."""
    wrong = []
    for name, value in found.items():
        mine = own[name]
        if not isinstance(mine, Tensor) or not isinstance(value, Tensor) or nn.parameter.is_lazy(mine):
            continue
        if value.shape != mine.shape:
            wrong.append(f"{name} is {tuple(value.shape)}, {tuple(mine.shape)} in the model")
        elif mine.is_floating_point() and not value.is_floating_point():
            wrong.append(f"{name} is of {value.dtype}, {mine.dtype} in the model")
    return [_some(wrong, "; ")] if wrong else []


def _untied(found: Mapping[str, Tensor], tied: Mapping[str, set[str]]) -> list[str]:
    """Names of one parameter under which the file has different values."""
    pairs = [(name, other) for name in tied for other in sorted(tied[name]) if name < other]
    differ = [
        f"{name} and {other} differ, and are one parameter in the model"
        for name, other in pairs
        if name in found and other in found and not _same(found[name], found[other])
    ]
    return [_some(differ, "; ")] if differ else []


def _same(a: Tensor, b: Tensor) -> bool:
    """NaN included: the tied head of a run that diverged is still tied."""
    return torch.allclose(a.float(), b.float(), rtol=0, atol=0, equal_nan=True)


def _some(names: Sequence[object], separator: str = ", ") -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return separator.join(map(str, names[:_MOST])) + more
