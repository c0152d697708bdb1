"""What was run, and what of it is missing: the facts beside a verdict."""

from __future__ import annotations

import re
from typing import Any

from initlab.judge.words import listed, plural
from initlab.report.view import recipes_of, steps_of
from initlab.rundir import Run

# options of NanoGPTConfig's wiring, and what nanoGPT has; another is said
_NANOGPTS: dict[str, Any] = {
    "norm": "layernorm",
    "norm_placement": "pre",
    "qk_norm": False,
    "positions": "learned",
    "n_kv_head": None,
    "residual_multiplier": 1.0,
    "attention_multiplier": None,
    "embedding_multiplier": 1.0,
    "logit_multiplier": 1.0,
    "layer_scale": None,
    "gate": None,
    "skip_multiplier": 1.0,
    "norm_multiplier": 1.0,
    "inner_norm": "none",
    "head_scale": None,
    "embed_norm": False,
    "logit_cap": None,
}


def progress(run: Run) -> tuple[int, int]:
    """Cells that are in the tables, cells that were planned."""
    done = set(run.tables.summary["run_id"])
    return len(done), len(done | set(run.manifest.get("cells", [])))


def shortfall(run: Run) -> list[str]:
    """Sentences about what is missing, left out or failed: cells, recipes, tensors; empty for a complete run."""
    (done, planned), failed = progress(run), run.manifest.get("failed", {})
    notes = list(run.notes)
    if run.manifest.get("kind") == "watch":
        if not run.manifest.get("finished"):
            notes.append(f"The watch is still open, or was killed: recorded up to step {steps_of(run)[-1]}.")
    elif done < planned or not run.manifest.get("finished"):
        notes.append(f"Incomplete: {_amount(run, done, planned)}; the same command with the same -o resumes.")
    left_out = run.manifest["config"].get("left_out", {})
    notes += [f"{recipe} was left out: {why.rstrip('.')}." for recipe, why in left_out.items()]
    alike: dict[str, list[str]] = {}
    for cell, error in failed.items():
        alike.setdefault(str(error), []).append(cell)
    for error, cells in alike.items():
        verb = "measured" if any(map(_is_probe, cells)) or run.manifest.get("kind") != "confirm" else "trained"
        notes.append(f"{'Cell' if len(cells) == 1 else 'Cells'} {listed(cells)} could not be {verb}: {error}")
    coverage = run.tables.coverage
    unseen = coverage[(coverage["fired"] < coverage["expected"]) & (coverage["site"] != "module")]
    sums = unseen.groupby(["kind", "site", "note"], observed=True)[["fired", "expected"]].sum().reset_index()
    rows = [f"{row.kind} {row.site} {row.fired} of {row.expected} ({row.note})" for row in sums.itertuples()]
    return notes + ([f"Not everything was seen: {listed(rows, 3)}."] if rows else [])


def _amount(run: Run, done: int, planned: int) -> str:
    if run.manifest.get("kind") != "confirm":
        return f"{done} of {planned} cells"
    trained = run.tables.runs["run_id"].nunique()
    probes = sum(_is_probe(cell) for cell in run.manifest["cells"])
    return f"{done - trained} of {probes} models probed, {trained} of {planned - probes} runs trained"


def _is_probe(cell: str) -> bool:
    """Whether a cell's id ends with its seed; that of a training run goes on with its rate and warmup."""
    return re.search(r"-s\d+$", cell) is not None


def facts(run: Run) -> list[tuple[str, str]]:
    """(label, value) of what was run: model, data, seeds, device, version, commit, date."""
    config, summary = run.manifest["config"], run.tables.summary
    # 0 stands for what a model doesn't have: a vocabulary, a residual stream
    vocab = sorted(int(size) for size in summary["vocab_size"].dropna().unique() if size)
    data, git = run.manifest.get("data") or {}, run.manifest.get("git")
    depths = sorted(int(depth) for depth in summary["n_layer"].unique()) or config.get("depths", [])
    widths = sorted(int(width) for width in summary["n_embd"].unique()) or config.get("widths", [])
    depths, widths = ([size for size in sizes if size] for sizes in (depths, widths))
    seeds = config.get("seeds", int(summary["seed"].nunique()))
    found: list[tuple[str, Any]] = [
        ("model", config.get("model")),
        ("n_layer", ", ".join(map(str, depths))),
        ("n_embd", ", ".join(map(str, widths))),
        (
            "wiring",
            ", ".join(f"{key}={config[key]}" for key in _NANOGPTS if config.get(key, _NANOGPTS[key]) != _NANOGPTS[key]),
        ),
        ("vocabulary", ", ".join(map(str, vocab))),
        ("batch", "×".join(str(config[key]) for key in ("batch_size", "block_size") if config.get(key))),
        ("seeds", seeds if isinstance(seeds, int) else len(seeds)),
        ("data", data.get("label") or config.get("data")),
        ("tokenizer", data.get("tokenizer") or config.get("tokenizer")),
        ("mode", config.get("mode")),
        ("steps", config.get("step") or config.get("steps") or _steps_text(run)),
        ("optimizer", _optimizer(config)),
        ("dtype", config.get("dtype")),
        ("device", config.get("device")),
        ("commit", git and f"{git['commit']}{' + changes' if git.get('dirty') else ''}"),
        ("judged by", judging(run)),
        ("date", str(run.manifest.get("created") or "").replace("T", " ").removesuffix("Z")),
    ]
    found += [("changed", line) for line in run.manifest.get("changes") or []]
    return [(label, str(value)) for label, value in found if value not in (None, "")]


