"""`initlab diff`: what changed between two inits."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.cli.common import (
    add_output,
    add_text,
    failing_severity,
    overrides,
    print_for_programs,
    set_threads,
    text_of,
    use_color,
)
from initlab.cli.given import add_batch, batch_given, read_files
from initlab.errors import ConfigError
from initlab.judge import reaches

if TYPE_CHECKING:
    from initlab.api.diff import Drawn
    from initlab.cli.common import Commands

_WHAT = (
    "a run's folder (of several recipes DIR:RECIPE), file.py:factory, package.module:factory, ckpt.pt, or a preset "
    "(shakespeare, shakespeare-cpu, gpt2; drawn from a recipe gpt2:RECIPE)"
)


def add(commands: Commands) -> None:
    """Declare the command."""
    diff = commands.add_parser(
        "diff",
        help="what changed between two inits: runs, or models",
        description="Say what changed between two inits, beyond the luck of the draws: by role and parameter, by site "
        "and block, in the wiring, and which findings are new or gone. Of two runs nothing is measured and no torch is "
        "needed; models are probed on the same batch.",
    )
    diff.add_argument("a", metavar="A", help=_WHAT)
    diff.add_argument("b", metavar="B", help="likewise")
    for side, what in (("", "of the factories"), ("-a", "of A's factory"), ("-b", "of B's factory")):
        diff.add_argument(
            f"--arg{side}",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help=f"argument {what}, a Python literal or text (none)",
        )
    diff.add_argument("--seeds", type=int, default=1, metavar="N", help="draws of each model, on one batch (1)")
    diff.add_argument("--seed", type=int, default=0, metavar="N", help="of the batch and of the first draw (0)")
    add_text(diff)
    diff.add_argument("--batch-size", type=int, metavar="B", help="sequences (about 1024 tokens)")
    diff.add_argument("--block-size", type=int, metavar="T", help="tokens in a sequence (what both models can read)")
    add_batch(diff, "a function of nothing")
    diff.add_argument("--device", default="auto", help="of models: auto, cpu or cuda (auto)")
    diff.add_argument("--threads", type=int, metavar="N", help="of torch on the CPU (all cores)")
    diff.add_argument("-o", "--out", metavar="DIR", help="write a page there: A beside B")
    add_output(diff, fail_on="never", baseline=False)
    diff.set_defaults(run=_diff)


def _diff(options: argparse.Namespace) -> int:
    from initlab import rundir
    from initlab.api.diff import diff

    runs = [_is_run(name) for name in (options.a, options.b)]
    batch, text = None, text_of(options)
    if not all(runs):
        set_threads(options)
        read_files(options.a, options.b, options.batch)
        batch = batch_given(options)
    elif options.seeds != 1 or options.batch is not None:
        raise ConfigError("A and B are runs, and nothing is drawn: --seeds and --batch are of models")
    judging = overrides(options)
    if options.out:
        rundir.check(Path(options.out))  # before anything is measured for it
    sides = [
        name if saved else _drawn(name, options, given)
        for name, saved, given in zip((options.a, options.b), runs, (options.arg_a, options.arg_b), strict=True)
    ]
    if not all(runs):
        print(f"initlab: measuring {' and '.join(s.name for s in sides if not isinstance(s, str))}", file=sys.stderr)
    found = diff(sides[0], sides[1], batch, seeds=options.seeds, seed=options.seed, text=text, **judging)
    page = found.report(options.out) if options.out else None
    if options.format == "json":
        made: dict[str, Any] = found.as_dict() | {"report": str(page) if page else None}
        print(json.dumps(made, ensure_ascii=False, indent=1))
    elif options.format != "text":  # of B, what is new in it
        print_for_programs(found.document(), options)
    else:
        print(found._text(color=use_color()), end="")
        if page is not None:
            print(f"report  {page}")
    return int(reaches(found.worst_new, failing_severity(options)))


def _is_run(name: str) -> bool:
    """Whether a run is meant: a folder, or one with a recipe behind it."""
    from initlab.rundir import MANIFEST

    head = name.rpartition(":")[0]
    return Path(name).is_dir() or bool(head and not head.endswith(".py") and (Path(head) / MANIFEST).exists())


def _drawn(name: str, options: argparse.Namespace, own: list[str]) -> Drawn:
    """What a name stands for, to be drawn at any seed. Raises ConfigError where it is neither a run nor a model."""
    from initlab.api.diff import Drawn
    from initlab.drawing.loading import choose_device, load_model, parse_arguments
    from initlab.models.config import PRESETS

    preset, _, recipe = name.partition(":")
    known = preset in PRESETS
    if not known and ":" not in name and not name.endswith((".py", ".pt", ".pth", ".ckpt")) and not Path(name).exists():
        raise ConfigError(f"{name!r} is no run's folder and no model; expected {_WHAT}")
    sizes = {"block_size": options.block_size} if known and options.block_size is not None else {}
    arguments = parse_arguments(options.arg) if ":" in name and not known else {}
    arguments |= parse_arguments(own)
    device = choose_device(options.device)

    def make(seed: int) -> Any:
        model, _ = load_model(
            preset if known else name,
            sizes,
            recipe=recipe or None if known else None,
            seed=seed,
            data=options.data,
            tokenizer=options.tokenizer,
            arguments=arguments,
        )
        return model.to(device)

    shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return Drawn(f"{name} ({shown})" if shown else name, make)
