"""What a model's config declares of its init, against what its weights are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from initlab.judge.grouping import grouped
from initlab.judge.remedies import Change, Described, leave, towards
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import CELL, family, rows_of, seeds
from initlab.judge.words import listed, trimmed
from initlab.recipes import Role
from initlab.recipes.base import INNER, OUTPUTS
from initlab.rundir import Run

_BLOCKS = (*INNER, *OUTPUTS)
_DRAWN = (*_BLOCKS, Role.ROUTER, Role.TOKEN_EMBED, Role.POS_EMBED, Role.UNEMBED)
_CUT = (1.0, 0.9866, 0.8796)  # std of a normal that is cut at 3 and at 2 of its std
_NEAR = 0.05  # relative, beside sampling: "has the std that is declared"
_MOST = 0.5  # of the kinds of matrices, from which on the model follows its config in the others
_FEW = 2  # kinds of matrices in the blocks; of fewer it can't be said that none of them follows
_UNIFORM = (-1.4, -1.0)  # excess kurtosis: that of a uniform is -1.2
_NORMAL = 0.7  # of a normal 0; a table of positions beyond it, or with a mean, may be a fixed pattern: sinusoids
_CENTRED = 0.2


def measure_declared_std(run: Run) -> pd.DataFrame:
    """Per kind of matrix under a config that declares a std: its median std, and the factor that the config explains.

    `fits` is 1 where the std is the declared one (cut at two or three of it, scaled by depth, or another number of the
    same config), and where it is a table's 1/√width.
    """
    declared = run.tables.declared
    if declared.empty or not (declared["kind"] == "std").any():
        return pd.DataFrame()
    rows = rows_of(run, "weight")
    rows = rows[rows["role"].isin(_DRAWN) & (rows["std"] > 0) & np.isfinite(rows["std"])]
    parts = []
    for run_id, own in rows.groupby("run_id", observed=True):
        said = declared[declared["run_id"] == run_id]
        if (said["kind"] == "std").any() and len(own):
            own = own.assign(width=own["module"].map(_widths(run, str(run_id))).fillna(own["n_embd"]))
            parts.append(_beside(own, said))
    return pd.concat(parts) if parts else pd.DataFrame()


def _widths(run: Run, run_id: str) -> dict[str, float]:
    """Columns of each matrix: a table's rows may be of another width than the stream."""
    rows = run.tables.draws[run.tables.draws["run_id"] == run_id]
    return dict(zip(rows["module"].astype(str), rows["columns"].astype(float), strict=True))


def _beside(own: pd.DataFrame, said: pd.DataFrame) -> pd.DataFrame:
    names = own["module"].astype(str)
    owner = pd.Series("", index=own.index)
    stds, others = said[said["kind"] == "std"], said[said["kind"] == "other std"]
    for path in sorted(stds["about"].astype(str), key=len):
        owner = owner.mask(names.str.startswith(f"{path}." if path else ""), path)
    by = stds.drop_duplicates("about").set_index("about")
    own = own.assign(family=family(names), owner=owner)
    own = own.assign(said=owner.map(by["said"]).astype(float), name=owner.map(by["name"]).fillna("").astype(str))
    own = own[own["said"] > 0]
    columns = ("std", "said", "layer", "n_layer", "numel", "kurtosis", "width", "mean")
    std, meant, layer, n, numel, kurtosis, width, mean = (
        own[name].to_numpy(dtype=float, na_value=math.nan) for name in columns
    )
    role = own["role"].astype(str).to_numpy(dtype=object)
    out, table = np.isin(role, OUTPUTS), np.isin(role, (Role.TOKEN_EMBED, Role.POS_EMBED))
    also = [own["owner"].map(each.set_index("about")["said"]) for _, each in others.groupby("name")]
    by_depth = [np.where(out, meant / np.sqrt(each), math.nan) for each in (2 * n, n, 2 * (layer + 1), layer + 1)]
    wanted = [meant, *by_depth, *[value.to_numpy(float) for value in also]]
    error = _NEAR + 4 / np.sqrt(2.0 * numel)
    fits = np.zeros(len(own), dtype=bool)
    for value in wanted:
        for cut in _CUT:
            fits |= np.abs(std - cut * value) < error * cut * value
    uniform = (kurtosis >= _UNIFORM[0]) & (kurtosis <= _UNIFORM[1])  # what is said may be its bound
    fits |= uniform & (np.abs(std * math.sqrt(3) / meant - 1) < error)
    fits |= table & (np.abs(std * np.sqrt(width) - 1) < error)
    drawn = (np.abs(kurtosis) < _NORMAL) & (np.abs(mean) < _CENTRED * std)
    fits |= (role == Role.POS_EMBED) & ~drawn
    own = own.assign(fits=fits.astype(float), ratio=std / meant)
    keys = [*CELL, "owner", "family", "role", "name"]
    return grouped(
        own,
        keys,
        sort=False,
        said=("said", "first"),
        std=("std", "median"),
        ratio=("ratio", "median"),
        fits=("fits", "mean"),
        kurtosis=("kurtosis", "median"),
        module=("module", "first"),
    )


