"""How many models initlab reaches as they are, how far it sees into them, and how right it is.

    python benchmarks/any_model.py [--write] [--seeds 5] [--jobs 2] [--group by-hand litgpt] [--only llama "x*"]

Each model is small (three blocks, width 128), fresh, in eval mode and probed with no argument, in a process of its own.
Needs the extras `hf` and `zoo`, and litgpt as `zoo_libraries.py` says; models of a library that isn't installed are
left out. --write keeps the table and every number beside this file.

- reached: `initlab.probe(model)` gives a result.
- stream: share of the blocks whose stream was reproduced from its writes.
- inner: share of (block, site) measured, of q, k, v, attn_z in blocks with attention and mlp_pre, mlp_act in those with
  an MLP; heads: share of the blocks with attention that have rows in `heads`.
- closed form: share of the blocks with expected_var at resid_post. ratio: measured ÷ predicted variance there, mean
  over the inits, with its standard error, at the worst block; within: |ratio - 1| <= 0.1 + 2 standard errors.
- roles: share of the parameters that have one. redrawn: `apply_recipe(model, "nanogpt")`, then `describe_init` fits.
- seconds: CPU time of the probe, one thread; × bare: over the model's own forward and backward on the same batch.

«plain» is a model whose blocks are attention and MLP, in any norm placement.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import import_module, util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch
from zoo import Case
from zoo_measure import rows

import initlab

LIBRARIES = {"litgpt": "litgpt", "x-transformers": "x_transformers", "transformer-lens": "transformer_lens"}
GROUPS = (
    "hf-causal",
    "hf-masked",
    "hf-seq2seq",
    "by-hand",
    "torch",
    "litgpt",
    "x-transformers",
    "transformer-lens",
    "odd",
)
PACKAGES = ("initlab", "torch", "transformers", "litgpt", "x-transformers", "transformer-lens")


def cases(group: str) -> list[Case]:
    """The models of a group; none where its library isn't installed."""
    if group.startswith("hf-"):
        return import_module("zoo_transformers").cases(group[3:]) if util.find_spec("transformers") else []
    if group in LIBRARIES:
        if util.find_spec(LIBRARIES[group]) is None:
            return []
        import_module(LIBRARIES[group])  # once, before the processes part
        return import_module("zoo_libraries").CASES[group]
    every = [case for name in ("zoo", "zoo_layouts", "zoo_inputs") for case in import_module(name).CASES]
    return [case for case in every if case.group == group]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", nargs="+", default=[], metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names within the groups, or globs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=60, help="limit of CPU time for one model (60)")
    parser.add_argument(
        "--write", nargs="?", type=Path, const=Path(__file__), help="into any_model.md and .csv, or a path of that stem"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    groups = [name for each in options.group for name in each.split(",")] or list(GROUPS)
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"unknown group {', '.join(sorted(unknown))}; known: {', '.join(GROUPS)}")
    chosen = [case for group in groups for case in cases(group) if wanted(case.name, options.only)]
    missing = [group for group in groups if group in LIBRARIES and util.find_spec(LIBRARIES[group]) is None]
    warm_up()
    started, measured = time.perf_counter(), []
    try:
        for row in rows(chosen, seeds=options.seeds, jobs=options.jobs, seconds=options.seconds):
            measured.append(row)
            print(f"{len(measured)}/{len(chosen)} {line(row)}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"interrupted: the table holds {len(measured)} of {len(chosen)} models", file=sys.stderr)
    order = {(case.group, case.name): place for place, case in enumerate(chosen)}
    table = pd.DataFrame(sorted(measured, key=lambda row: order[row["group"], row["name"]])).reindex(columns=COLUMNS)
    text = page(table, time.perf_counter() - started, missing)
    if options.write:
        options.write.with_suffix(".md").write_text(text, encoding="utf-8")
        table.to_csv(options.write.with_suffix(".csv"), index=False, float_format="%.4g")
    print(text.split("\n## Models")[0])


def warm_up() -> None:
    """Import what a first probe imports, so that no child does."""
    small = initlab.NanoGPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32)
    assert initlab.probe(initlab.NanoGPT(small)).findings


