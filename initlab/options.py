"""What commands are told beside their model: the text to read, and where and how to run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeGuard, TypeVar

from initlab.errors import ConfigError

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Name = TypeVar("_Name", bound=str)


class Progress(Protocol):
    """Told how a run advances."""

    def start(self, work: float, cells: int, seconds: float) -> None:
        """Before the first cell: all work, in any unit, the number of cells, and an estimate of the seconds."""

    def advance(self, work: float, text: str) -> None:
        """After each cell."""


@dataclass(frozen=True, slots=True)
class Text:
    """The text that models read. Commands take its fields as keywords of their own, too: `compare(…, batch_size=4)`.

    Args:
        data: `english` (prose that initlab brings), `docstrings` (Python's own), `uniform` (random ids), a UTF-8 file,
            a folder of .txt and .md, nanoGPT's .bin, or what a Hugging Face dataset's save_to_disk wrote; or rows of
            text or ids: such a dataset, a torch DataLoader, another iterable of batches, of which the first 16 MiB of
            text or 10 million ids are read, once. See `initlab.corpus.load_corpus`.
        tokenizer: `bytes` (the default), `char`, the name of a tiktoken encoding such as `gpt2`, or a tokenizer.json;
            or an object with `encode`, such as one of tokenizers' or transformers'.
        batch_size: sequences in a batch. Default: the command's own number for NanoGPTs, for other models about 1024
            tokens.
        block_size: tokens in a sequence. NanoGPTs that a command makes are made for it; other models read sequences of
            it. Default: the command's own number for NanoGPTs, for other models what they declare, at most 1024.
        vocab_size: ids are below it, those of `uniform` drawn so; a text that was named and needs more is
            refused. NanoGPTs that a command makes have it. Default: the text's for those, else the model's.

    Raises:
        ConfigError: data is neither a path nor rows, tokenizer is empty or can't encode, or batch_size, block_size or
            vocab_size isn't a whole number from 1 (2) on.
    """

    data: Any = "english"
    tokenizer: Any = None
    batch_size: int | None = None
    block_size: int | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if not _rows(self.data):
            checked_path("data", self.data)
        name = self.tokenizer if isinstance(self.tokenizer, str | PathLike) else None
        usable = callable(getattr(self.tokenizer, "encode", None)) if name is None else str(name).strip()
        if self.tokenizer is not None and not usable:
            raise ConfigError(
                f"tokenizer is {shown(self.tokenizer)}; expected a name, such as bytes or gpt2, a tokenizer.json, or "
                "an object with a method encode"
            )
        _take_count(self, "batch_size")
        _take_count(self, "block_size")
        _take_count(self, "vocab_size", least=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """Where and how a run is made. Commands take its fields as keywords of their own, too: `compare(…, out="runs/a")`.

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
        progress: None: a bar, after two seconds, on a terminal or in a notebook; False: none; or an object that is told
            about every cell.

    Raises:
        ConfigError: out is no path, jobs isn't a positive whole number, device, engine or address is no name, or
            progress can't be told anything.
    """

    device: str = "auto"
    jobs: int | None = None
    engine: str = "auto"
    address: str | None = None
    out: str | Path | None = None
    progress: Progress | bool | None = None

    def __post_init__(self) -> None:
        if self.out is not None:
            checked_path("out", self.out)
        _take_count(self, "jobs")
        for name, example in (("device", "auto, cpu or cuda"), ("engine", "auto, here or processes")):
            _refuse_no_name(name, getattr(self, name), example)
        if self.address is not None:
            _refuse_no_name("address", self.address, "host:port")
        told = self.progress
        tellable = all(callable(getattr(told, name, None)) for name in ("start", "advance"))
        if not (told is None or isinstance(told, bool) or tellable):
            raise ConfigError(
                f"progress is {shown(told)}; expected False, None, or an object with methods start and advance"
            )


def with_fields(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """Take the fields of a command's `text` and `run` as keywords beside its own; they come before those of an object.

    Args:
        call: the command. One that passes keywords on takes those of a text.
    """
    own = signature(call).parameters
    passed_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values())
    kinds: dict[str, Any] = {"text": Text, "run": RunOptions}
    taken = [name for name in kinds if name in own or (passed_on and name == "text")]
    of = {each.name: name for name in taken for each in fields(kinds[name]) if each.name not in own}

    @wraps(call)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        __tracebackhide__ = True  # as in assert_healthy
        given: dict[str, dict[str, Any]] = {}
        for key in [key for key in kwargs if key in of]:
            given.setdefault(of[key], {})[key] = kwargs.pop(key)
        for name, values in given.items():
            whole = kwargs.get(name, own[name].default if name in own else kinds[name]())
            kwargs[name] = replace(checked(name, whole, kinds[name]), **values)
        return call(*args, **kwargs)

    return wrapped


def checked(name: str, value: Any, kind: type[_T]) -> _T:
    """Return the value of a keyword. Raises ConfigError where it is of another kind."""
    if not isinstance(value, kind):
        example = f"{name}=initlab.{kind.__name__}({'data=' if kind is Text else 'out='}'…')"
        raise ConfigError(f"{name} is {shown(value)}; expected {kind.__name__}, as in {example}")
    return value


def shown(value: Any) -> str:
    """Write a value into a sentence: on one line, and not all of a long one."""
    return " ".join(f"{value!r}".split())[:80]


def whole(value: Any) -> TypeGuard[int]:
    """Tell whether a value is a whole number; numpy's are, True isn't."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def real(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a number; numpy's are, True isn't."""
    return isinstance(value, Real) and not isinstance(value, bool)


def checked_seed(value: Any) -> int:
    """Return a seed as a whole number. Raises ConfigError where it is none that torch takes."""
    if not whole(value) or not 0 <= int(value) < 2**63:
        raise ConfigError(f"seed is {shown(value)}; expected a whole number from 0 on, below 2^63")
    return int(value)


def checked_count(name: str, value: Any, least: int = 1, what: str = "a whole number") -> int:
    """Return a count as an int, which numpy's integers become. Raises ConfigError where it is none."""
    if not whole(value) or value < least:
        raise ConfigError(f"{name} is {shown(value)}; expected {what} from {least} on")
    return int(value)


def checked_number(name: str, value: Any, most: float = math.inf, *, above_0: bool = False) -> float:
    """Return a number from 0 on as a float. Raises ConfigError where it is none.

    Args:
        name: of the option.
        value: as it was given.
        most: the largest that is allowed.
        above_0: 0 isn't, and neither is infinity.
    """
    if not real(value) or not 0 <= value <= most or (above_0 and not 0 < value < math.inf):
        low = "above 0" if above_0 else "from 0 on" if most == math.inf else f"from 0 to {most:g}"
        raise ConfigError(f"{name} is {shown(value)}; expected a number {low}")
    return float(value)


def checked_flag(name: str, value: Any) -> bool:
    """Return True or False. Raises ConfigError for anything else."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {shown(value)}; expected True or False")
    return value


def checked_choice(name: str, value: Any, known: Iterable[_Name]) -> _Name:
    """Return one of several names. Raises ConfigError for any other."""
    names = list(known)
    if not isinstance(value, str) or value not in names:
        raise ConfigError(f"unknown {name} {shown(value)}; known: {', '.join(names)}")
    return names[names.index(value)]


def checked_path(name: str, value: Any) -> Path:
    """Return a path. Raises ConfigError where there is none, or one whose name can't be written down.

    Args:
        name: of the option.
        value: as it was given.
    """
    if not isinstance(value, str | PathLike):
        raise ConfigError(f"{name} is {shown(value)}; expected a path")
    text = str(value)
    if not text.strip():  # Path("") is the working directory, which nobody means by a variable that isn't set
        raise ConfigError(f"{name} is empty; expected a path")
    try:
        written = "\0" not in text and text.encode()
    except UnicodeEncodeError:  # a name of other bytes, which pages, tables and terminals can't show
        written = False
    if not written:
        raise ConfigError(f"{name} is {shown(text)}; expected a path of UTF-8 characters")
    return Path(value)


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


def _rows(data: Any) -> bool:
    """Whether data can be read row by row, or was: a Corpus has its tokens."""
    if isinstance(data, str | bytes | PathLike):
        return False
    return any(hasattr(data, name) for name in ("__iter__", "__getitem__", "tokens"))


def _refuse_no_name(name: str, value: Any, example: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} is {shown(value)}; expected a name, such as {example}")


def _take_count(options: Any, name: str, least: int = 1) -> None:
    """Keep a count as an int; numpy's integers count as well."""
    value = getattr(options, name)
    if value is None:
        return
    object.__setattr__(options, name, checked_count(name, value, least))
