"""The command line: parses, calls, prints. Results go to stdout, progress and errors to stderr.

A module for each command. Exit codes: 0 done; 1 findings at or above --fail-on; 2 usage or failure; 128 + n ended by
signal n: 130 interrupted, 143 terminated, 129 hung up.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from initlab import __version__
from initlab.cli import (
    compare,
    confirm,
    diff,
    fix,
    predict,
    probe,
    recipes,
    report,
    rules,
    scale,
    trace_init,
    train,
    transfer,
)
from initlab.cli.common import kept
from initlab.cli.examples import below
from initlab.cli.settings import apply_settings
from initlab.environment import COMMAND
from initlab.errors import ConfigError, InitlabError

_LISTS = ("blocks", "modules", "metrics")  # None where they aren't given


class Ended(KeyboardInterrupt):
    """A signal that ends the command as Ctrl-C does: what is finished is kept.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def _hear() -> dict[int, Any]:
    """Raise Ended on what schedulers and terminals end a process with; returns what was done of each signal before."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        return {}
    # what is ignored, as under nohup, or heard by somebody else stays so
    return {number: signal.signal(number, _end) for number in numbers if signal.getsignal(number) == signal.SIG_DFL}


def _end(number: int, _: Any) -> None:
    raise Ended(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding shows ? for ×, and goes on
    described = parser()
    options = described.parse_args(arguments)
    if options.run is None:
        described.print_help()
        return 2
    command = COMMAND.set(shlex.join(["initlab", *arguments]))
    heard = _hear()
    try:
        _refuse_empty(options)
        apply_settings(options, Path.cwd())
        with redirect_stderr(io.StringIO()) if getattr(options, "quiet", False) else nullcontext():
            code: int = options.run(options)
        sys.stdout.flush()
        return code
    except InitlabError as error:
        from initlab.report.terminal import harmless

        print(f"initlab: error: {harmless(str(error))}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "tiktoken"):
            raise
        needs = f"this command needs {error.name}, which isn't installed; `initlab report` works without"
        print(f"initlab: error: {needs}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, Ended) else signal.SIGINT
        how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        with contextlib.suppress(OSError):  # a terminal that was hung up
            print(f"initlab: {how}{kept(options)}", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:
        # the reader (head, less) has gone; Python would complain again when it flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        COMMAND.reset(command)
        for known, before in heard.items():
            signal.signal(known, before)


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    described = argparse.ArgumentParser(
        prog="initlab",
        description="Does the signal of a freshly initialised transformer keep its scale, and which line to change?",
        epilog="Exit codes: 0 done, 1 findings at or above --fail-on, 2 usage or failure, 128 + n ended by signal n.",
    )
    described.add_argument("--version", action="version", version=f"initlab {__version__}")
    described.set_defaults(run=None)
    commands = described.add_subparsers(title="commands", metavar="COMMAND")
    for command in (
        compare,
        probe,
        scale,
        transfer,
        confirm,
        train,
        diff,
        fix,
        trace_init,
        predict,
        report,
        recipes,
        rules,
    ):
        command.add(commands)
    for name, each in commands.choices.items():
        each.epilog, each.formatter_class = below(name), _Help
    _add_completion(described)
    return described


def _refuse_empty(options: argparse.Namespace) -> None:
    """Refuse an empty text: that of a variable that isn't set would mean the default, or the working directory."""
    for name, value in vars(options).items():
        values = value if isinstance(value, list) else [value]
        if (
            any(isinstance(each, str) and not each.strip() for each in values)
            or value == ()
            or (value == [] and name in _LISTS)
        ):
            raise ConfigError(f"{name.replace('_', '-')} is empty; give it a value, or leave it out")


class _Help(argparse.HelpFormatter):
    """Text is filled, but for the lines of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def _add_completion(described: argparse.ArgumentParser) -> None:
    """Give it `--print-completion bash`, by shtab."""
    try:
        import shtab
    except ImportError:
        return
    shtab.add_argument_to(described, "--print-completion", help="print a script that completes commands in a shell")
