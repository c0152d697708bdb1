"""What commands are told beside their model: the text to read, and where and how to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar

from initlab.errors import ConfigError

_T = TypeVar("_T")


class Progress(Protocol):
    """Told how a run advances; the command line draws it."""

    def start(self, work: float, cells: int, seconds: float) -> None:
        """Before the first cell: all work, in any unit, the number of cells, and an estimate of the seconds."""

    def advance(self, work: float, text: str) -> None:
        """After each cell."""


@dataclass(frozen=True, slots=True)
class Text:
    """The text that models read.

    Args:
        data: `docstrings` (Python's own), `uniform` (random ids), a UTF-8 file, a folder of .txt and .md, or nanoGPT's
            .bin; see `initlab.corpus.load_corpus`.
        tokenizer: `bytes` (the default), `char`, or the name of a tiktoken encoding such as `gpt2`.
        batch_size: sequences in a batch. Default: the command's own number for NanoGPTs, for other models about 1024
            tokens.
        block_size: tokens in a sequence. NanoGPTs that a command makes are made for it; other models read sequences of
            it. Default: the command's own number for NanoGPTs, for other models what they declare, at most 1024.

    Raises:
        ConfigError: data is no path or empty, tokenizer is empty, or batch_size or block_size isn't a positive whole
            number.
    """

    data: str | Path = "docstrings"
    tokenizer: str | None = None
    batch_size: int | None = None
    block_size: int | None = None

    def __post_init__(self) -> None:
        _refuse_no_path("data", self.data)
        if self.tokenizer is not None and (not isinstance(self.tokenizer, str) or not self.tokenizer.strip()):
            raise ConfigError(f"tokenizer is {self.tokenizer!r:.80}; expected a name, such as bytes or gpt2")
        _take_count(self, "batch_size")
        _take_count(self, "block_size")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """Where and how a run is made.

    Args:
        device: `auto` is CUDA where there is a GPU, else the CPU.
        jobs: models of `compare` and `scale`, or training runs of `confirm`, at the same time; `train` makes one after
            another. Default: 1, for confirm on a CPU its cores; on Ray what the cluster has room for.
        engine: where they are made: `processes`, each with one thread; `here`, one after another in this process;
            `batched`, in this process, training runs of one shape side by side; `ray`, on a cluster; or one that a
            package adds (`initlab.engines`). `auto`: `processes` for several at a time, else `batched` on a GPU,
            `here` on a CPU.
        address: of a Ray cluster, for engine `ray`, which must have this initlab and torch. Default: what RAY_ADDRESS
            says, else a Ray of this machine's own. With `device="cuda"` each model has a GPU; this machine needs one.
        out: folder for tables and run.json, written as each cell finishes; the same call with the same folder
            resumes. None keeps everything in memory.
        progress: told about every cell.

    Raises:
        ConfigError: out is no path, or jobs isn't a positive whole number.
    """

    device: str = "auto"
    jobs: int | None = None
    engine: str = "auto"
    address: str | None = None
    out: str | Path | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.out is not None:
            _refuse_no_path("out", self.out)
        _take_count(self, "jobs")


def checked(name: str, value: Any, kind: type[_T]) -> _T:
    """Return the value of a keyword. Raises ConfigError where it is of another kind."""
    if not isinstance(value, kind):
        example = f"{name}=initlab.{kind.__name__}({'data=' if kind is Text else 'out='}'…')"
        raise ConfigError(f"{name} is {value!r:.80}; expected {kind.__name__}, as in {example}")
    return value


def checked_seed(value: Any) -> int:
    """Return a seed as a whole number. Raises ConfigError where it is none that torch takes."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < 2**63:
        raise ConfigError(f"seed is {value!r:.80}; expected a whole number from 0 on, below 2^63")
    return int(value)


def refuse_unknown(command: str, given: Iterable[str], own: Callable[..., Any], passed_on: Callable[..., Any]) -> None:
    """Refuse keywords that neither a command nor the one that it passes them on to has. Raises ConfigError.

    Args:
        command: its name.
        given: the keywords that it doesn't know itself.
        own: the command.
        passed_on: what gets them.
    """
    parameters = [*signature(own).parameters.values(), *signature(passed_on).parameters.values()]
    known = list(dict.fromkeys(p.name for p in parameters if p.kind is p.KEYWORD_ONLY))
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"{command} has no option {name!r}; {hint}known: {', '.join(known)}")


def _refuse_no_path(name: str, value: Any) -> None:
    if not isinstance(value, str | PathLike):
        raise ConfigError(f"{name} is {value!r:.80}; expected a path")
    if not str(value).strip():  # Path("") is the working directory, which nobody means by a variable that isn't set
        raise ConfigError(f"{name} is empty; expected a path")


def _take_count(options: Any, name: str) -> None:
    """Keep a count as an int; numpy's integers count as well."""
    value = getattr(options, name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigError(f"{name} is {value!r:.80}; expected a whole number from 1 on")
    object.__setattr__(options, name, int(value))