COLUMNS = (
    "group", "name", "built", "reached", "plain", "stream", "attention", "mlp", "blocks", "verified", "inner",
    "lacking", "heads", "closed", "ratio", "ratio_se", "within", "worst_at", "roles", "no_role", "redrawn", "errors",
    "warnings", "messages", "notes", "probe_s", "bare_s", "times", "why",
)  # fmt: skip


def wanted(name: str, only: list[str]) -> bool:
    """Whether a name is asked for."""
    return not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only)


def line(row: dict[str, object]) -> str:
    """A row for the terminal."""
    head = f"{row['group']} {row['name']}: "
    if row["built"] != "yes" or row["reached"] != "yes":
        return head + str(row.get("reached") or row["built"])[:150]
    ratio = f", ratio {row['ratio']:.2f}" if row["closed"] else ""
    shares = " ".join(f"{name} {row[name]:.0%}" for name in ("verified", "inner", "heads", "closed", "roles"))
    return f"{head}{shares}{ratio}, errors [{row['errors']}]".replace("nan%", "-")


def page(table: pd.DataFrame, seconds: float, missing: list[str]) -> str:
    """The Markdown page.

    Args:
        table: a row per model, of COLUMNS.
        seconds: that it took.
        missing: groups whose library isn't installed.
    """
    arguments = " ".join(f'"{each}"' if " " in each or "*" in each else each for each in sys.argv[1:])
    versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    parts = [
        "# Any model",
        "",
        f"`python benchmarks/any_model.py {arguments}`".replace(" `", "`") + f" · {versions} · {processor()}, "
        f"{seconds / 60:.0f} minutes",
        "",
        *([f"Not installed, left out: {', '.join(missing)}.", ""] if missing else []),
        "Each cell: how many of how many. A model that isn't reached counts as one in which nothing was found.",
        "",
        markdown(summary(table)),
        "",
        *section("Errors of models that aren't reached", frequencies(table, "reached")),
        *section("Error-level findings", findings(table, "errors")),
        *section("Warnings", findings(table, "warnings")),
        *section("Not plain", kinds(table)),
        *section("Not built, and counted nowhere", table.loc[table["built"] != "yes", ["group", "name", "built"]]),
        *section("Models", shown(table[table["built"] == "yes"])),
    ]
    return "\n".join(parts)


# What the summary counts: its name, of which rows, and which of these.
MEASURES: dict[str, tuple[Callable[[pd.DataFrame], pd.Series], Callable[[pd.DataFrame], pd.Series]]] = {
    "reached": (lambda t: t["built"] == "yes", lambda t: t["reached"] == "yes"),
    "stream verified": (lambda t: t["stream"], lambda t: t["verified"] >= 1),
    "inner sites, of plain": (lambda t: t["plain"], lambda t: t["inner"] >= 1),
    "heads, of attention": (lambda t: t["attention"] > 0, lambda t: t["heads"] >= 1),
    "closed form, of plain": (lambda t: t["plain"], lambda t: t["closed"] >= 1),
    "within 10 % + 2 SE, of closed forms": (lambda t: t["closed"] > 0, lambda t: t["within"] == "yes"),
    "every role": (lambda t: t["built"] == "yes", lambda t: t["roles"] >= 1),
    "redrawn exactly": (lambda t: t["built"] == "yes", lambda t: t["redrawn"] == "exact"),
    "no error": (lambda t: t["reached"] == "yes", lambda t: t["errors"] == ""),
    "no warning": (lambda t: t["reached"] == "yes", lambda t: t["warnings"] == ""),
}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row per measure, a column per group and one for all."""
    built = table[table["built"] == "yes"].astype({"stream": bool, "plain": bool})
    groups = {"all": built, **{str(name): part for name, part in built.groupby("group", sort=False)}}
    out = {"": [*MEASURES, "probe, median s", "× bare, median"]}
    for name, part in groups.items():
        cells = []
        for among, good in MEASURES.values():
            counted = part[among(part)]
            hits, n = int(good(counted).sum()), len(counted)
            cells.append(f"{hits}/{n} ({hits / n:.0%})" if n else "-")
        cells += [f"{part['probe_s'].median():.2f}", f"{part['times'].median():.1f}"]
        out[name] = cells
    return pd.DataFrame(out)


def frequencies(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Messages of a column without what is one model's alone, the most frequent first."""
    failed = table[(table["built"] == "yes") & (table[column] != "yes")]
    plain = [re.sub(r"\d+", "N", re.sub(r"^(\w+: )[A-Z]\w+", r"\1…", str(text)))[:110] for text in failed[column]]
    found = {text: [name for name, each in zip(failed["name"], plain, strict=True) if each == text] for text in plain}
    order = sorted(found, key=lambda text: -len(found[text]))
    return pd.DataFrame([{"models": len(found[text]), "error": text, "which": some(found[text])} for text in order])