def _steps_text(run: Run) -> str | None:
    """`0 to 300, every 100`, of a watch."""
    every, steps = run.manifest["config"].get("every"), steps_of(run)
    return f"{steps[0]} to {steps[-1]}, every {every}" if every else None


def _optimizer(config: dict[str, Any]) -> str | None:
    if "lrs" in config:
        rates = ", ".join(f"{lr:.3g}" for lr in config["lrs"])
        warm = ", ".join(str(steps) if steps else "none" for steps in config.get("warmups", []))
        return f"AdamW, lr {rates}" + (f", warmup {warm}" if warm else "")
    known = {"adamw": "AdamW", "sgd": "SGD"}
    name = config.get("optimizer")
    return f"{known[name]}, lr {config['lr']:g}" if name in known else name


def judging(run: Run) -> str:
    """What the user overrode: `only GRD, without RES006, EMB001=0.05`; empty for the rules as they are."""
    given = run.manifest.get("judging") or {}
    parts = [f"only {', '.join(given['select'])}"] if given.get("select") else []
    parts += [f"without {', '.join(given['ignore'])}"] if given.get("ignore") else []
    return ", ".join(parts + [f"{code}={value:g}" for code, value in given.get("limits", {}).items()])


def model_notes(run: Run) -> list[str]:
    """What the probe found out about the model itself: its stacks, what could not be verified, what was unwrapped.

    Of a model beside its changed copy, what was changed before it.
    """
    coverage = run.tables.coverage
    changes = [f"changed: {line}" for line in run.manifest.get("changes") or []]
    return list(dict.fromkeys([*changes, *_own_inits(run), *coverage.loc[coverage["site"] == "model", "note"]]))


def _own_inits(run: Run) -> list[str]:
    """What a comparison doesn't judge of models with inits of their own."""
    if run.manifest.get("kind") != "compare" or not run.manifest["config"].get("sources"):
        return []
    known = run.manifest.get("recipes") or {}
    own = [recipe for recipe in recipes_of(run) if recipe not in known]
    said = (
        f"what the init code of {listed(own)} did isn't judged here (rules DRW, most of INI): initlab probe or diff do"
    )
    return [said] if own else []


def header(run: Run) -> str:
    """What was run, in a line."""
    known = dict(facts(run))
    recipes = len(recipes_of(run))
    parts = [f"initlab {run.manifest.get('initlab_version', '')} {run.manifest.get('kind', '')}".strip()]
    if known.get("model"):
        parts.append(known["model"])
    parts.append(", ".join(f"{name} {known[name]}" for name in ("n_layer", "n_embd") if name in known))
    parts.append(known.get("wiring", ""))
    if known.get("vocabulary"):
        parts.append(f"vocabulary {known['vocabulary']}")
    if recipes > 1:
        parts.append(f"{recipes} recipes")
    parts.append(plural(int(known.get("seeds", 1)), "seed"))
    if known.get("optimizer"):
        parts.append(f"{plural(int(known.get('steps', 0)), 'step')} of {known['optimizer']}")
    parts.append(f"{known['mode']} mode" if known.get("mode") else "")
    parts.append(" ".join(filter(None, (known.get("dtype"), known.get("device")))))
    parts.append(f"batch {known['batch']}" if known.get("batch") else "")
    parts.append(known.get("data", ""))
    parts.append(f"judged by {known['judged by']}" if known.get("judged by") else "")
    return " · ".join(filter(None, parts))
