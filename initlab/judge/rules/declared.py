"""What a model's config declares of its init, against what its weights are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from initlab.judge.remedies import Change, Described, leave, towards
from initlab.judge.rows import Array, Row, Rows
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import CELL, family, recorded, seeds, table_of
from initlab.judge.words import listed, trimmed
from initlab.recipes import Role
from initlab.recipes.base import INNER, OUTPUTS
from initlab.rundir import Run

_BLOCKS = (*INNER, *OUTPUTS)
_HEADS = (Role.ATTN_QKV, Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)
_DRAWN = (*_BLOCKS, Role.ROUTER, Role.TOKEN_EMBED, Role.POS_EMBED, Role.UNEMBED)
_CUT = (1.0, 0.9866, 0.8796)  # std of a normal that is cut at 3 and at 2 of its std
_NEAR = 0.05  # relative, beside sampling: "has the std that is declared"
_MOST = 0.5  # of the kinds of matrices, from which on the model follows its config in the others
_FEW = 2  # kinds of matrices in the blocks; of fewer it can't be said that none of them follows
_UNIFORM = (-1.4, -1.0)  # excess kurtosis: that of a uniform is -1.2
_NORMAL = 0.7  # of a normal 0; a table of positions beyond it, or with a mean, may be a fixed pattern: sinusoids
_CENTRED = 0.2


def measure_declared_std(run: Run) -> Rows:
    """Per kind of matrix under a config that declares a std: its median std, and the factor that the config explains.

    `fits` is 1 where the std is the declared one (cut at two or three of it, scaled by depth, or another number of the
    same config), and where it is a table's 1/√width.
    """
    declared, draws = table_of(run, "declared"), table_of(run, "draws")
    stds, others = (declared[declared["kind"] == kind] for kind in ("std", "other std"))
    if stds.empty:
        return stds
    rows = recorded(run, "weight")
    rows = rows[rows.among("role", _DRAWN) & (rows["std"] > 0) & np.isfinite(rows["std"])]
    known: dict[str, dict[str, tuple[float, str]]] = {}
    for each in stds:
        known.setdefault(each["run_id"], {}).setdefault(each["about"], (each["said"], each["name"]))
    owners = [_owner(name, known.get(run_id, ())) for run_id, name in zip(rows["run_id"], rows["module"], strict=True)]
    rows = rows.assign(owner=owners)[[owner is not None for owner in owners]]
    rows = rows[[place for own in rows.groups("run_id") for place in own]]
    said = [known[run_id][owner] for run_id, owner in zip(rows["run_id"], rows["owner"], strict=True)]
    also: dict[str, dict[tuple[str, str], float]] = {}
    for each in others:
        also.setdefault(each["name"], {})[each["run_id"], each["about"]] = each["said"]
    places = list(zip(rows["run_id"], rows["owner"], strict=True))
    # a table's rows may be of another width than the stream
    columns = dict(zip(zip(draws["run_id"], draws["module"], strict=True), draws["columns"], strict=True))
    named = zip(rows["run_id"], rows["module"], rows["n_embd"], strict=True)
    rows = rows.assign(
        said=[value for value, _ in said],
        name=[name for _, name in said],
        family=family(rows["module"]),
        width=[float(columns.get((run_id, module), n_embd)) for run_id, module, n_embd in named],
    )
    fits = _fits(rows, [np.array([each.get(place, math.nan) for place in places]) for each in also.values()])
    rows = rows.assign(fits=fits.astype(float), ratio=rows["std"] / rows["said"])[rows["said"] > 0]
    return rows.grouped(
        [*CELL, "owner", "family", "role", "name"],
        sort=False,
        said=("said", "first"),
        std=("std", "median"),
        ratio=("ratio", "median"),
        fits=("fits", "mean"),
        kurtosis=("kurtosis", "median"),
        module=("module", "first"),
    )


def _owner(module: str, paths: Iterable[str]) -> str | None:
    """The innermost part of the model that holds a parameter, among those with a config of their own."""
    return max((path for path in paths if module.startswith(f"{path}." if path else "")), key=len, default=None)


def _fits(rows: Rows, also: Sequence[Array]) -> Array:
    columns = ("std", "said", "layer", "n_layer", "numel", "kurtosis", "width", "mean")
    std, meant, layer, n, numel, kurtosis, width, mean = (rows[name] for name in columns)
    out, table = rows.among("role", OUTPUTS), rows.among("role", (Role.TOKEN_EMBED, Role.POS_EMBED))
    by_depth = [np.where(out, meant / np.sqrt(each), math.nan) for each in (2 * n, n, 2 * (layer + 1), layer + 1)]
    error = _NEAR + 4 / np.sqrt(2.0 * numel)
    fits = np.zeros(len(rows), dtype=bool)
    for value in (meant, *by_depth, *also):
        for cut in _CUT:
            fits |= np.abs(std - cut * value) < error * cut * value
    uniform = (kurtosis >= _UNIFORM[0]) & (kurtosis <= _UNIFORM[1])  # what is said may be its bound
    fits |= uniform & (np.abs(std * math.sqrt(3) / meant - 1) < error)
    fits |= table & (np.abs(std * np.sqrt(width) - 1) < error)
    drawn = (np.abs(kurtosis) < _NORMAL) & (np.abs(mean) < _CENTRED * std)
    return fits | ((rows["role"] == Role.POS_EMBED) & ~drawn)


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
    "the blocks' matrices otherwise, uniform or of one other std; a note of queries, keys and values alone that are "
    "normal with a std of 1/√n_embd at most",
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
def declared_std_not_found(case: Case, rows: Rows) -> Finding:
    """Judge each part of the model by its own config."""
    off = math.log(case.limits["factor"])
    faults: list[tuple[Rows, str]] = []
    for part in rows.parts("run_id", "owner"):
        inner = part[part.among("role", _BLOCKS)]
        wrong = part[(part["fits"] < 0.5) & (np.abs(np.log(part["ratio"])) > off)]
        if any(" " in name for name in part["name"]):  # read from code, which may draw some weights and leave others
            inner, wrong = inner[:0], wrong[wrong.among("role", _BLOCKS)]
        follow = float((part["fits"] >= 0.5).mean())
        if follow > _MOST and len(wrong):
            faults.append((wrong, _some(wrong)))
        elif len(inner) >= _FEW and (inner["fits"] < 0.5).all() and (text := _all(inner)):
            faults.append((inner, text))
    name, said = str(rows["name"][0]), float(rows["said"][0])
    if not faults:
        return case.passed(f"The weights are drawn as {name} = {said:g} declares, or by another formula")
    bad, text = faults[0]
    name, said = str(bad["name"][0]), float(bad["said"][0])
    bad = bad[np.argsort(-np.abs(np.log(bad["ratio"])))]
    worst = bad[0]
    n = int(worst["n_layer"])
    writes = bad.among("role", OUTPUTS).all() and n > 1
    scaled = (
        f", or {trimmed(said / math.sqrt(2 * n))} = {said:g}/√(2·{n}) where outputs are depth-scaled" if writes else ""
    )
    return case.failed(
        f"{name} is {said:g}, but {text}",
        severity="info" if _mild(bad) else "warning",
        site=" ".join(dict.fromkeys(bad["role"])),
        measured=float(worst["ratio"]),
        effect=abs(math.log(float(worst["ratio"]))),
        advice=f"draw {listed([str(each) for each in bad['module']])} with std {said:g}{scaled}, as {name} declares "
        "(find the draw that comes later, or the init that never ran), or declare the std that is meant",
        **seeds(rows.among("run_id", bad["run_id"]), rows["seed"]),
    )


def _mild(bad: Rows) -> bool:
    """Queries, keys and values alone, drawn from a normal that leaves attention logits a std of at most about 1."""
    normal = np.abs(bad["kurtosis"]) < _NORMAL  # a uniform is what torch leaves where no init comes
    small = bad["std"] * np.sqrt(bad["n_embd"]) < 1 + _NEAR
    return bool((bad.among("role", _HEADS) & (bad["ratio"] > 1) & normal & small).all())


def _some(wrong: Rows) -> str:
    texts = [f"{row['module']} has std {trimmed(row['std'])}" for row in wrong]
    return f"{listed(texts)}; the other matrices follow it"


def _all(inner: Rows) -> str:
    """What is so of all matrices of the blocks, of which none has the declared std; empty where nothing can be said."""
    low, high = float(inner["std"].min()), float(inner["std"].max())
    some = trimmed(low) if high < 1.1 * low else f"{trimmed(low)} to {trimmed(high)}"
    if ((inner["kurtosis"] >= _UNIFORM[0]) & (inner["kurtosis"] <= _UNIFORM[1])).all():
        return f"no matrix of the blocks has it: they are uniform, std {some}, as torch's defaults are"
    by_depth = np.where(inner.among("role", OUTPUTS), np.sqrt(2.0 * inner["n_layer"]), 1.0)
    for std, scaled in (
        (inner["std"], ""),
        (inner["std"] * by_depth, ", those that write to the stream by depth less"),
    ):
        usual, said = float(np.median(std)), float(inner["said"][0])
        if std.max() < 1.1 * std.min() and max(usual / said, said / usual) > 3:
            return f"all matrices of the blocks have std {trimmed(usual)}{scaled}"
    return ""


def measure_declared(run: Run) -> Rows:
    """What the config says of the head's tie and of multipliers, and what the model has."""
    declared = table_of(run, "declared")
    found = declared[declared.among("kind", ("tied", "embed scale", "layer scale"))]
    if found.empty:
        return found
    means = recorded(run, "weight").grouped(["run_id", "module"], mean=("mean", "first"))
    known = dict(zip(zip(means["run_id"], means["module"], strict=True), means["mean"].tolist(), strict=True))

    def gains(row: Row) -> float:
        values = [known.get((row["run_id"], name), math.nan) for name in row["about"].split()]
        values = [value for value in values if not math.isnan(value)]
        return max(values, key=lambda value: abs(value - row["said"]), default=math.nan)

    return found.assign(found=[gains(row) if row["kind"] == "layer scale" else row["found"] for row in found])


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
def not_as_declared(case: Case, rows: Rows) -> Finding:
    """Judge every declaration by itself."""
    known = rows[~np.isnan(rows["found"])]
    if known.empty:
        return case.not_applicable(f"Needs {case.rule.needs}")
    tied = known["kind"] == "tied"
    far = np.abs(known["found"] / known["said"] - 1) > case.limits["slack"]
    far |= (known["said"] == 0) & (known["found"] != 0)
    bad = known[(tied & (known["found"] != known["said"])) | (~tied & far)]
    names = listed(list(dict.fromkeys(known["name"])))
    if bad.empty:
        return case.passed(f"The model is as {names} says")
    said = [_unlike(each[0]) for each in bad.parts("kind", "about")]
    return case.failed(
        "; ".join(text for text, _ in said),
        severity="warning",
        site={"tied": "unembed", "embed scale": "embed", "layer scale": "gate"}[str(bad["kind"][0])],
        measured=float(bad["found"][0]),
        effect=float(len(bad)),
        advice="; ".join(advice for _, advice in said),
        **seeds(known.among("run_id", bad["run_id"]), known["seed"]),
    )


def _unlike(row: Row) -> tuple[str, str]:
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
