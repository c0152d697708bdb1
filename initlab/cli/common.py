"""What commands share: options, output, progress, and exit codes."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from initlab.errors import ConfigError
from initlab.judge import SEVERITIES, Severity, reaches
from initlab.options import RunOptions, Text

if TYPE_CHECKING:
    from initlab.models.config import NanoGPTConfig
    from initlab.recipes import Base
    from initlab.report.document import Document
    from initlab.results import Result

    # what add_subparsers gives; argparse has no public name for it
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

# those of `initlab.report.formats`, which to parse options needn't import
FORMATS = ("text", "concise", "json", "jsonl", "github", "junit", "sarif", "markdown")

# seconds of judging and drawing: 3.3 of 2 models, 3.7 of 8, 4.6 of 27, 5.9 of 56 (an x86 core)
_REPORT, _REPORTED = 3.2, 0.05

_T = TypeVar("_T")


def add_models(parser: argparse.ArgumentParser, *, block_size: int | str, batch_size: int | str) -> None:
    """Options of the NanoGPTs that a command makes, and of their batches; the defaults are the called function's."""
    parser.add_argument("--n-head", type=int, metavar="N", help="attention heads at every width")
    parser.add_argument("--block-size", type=int, metavar="T", help=f"tokens in a sequence ({block_size})")
    parser.add_argument("--batch-size", type=int, metavar="B", help=f"sequences ({batch_size})")
    parser.add_argument("--vocab-size", type=int, metavar="V", help="the tokenizer's, unless --data needs it")
    parser.add_argument("--activation", help="gelu, gelu_tanh, relu, relu2, silu, swiglu, geglu or reglu (gelu)")
    add_wiring(parser)
    parser.add_argument("--no-bias", action="store_true", help="no bias in linear layers and norms")
    parser.add_argument("--untied", action="store_true", help="lm_head with weights of its own")


def add_model(parser: argparse.ArgumentParser) -> None:
    """What recipes are drawn into."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="draw recipes into it: file.py:function or package.module:function, of n_layer and n_embd, that returns a "
        "torch.nn.Module; a preset (shakespeare, shakespeare-cpu, gpt2); ckpt.pt (NanoGPT)",
    )
    parser.add_argument(
        "--roles",
        metavar="NAME=ROLE,…",
        help="what parameters of --model are for, where that isn't found: '*.merge=attn_out,*.decay=none' (found)",
    )


def roles_of(options: argparse.Namespace) -> dict[str, str | None] | None:
    """Read `--roles`. Raises ConfigError."""
    if options.roles is None:
        return None
    pairs = [each.partition("=") for each in options.roles.split(",")]
    if wrong := [name for name, equals, role in pairs if not (name and equals and role)]:
        raise ConfigError(f"--roles: {wrong[0]!r} has no role; expected NAME=ROLE,…, as in '*.merge=attn_out'")
    return {name: None if role == "none" else role for name, _, role in pairs}


def add_wiring(parser: argparse.ArgumentParser) -> None:
    """How a NanoGPT differs from nanoGPT's."""
    parser.add_argument(
        "--wiring",
        metavar="NAME=VALUE,…",
        help="options of NanoGPTConfig, as in norm=rmsnorm,norm_placement=sandwich,qk_norm=true,positions=rotary,"
        "n_kv_head=2,residual_multiplier=0.5; numbers of several blocks as in norm_multiplier=1:0.7:0.6:0.5",
    )


