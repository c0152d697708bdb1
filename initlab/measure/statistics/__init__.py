"""Further statistics of tensors and attention heads: initlab's own ones, a user's, a package's.

The moments in `initlab.schema.RECORDS` are always taken, in fused passes (`initlab.measure.moments`). What is
registered here costs nothing until it is asked for, by name or by a preset. Each becomes a column of `records`, or of
`heads`. A package adds its own by an entry point of the group `initlab.statistics` that names a module.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from initlab.errors import ConfigError
from initlab.registry import Registry
from initlab.schema import TABLES

Per = Literal["tensor", "channel", "head"]
KINDS = ("activation", "grad", "weight", "weight_grad", "update")
_OVER_CHANNELS = ("min", "median", "max")


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistic:
    """One statistic: what is computed, of which tensors, in which columns it ends. It can be called as its function.

    Attributes:
        name, of, per, preset: see `statistic`.
        function: takes a tensor, or an Attention, and returns a tensor.
        meaning: of the column, unit included.
        source: where the function is from, in words.
        own: initlab's: of the elements in any order, it draws nothing, writes nothing and doesn't fail.

    Raises:
        ConfigError: a name that is no identifier or that a column of initlab has, an unknown kind, per or preset.
    """

    name: str
    function: Callable[..., Any]
    of: tuple[str, ...] = KINDS
    per: Per = "tensor"
    preset: Literal["light", "full"] | None = None
    meaning: str = ""
    source: str = ""
    own: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z]\w*", self.name):
            raise ConfigError(f"a statistic is named {self.name!r}; expected letters, digits and _, as in abs_median")
        if not callable(self.function):
            raise ConfigError(f"statistic {self.name!r} is {type(self.function).__name__}; expected a function")
        for what, given, known in (
            ("of", self.of, KINDS),
            ("per", (self.per,), get_args(Per)),
            ("preset", () if self.preset is None else (self.preset,), ("light", "full")),
        ):
            unknown = [value for value in given if value not in known]
            if unknown:
                raise ConfigError(f"statistic {self.name!r}: {what} is {unknown[0]!r}; known: {', '.join(known)}")
        for column in self.columns:
            if column in TABLES[self.table]:
                raise ConfigError(f"statistic {self.name!r}: {self.table} has a column {column} already; rename it")

    @property
    def table(self) -> str:
        """The table that its columns are in."""
        return "heads" if self.per == "head" else "records"

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns: one by its name; per channel `name_min`, `name_median` and `name_max` over the channels."""
        if self.per == "channel":
            return tuple(f"{self.name}_{over}" for over in _OVER_CHANNELS)
        return (self.name,)

    def __call__(self, *given: Any) -> Any:
        """Call the function."""
        return self.function(*given)


STATISTICS: Registry[Statistic] = Registry("statistic", ("initlab.measure.statistics.own",))

Metrics = Mapping[str, Callable[..., Any]] | Sequence[str | Callable[..., Any]] | str | None


def statistic(
    name: str, *, of: str | Sequence[str] = KINDS, per: Per = "tensor", preset: Literal["light", "full"] | None = None
) -> Callable[[Callable[..., Any]], Statistic]:
    """Register a function as a statistic, to be asked for by its name: `probe(model, metrics=["abs_median"])`.

    ::

        @initlab.statistic("abs_median", of=("activation", "grad"))
        def abs_median(x):
            \"\"\"Median of |x|\"\"\"
            return x.abs().median()

    The function gets the tensor as it is (its shape, dtype and device), detached, under `torch.no_grad()`, outside of
    autocast and with random states restored afterwards. It must not write into it: the model computes on the same
    memory. Where the model, or a loss scale, multiplies the tensor before it becomes what the site says, it gets the
    product, in float32. What it returns stays on the device (no `.item()`) until the pass is over. The docstring's
    first line is the column's meaning, unit included.

    Args:
        name: the column, and what it is asked for by.
        of: kinds of rows that get it: activation, grad, weight, weight_grad, update; the others hold NaN.
        per: `tensor`: x of any shape -> one number. `channel`: x as (N, C), the last dimension being C -> (C,), of
            which the smallest, the median and the largest are kept, in columns `name_min`, `name_median` and
            `name_max`; NaN for tensors of one dimension. `head`: an `initlab.measure.attention.Attention` (q, k, v,
            scores and pattern of one block) -> (nh,), a column of the table `heads`.
        preset: `full` or `light`: taken whenever `stats` is that much, without being asked for.

    Returns:
        The decorator; it returns a Statistic, which can be called as the function.

    Raises:
        ConfigError: the name is taken, is a column already or can't be one; an unknown kind, per or preset.
    """

    def wrap(function: Callable[..., Any]) -> Statistic:
        kinds = (of,) if isinstance(of, str) else tuple(of)
        made = _made(name, function, of=kinds, per=per, preset=preset)
        return STATISTICS.add(name, made, made.source)

    return wrap


