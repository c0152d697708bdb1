"""The command line: parses, calls, prints. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done; 1 findings at or above --fail-on; 2 usage or failure; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from initlab import __version__
from initlab.errors import ConfigError, InitlabError

if TYPE_CHECKING:
    from initlab.results import Result

SEVERITIES = ("error", "warning", "info")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding shows ? for ×, and goes on
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help()
        return 2
    options.command_line = shlex.join(["initlab", *arguments])
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except InitlabError as error:
        print(f"initlab: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "tiktoken"):
            raise
        needs = f"this command needs {error.name}, which isn't installed; `initlab report` works without"
        print(f"initlab: error: {needs}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"initlab: interrupted{_kept(options)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader (head, less) has gone; Python would complain again when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="initlab",
        description="Does the signal of a freshly initialised transformer keep its scale, and which line to change?",
        epilog="Exit codes: 0 done, 1 findings at or above --fail-on, 2 usage or failure, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"initlab {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    compare = commands.add_parser(
        "compare",
        help="measure init recipes side by side on NanoGPT, across depths",
        description="Measure init recipes side by side on NanoGPT, over depths, widths and seeds, on real text.",
    )
    compare.add_argument("recipes", nargs="+", metavar="RECIPE", help="id (see `initlab recipes`) or file.py:name")
    compare.add_argument("--depths", type=_numbers, default=(4, 8, 16), metavar="L,L,…", help="n_layer (4,8,16)")
    compare.add_argument(
        "--n-embd", type=_numbers, default=(384,), metavar="D,D,…", help="widths (384); heads of 64 unless --n-head"
    )
    compare.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of weights and text (3)")
    compare.add_argument("--n-head", type=int, metavar="N", help="attention heads at every width")
    compare.add_argument("--block-size", type=int, default=256, metavar="T", help="tokens in a sequence (256)")
    compare.add_argument("--batch-size", type=int, default=4, metavar="B", help="sequences (4)")
    compare.add_argument("--vocab-size", type=int, metavar="V", help="the tokenizer's, unless --data needs it")
    compare.add_argument("--activation", default="gelu", help="gelu, gelu_tanh, relu, relu2 or silu (gelu)")
    compare.add_argument("--no-bias", action="store_true", help="no bias in linear layers and norms")
    compare.add_argument("--untied", action="store_true", help="lm_head with weights of its own")
    _common(compare, fail_on="never")
    compare.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    compare.set_defaults(run=_compare)

    probe = commands.add_parser(
        "probe",
        help="measure one model",
        description="Measure one model: a preset drawn from a recipe, a nanoGPT checkpoint, or a factory of yours.",
    )
    probe.add_argument(
        "model",
        nargs="?",
        default="shakespeare",
        metavar="MODEL",
        help="preset (shakespeare, shakespeare-cpu, gpt2), ckpt.pt, file.py:factory or package.module:factory "
        "(shakespeare)",
    )
    probe.add_argument(
        "--recipe", metavar="RECIPE", help="draw a preset from it (nanogpt); for other models, what to judge them by"
    )
    probe.add_argument("--n-layer", type=int, metavar="L", help="of a preset, instead of its own")
    probe.add_argument("--n-embd", type=int, metavar="D", help="of a preset, instead of its own")
    probe.add_argument("--n-head", type=int, metavar="N", help="of a preset, instead of its own")
    probe.add_argument("--batch-size", type=int, metavar="B", help="sequences (about 1024 tokens)")
    probe.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, text and dropout (0)")
    _common(probe, fail_on="error")
    probe.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    probe.set_defaults(run=_probe)

    report = commands.add_parser(
        "report",
        help="render saved runs again; needs no torch",
        description="Judge and render saved runs again: terminal summary, report.html and figures. Needs no torch.",
    )
    report.add_argument("runs", nargs="+", metavar="DIR", help="folder of a run")
    report.add_argument("-o", "--out", metavar="DIR", help="write there instead of into the run's own folder")
    _output(report, fail_on="never")
    report.set_defaults(run=_report)

    recipes = commands.add_parser(
        "recipes",
        help="list init recipes, or show what one draws",
        description="List the recipes, or show what one draws for given sizes: role, distribution, std, formula.",
    )
    recipes.add_argument("name", nargs="?", metavar="NAME", help="id or file.py:name")
    recipes.add_argument("--n-layer", type=int, default=12, metavar="L", help="(12)")
    recipes.add_argument("--n-embd", type=int, default=768, metavar="D", help="(768)")
    recipes.add_argument("--n-head", type=int, metavar="N", help="heads of 64 unless given")
    recipes.add_argument("--block-size", type=int, default=1024, metavar="T", help="(1024)")
    recipes.add_argument("--vocab-size", type=int, default=50304, metavar="V", help="(50304)")
    recipes.add_argument("--untied", action="store_true", help="lm_head with weights of its own")
    recipes.add_argument("--format", choices=("text", "json"), default="text", help="of stdout (text)")
    recipes.set_defaults(run=_recipes)
    return parser


def _common(parser: argparse.ArgumentParser, *, fail_on: str) -> None:
    parser.add_argument(
        "--data",
        default="docstrings",
        metavar="PATH",
        help="text file, folder of .txt and .md, nanoGPT .bin, `uniform` (random ids), `docstrings` (Python's own)",
    )
    parser.add_argument("--tokenizer", metavar="NAME", help="bytes (default), char, gpt2 or another of tiktoken's")
    parser.add_argument(
        "--stats", choices=("full", "light"), default="full", help="light: mean, variance, rms, maximum alone (full)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="autocast of the forward pass (float32: none)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of torch on the CPU (all cores)")
    parser.add_argument("-o", "--out", metavar="DIR", help="output folder (initlab-runs/<command>-<time>)")
    parser.add_argument("--no-report", action="store_true", help="tables only, no report.html and figures")
    _output(parser, fail_on=fail_on)


def _output(parser: argparse.ArgumentParser, *, fail_on: str) -> None:
    parser.add_argument(
        "--fail-on",
        choices=(*SEVERITIES, "never"),
        default=fail_on,
        help=f"exit with 1 on findings of this severity or above ({fail_on})",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of stdout (text)")


def _compare(options: argparse.Namespace) -> int:
    from initlab import api

    _threads(options)
    out = Path(options.out) if options.out else _default_out("compare")
    options.folder = out
    with _Progress(out) as progress:
        result = api.compare(
            options.recipes,
            depths=options.depths,
            widths=options.n_embd,
            seeds=options.seeds,
            n_head=options.n_head,
            block_size=options.block_size,
            batch_size=options.batch_size,
            vocab_size=options.vocab_size,
            bias=not options.no_bias,
            activation=options.activation,
            tie_weights=not options.untied,
            data=options.data,
            tokenizer=options.tokenizer,
            stats=options.stats,
            dtype=options.dtype,
            device=options.device,
            out=out,
            progress=progress,
            command=options.command_line,
        )
    return _show(result, options, out)


def _probe(options: argparse.Namespace) -> int:
    from initlab import api, rundir
    from initlab.models.loading import choose_device, load_model

    _threads(options)
    out = Path(options.out) if options.out else _default_out("probe")
    if options.out:
        rundir.check(out)  # before anything is measured for it
    sizes = {key: value for key in ("n_layer", "n_embd", "n_head") if (value := getattr(options, key)) is not None}
    model, drawn = load_model(
        options.model, sizes, recipe=options.recipe, seed=options.seed, data=options.data, tokenizer=options.tokenizer
    )
    model.to(choose_device(options.device))
    print(f"initlab: measuring {type(model).__name__}; writing to {out}", file=sys.stderr)
    result = api.probe(
        model,
        recipe=options.recipe or drawn,
        data=options.data,
        tokenizer=options.tokenizer,
        batch_size=options.batch_size,
        seed=options.seed,
        stats=options.stats,
        dtype=options.dtype,
        command=options.command_line,
    )
    result.save(out)
    return _show(result, options, out)


def _report(options: argparse.Namespace) -> int:
    from initlab.results import load

    if options.out and len(options.runs) > 1:
        raise ConfigError(f"-o takes one run at a time; {len(options.runs)} were given")
    codes = []
    for name in options.runs:
        result = load(name)
        options.no_report = False
        codes.append(_show(result, options, Path(options.out or name)))
    return max(codes)


def _recipes(options: argparse.Namespace) -> int:
    from initlab.recipes import registry
    from initlab.recipes.tabulating import evaluate
    from initlab.report import catalogue

    if options.name is None:
        known = registry.all_recipes().values()
        if options.format == "json":
            rows = [{"id": r.id, "family": r.family, "summary": r.summary, "source": r.source} for r in known]
            print(json.dumps(rows, ensure_ascii=False, indent=1))
        else:
            print(catalogue.catalogue_text(list(known), color=_color()), end="")
        return 0
    entry = registry.get(options.name)
    size = {
        "n_layer": options.n_layer,
        "n_embd": options.n_embd,
        "n_head": options.n_head or max(options.n_embd // 64, 1),
        "block_size": options.block_size,
        "vocab_size": options.vocab_size,
    }
    wrong = [name for name, value in size.items() if value < 1]
    if wrong:
        raise ConfigError(f"{wrong[0]} is {size[wrong[0]]}; expected at least 1")
    evaluated = evaluate(entry, [size], tied=not options.untied)
    if options.format == "json":
        print(json.dumps({"id": entry.id, **evaluated}, ensure_ascii=False, indent=1))
    else:
        print(catalogue.recipe_text(entry.id, evaluated, size, color=_color()), end="")
    return 0


def _show(result: Result, options: argparse.Namespace, out: Path) -> int:
    """Write the report, print the summary, and turn findings into an exit code."""
    from initlab.results import json_ready

    page = None if options.no_report else result.report(out)
    if options.format == "json":
        found = {
            "out": str(out),
            "findings": [finding.as_dict() for finding in result.findings],
            "summary": json.loads(result.summary.to_json(orient="records")),
        }
        print(json.dumps(json_ready(found), ensure_ascii=False, indent=1))
    else:
        print(result._text(color=_color()), end="")
        print(f"report  {page}" if page else f"tables  {out}")
    worst = result.worst
    if options.fail_on == "never" or worst is None:
        return 0
    return int(SEVERITIES.index(worst) <= SEVERITIES.index(options.fail_on))


class _Progress:
    """Prints the estimate and the output folder, then draws a bar on a terminal."""

    def __init__(self, out: Path):
        self.out = out
        self.stack = ExitStack()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def start(self, work: float, cells: int, seconds: float) -> None:
        from initlab.report import console

        about = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        print(f"initlab: {cells} models to measure, about {about}; writing to {self.out}", file=sys.stderr)
        self.bar = self.stack.enter_context(console.Progress(work, "compare"))

    def advance(self, work: float, text: str) -> None:
        self.bar.advance(work, text)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 4,8,16") from None


def _threads(options: argparse.Namespace) -> None:
    # OpenMP's spinning threads slow a shared machine several times over; it must be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.threads is None:
        return
    if options.threads < 1:
        raise ConfigError(f"--threads is {options.threads}; expected at least 1")
    import torch

    torch.set_num_threads(options.threads)


def _default_out(command: str) -> Path:
    return Path("initlab-runs") / f"{command}-{datetime.now(UTC):%Y%m%dT%H%M%S}"


def _color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _kept(options: argparse.Namespace) -> str:
    folder = getattr(options, "folder", None)
    if folder is None or not (folder / "run.json").exists():
        return ""
    return (
        f"; finished models are kept: `initlab report {folder}` shows them, the same command with -o {folder} resumes"
    )