def nanogpt_options(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of NanoGPTConfig that were given. Raises ConfigError."""
    from initlab.models.config import parse_wiring

    given = {name: getattr(options, name) for name in ("n_head", "vocab_size", "activation")}
    given |= {"bias": False if options.no_bias else None, "tie_weights": False if options.untied else None}
    given |= (wiring := parse_wiring(options.wiring or ""))
    of_blocks = [value for value in wiring.values() if isinstance(value, tuple)]
    given |= {"n_layer": len(of_blocks[0])} if of_blocks else {}
    return {name: value for name, value in given.items() if value is not None}


def model_of(options: argparse.Namespace, default: NanoGPTConfig) -> Any:
    """Find the model to draw recipes into, None where nothing was said of it. Raises ConfigError.

    Args:
        options: as they were parsed.
        default: the NanoGPTs that the options change.
    """
    from initlab.models.config import PRESETS

    given = nanogpt_options(options)
    if options.model in PRESETS:
        return replace(PRESETS[options.model], **{"vocab_size": None, **given})
    if options.model is not None:
        if given:
            raise ConfigError(f"{next(iter(given))} is an option of NanoGPTs; {options.model} has its own")
        from initlab.drawing.loading import load_maker

        return load_maker(options.model)
    n_head = given.pop("n_head", None)
    if n_head is None:
        return replace(default, **given) if given else None

    def nanogpt(n_layer: int, n_embd: int) -> NanoGPTConfig:
        return replace(default, **given | {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head})

    return nanogpt


def add_base(parser: argparse.ArgumentParser) -> None:
    """Declare what recipes such as `mup` are relative to."""
    parser.add_argument(
        "--base", type=numbers, metavar="L,D", help="n_layer,n_embd where a recipe's multipliers are 1 (the smallest)"
    )


def base_of(options: argparse.Namespace) -> Base | None:
    """Read what `add_base` declares. Raises ConfigError, RecipeError."""
    from initlab.recipes import Base

    if options.base is None:
        return None
    if len(options.base) != 2:
        raise ConfigError(f"--base has {len(options.base)} numbers; expected n_layer,n_embd, as in --base 2,64")
    return Base(n_layer=options.base[0], n_embd=options.base[1])


def add_engine(parser: argparse.ArgumentParser, what: str = "models to measure", jobs: str = "1") -> None:
    """Where cells are made, and how many at a time."""
    most = f"{jobs}; --engine ray: what the cluster has room for"
    parser.add_argument("--jobs", type=int, metavar="N", help=f"{what} at a time, in a process each ({most})")
    parser.add_argument(
        "--engine", default="auto", metavar="NAME", help="here, processes, batched, ray or another's (auto)"
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster, for --engine ray (RAY_ADDRESS, else one of its own)"
    )


def text_of(options: argparse.Namespace) -> Text:
    """The text to read."""
    return Text(options.data, options.tokenizer, options.batch_size, options.block_size)


def run_of(options: argparse.Namespace, progress: TerminalProgress) -> RunOptions:
    """Where and how to run."""
    places = {name: getattr(options, name) for name in ("jobs", "engine", "address") if hasattr(options, name)}
    return RunOptions(device=options.device, out=progress.out, progress=progress, **places)


def add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        default="english",
        metavar="PATH",
        help="text file, folder of .txt and .md or of a dataset's save_to_disk, nanoGPT .bin, `uniform` (random ids), "
        "`docstrings` (Python's own), `english` (the default, shipped with initlab)",
    )
    add_tokenizer(parser)


def add_tokenizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="bytes (default), char, gpt2 or another of tiktoken's, or a tokenizer.json"
    )


def add_measuring(parser: argparse.ArgumentParser, *, fail_on: str) -> None:
    add_text(parser)
    parser.add_argument(
        "--stats", choices=("full", "light"), default="full", help="light: mean, variance, rms, maximum alone (full)"
    )
    add_dtype(parser, default="float32", otherwise="float32: none")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch on the CPU (all cores)")
    add_saving(parser, fail_on=fail_on)


def add_dtype(parser: argparse.ArgumentParser, *, default: str | None, otherwise: str) -> None:
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default=default,
        help=f"autocast of the forward pass ({otherwise})",
    )


def add_saving(parser: argparse.ArgumentParser, *, fail_on: str) -> None:
    """Where the run goes, and what is said of it."""
    parser.add_argument("-o", "--out", metavar="DIR", help="output folder (initlab-runs/<command>-<time>)")
    parser.add_argument("--no-report", action="store_true", help="tables only, no report.html and figures")
    add_output(parser, fail_on=fail_on)


def add_output(parser: argparse.ArgumentParser, *, fail_on: str, baseline: bool = True) -> None:
    """What of the findings counts, and how they are printed."""
    parser.set_defaults(usually=fail_on, fails_by_itself=fail_on != "never")
    parser.add_argument(
        "--fail-on",
        choices=(*SEVERITIES, "never"),
        help=f"exit with 1 on findings of this severity or above ({fail_on})",
    )
    parser.add_argument(
        "--select", action="append", default=[], metavar="CODE,…", help="only these rules; prefixes allowed: GRD (all)"
    )
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="CODE,…", help="not these rules; prefixes allowed: GRD (none)"
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="CODE=X",
        help="another limit for a rule: EMB001=0.05, or by name EMB001.error=0.001 (see `initlab rules`)",
    )
    if baseline:
        parser.add_argument(
            "--baseline",
            metavar="FILE",
            help="count what is new alone: a findings.json, what --format json printed, or a run's folder (none)",
        )
    parser.add_argument("--format", choices=FORMATS, default="text", help="of stdout (text)")
    parser.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """select, ignore and limits, as `Result.judge` takes them. Raises ConfigError, before anything is measured: also of
    a baseline that can't be read."""
    from initlab.judge.baseline import known_among

    if getattr(options, "baseline", None) is not None:
        known_among((), options.baseline)
    return _judging(options)


def _judging(options: argparse.Namespace) -> dict[str, Any]:
    from initlab.judge.rules import chosen
    from initlab.judge.rules.selecting import parse_limits

    return chosen(options.select, options.ignore, parse_limits(options.limit)).overrides


def show(result: Result, options: argparse.Namespace, out: Path) -> int:
    """Judge by the options, write the report, print the summary, and turn findings into an exit code."""
    from initlab import rundir
    from initlab.judge.baseline import known_among

    given = _judging(options)
    if options.select or options.ignore or options.limit:  # else as the run was judged before
        result.judge(**given)
    # before the report, which writes over the findings of an earlier one in the same folder
    known = None if options.baseline is None else known_among(result.findings, options.baseline)
    page = None if options.no_report else result.report(out)
    if page is None:
        rundir.note(out, "judging", result.run.manifest.get("judging"))  # as the report does
    if known is not None:  # the page is of the whole run
        result._count_out(known)
    fails = failing_severity(options)
    if options.format == "text":
        print(result._text(color=use_color()), end="")
        print(f"report  {page}" if page else f"tables  {out}")
    else:
        print_for_programs(result.document(), options, str(out), json.loads(result.summary.to_json(orient="records")))
    return int(reaches(result.worst, fails))


def print_for_programs(
    document: Document, options: argparse.Namespace, out: str = "", summary: Sequence[dict[str, Any]] = ()
) -> None:
    """Print what was judged in the format that the options name, any but `text`."""
    from initlab.report import formats

    shown = formats.Shown(document, failing_severity(options), out, list(summary))
    print(formats.FORMATS[options.format](shown), end="")


def failing_severity(options: argparse.Namespace) -> Severity | None:
    """The lowest severity that turns the exit code into 1; None: none does."""
    named = options.fail_on or options.usually
    return next((severity for severity in SEVERITIES if severity == named), None)


class TerminalProgress:
    """Prints the estimate and the output folder, then draws a bar on a terminal."""

    def __init__(self, out: Path, command: str, options: argparse.Namespace, doing: str = "measure"):
        self.out = out
        self.reports = not options.no_report
        self.command = command
        self.doing = doing
        self.stack = ExitStack()

    def __enter__(self) -> TerminalProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def start(self, work: float, cells: int, seconds: float) -> None:
        from initlab.report.progress import ProgressBar

        seconds += _REPORT + _REPORTED * cells if self.reports else 0.0
        about = f"{max(seconds, 1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        models = "1 model" if cells == 1 else f"{cells} models"
        print(f"initlab: {models} to {self.doing}, about {about}; writing to {self.out}", file=sys.stderr)
        self.bar = self.stack.enter_context(ProgressBar(work, self.command))

    def advance(self, work: float, text: str) -> None:
        self.bar.advance(work, text)


def numbers(text: str) -> tuple[int, ...]:
    return _listed(text, int, "4,8,16")


def rates(text: str) -> tuple[float, ...]:
    return _listed(text, float, "1e-3,3e-3,1e-2")


def _listed(text: str, kind: Callable[[str], _T], example: str) -> tuple[_T, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as {example}") from None


def names(text: str) -> list[str]:
    """A list of globs or codes, as they are written with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


def set_threads(options: argparse.Namespace) -> None:
    # OpenMP's spinning threads slow a shared machine several times over; it must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.threads is None:
        return
    if options.threads < 1:
        raise ConfigError(f"--threads is {options.threads}; expected at least 1")
    import torch

    torch.set_num_threads(options.threads)


def default_out(command: str) -> Path:
    path = Path("initlab-runs") / f"{command}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    again = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return path if not path.exists() else next(other for other in again if not other.exists())  # in the same second


def use_color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def kept(options: argparse.Namespace) -> str:
    from initlab.rundir import COMMITS, MANIFEST

    folder = getattr(options, "folder", None)
    if folder is None or not (folder / MANIFEST).exists():
        return ""
    commits = folder / COMMITS
    if commits.exists() and not commits.stat().st_size:
        return f"; no model was finished; the same command with -o {folder} goes on"
    return (
        f"; finished models are kept: `initlab report {folder}` shows them, the same command with -o {folder} resumes"
    )