def findings(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Codes of a column, with the models that have them."""
    codes = Counter(code for text in table[column].dropna() for code in text.split())
    return pd.DataFrame(
        [
            {
                "models": n,
                "code": code,
                "which": some(list(table.loc[table[column].fillna("").str.contains(code), "name"])),
            }
            for code, n in codes.most_common()
        ]
    )


def kinds(table: pd.DataFrame) -> pd.DataFrame:
    """What the models are whose blocks aren't attention and MLP."""
    other = table[(table["built"] == "yes") & ~table["plain"].astype(bool)]
    return pd.DataFrame(
        [{"what": why, "which": ", ".join(part["name"])} for why, part in other.groupby("why", sort=False)]
    )


def some(names: list[str], most: int = 12) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table of models, as it is read."""
    reached = table["reached"] == "yes"
    out = pd.DataFrame(
        {"group": table["group"], "model": table["name"], "plain": table["plain"].map({True: "yes", False: "no"})}
    )
    out["reached"] = table["reached"].where(reached, table["reached"].astype(str).str[:60])
    for title, column in (("stream", "verified"), ("inner", "inner"), ("heads", "heads"), ("closed form", "closed")):
        out[title] = [_share(value) for value in table[column]]
    out.loc[~table["stream"].astype(bool), "stream"] += " (keeps none)"
    out["ratio"] = [
        f"{r:.2f} ± {s:.2f}" if r == r else "-" for r, s in zip(table["ratio"], table["ratio_se"], strict=True)
    ]
    out["within"] = table["within"].replace("", "-").fillna("-")
    out["roles"] = [_share(value) for value in table["roles"]]
    out["redrawn"] = ["exact" if text == "exact" else "no" if text == text else "-" for text in table["redrawn"]]
    out["errors"], out["warnings"] = table["errors"].fillna("-"), table["warnings"].fillna("-")
    out["seconds"] = [f"{s:.2f}" if s == s else "-" for s in table["probe_s"]]
    out["× bare"] = [f"{x:.1f}" if x == x else "-" for x in table["times"]]
    return out


def _share(value: float) -> str:
    return "-" if value != value else f"{value:.0%}"


def section(title: str, rows: pd.DataFrame) -> list[str]:
    """A heading and a table, or nothing."""
    return [f"## {title} ({len(rows)})", "", markdown(rows), ""] if len(rows) else []


def markdown(rows: pd.DataFrame) -> str:
    """A table in Markdown."""
    cells = [list(rows.columns), ["---"] * len(rows.columns), *rows.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in cells)


def processor() -> str:
    """What the CPU calls itself, and how many cores there are."""
    about = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", about.read_text()) if about.exists() else None
    return f"{os.cpu_count()} cores of {name[1] if name else platform.processor() or platform.machine()}"


def _version(name: str) -> str:
    try:
        return initlab.__version__ if name == "initlab" else version(name)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()
