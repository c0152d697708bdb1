"""`initlab probe`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from initlab.cli.common import add_measuring, default_out, names, overrides, set_threads, show, text_of
from initlab.cli.given import add_given, batch_given, model_given, read_files, said

if TYPE_CHECKING:
    from initlab.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
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
    add_given(probe)
    probe.add_argument("--blocks", type=names, metavar="GLOB,…", help="the blocks, where they aren't found: net.layer*")
    probe.add_argument(
        "--modules", type=names, metavar="GLOB,…", help="look at these alone: globs ('*.mlp.*') or roles (mlp_out)"
    )
    probe.add_argument(
        "--metrics",
        type=names,
        metavar="NAME,…",
        help="further statistics: registered ones (abs_median, channel_rms, sink) or file.py:function",
    )
    probe.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, text and dropout (0)")
    add_measuring(probe, fail_on="error")
    probe.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    probe.set_defaults(run=_probe)


def _probe(options: argparse.Namespace) -> int:
    from initlab import rundir
    from initlab.api.probe import probe

    set_threads(options)
    read_files(options.model, options.recipe, options.batch)
    overrides(options)
    text = text_of(options)
    out = Path(options.out) if options.out else default_out("probe")
    if options.out:
        rundir.check(out)  # before anything is measured for it
    sizes = {key: value for key in ("n_layer", "n_embd", "n_head") if (value := getattr(options, key)) is not None}
    model, drawn = model_given(options, sizes, options.recipe)
    batch = batch_given(options, model)
    print(f"initlab: measuring {type(model).__name__}; writing to {out}", file=sys.stderr)
    result = probe(
        model,
        batch,
        recipe=options.recipe or drawn,
        text=text,
        seed=options.seed,
        stats=options.stats,
        dtype=options.dtype,
        sites=options.blocks,
        modules=options.modules,
        metrics=options.metrics,
    )
    result.run.manifest["config"] |= said(options)
    result.save(out)
    return show(result, options, out)
