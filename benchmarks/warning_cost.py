"""What a warning of the probe costs in training: recipes that draw it against those that draw nothing, paired by seed.

    python benchmarks/warning_cost.py CODE FOLDER…   # of `initlab confirm`; run folders are stacked
    python benchmarks/warning_cost.py                # the runs that are kept beside this file

Runs with the same recipe, size, rate, warmup and seed are the same run, so that folders of one protocol can be joined.
The kept runs are those of

    initlab confirm nanogpt nanogpt-no-depth-scale torch-default zero-out
    initlab confirm nanogpt nanogpt-width-matched nanogpt-no-depth-scale --depths 4 --warmups 40
    initlab confirm nanogpt-width-matched --depths 4 --warmups 0
    initlab confirm nanogpt-width-matched --depths 16 --warmups 40

on two x86 cores, Python 3.11.7's docstrings as bytes, width 64, 150 steps, 3 rates, 3 seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import initlab
from initlab.judge.outcomes import run_measures
from initlab.judge.outcomes.effects import over_rates
from initlab.judge.outcomes.measures import losses, whole

KEPT = Path(__file__).with_suffix(".csv")
COLUMNS = ["recipe", "n_layer", "n_embd", "lr", "warmup", "seed", "loss", "codes"]


def measured(folder: str) -> pd.DataFrame:
    """The runs of a folder, and the errors and warnings that their recipe draws at their depth."""
    found = initlab.load(folder)
    codes = found.outcomes.set_index(["recipe", "n_layer"])["codes"]
    runs = run_measures(found.run)
    keys = zip(runs["recipe"].astype(str), runs["n_layer"], strict=True)
    return runs.assign(codes=[codes[key] for key in keys])[COLUMNS]


def costs(runs: pd.DataFrame, code: str) -> pd.DataFrame:
    """Loss of warned recipes minus that of healthy ones, mean over rates: above 0 where the warning is right."""
    rows = []
    for (n_layer, warmup), group in runs.groupby(["n_layer", "warmup"]):
        table = losses(group)
        codes = group.groupby("recipe", observed=True)["codes"].first()
        for with_it in codes.index[[code in each.split() for each in codes]]:
            for without in codes.index[codes == ""]:
                mean = over_rates(whole(table, str(with_it)), whole(table, str(without)))
                if mean.n > 1:
                    low, high = mean.interval()
                    rows.append((with_it, without, n_layer, warmup, mean.n, mean.value, low, high))
    names = ["with it", "without it", "n_layer", "warmup", "seeds", "costs, nats", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("code", nargs="?", default="ACT001")
    parser.add_argument("folders", nargs="*")
    options = parser.parse_args()
    if options.folders:
        runs = pd.concat([measured(folder) for folder in options.folders])
        runs = runs.drop_duplicates(COLUMNS[:6]).sort_values(COLUMNS[:6])
        runs.to_csv(KEPT, index=False, float_format="%.6g", lineterminator="\n")
    else:
        runs = pd.read_csv(KEPT, keep_default_na=False)
    print(f"{len(runs)} runs; what {options.code} costs by this:")
    print(costs(runs, options.code).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