def choose(metrics: Metrics, preset: str) -> tuple[Statistic, ...]:
    """The statistics to take: those that belong to a preset, and those asked for.

    Args:
        metrics: names of registered statistics or `file.py:name`, functions (their names become the columns), or a
            mapping from columns to functions; functions are of every kind of row, and flat.
        preset: `light` or `full`.

    Raises:
        ConfigError: an unknown name, something that is no function, a name that is taken, a column that two would fill.
    """
    usual = [entry for entry in STATISTICS if entry.preset in ("light", preset)]
    found = {entry.name: entry for entry in usual}
    for entry in _asked(metrics):
        if found.setdefault(entry.name, entry) != entry:
            raise ConfigError(f"two statistics are named {entry.name!r}; rename one")
    owner: dict[tuple[str, str], str] = {}
    for entry in found.values():
        for column in entry.columns:
            if owner.setdefault((entry.table, column), entry.name) != entry.name:
                raise ConfigError(
                    f"statistics {owner[entry.table, column]!r} and {entry.name!r} both fill {column}; rename one"
                )
    return tuple(found.values())


def columns_of(statistics: Iterable[Statistic], table: str) -> tuple[str, ...]:
    """Columns of a table that the statistics fill."""
    return tuple(column for entry in statistics if entry.table == table for column in entry.columns)


def meanings(statistics: Iterable[Statistic]) -> dict[str, str]:
    """What each column means, for run.json: whoever loads the run may not have the functions."""
    return {
        column: entry.meaning if len(entry.columns) == 1 else f"{entry.meaning}; {over} over channels"
        for entry in statistics
        for column, over in zip(entry.columns, _OVER_CHANNELS, strict=False)
    }


def _asked(metrics: Metrics) -> list[Statistic]:
    if metrics is None:
        return []
    if isinstance(metrics, Mapping):
        return [
            replace(value, name=name) if isinstance(value, Statistic) else _made(name, value)
            for name, value in metrics.items()
        ]
    if not isinstance(metrics, str | Statistic) and isinstance(metrics, Iterable):
        return [_entry(each) for each in metrics]
    return [_entry(metrics)]


def _entry(given: Any) -> Statistic:
    if isinstance(given, str) and ".py:" in given:
        found = STATISTICS.from_file(given)
        if not callable(found):
            file, _, name = given.rpartition(":")
            raise ConfigError(f"statistic {given!r}: {file} has no function named {name!r}")
        return found if isinstance(found, Statistic) else _made(given.rpartition(":")[2], found)
    if isinstance(given, str):
        return STATISTICS.get(given)
    if isinstance(given, Statistic):
        return given
    name = getattr(given, "__name__", "")
    if not callable(given) or not name.isidentifier():
        raise ConfigError(
            f"metrics holds {given!r}; expected names of statistics, file.py:name, or functions with a name of their "
            "own; others as a dict: metrics={'name': function}"
        )
    return _made(name, given)


def _made(name: str, function: Callable[..., Any], **options: Any) -> Statistic:
    meaning = (inspect.getdoc(function) or "").split("\n")[0].rstrip(".") if inspect.isroutine(function) else ""
    module = getattr(function, "__module__", "")
    source = f"{module}.{getattr(function, '__qualname__', '')}" if module else ""
    return Statistic(name=name, function=function, meaning=meaning or "a user's own", source=source, **options)
