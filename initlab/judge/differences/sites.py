"""By how much a signal differs in scale between two inits, site by site, and what of that may be the draw's luck.

With several draws of both, the scatter between them tells: the logarithms of their variances, all blocks of a site
together, by Student's t. With one draw each nothing in the run tells, and the scatter is taken from NanoGPTs of 32 to
256 features over eight draws on one batch (nanogpt and torch-default, 4 blocks): the logarithm of a variance has a
standard deviation of up to 0.1; of up to 0.25 of what attention gives and of the gradients that come through it, where
few directions decide, and of 2/√n_embd in models narrower than 64 (the error that RES003 allows attention). Three of
these for each side's draw are what is called chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from initlab.judge.students import t_quantile
from initlab.rundir import Run
from initlab.schema import SITES

SCATTER, ATTENTION = 0.1, 0.25  # standard deviation of the logarithm of one draw's variance
LEAST = 1.05  # ratio below which nothing is named, however little draws scatter
SAME = 1.01  # of one set of weights on one batch: rounding
SAME_TRAINING = 1.1  # likewise in train mode, where dropout draws
LEVEL = 1e-4  # of a test: a run has hundreds of sites
_ERRORS = 3.0
# where the draw of a few directions decides
_FEW = {
    "activation": ("attn_logits", "attn_pattern", "attn_z", "attn_out", "cross_attn_out", "mixer_out"),
    "grad": ("attn_z", "q", "k", "v", "ln_1"),
}
COLUMNS = ("kind", "site", "layer", "module", "var_a", "var_b", "ratio", "chance", "draws_a", "draws_b", "differs")


@dataclass(frozen=True, slots=True)
class Basis:
    """What differences of activations and gradients were held against.

    Attributes:
        kind: `draws` (the scatter between several), `one draw`, or `same weights`.
        words: as a sentence.
    """

    kind: str
    words: str


def sites(a: Run, b: Run, *, blocks: bool, same: bool) -> tuple[pd.DataFrame, Basis]:
    """Make a row for each site, block and kind that both runs have.

    Columns: kind (activation, grad), site, layer, module (of B's row, of sites that are any module), var_a, var_b
    (geometric means over draws; of gradients times n_tokens² where the batches differ in it), ratio (B ÷ A), chance
    (the factor within which a ratio may be the draws' luck), draws_a, draws_b, differs.

    Args:
        a: of one recipe and one size.
        b: likewise.
        blocks: whether they have the same number of blocks; else only sites outside them are compared.
        same: whether both hold the very same weights and read the same batch.
    """
    tables = [_variances(run, blocks) for run in (a, b)]
    tokens = [float(run.tables.summary["n_tokens"].iloc[0]) for run in (a, b)]
    if tokens[0] != tokens[1]:  # the gradient of a mean loss
        for table, count in zip(tables, tokens, strict=True):
            table["log"] = table["log"].where(table["kind"] != "grad", table["log"] + 2 * math.log(count))
    keys = ["kind", "site", "layer", "module"]
    sums = [_summed(table, keys) for table in tables]
    both = sums[0].merge(sums[1], on=keys, suffixes=("_a", "_b"), how="inner")
    both["ratio"] = np.exp((both["log_b"] - both["log_a"]).clip(-700, 700))
    width = int(a.tables.summary["n_embd"].max())
    mode = str(a.tables.summary["mode"].iloc[0])
    both["chance"], basis = _chance(both, width, mode, same=same)
    both["var_a"], both["var_b"] = np.exp(both["log_a"]), np.exp(both["log_b"])
    both["differs"] = _differs(both)
    both["layer"] = both["layer"].where(both["layer"] >= 0).astype("Int64")
    return both[list(COLUMNS)].reset_index(drop=True), basis


def _variances(run: Run, blocks: bool) -> pd.DataFrame:
    rows = run.tables.records
    rows = rows[rows["kind"].isin(["activation", "grad"])]
    rows = rows if blocks else rows[rows["layer"].isna()]
    site = rows["site"].astype(str)
    found = pd.DataFrame(
        {
            "kind": rows["kind"].astype(str),
            "site": site,
            "layer": rows["layer"].fillna(-1).astype(int),
            "module": rows["module"].astype(str).where(site == "module", ""),
            "run_id": rows["run_id"].astype(str),
            "position": rows["position"],
            "var": rows["var"],
        }
    )
    keys = ["kind", "site", "layer", "module", "run_id"]
    found = found.groupby(keys, sort=False).agg(var=("var", "mean"), position=("position", "min")).reset_index()
    with np.errstate(divide="ignore", invalid="ignore"):
        return found.assign(log=np.log(found["var"].to_numpy(float)))


def _summed(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean of the logarithms over draws, the sum of their squares about it, and how many there are."""
    logs = table.groupby(keys, sort=False)["log"]
    with np.errstate(invalid="ignore"):  # of zeros
        found = pd.DataFrame({"log": logs.mean(), "draws": logs.size(), "spread": logs.var(ddof=1)})
    found["spread"] = (found["spread"] * (found["draws"] - 1)).where(found["draws"] > 1, 0.0).fillna(0.0)
    return found.reset_index()


def _chance(both: pd.DataFrame, width: int, mode: str, *, same: bool) -> tuple[pd.Series, Basis]:
    if same:
        factor = SAME_TRAINING if mode == "train" else SAME
        words = f"both hold the same weights and read the same batch: beyond ×{factor:g} it is the forward's doing"
        return pd.Series(factor, both.index), Basis("same weights", words)
    few = pd.Series(False, both.index)
    for kind, names in _FEW.items():
        few |= (both["kind"] == kind) & both["site"].isin(names)
    attention = max(ATTENTION, 2 / math.sqrt(max(width, 1)) if width < 64 else 0.0)
    usual = pd.Series(np.where(few, attention, SCATTER), both.index)
    freedom = both["draws_a"] + both["draws_b"] - 2
    groups = both.assign(freedom=freedom, squares=both["spread_a"] + both["spread_b"]).groupby(["kind", "site"])
    squares, freedom = groups["squares"].transform("sum"), groups["freedom"].transform("sum")
    scattered = (freedom > 0) & (squares > 0)
    if not scattered.any():
        factors = [math.exp(_ERRORS * math.sqrt(2) * each) for each in (SCATTER, attention)]
        words = (
            f"one draw each: ratios within ×{factors[0]:.2g}, or ×{factors[1]:.2g} where attention decides, may be "
            "chance (as NanoGPTs scatter over draws)"
        )
        return np.exp(_ERRORS * math.sqrt(2) * usual).clip(lower=LEAST), Basis("one draw", words)
    deviation = np.sqrt(squares / freedom.clip(lower=1)).where(scattered, usual)
    # blocks of one draw share its embedding and each other's writes: half of them count
    counted = [
        max(int(total / 2), int(single)) if ok else 0
        for total, single, ok in zip(freedom, both["draws_a"] + both["draws_b"] - 2, scattered, strict=True)
    ]
    quantile = pd.Series([t_quantile(n, LEVEL) if n else _ERRORS for n in counted], both.index)
    error = deviation * np.sqrt(1 / both["draws_a"] + 1 / both["draws_b"])
    draws = sorted({int(n) for n in (*both["draws_a"], *both["draws_b"])})
    words = f"held against the scatter between {' and '.join(map(str, draws))} draws (p below {LEVEL:g})"
    return np.exp((quantile * error).clip(upper=700)).clip(lower=LEAST), Basis("draws", words)


def _differs(both: pd.DataFrame) -> pd.Series:
    apart = (both["log_b"] - both["log_a"]).abs()
    finite = [np.isfinite(both[f"log_{side}"]) for side in ("a", "b")]
    zero = [both[f"log_{side}"] == -np.inf for side in ("a", "b")]
    known: pd.Series = (apart > np.log(both["chance"])) & finite[0] & finite[1]
    return known | (zero[0] != zero[1]) | ((finite[0] | zero[0]) != (finite[1] | zero[1]))


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort rows as a forward pass goes: the embedding, block by block, what follows the last.

    Args:
        frame: of `sites`.
    """
    known = {site: at for at, site in enumerate(SITES)}
    last = frame["layer"].max()
    layer = frame["layer"].astype("Float64").fillna(float(last) + 1 if not pd.isna(last) else 0.0)
    layer = layer.where(frame["site"] != "embed", -1.0)
    place = frame["site"].map(known).fillna(len(known))
    order = frame.assign(_layer=layer, _place=place, _kind=frame["kind"])
    return order.sort_values(["_kind", "_layer", "_place"], kind="stable").drop(columns=["_kind", "_layer", "_place"])
