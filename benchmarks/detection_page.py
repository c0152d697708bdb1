"""The page of `detection.py`: rates, the matrix, what was missed, false alarms."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pandas as pd
import torch
from any_model import PACKAGES, _version, markdown, processor

from initlab.judge.rules.selecting import judged_by

LEGEND = (
    "Each cell: **A** a warning or error, located, with the right advice; **L** located alone; **D** neither; a, l, n: "
    "a note, likewise; · nothing; ✗ the probe raised; empty: the base has nothing to plant it in. + mended by `fix`, "
    "and nothing else touched; - not mended."
)


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    if row["planted"] != "yes":
        return f"{row['base']} {row['fault']}: {row['planted']}"
    return f"{row['base']} {row['fault']}: {cell(row)} {row['codes']} {row['mended']}"


def cell(row: Any) -> str:
    """A letter for what was seen, and a sign for what was mended."""
    if row["planted"] != "yes":
        return ""
    if row["codes"] == "RAISED":
        return "✗"
    letters = "ALD" if row["any"] else "aln" if row["note"] else "···"
    seen = letters[0 if row["advice"] else 1 if row["located"] else 2]
    return seen + ("" if not row["mended"] else "+" if row["mended"] == "yes" else "-")


def page(table: pd.DataFrame, healthy: pd.DataFrame, peers: pd.DataFrame | None, seconds: float) -> str:
    """The Markdown page.

    Args:
        table: a row per fault and base.
        healthy: a row per unmutated model.
        peers: faults × tools, where they were run.
        seconds: that it took.
    """
    arguments = " ".join(f'"{each}"' if " " in each or "*" in each else each for each in sys.argv[1:])
    machine = f"{processor()}, {torch.get_num_threads()} thread in each process"
    versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    run = table[table["planted"] == "yes"].copy()
    run["cell"] = [cell(row) for _, row in run.iterrows()]
    order = list(dict.fromkeys(table["fault"]))
    matrix = run.pivot(index="fault", columns="base", values="cell").reindex(
        index=[f for f in order if f in set(run["fault"])]
    )
    matrix = matrix.reindex(columns=list(dict.fromkeys(run["base"]))).fillna("")
    harm = run.drop_duplicates("fault").set_index("fault")["harm"]
    matrix.insert(0, "harm", harm.reindex(matrix.index))
    missed = run[(run["harm"] == "harmful") & (~run["any"].astype(bool) | ~run["advice"].astype(bool))]
    unmended = run[(run["mended"] != "") & (run["mended"] != "yes")]
    parts = [
        "# Planted faults",
        "",
        f"`python benchmarks/detection.py {arguments}`".replace(" `", "`")
        + f" · {versions} · {machine}, {seconds / 60:.0f} minutes",
        "",
        f"{len(run)} models with a planted fault, of {run['fault'].nunique()} kinds in {run['base'].nunique()} bases. "
        f"How each is graded is said at the top of `detection.py`. {judged_by()}",
        "",
        markdown(rates(run)),
        "",
        alarms(healthy),
        "",
        "## Matrix",
        "",
        LEGEND,
        "",
        markdown(matrix.reset_index()),
        "",
        *([] if peers is None else ["## Peers", "", peers.attrs["about"], "", markdown(peers), ""]),
        "## Missed",
        "",
        "Harmful faults without a warning or error, or whose place or cause isn't said.",
        "",
        markdown(missed[["base", "fault", "cell", "codes"]]) if len(missed) else "None.",
        "",
        "## Not mended",
        "",
        markdown(unmended[["base", "fault", "harm", "mended"]]) if len(unmended) else "None.",
        "",
    ]
    return "\n".join(parts)


def rates(run: pd.DataFrame) -> pd.DataFrame:
    """Shares by base, of harmful faults, then by group and by harm, of all."""
    rows = []
    harmful = run[run["harm"] == "harmful"]
    for label, part in [
        ("**harmful, all bases**", harmful),
        *((f"harmful, {base}", part) for base, part in harmful.groupby("base", sort=False)),
        *((f"harmful, {group}", part) for group, part in harmful.groupby("group", sort=False)),
        *((harm, part) for harm, part in run.groupby("harm", sort=False) if harm != "harmful"),
    ]:
        graded = part[part["mended"] != ""]
        shares = {name: share(part[name].astype(bool)) for name in ("any", "located", "advice")}
        said = share(part["any"].astype(bool) | part["note"].astype(bool))
        mended = share(graded["mended"] == "yes")
        rows.append(
            {"": label, "warning or error": shares["any"], "or a note": said, "located": shares["located"],
             "right advice": shares["advice"], "mended exactly": mended}
        )  # fmt: skip
    return pd.DataFrame(rows)


def share(hits: pd.Series) -> str:
    """So many of so many."""
    return f"{int(hits.sum())}/{len(hits)} ({hits.mean():.0%})" if len(hits) else "-"


def alarms(healthy: pd.DataFrame) -> str:
    """What the unmutated models drew, in a sentence."""
    codes: dict[str, Counter[str]] = {"error": Counter(), "warning": Counter(), "info": Counter()}
    models = {"error": 0, "warning": 0, "info": 0}
    for _, row in healthy.iterrows():
        found = row["found"] if isinstance(row.get("found"), dict) else {}
        for severity in models:
            drawn = [code for code, each in found.items() if each == severity]
            models[severity] += bool(drawn)
            codes[severity].update(f"{code} {row['base']}" for code in drawn)
    raised = int((healthy["raised"] != "").sum())
    text = f"Unmutated, {len(healthy)} models ({healthy['base'].nunique()} bases over sizes and seeds): "
    text += f"{models['error']} with an error, {models['warning']} with a warning, {raised} raised."
    for severity in ("error", "warning"):
        if codes[severity]:
            text += f" {severity.capitalize()}s: " + ", ".join(f"{k} ×{n}" for k, n in codes[severity].items()) + "."
    return text
