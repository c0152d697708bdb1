"""`initlab fix`: the smallest change of the init that clears the findings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.cli.common import (
    add_output,
    add_tokenizer,
    failing_severity,
    overrides,
    print_for_programs,
    set_threads,
    text_of,
)
from initlab.cli.given import add_given, batch_given, model_given, read_files
from initlab.errors import ConfigError
from initlab.judge import reaches

if TYPE_CHECKING:
    from torch import nn

    from initlab.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    fix = commands.add_parser(
        "fix",
        help="propose the smallest change of the init that clears the findings",
        description="Propose the smallest change of a fresh model's weights that brings back what is odd about them, "
        "proved on a copy: std found and proposed per role with the reason, findings before and after. What is wired "
        "wrongly is said with the line to change.",
    )
    fix.add_argument(
        "model",
        metavar="MODEL",
        help="file.py:factory, package.module:factory, ckpt.pt, or a preset (shakespeare, shakespeare-cpu, gpt2)",
    )
    fix.add_argument("--recipe", metavar="RECIPE", help="what the model should have been drawn from")
    fix.add_argument("--save", metavar="FILE", help="write the changed model's state_dict there, for load_state_dict")
    fix.add_argument(
        "-o", "--out", metavar="DIR", help="write a report there: the model as found beside the changed copy"
    )
    fix.add_argument("--data", default="english", metavar="PATH", help="text to measure with, as for `probe`")
    add_tokenizer(fix)
    add_given(fix)
    fix.add_argument("--seed", type=int, default=0, metavar="N", help="of the text and of what is drawn (0)")
    fix.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    fix.add_argument("--threads", type=int, metavar="N", help="of torch on the CPU (all cores)")
    add_output(fix, fail_on="error", baseline=False)
    fix.set_defaults(run=_fix)


def _fix(options: argparse.Namespace) -> int:
    from initlab import rundir
    from initlab.api.fix import fix
    from initlab.report.formats import json_ready

    set_threads(options)
    read_files(options.model, options.recipe, options.batch)
    judging, text = overrides(options), text_of(options)
    target = _writable(options.save)
    if options.out is not None:
        rundir.check(Path(options.out))  # before anything is measured for it
    model, _ = model_given(options, {}, None)
    batch = batch_given(options, model)
    print(f"initlab: measuring {type(model).__name__} and changed copies of it", file=sys.stderr)
    proposal = fix(
        model,
        batch,
        recipe=options.recipe,
        seed=options.seed,
        text=text,
        **judging,
    )
    page = proposal.report(options.out) if options.out is not None else None
    saved = target is not None and bool(proposal.changes)
    if target is not None and saved:
        proposal.apply()
        _save(model, target)
    if options.format == "json":
        found: dict[str, Any] = {
            "model": type(model).__name__,
            "problems": [finding.as_dict() for finding in proposal.problems],
            "changes": proposal.rows,
            "not_proposed": proposal.not_proposed,
            "wiring": proposal.wiring,
            "left": [finding.as_dict() for finding in proposal.left],
            "report": str(page) if page else None,
            "saved": str(target) if saved else None,
        }
        print(json.dumps(json_ready(found), ensure_ascii=False, indent=1))
    elif options.format != "text":  # of the model as it was given; the exit code is of what stays
        print_for_programs(proposal.before.document(), options)
    else:
        print(proposal)
        if page is not None:
            print(f"\nreport  {page}")
        if target is not None:
            print(f"\nweights  {target}" if saved else f"\nnothing was changed, so {target} wasn't written")
    fails = failing_severity(options)
    return int(any(reaches(finding.severity, fails) for finding in proposal.left))


def _writable(save: str | None) -> Path | None:
    """Checked before anything is measured for it."""
    if save is None:
        return None
    target = Path(save)
    if target.exists() or not target.parent.is_dir():
        reason = "it exists already" if target.exists() else f"there is no folder {target.parent}"
        raise ConfigError(f"--save {save}: {reason}; name a new file in a folder that exists")
    return target


def _save(model: nn.Module, target: Path) -> None:
    import torch

    try:
        torch.save(model.state_dict(), target)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"--save {target}: can't be written: {error}") from None