def bring_to_the_declared(finding: Finding, model: Described) -> list[Change]:
    """Give the role that is off the std that the config declares."""
    roles = finding.site.split(" ")  # the farthest first
    rows = [row for row in model.rows if row["role"] in roles and row["std"] > 0]
    first = next((row for row in rows if row["role"] == roles[0]), None)
    if first is None or not finding.measured:
        return []
    said = float(f"{first['std'] / finding.measured:.2g}")
    why = f"the config declares {trimmed(said)}"
    return [change for row in rows for change in towards(row, said, finding, why, model)]


@rule(
    code="INI008",
    question="Init",
    measures="std of each kind of matrix ÷ the std that the config of its part of the model declares; where no config "
    "does, the one number that the model's own init code draws normals with",
    needs="a probed model whose config declares a std (initializer_range, init_std, …), or whose init code has one",
    limits={"factor": 1.3},
    unit="× the declared std",
    limit="within ×{factor}, also cut at 2σ or scaled by depth, where most matrices are as declared; and not all of "
    "the blocks' matrices otherwise, uniform or of one other std",
    basis="reference-code",
    why="The config says what was meant. Its std is lost where a later draw overwrites it, where weights are made on "
    "the meta device and get their framework's defaults, and where a condition on a name or class never matches.",
    advice="Draw the weights with the std that the config declares, or declare the one that is meant.",
    false_alarms="Models whose code uses another formula for some weights and still declares a std: of these only a "
    "std of 1/√width in a table and numbers from the same config are known. What code says is held against matrices of "
    "the blocks alone, where most of all matrices follow it: it may leave others as they are. A script that draws "
    "single matrices of a model again, otherwise than the model's code, on purpose.",
    source="huggingface/transformers#43847, NVIDIA/bionemo-framework#1368, lmsdss/LayerNorm-Scaling#6",
    since="0.1.0",
    roles=_DRAWN,
    remedy=bring_to_the_declared,
    measure=measure_declared_std,
)
def declared_std_not_found(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge each part of the model by its own config."""
    off = math.log(case.limits["factor"])
    faults: list[tuple[pd.DataFrame, str]] = []
    for _, part in rows.groupby(["run_id", "owner"], observed=True, sort=False):
        inner = part[part["role"].isin(_BLOCKS)]
        wrong = part[(part["fits"] < 0.5) & (np.log(part["ratio"]).abs() > off)]
        if part["name"].str.contains(" ").any():  # read from code, which may draw some weights and leave others
            inner, wrong = inner.iloc[:0], wrong[wrong["role"].isin(_BLOCKS)]
        follow = float((part["fits"] >= 0.5).mean())
        if follow > _MOST and len(wrong):
            faults.append((wrong, _some(wrong)))
        elif len(inner) >= _FEW and (inner["fits"] < 0.5).all() and (text := _all(inner)):
            faults.append((inner, text))
    name, said = str(rows["name"].iloc[0]), float(rows["said"].iloc[0])
    if not faults:
        return case.passed(f"The weights are drawn as {name} = {said:g} declares, or by another formula")
    bad, text = faults[0]
    name, said = str(bad["name"].iloc[0]), float(bad["said"].iloc[0])
    bad = bad.iloc[np.argsort(-np.log(bad["ratio"]).abs())]
    worst = bad.iloc[0]
    n = int(worst["n_layer"])
    writes = bad["role"].isin(OUTPUTS).all() and n > 1
    scaled = (
        f", or {trimmed(said / math.sqrt(2 * n))} = {said:g}/√(2·{n}) where outputs are depth-scaled" if writes else ""
    )
    return case.failed(
        f"{name} is {said:g}, but {text}",
        severity="warning",
        site=" ".join(dict.fromkeys(bad["role"].astype(str))),
        measured=float(worst["ratio"]),
        effect=abs(math.log(float(worst["ratio"]))),
        advice=f"draw {listed([str(each) for each in bad['module']])} with std {said:g}{scaled}, as {name} declares "
        "(find the draw that comes later, or the init that never ran), or declare the std that is meant",
        **seeds(rows["run_id"].isin(bad["run_id"]), rows["seed"]),
    )


def _some(wrong: pd.DataFrame) -> str:
    texts = [f"{row.module} has std {trimmed(row.std)}" for row in wrong.itertuples()]
    return f"{listed(texts)}; the other matrices follow it"


def _all(inner: pd.DataFrame) -> str:
    """What is so of all matrices of the blocks, of which none has the declared std; empty where nothing can be said."""
    low, high = float(inner["std"].min()), float(inner["std"].max())
    some = trimmed(low) if high < 1.1 * low else f"{trimmed(low)} to {trimmed(high)}"
    uniform = inner["kurtosis"].between(*_UNIFORM).all()
    if uniform:
        return f"no matrix of the blocks has it: they are uniform, std {some}, as torch's defaults are"
    by_depth = np.sqrt(2.0 * inner["n_layer"]).where(inner["role"].isin(OUTPUTS), 1.0)
    for std, scaled in (
        (inner["std"], ""),
        (inner["std"] * by_depth, ", those that write to the stream by depth less"),
    ):
        usual, said = float(std.median()), float(inner["said"].iloc[0])
        if std.max() < 1.1 * std.min() and max(usual / said, said / usual) > 3:
            return f"all matrices of the blocks have std {trimmed(usual)}{scaled}"
    return ""


def measure_declared(run: Run) -> pd.DataFrame:
    """What the config says of the head's tie and of multipliers, and what the model has."""
    declared = run.tables.declared
    found = declared[declared["kind"].isin(["tied", "embed scale", "layer scale"])]
    if found.empty:
        return found
    means = rows_of(run, "weight").groupby(["run_id", "module"], observed=True)["mean"].first()

    def gains(row: pd.Series) -> float:
        values = [means.get((row["run_id"], name), math.nan) for name in str(row["about"]).split()]
        known = pd.Series(values, dtype=float).dropna()
        return float(known.iloc[(known - row["said"]).abs().to_numpy().argmax()]) if len(known) else math.nan

    read: Sequence[float] = [
        gains(row) if row["kind"] == "layer scale" else float(row["found"]) for _, row in found.iterrows()
    ]
    return found.assign(found=read)


@rule(
    code="INI009",
    question="Init",
    measures="whether table and head are one parameter, what the token embedding is multiplied with, and the value of "
    "LayerScale gains, against what the config says of them",
    needs="a probed model whose config says something of them",
    limits={"slack": 0.05},
    unit="found ÷ declared",
    limit="tied as declared; multipliers within {slack} of 1",
    basis="reference-code",
    why="A tie is lost where the head or the table is made anew after it (resizing, to_empty, a checkpoint loaded part "
    "by part): the model has two tables, of which one is trained as a head from another draw. A multiplier that the "
    "forward never applies leaves the embedding √n_embd too small beside positions and blocks.",
    advice="Make the model as its config says, or change the config.",
    false_alarms="Configs that carry a key which the model's class doesn't use.",
    source="allenai/OLMo-core#686, huggingface/transformers#43429, tensorflow/tensor2tensor#1718",
    since="0.1.0",
    about_init=False,
    roles=(Role.UNEMBED, Role.GATE),
    remedy=leave,
    measure=measure_declared,
)
def not_as_declared(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge every declaration by itself."""
    known = rows[rows["found"].notna()]
    if known.empty:
        return case.not_applicable(f"Needs {case.rule.needs}")
    tied = known["kind"] == "tied"
    far = (known["found"] / known["said"].where(known["said"] != 0) - 1).abs() > case.limits["slack"]
    far |= (known["said"] == 0) & (known["found"] != 0)
    bad = known[(tied & (known["found"] != known["said"])) | (~tied & far)]
    names = listed(list(dict.fromkeys(known["name"].astype(str))))
    if bad.empty:
        return case.passed(f"The model is as {names} says")
    said = [_unlike(row) for _, row in bad.drop_duplicates(["kind", "about"]).iterrows()]
    return case.failed(
        "; ".join(text for text, _ in said),
        severity="warning",
        site={"tied": "unembed", "embed scale": "embed", "layer scale": "gate"}[str(bad["kind"].iloc[0])],
        measured=float(bad["found"].iloc[0]),
        effect=float(len(bad)),
        advice="; ".join(advice for _, advice in said),
        **seeds(known["run_id"].isin(bad["run_id"]), known["seed"]),
    )


def _unlike(row: pd.Series) -> tuple[str, str]:
    name, said, found, about = (row[column] for column in ("name", "said", "found", "about"))
    first, _, second = str(about).partition(" ")
    if row["kind"] == "tied" and said:
        text = f"{name} says that the head is tied, but {first} and {second} are two parameters"
        head, table = first.rpartition(".")[0], second.rpartition(".")[0]
        return text, f"tie them after the last change of either: {head}.weight = {table}.weight"
    if row["kind"] == "tied":
        text = f"{name} says that the head isn't tied, but {first} and {second} are one parameter"
        return text, f"give the head a parameter of its own, or set {name} to say that it is tied"
    if row["kind"] == "embed scale":
        text = (
            f"{name} says that the embedding is multiplied with {trimmed(said)}, but {first} enters × {trimmed(found)}"
        )
        return text, f"multiply what {first} gives with {trimmed(said)} in the forward, or change {name}"
    more = f" (and {len(second.split())} more)" if second else ""
    text = f"{name} is {trimmed(said)}, but a gain of the branches has the value {trimmed(found)}: {first}{more}"
    return text, f"set {first}{more} to {trimmed(said)}, or change {name}"
