"""Does the best learning rate transfer? Standard parametrisation, muP, depth-muP and CompleteP on small NanoGPTs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/transfer.py --data tinyshakespeare.txt [--only width|depth] [--write]

Two runs of `initlab.transfer`, kept in initlab-runs/transfer-width and -depth, where they go on if they were stopped:
the standard parametrisation (`nanogpt-width-matched`: std ∝ 1/√width, one rate) and `mup` over width; the same, with
`depth-mup` and `completep`, over depth. Base: the smallest model. The text is karpathy/char-rnn's tinyshakespeare.txt,
as bytes; other text does too. --write keeps tables and pictures beside this file. About an hour on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import initlab

RUNS = {
    "width": (["nanogpt-width-matched", "mup"], {"widths": (64, 128, 256)}),
    "depth": (["nanogpt-width-matched", "depth-mup", "completep"], {"depths": (2, 4, 8, 16)}),
}
FIGURES = {"width": ("transfer", "transfer-width"), "depth": ("transfer", "transfer-depth")}
HERE = Path(__file__).parent


def page(results: dict[str, initlab.Transfer], data: str) -> str:
    """What was found, as Markdown."""
    lines = ["# Does the best learning rate transfer?", ""]
    lines += [
        f"`python benchmarks/transfer.py --data {data} --write`; the pages: "
        "[width](../reports/parametrisations/width/report.html), "
        "[depth](../reports/parametrisations/depth/report.html).",
        "",
    ]
    for name, result in results.items():
        runs, config = result.runs, result.run.manifest["config"]
        lines += [
            f"## Over {name}",
            "",
            f"{len(runs)} runs of {config['steps']} steps ({config['warmups'][0]} of warmup, then a cosine) of AdamW, "
            f"batches of {config['batch_size']} × {config['block_size']} tokens, {config['seeds']} seeds, rates "
            f"{min(config['lrs']):.3g} to {max(config['lrs']):.3g}; {_machine(result)}.",
            "",
            *(f"![{figure}](transfer/{name}-{figure}.png)\n" for figure in FIGURES[name]),
            "| recipe | best rate, smallest | largest | drift (95 % interval) | verdict | cost, nats (95 % interval) |",
            "|---|---|---|---|---|---|",
        ]
        for row in result.transfers.to_dict("records"):
            drift = f"{row['axis']}^{row['drift']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
            cost = f"{row['cost']:+.3f} ({row['cost_low']:+.3f} to {row['cost_high']:+.3f})"
            rates = f"{row['small_lr']:.2g} | {row['large_lr']:.2g}"
            lines.append(f"| {row['recipe']} | {rates} | {drift} | {row['verdict']} | {cost} |")
        axis = result.transfers["axis"].iloc[0]
        losses = runs.groupby(["recipe", axis, "lr"], sort=False, observed=True)["loss"].mean().unstack("lr")
        lines += ["", "Mean loss over seeds, nats, by rate:", ""]
        lines.append(f"| recipe | {axis} | {' | '.join(f'{lr:.2g}' for lr in losses.columns)} |")
        lines.append("|---|" + "---|" * (len(losses.columns) + 1))
        for (recipe, size), row in losses.iterrows():
            best = row.min()
            cells = [f"**{loss:.3f}**" if loss == best else f"{loss:.3f}" for loss in row]
            lines.append(f"| {recipe} | {size} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _machine(result: initlab.Transfer) -> str:
    manifest = result.run.manifest
    environment = manifest["environment"]
    minutes = manifest["seconds"] / 60
    return (
        f"{environment['device']}, {minutes:.0f} minutes with {environment['jobs']} run at a time, the machine shared"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="docstrings")
    parser.add_argument("--only", choices=RUNS)
    parser.add_argument("--runs", type=Path, default=Path("initlab-runs"), help="folder that holds the runs")
    parser.add_argument("--load", action="store_true", help="train nothing: what --runs holds")
    parser.add_argument("--write", action="store_true", help="into transfer.md, .csv and pictures")
    options = parser.parse_args()
    results: dict[str, initlab.Transfer] = {}
    for name, (recipes, sizes) in RUNS.items():
        if options.only in (None, name):
            out = options.runs / f"transfer-{name}"
            text, run = initlab.Text(options.data), initlab.RunOptions(device="cpu", out=out)
            found = initlab.load(out) if options.load else initlab.transfer(recipes, text=text, run=run, **sizes)
            assert isinstance(found, initlab.Transfer)
            results[name] = found
            print(found)
    if options.write:
        (HERE / "transfer").mkdir(exist_ok=True)
        for name, result in results.items():
            for figure in FIGURES[name]:
                result.plot(figure).savefig(HERE / "transfer" / f"{name}-{figure}.png", dpi=110)
        frames = [result.transfers for result in results.values()]
        pd.concat(frames).to_csv(HERE / "transfer.csv", index=False, float_format="%.6g")
        (HERE / "transfer.md").write_text(page(results, Path(options.data).name))


if __name__ == "__main__":
    main()
