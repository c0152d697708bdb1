"""Moments and further statistics of one tensor after another; nothing is read back before the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace

import torch
from torch import Tensor

from initlab.anatomy.restoring import random_state_kept
from initlab.errors import ConfigError
from initlab.measure.attention import Attention
from initlab.measure.moments import Moments, Preset
from initlab.measure.statistics import Statistic


class Measurements:
    """Collects the moments of tensors and the statistics asked for; `read` gives them back in the same order.

    A statistic that fails is not taken again; `errors` says why, by its name. Nothing is raised where tensors are
    taken, which is in the middle of somebody's pass.
    """

    def __init__(self, preset: Preset, statistics: Iterable[Statistic] = ()):
        self.statistics = tuple(statistics)
        self.errors: dict[str, ConfigError] = {}
        self._moments = Moments(preset)
        self.foreign = any(not entry.own for entry in self.statistics)
        self._of_tensors = [entry for entry in self.statistics if entry.per != "head"]
        self._of_heads = [entry for entry in self.statistics if entry.per == "head"]
        self._tried: set[str] = set()
        self._taken: list[tuple[int, Statistic, Tensor]] = []
        self._heads: list[tuple[int, Statistic, Tensor]] = []

    def add(
        self,
        x: Tensor,
        kind: str,
        module: str,
        scale: float = 1.0,
        where: Tensor | None = None,
    ) -> int:
        """Take everything of a tensor; returns its place in `read`.

        Args:
            x: of any shape and floating dtype.
            kind: of the row that it is for.
            module: dotted name of the module or parameter, for errors.
            scale: what the tensor is multiplied with to be what its row says. Statistics are of the product; moments,
                whose scaling is known, are of x itself.
            where: see `Moments.add`; statistics asked for are waited for there.
        """
        slot = self._moments.add(x, where=where)
        if where is not None and self._of_tensors:
            x = x[where]
        for entry in self._of_tensors:
            if kind in entry.of and entry.name not in self.errors and x.numel():
                self._take(slot, entry, x.detach(), f"{kind} of {module}", scale)
        return slot

    def add_heads(self, block: int, module: str) -> Callable[[Attention], None] | None:
        """What takes the statistics of one block's heads, None where none is asked for."""
        if not self._of_heads:
            return None

        def take(attention: Attention) -> None:
            n_head = attention.pattern.shape[1]
            for entry in self._of_heads:
                if entry.name in self.errors:
                    continue
                where, expected = f"attention of {module}", f"({n_head},), a number per head"
                value = self._call(entry, attention, where, (n_head,), expected)
                if value is not None:
                    self._heads.append((block, entry, value))

        return take

    def read(self) -> list[dict[str, float]]:
        """The statistics of every tensor, as columns of `records`."""
        rows = self._moments.read()
        for (slot, entry, _), values in zip(self._taken, _fetched(value for *_, value in self._taken), strict=True):
            rows[slot].update(zip(entry.columns, values, strict=True))
        return rows

    def read_heads(self) -> dict[tuple[int, int], dict[str, float]]:
        """(block, head) -> columns of `heads` that statistics fill."""
        rows: dict[tuple[int, int], dict[str, float]] = {}
        for (block, entry, _), values in zip(self._heads, _fetched(value for *_, value in self._heads), strict=True):
            for head, value in enumerate(values):
                rows.setdefault((block, head), {})[entry.name] = value
        return rows

    @property
    def notes(self) -> list[str]:
        """Statistics that found nothing to measure, or failed."""
        seen = {entry.name for _, entry, _ in (*self._taken, *self._heads)}
        missing = {"head": "no attention heads were looked at; they are with stats='full' where attention is found"}
        return [str(error) for error in self.errors.values()] + [
            f"statistic {entry.name}: {missing.get(entry.per, 'no tensor of its kinds was seen')}"
            for entry in self.statistics
            if entry.name not in seen and entry.name not in self.errors
        ]

    def raise_first(self) -> None:
        """Raise the first ConfigError of a statistic, if one failed."""
        for error in self.errors.values():
            raise error

    def _take(self, slot: int, entry: Statistic, x: Tensor, where: str, scale: float) -> None:
        x = x if x.layout == torch.strided else x.to_dense()
        if scale != 1:
            x = (x if x.dtype == torch.float64 or x.is_complex() else x.float()) * scale
        if entry.per == "channel":
            if x.dim() < 2:
                return
            x = x.reshape(-1, x.shape[-1])
            size = x.shape[-1]
            value = self._call(entry, x, where, (size,), f"({size},), a number per channel")
            value = None if value is None else torch.stack([value.amin(), value.quantile(0.5), value.amax()])
        elif entry.own:
            with torch.no_grad():
                value = entry.function(x)
        else:
            value = self._call(entry, x, where, (), "(), one number")
        if value is not None:
            self._taken.append((slot, entry, value.reshape(-1)))

    def _call(
        self, entry: Statistic, given: Tensor | Attention, where: str, shape: tuple[int, ...], expected: str
    ) -> Tensor | None:
        """Call a statistic; its value in float64, None, and an error noted, where it isn't what it should be.

        Args:
            entry: the statistic.
            given: what its function gets. The first time it is a copy: one that writes into it is found out on that.
            where: what it is of, for errors.
            shape: of the value.
            expected: the same in words.
        """
        own: Tensor | Attention | None = None
        if entry.name not in self._tried:
            self._tried.add(entry.name)
            own, given = given, _copied(given)
        x = given if isinstance(given, Tensor) else given.pattern
        before = _version(given)
        try:
            with torch.no_grad(), random_state_kept(x), torch.autocast(x.device.type, enabled=False):
                found = entry.function(given)
        except Exception as error:
            self._fail(entry, where, f"raised {type(error).__name__}: {error}", error)
            return None
        if _version(given) != before or (own is not None and not _alike(own, given)):
            self._fail(entry, where, "wrote into the tensor that it was given; the model computes on it: use x.clone()")
            return None
        value = torch.as_tensor(found, dtype=torch.float64) if type(found) in (int, float) else found
        if not isinstance(value, Tensor) or value.is_complex() or value.shape != shape:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(found).__name__
            complex_ = "complex numbers, in " if isinstance(value, Tensor) and value.is_complex() else ""
            self._fail(entry, where, f"returned {complex_}{what}; expected a tensor of shape {expected}")
            return None
        return value.detach().to(torch.float64, copy=True)  # a view would keep all of the tensor in memory

    def _fail(self, entry: Statistic, where: str, what: str, cause: Exception | None = None) -> None:
        error = ConfigError(f"statistic {entry.name!r} {what} (on the {where})")
        error.__cause__ = cause
        self.errors[entry.name] = error


