"""The note that initlab started from, put to the test: every statement a claim, with its measurement and verdict.

    python examples/nanogpt_claims.py                  # into initlab-runs/nanogpt-claims; half an hour on 2 cores
    python examples/nanogpt_claims.py --quick          # inits alone, smaller: a minute; training stays undecided

Writes claims.json, index.html, figures/*.png, data/*.csv, and a run folder per measurement, which `initlab report
FOLDER` shows. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from nanogpt_note.evidence import Claim, Evidence, growth, stds, warmup_gains
from nanogpt_note.figures import FIGURES
from nanogpt_note.init_claims import INIT_CLAIMS
from nanogpt_note.page import GLYPHS, answer, page_text
from nanogpt_note.training_claims import TRAINING_CLAIMS

import initlab
from initlab.cli.common import TerminalProgress
from initlab.report import figures
from initlab.report.svg import both
from initlab.results import Confirmation

VARIANTS = ["nanogpt", "nanogpt-no-depth-scale", "out-x0.02", "out-xsqrt2overL", "out-xinvsqrtL", "zero-out"]
OTHERS = ["std-0.02-over-sqrt-d", "nanogpt-width-matched", "torch-default"]
WIDE = ["nanogpt", "nanogpt-no-depth-scale", "out-x0.02", "zero-out", "torch-default"]
GRID: dict[str, Any] = {"lrs": (1e-3, 3e-3), "warmups": (0, 40), "steps": 150}
DATA = "docstrings"  # what the committed runs read
NANOGPT = initlab.NanoGPTConfig(n_embd=128, n_head=2, block_size=128)
TRAINED = initlab.NanoGPTConfig(n_embd=64, n_head=4, block_size=64)


def gather(out: Path, *, quick: bool) -> Evidence:
    """Measure and train everything that the claims are judged by."""
    depths, seeds = ((2, 4), 1) if quick else ((4, 12, 24, 48), 3)
    wide_depths, width = ((2, 4), 192) if quick else ((4, 12, 48), 768)
    text = initlab.Text(data=DATA, batch_size=2)

    def measured(name: str, recipes: list[str], **options: Any) -> initlab.Comparison:
        with TerminalProgress(out / name, name) as progress:
            run = initlab.RunOptions(out=out / name, progress=progress)
            return initlab.compare(recipes, text=text, run=run, **{"model": NANOGPT, **options})

    def trained(name: str, recipes: list[str], **options: Any) -> Confirmation:
        with TerminalProgress(out / name, name) as progress:
            run = initlab.RunOptions(out=out / name, progress=progress)
            return initlab.confirm(recipes, text=initlab.Text(data=DATA), run=run, **GRID, **options)

    narrow = measured("narrow", VARIANTS + OTHERS, depths=depths, widths=(128,), seeds=seeds)
    wide = measured("wide", WIDE, depths=wide_depths, widths=(width,), seeds=min(seeds, 2))
    kinds = {
        name: measured(
            name,
            ["nanogpt"],
            model=replace(NANOGPT, activation=name),
            depths=depths[:2],
            widths=(width // 2,),
            seeds=seeds,
        )
        for name in ("gelu", "relu", "silu")
    }
    if quick:
        return Evidence(narrow, wide, kinds)
    grid = trained("training", VARIANTS + OTHERS, depths=(4, 24), seeds=4)
    by_activation = {
        name: trained(f"training-{name}", ["nanogpt"], model=replace(TRAINED, activation=name), depths=(4,), seeds=5)
        for name in kinds
    }
    return Evidence(narrow, wide, kinds, grid, by_activation)


def draw(name: str, evidence: Evidence) -> Any:
    """A picture of this report, or of the runs behind it."""
    if name in FIGURES:
        return FIGURES[name](evidence, "light")
    run = evidence.wide if name == "first-loss" else evidence.trained
    assert run is not None
    return figures.draw(name, run.run)


def write(found: list[Claim], evidence: Evidence, out: Path) -> Path:
    """claims.json, the pictures, and the page."""
    shown = list(dict.fromkeys(claim.figure for claim in found if claim.figure and _drawable(claim.figure, evidence)))
    (out / "figures").mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name in shown:
        words = "; ".join(claim.measured for claim in found if claim.figure == name)
        pictures[name], pixels = both(draw(name, evidence), name, name.replace("-", " "), words)
        (out / "figures" / f"{name}.png").write_bytes(pixels)
    (out / "claims.json").write_text(
        json.dumps([asdict(claim) for claim in found], indent=1, ensure_ascii=False) + "\n"
    )
    (out / "data").mkdir(exist_ok=True)
    for name, frame in tables(evidence).items():
        frame.to_csv(out / "data" / f"{name}.csv", index=False, float_format="%.6g")
    manifest = (evidence.trained or evidence.narrow).run.manifest
    runs = [evidence.narrow, evidence.wide, *evidence.activations.values()]
    text = page_text(
        found,
        pictures,
        environment=manifest["environment"],
        commit=(manifest.get("git") or {}).get("commit", ""),
        models=sum(run.summary["run_id"].nunique() for run in runs),
        trainings=sum(
            len(run.runs) for run in [*evidence.trained_activations.values(), evidence.trained] if run is not None
        ),
        seconds=sum(run.run.manifest["seconds"] for run in _all(evidence)),
    )
    (out / "index.html").write_text(text, encoding="utf-8")
    if evidence.trained is not None:
        evidence.trained.report()
    return out / "index.html"


def tables(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """What the claims read off the runs."""
    inits = (evidence.narrow, evidence.wide)
    weights = [
        stds(run, recipe, role).assign(recipe=recipe, role=role)
        for run in inits
        for recipe in run.records["recipe"].unique()
        for role in ("token_embed", "pos_embed", "attn_qkv", "attn_out", "mlp_in", "mlp_out")
    ]
    found = {"weights": pd.concat(weights), "growth": pd.concat([growth(run) for run in inits])}
    if evidence.trained is not None:
        found["warmup-gains"] = warmup_gains(evidence.trained.runs)
    return found


def _all(evidence: Evidence) -> list[Any]:
    runs = [evidence.narrow, evidence.wide, *evidence.activations.values(), *evidence.trained_activations.values()]
    return [*runs, evidence.trained] if evidence.trained is not None else runs


def _drawable(name: str, evidence: Evidence) -> bool:
    return evidence.trained is not None or name in ("weights", "projections", "growth", "first-loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="inits alone, and smaller")
    parser.add_argument("-o", "--out", type=Path, help="(initlab-runs/nanogpt-claims, or -quick)")
    options = parser.parse_args()
    out = options.out or Path("initlab-runs") / f"nanogpt-claims{'-quick' if options.quick else ''}"
    try:
        evidence = gather(out, quick=options.quick)
    except initlab.InitlabError as error:
        sys.exit(f"nanogpt_claims: error: {error}")
    found = [judge(evidence) for judge in (*INIT_CLAIMS, *TRAINING_CLAIMS)]
    page = write(found, evidence, out)
    for claim in found:
        print(f"{GLYPHS[claim.verdict]} {claim.verdict:<22} {claim.statement}\n    {claim.measured}")
    print(answer(found))
    print(f"report  {page}")


if __name__ == "__main__":
    main()
