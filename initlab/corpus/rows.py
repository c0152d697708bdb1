"""Rows of text or of ids that a user brings: Hugging Face datasets, loaders, iterables of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from initlab.errors import DataError
from initlab.options import shown

# what is read of rows that may never end
MOST_ROWS = 1_000_000
MOST_BYTES = 16 * 2**20
MOST_IDS = 10_000_000
SAVED = ("dataset_info.json", "dataset_dict.json")  # in a folder that save_to_disk wrote
_EXPECTED = "expected a dataset with a column text or input_ids, a loader of batches of ids, or rows of text or ids"

Ids = NDArray[np.int64]


def rows_of(data: Any, *, text: bool = False) -> tuple[str, bytes | Ids]:
    """Read rows of text or of token ids, at most MOST_BYTES or MOST_IDS of them, and join them.

    Args:
        data: a Dataset, IterableDataset or DatasetDict (of which `train` is read) of Hugging Face's datasets, with a
            column `text` or `input_ids`; a torch DataLoader or other iterable of batches, which are ids (B, T),
            (ids, targets), or a dict with `input_ids`; or an iterable of texts or of lists of ids.
        text: prefer `text` where rows have both.

    Returns:
        what it is, for people; and its text in UTF-8, joined by line ends, or its ids.

    Raises:
        DataError: it can't be read, or its rows are something else.
    """
    data, name = _split_of(data)
    found: list[Any] = []
    size, most = 0, MOST_IDS
    for row in islice(_iterated(data, name), MOST_ROWS):
        for part in _parts(row, name, text):
            if found and isinstance(part, bytes) != isinstance(found[0], bytes):
                raise DataError(f"{name} holds rows of text and rows of ids; expected one of the two")
            most = MOST_BYTES if isinstance(part, bytes) else MOST_IDS
            found.append(part)
            size += len(part)
        if size >= most:
            break
    if not found:
        raise DataError(f"{name} holds no rows; {_EXPECTED}")
    if isinstance(found[0], bytes):
        whole = b"\n".join(found)
        cut = whole[:MOST_BYTES].decode("utf-8", "ignore").encode()  # not in the middle of a character
        return name + (f" (its first {len(cut):,} bytes)" if size >= most else ""), cut
    ids = np.concatenate(found)[:MOST_IDS]
    return name + (f" (its first {len(ids):,} ids)" if size >= most else ""), ids


def saved(path: Path) -> bool:
    """Tell whether a folder is one that a dataset's save_to_disk wrote.

    Args:
        path: of the folder.
    """
    return any((path / name).is_file() for name in SAVED)


def load_saved(path: Path) -> Any:
    """Load a dataset from a folder that its save_to_disk wrote; it stays on disk.

    Args:
        path: of the folder.

    Raises:
        DataError: it can't be read, or `datasets` isn't installed.
    """
    try:
        from datasets import load_from_disk
    except ModuleNotFoundError:
        raise DataError(
            f"{path} holds a dataset of Hugging Face's, which needs the package datasets: pip install datasets"
        ) from None
    try:
        return load_from_disk(str(path))
    except Exception as error:  # of Arrow, of JSON, of the file system
        raise DataError(f"{path} can't be read as a dataset ({type(error).__name__}: {shown(str(error))})") from None


def _split_of(data: Any) -> tuple[Any, str]:
    """The rows of several splits that are to be read, and their name."""
    name = type(data).__name__
    if isinstance(data, Tensor | np.ndarray):
        return [data], name
    if not isinstance(data, Mapping):
        return data, name
    if "input_ids" in data or "text" in data:
        return [data], name  # one batch
    splits = list(map(str, data))
    if "train" not in data and len(splits) != 1:
        raise DataError(f"{name} holds {', '.join(splits) or 'nothing'}; expected a split train, or one of them")
    chosen = "train" if "train" in data else splits[0]
    return data[chosen], f"{name}[{chosen}]"


def _iterated(data: Any, name: str) -> Iterator[Any]:
    columns = getattr(data, "column_names", None)
    if columns and (select := getattr(data, "select_columns", None)) is not None:
        data = select([each for each in columns if each in ("text", "input_ids", "attention_mask")] or list(columns))
    try:
        rows = iter(data)
    except TypeError:
        raise DataError(f"{name} can't be iterated; {_EXPECTED}") from None
    try:
        yield from rows
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name} raised while it was read: {type(error).__name__}: {shown(str(error))}") from error


def _parts(row: Any, name: str, text: bool) -> list[Any]:
    """The texts, or the ids, of a row or a batch."""
    if isinstance(row, Mapping):
        if "input_ids" in row and not (text and "text" in row):
            return _ids(row["input_ids"], None, row.get("attention_mask"), name)
        if "text" not in row:
            raise DataError(f"{name} has the columns {', '.join(map(str, row))}; expected text or input_ids")
        row = row["text"]
    if isinstance(row, str):
        return [row.encode("utf-8", "replace")]
    if isinstance(row, list | tuple) and row:
        if all(isinstance(each, str) for each in row):
            return [each.encode("utf-8", "replace") for each in row]
        if isinstance(row[0], Tensor | np.ndarray) and np.ndim(row[0]):
            return _ids(row[0], row[1] if len(row) > 1 else None, None, name)
    return _ids(row, None, None, name)


def _ids(given: Any, targets: Any, mask: Any, name: str) -> list[Any]:
    """Sequences of a batch, without padding; where targets are the next tokens, with the last of them."""
    if isinstance(given, list | tuple) and given and isinstance(given[0], list | tuple | Tensor | np.ndarray):
        masks = [None] * len(given) if mask is None else mask
        return [part for row, own in zip(given, masks, strict=True) for part in _ids(row, None, own, name)]
    ids = _array(given)
    if ids is None or ids.ndim not in (1, 2):
        raise DataError(f"{name} holds the row {shown(given)}; {_EXPECTED}")
    if ids.size and not 0 <= ids.min() <= ids.max() < 2**32:
        raise DataError(f"{name} holds the id {ids.min() if ids.min() < 0 else ids.max()}; expected ids from 0 on")
    ids = np.atleast_2d(ids)
    kept = None if mask is None else _array(mask)
    if kept is not None and kept.size == ids.size:
        return [row[own != 0] for row, own in zip(ids, kept.reshape(ids.shape), strict=True)]
    after = None if targets is None else _array(targets)
    if after is not None and after.size == ids.size:
        after = after.reshape(ids.shape)
        if (after[:, :-1] == ids[:, 1:]).all() and (after[:, -1:] >= 0).all():
            ids = np.concatenate([ids, after[:, -1:]], axis=1)
    return list(ids)


def _array(given: Any) -> Ids | None:
    """Whole numbers as an array; None: they are none."""
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        if given.dtype in (torch.bfloat16,):  # which numpy lacks
            return None
    try:
        array = np.asarray(given)
    except (TypeError, ValueError):
        return None
    if array.size == 0 and isinstance(given, Iterable):
        return array.astype(np.int64)
    return array.astype(np.int64) if np.issubdtype(array.dtype, np.integer) else None