def _copied(given: Tensor | Attention) -> Tensor | Attention:
    if isinstance(given, Tensor):
        return given.clone()
    return replace(given, **{name: x.clone() for name, x in _parts(given).items() if x is not None})


def _parts(given: Tensor | Attention) -> dict[str, Tensor | None]:
    if isinstance(given, Tensor):
        return {"": given}
    return {each.name: getattr(given, each.name) for each in fields(given)}


def _alike(own: Tensor | Attention, given: Tensor | Attention) -> bool:
    """Whether a copy is as it was: what is written through `.data` or NumPy isn't counted."""
    pairs = zip(_parts(own).values(), _parts(given).values(), strict=True)
    return all(bool(((a == b) | ((a != a) & (b != b))).all()) for a, b in pairs if a is not None and b is not None)


def _version(given: Tensor | Attention) -> int:
    """Counts the writes into what a statistic is given, and into its views."""
    parts = [x for x in _parts(given).values() if x is not None]
    return sum(0 if x.is_inference() else x._version for x in parts)


def _fetched(values: Iterable[Tensor]) -> list[list[float]]:
    """Vectors as lists of numbers, with one transfer per device."""
    values = list(values)
    found: list[list[float]] = [[]] * len(values)
    for device in {value.device for value in values}:
        places = [place for place, value in enumerate(values) if value.device == device]
        numbers = iter(torch.cat([values[place] for place in places]).cpu().tolist())
        for place in places:
            found[place] = [next(numbers) for _ in range(values[place].numel())]
    return found
