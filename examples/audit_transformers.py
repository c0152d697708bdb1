"""Probe every causal language model of the installed transformers, with no configuration, and write one table.

    python examples/audit_transformers.py --out reports/transformers-audit
    python examples/audit_transformers.py --out audit --only llama mamba2
    python examples/audit_transformers.py --out audit --task seq2seq   # classes that discovery wasn't written with

Each class is built from a tiny random config (nothing is downloaded), its own forward and backward are run, then
`initlab.probe(model)`. The table says which were reached, which stream was found and proved, and what the probe found.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import pandas as pd
import torch
import transformers
from tiny_transformers import TASKS, TooSlow, build, short

import initlab
from initlab.anatomy.source import depth_code
from initlab.judge.rules.selecting import judged_by

LIMIT = 240  # seconds for one class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("transformers-audit"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="model types, as AutoConfig names them")
    parser.add_argument("--task", choices=TASKS, default="causal", help="which of transformers' lists (causal)")
    parser.add_argument("--limit", type=int, help="the first N entries alone")
    parser.add_argument("--seconds", type=int, default=LIMIT, help="limit for one class")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    kind, mapping = TASKS[args.task]
    names = list(mapping.items())
    names = [entry for entry in names if not args.only or entry[0] in args.only][: args.limit]
    started, rows = time.perf_counter(), []
    for number, (model_type, class_name) in enumerate(names, 1):
        row = audit(model_type, class_name if isinstance(class_name, str) else class_name[0], args.seconds)
        rows.append(row)
        print(f"{number}/{len(names)} {line(row)}", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "audit.csv", index=False)
    text = summary(table, kind, time.perf_counter() - started)
    (args.out / "audit.md").write_text(text, encoding="utf-8")
    print(text.split("\n## ")[0])


def audit(model_type: str, class_name: str, seconds: int) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {
        "model_type": model_type, "class": class_name, "built": "", "runs": "", "probed": "", "stacks": 0, "blocks": 0,
        "verified": 0.0, "multipliers": "", "errors": "", "warnings": "", "error_text": "",
        "initializer_range": "", "matrix_std": "",
        "out_std": "", "depth_scaling": "", "off_range": "", "describe_init": "", "notes": "", "seconds": 0.0,
    }  # fmt: skip
    started = time.perf_counter()
    try:
        with time_limit(seconds):
            model = build(model_type, class_name, row)
            if row["runs"] == "yes":
                probe(model, row)
    except TooSlow:
        stage = next(name for name in ("built", "runs", "probed") if row[name] != "yes")
        row[stage] = f"more than {seconds} s"
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def probe(model: Any, row: dict[str, Any]) -> None:
    """Probe with no configuration; what was found goes into the row."""
    try:
        found = initlab.probe(model)
    except TooSlow:
        raise
    except Exception as error:
        row["probed"] = short(error)
        return
    row["probed"] = "yes"
    notes = [str(note) for note in found.coverage.loc[found.coverage["site"] == "model", "note"]]
    stacks = [
        m for note in notes if (m := re.search(r"(\d+) blocks?, stream reproduced from its writes in (\d+)", note))
    ]
    blocks, verified = (sum(int(m[group]) for m in stacks) for group in (1, 2))
    if str(found.summary["mode"].iloc[0]) and not stacks and found.summary["n_head"].iloc[0]:
        blocks = verified = int(found.summary["n_layer"].iloc[0])  # nanoGPT's own layout is known by heart
    scales = [m[1] for note in notes if (m := re.search(r"writes scaled by (.*)", note))]
    failed = [finding for finding in found.findings if finding.status == "fail"]
    row.update(
        stacks=len(stacks), blocks=blocks, verified=round(verified / blocks, 3) if blocks else 0.0,
        multipliers="; ".join(scales), errors=codes(failed, "error"),
        error_text="; ".join(f.message for f in failed if f.severity == "error")[:200],
        warnings=codes(failed, "warning"),
        notes="; ".join(note for note in notes if "stream reproduced" not in note)[:300],
    )  # fmt: skip
    declared(model, found, row)


def codes(findings: list[Any], severity: str) -> str:
    """Codes of the failed findings of one severity."""
    return " ".join(sorted({finding.code for finding in findings if str(finding.severity) == severity}))


def declared(model: Any, found: Any, row: dict[str, Any]) -> None:
    """What the class's code and config say of its init, beside what was drawn."""
    weights = found.records[found.records["kind"] == "weight"]
    for column, roles in (
        ("matrix_std", ("attn_qkv", "attn_q", "attn_k", "attn_v", "mlp_in", "mlp_gate")),
        ("out_std", ("attn_out", "mlp_out")),
    ):
        stds = weights.loc[weights["role"].isin(roles), "std"]
        row[column] = "–".join(sorted({f"{stds.min():.4f}", f"{stds.max():.4f}"})) if len(stds) else ""
    row["describe_init"] = "; ".join(initlab.describe_init(model).mismatches)[:300]
    config = model.config.get_text_config()
    std = getattr(config, "initializer_range", None)
    row["initializer_range"] = "" if std is None else std
    if not isinstance(std, float) or std <= 0:
        return
    parameters = dict(model.named_parameters())
    stds = dict(zip(weights["module"], weights["std"], strict=True))
    if code := depth_code(model):
        outputs = {name: stds[name] for name in weights.loc[weights["role"].isin(["attn_out", "mlp_out"]), "module"]}
        scaled = [name for name, value in outputs.items() if value < 0.75 * std]
        plain = sorted({re.sub(r"\d+", "*", name) for name in outputs.keys() - set(scaled)})
        row["depth_scaling"] = f"{code}: {len(scaled)} of {len(outputs)} output projections scaled"
        row["depth_scaling"] += f", not {', '.join(plain)}" if plain else ""
    # of matrices alone: biases, norms and gains have inits of their own
    off = {
        re.sub(r"\d+", "*", name): f"{value:.3g}"
        for name, value in stds.items()
        if parameters[name].dim() > 1 and parameters[name].numel() >= 1024 and value > 2 * std
    }
    row["off_range"] = "; ".join(f"{name} {value}" for name, value in off.items())[:400]


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TooSlow after so many seconds."""

    def stop(*_: Any) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    stage = next((name for name in ("built", "runs", "probed") if row[name] != "yes"), "")
    if stage:
        return f"{row['model_type']}: {stage}: {row[stage]}"
    share = f"{row['verified']:.0%} of {row['blocks']} blocks verified"
    return f"{row['model_type']}: {share}, errors [{row['errors']}] warnings [{row['warnings']}], {row['seconds']} s"


def summary(table: pd.DataFrame, kind: str, seconds: float) -> str:
    """The Markdown page."""
    reached = table[table["runs"] == "yes"]
    probed = reached[reached["probed"] == "yes"]
    whole = probed[probed["verified"] == 1]
    command = " ".join(["python", *sys.argv])
    count = max(len(reached), 1)
    head = [
        f"# Audit of the {kind} of transformers {transformers.__version__}",
        "",
        f"`{command}` · torch {torch.__version__} · initlab {initlab.__version__} · {seconds:.0f} s. {judged_by()}",
        "",
        f"- entries: {len(table)}",
        f"- built: {(table['built'] == 'yes').sum()}",
        f"- own forward and backward run (reached): {len(reached)}",
        f"- probed with no configuration: {len(probed)} ({len(probed) / count:.1%} of the reached)",
        f"- every block's residual decomposition verified: {len(whole)} ({len(whole) / count:.1%} of the reached)",
        f"- some block verified: {(probed['verified'] > 0).sum()}",
        f"- with an error-level finding: {(probed['errors'] != '').sum()}",
        "",
    ]
    parts = (
        ("Not reached", table[table["runs"] != "yes"], ["model_type", "built", "runs"]),
        ("Reached, not probed", reached[reached["probed"] != "yes"], ["model_type", "probed"]),
        (
            "Probed, not every block verified",
            probed[probed["verified"] < 1],
            ["model_type", "blocks", "verified", "notes"],
        ),
        (
            "Depth scaling that the class's own code declares",
            probed[probed["depth_scaling"] != ""],
            ["model_type", "initializer_range", "out_std", "depth_scaling"],
        ),
        (
            "Matrices drawn at more than twice the config's initializer_range",
            probed[probed["off_range"] != ""],
            ["model_type", "initializer_range", "off_range"],
        ),
        ("Error-level findings", probed[probed["errors"] != ""], ["model_type", "errors", "error_text"]),
        (
            "Probed",
            probed,
            ["model_type", "class", "stacks", "blocks", "verified", "multipliers", "warnings", "seconds"],
        ),
    )
    for title, rows, columns in parts:
        head += [f"## {title} ({len(rows)})", "", markdown(rows[columns]), ""]
    return "\n".join(head)


def markdown(rows: pd.DataFrame) -> str:
    """A table in Markdown."""
    cells = [list(rows.columns), ["---"] * len(rows.columns), *rows.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in cells)


if __name__ == "__main__":
    main()
