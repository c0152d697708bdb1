"""Realistic runs from simple formulas, so that the report is tested without torch and in milliseconds."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np

from initlab.judge.rules.base import Finding
from initlab.rundir import Run
from initlab.schema import FORMATS, Tables, table

VOCAB, BLOCK_SIZE, BATCH, N_HEAD = 256, 256, 4, 6
BLOCK_SITES = (
    "resid_pre",
    "ln_1",
    "q",
    "k",
    "v",
    "attn_logits",
    "attn_pattern",
    "attn_z",
    "attn_out",
    "resid_mid",
    "ln_2",
    "mlp_pre",
    "mlp_act",
    "mlp_out",
    "resid_post",
)
WEIGHTS = {
    "attn_qkv": ("attn.c_attn.weight", 3, 0.02),
    "attn_out": ("attn.c_proj.weight", 1, 0.02),
    "mlp_in": ("mlp.c_fc.weight", 4, 0.02),
    "mlp_out": ("mlp.c_proj.weight", 4, 0.02),
    "norm_gain": ("ln_1.weight", 0, 1.0),
    "norm_bias": ("ln_1.bias", 0, 0.0),
    "bias": ("attn.c_proj.bias", 0, 0.0),
}
# recipe -> variance at the embedding, MLP write of one block in a model of L blocks, first loss above ln V
_SHAPES: dict[str, tuple[float, float, bool, float]] = {
    "nanogpt": (8e-4, 0.0166, True, 0.051),
    "nanogpt-no-depth-scale": (8e-4, 0.0332, False, 0.055),
    "torch-default": (1.0, 0.018, False, 0.17),
}


def _shape(recipe: str) -> tuple[float, float, bool, float]:
    if recipe in _SHAPES:
        return _SHAPES[recipe]
    turn = zlib.crc32(recipe.encode()) % 1000 / 1000
    return 10 ** (-3 + 2 * turn), 0.01 + 0.05 * turn, turn < 0.5, 0.02 + 0.2 * turn


def _profile(recipe: str, n_layer: int) -> dict[str, Any]:
    embed, write, scaled, excess = _shape(recipe)
    per_block = write / n_layer if scaled else write
    stream, rows = embed, []
    for _ in range(n_layer):
        attn = per_block * 0.035
        rows.append({"pre": stream, "attn": attn, "mid": stream + attn, "mlp": per_block, "post": 0.0})
        stream += attn + per_block
        rows[-1]["post"] = stream
    return {"embed": embed, "blocks": rows, "final": stream, "excess": excess}


def _moments(var: float, numel: int) -> dict[str, float]:
    std = math.sqrt(var) if var >= 0 else math.nan
    fractions = {f"frac_{edge}_{fmt}": 0.0 for fmt in FORMATS for edge in ("under", "over")}
    return {
        "numel": numel,
        "mean": 0.0,
        "std": std,
        "var": var,
        "rms": std,
        "abs_mean": std * math.sqrt(2 / math.pi),
        "abs_max": std * 4.5,
        "kurtosis": 0.05,
        "frac_zero": 0.0,
        "frac_nonfinite": 0.0 if math.isfinite(var) else 1.0,
        **fractions,
    }


def _activations(profile: dict[str, Any], n_embd: int, noise: Any) -> list[dict[str, Any]]:
    """Variance and expectation of every site in forward order; `noise` is a factor per call."""
    rows = [{"site": "embed", "layer": None, "var": profile["embed"], "module": "transformer.drop"}]
    for layer, block in enumerate(profile["blocks"]):
        inner = 4e-4 * n_embd
        values = {
            **dict.fromkeys(("ln_1", "ln_2"), 1.0),
            **dict.fromkeys(("q", "k", "v", "mlp_pre"), inner),
            "attn_logits": inner**2 / 10,
            "attn_pattern": 2e-4,
            "attn_z": inner / 12,
            "mlp_act": inner * 0.4,
            "resid_pre": block["pre"],
            "attn_out": block["attn"],
            "resid_mid": block["mid"],
            "mlp_out": block["mlp"],
            "resid_post": block["post"],
        }
        rows += [
            {"site": site, "layer": layer, "var": values[site], "module": f"transformer.h.{layer}"}
            for site in BLOCK_SITES
        ]
    rows.append({"site": "final_norm", "layer": None, "var": 1.0, "module": "transformer.ln_f"})
    rows.append({"site": "logits", "layer": None, "var": 4e-4 * n_embd, "module": "lm_head"})
    for row in rows:
        known = row["site"] not in ("attn_pattern", "attn_logits")
        row["expected_var"] = row["var"] if known else math.nan
        row["var"] *= noise()
    return rows


def _cell(recipe: str, n_layer: int, n_embd: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    rng = np.random.default_rng(zlib.crc32(f"{recipe}{n_layer}{n_embd}{seed}".encode()))

    def noise() -> float:
        return float(np.exp(rng.normal(0, 0.03)))

    run_id = f"{recipe}-L{n_layer}-d{n_embd}-s{seed}"
    keys = {"run_id": run_id, "recipe": recipe, "seed": seed, "step": 0, "n_layer": n_layer, "n_embd": n_embd}
    batch = {"call": 0, "dtype": "float32", "n_tokens": BATCH * BLOCK_SIZE, "targets": "next-token"}
    profile = _profile(recipe, n_layer)
    stream = _activations(profile, n_embd, noise)
    numel = BATCH * BLOCK_SIZE * n_embd
    rows: list[dict[str, Any]] = []
    for position, row in enumerate(stream):
        common = {**keys, **batch, **row, "position": position}
        rows.append({**common, "kind": "activation", **_moments(row["var"], numel)})
        if row["site"] not in ("attn_logits", "attn_pattern"):
            # The gradient grows towards the embedding as much as the signal grows away from it.
            var = 1e-9 * profile["final"] / max(row["expected_var"], profile["embed"]) * noise()
            rows.append({**common, "kind": "grad", "expected_var": math.nan, **_moments(var, numel)})
    rows += _parameters(keys, batch, profile, n_embd, noise)
    heads = [
        {
            **keys,
            "layer": layer,
            "head": head,
            "n_rows": 64,
            "entropy": 4.5,
            "entropy_frac": 1 - 0.004 * abs(noise() - 1) * (layer + 1),
            "logit_std": 0.1,
        }
        for layer in range(n_layer)
        for head in range(N_HEAD)
    ]
    excess = profile["excess"]
    summary = {
        **keys,
        "n_head": N_HEAD,
        "block_size": BLOCK_SIZE,
        "vocab_size": VOCAB,
        "n_params": 12 * n_layer * n_embd**2 + (VOCAB + BLOCK_SIZE) * n_embd,
        "n_tokens": BATCH * BLOCK_SIZE,
        "mode": "train",
        "targets": "next-token",
        "loss": math.log(VOCAB) + excess * noise(),
        "ln_vocab": math.log(VOCAB),
        "expected_loss": math.log(VOCAB) + excess,
        "logit_std": math.sqrt(2 * excess),
        "expected_logit_std": math.sqrt(2 * excess),
        "own_logit": 0.3,
        "expected_own_logit": 0.3,
        "repeat_rate": 0.033,
        "token_cosine": 0.02,
        "expected_token_cosine": 0.02,
        "token_position_ratio": 1.0,
        "dead_frac": 0.0,
        "seconds": 1.5,
    }
    coverage = [
        {"run_id": run_id, "kind": "activation", "site": site, "expected": n_layer, "fired": n_layer, "note": ""}
        for site in BLOCK_SITES
    ]
    return {"records": rows, "heads": heads, "summary": [summary], "coverage": coverage}


def _parameters(
    keys: dict[str, Any], batch: dict[str, Any], profile: dict[str, Any], n_embd: int, noise: Any
) -> list[dict[str, Any]]:
    rows = []
    tensors: list[tuple[str, int | None, str, int, float]] = [
        ("token_embed", None, "transformer.wte.weight", VOCAB * n_embd, 0.02),
        ("pos_embed", None, "transformer.wpe.weight", BLOCK_SIZE * n_embd, 0.02),
    ]
    for layer in range(len(profile["blocks"])):
        for role, (name, factor, std) in WEIGHTS.items():
            tensors.append((role, layer, f"transformer.h.{layer}.{name}", max(factor, 1) * n_embd, std))
    for position, (role, layer, module, numel, std) in enumerate(tensors):
        common = {**keys, **batch, "position": position, "site": role, "role": role, "layer": layer, "module": module}
        rows.append({**common, "kind": "weight", "expected_var": std**2, **_moments(std**2 * noise(), numel)})
        depth = 1.0 if layer is None else 1 + layer / 4
        rows.append({**common, "kind": "weight_grad", **_moments(1e-6 / depth * noise(), numel)})
    return rows


def _recipe_rows(recipe: str, depths: tuple[int, ...], widths: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for n_layer in depths:
        for n_embd in widths:
            for role, (_, _, std) in WEIGHTS.items():
                scaled = role in ("attn_out", "mlp_out") and _shape(recipe)[2]
                rows.append(
                    {
                        "role": role,
                        "n_layer": n_layer,
                        "n_embd": n_embd,
                        "distribution": "constant" if role.startswith("norm") or role == "bias" else "normal",
                        "mean": std if role == "norm_gain" else 0.0,
                        "std": 0.02 / math.sqrt(2 * n_layer) if scaled else (std if std < 1 else 0.0),
                        "formula": "std = 0.02 / sqrt(2 * n_layer)"
                        if scaled
                        else f"{'value' if role.startswith('norm') or role == 'bias' else 'std'} = {std:g}",
                    }
                )
    return rows


def synthetic_run(
    recipes: tuple[str, ...] = ("nanogpt", "nanogpt-no-depth-scale", "torch-default"),
    depths: tuple[int, ...] = (4, 8, 16),
    widths: tuple[int, ...] = (384,),
    seeds: int = 3,
    kind: str = "compare",
) -> Run:
    """A complete run with every column of the schema filled."""
    cells = [(r, n_layer, n_embd, s) for r in recipes for n_layer in depths for n_embd in widths for s in range(seeds)]
    rows: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        for name, more in _cell(*cell).items():
            rows.setdefault(name, []).extend(more)
    tables = Tables(**{name: table(name, more) for name, more in rows.items()})
    config = {
        "recipes": list(recipes),
        "depths": list(depths),
        "widths": list(widths),
        "seeds": seeds,
        "n_head": N_HEAD,
        "block_size": BLOCK_SIZE,
        "batch_size": BATCH,
        "dtype": "float32",
        "device": "cpu",
        "preset": "full",
        "data": "docstrings",
        "tokenizer": "bytes",
        "bias": True,
        "activation": "gelu",
    }
    manifest = {
        "schema_version": 1,
        "initlab_version": "0.1.0",
        "kind": kind,
        "command": f"initlab {kind} {' '.join(recipes)} --depths {','.join(map(str, depths))} --seeds {seeds}",
        "created": "2026-11-23T09:00:00Z",
        "finished": "2026-11-23T09:01:01Z",
        "seconds": 61.2,
        "config": config,
        "recipes": {
            recipe: {
                "summary": f"Weights of {recipe}.",
                "family": "gpt",
                "source": "nanoGPT model.py",
                "rows": _recipe_rows(recipe, depths, widths),
            }
            for recipe in recipes
        },
        "data": {
            "label": "Python 3.11.7 standard library docstrings",
            "tokenizer": "bytes",
            "vocab_size": VOCAB,
            "sha256": "9f2c" * 16,
            "n_tokens": 1_600_000,
            "entropy_nats": 3.315,
            "sum_p2": 0.056,
            "repeat_rate": 0.033,
            "targets": "next-token",
        },
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "platform": "Linux x86_64",
            "device": "cpu",
            "threads": 2,
        },
        "git": {"commit": "abc123", "dirty": False},
        "cells": [str(run_id) for run_id in tables.summary["run_id"]],
        "failed": {},
    }
    return Run(tables, manifest)


def _finding(recipe: str, code: str, name: str, question: str, **more: Any) -> Finding:
    return Finding(
        **{
            "code": code,
            "name": name,
            "question": question,
            "status": "pass",
            "severity": "error",
            "recipe": recipe,
            "message": f"{name}: nothing to see.",
            "seeds_total": 3,
            **more,
        }
    )


def synthetic_findings(run: Run) -> list[Finding]:
    """Two failing recipes (one error, one warning), passes, and checks that don't apply."""
    findings = []
    several = run.tables.summary["n_layer"].nunique() > 1
    for recipe in run.manifest["config"]["recipes"]:
        unscaled = several and not _shape(recipe)[2]
        findings.append(
            _finding(
                recipe,
                "DEP001",
                "unscaled-residual-writes",
                "Depth",
                status=("fail" if unscaled and recipe != "torch-default" else "pass") if several else "not_applicable",
                message="What a block writes does not shrink with depth: L^0.01 ± 0.02, so the stream grows with it."
                if unscaled
                else "Branch writes shrink as L^-1.00 ± 0.02."
                if several
                else "Needs models of two or more depths: --depths 4,8,16.",
                site="mlp_out",
                measured=(0.01 if unscaled else -1.0) if several else None,
                uncertainty=0.02 if several else None,
                limit="-1 ± 0.25",
                unit="exponent",
                seeds_failing=3 if unscaled else 0,
                effect=1.4,
                why="Every block adds variance; without 1/√(2·n_layer) on both residual writes the stream grows as L.",
                advice="Scale the std of attn.c_proj.weight and mlp.c_proj.weight by 1/√(2·n_layer).",
                source="nanoGPT model.py, l. 143-145",
            )
        )
        loud = _shape(recipe)[3] > 0.1
        findings.append(
            _finding(
                recipe,
                "LOG001",
                "confident-start",
                "Logits",
                severity="warning",
                status="fail" if loud else "pass",
                message=f"First loss is {_shape(recipe)[3]:.2f} nats above ln V.",
                site="logits",
                measured=_shape(recipe)[3],
                limit="≤ 0.10",
                unit="nats",
                seeds_failing=3 if loud else 0,
                effect=0.5,
                why="Logits with variance σ² cost σ²/2 nats before anything is learned.",
                advice="Shrink the std of lm_head.weight; 0.02 keeps the first loss at ln V.",
                basis="derived",
                source="derivation in Method",
            )
        )
        findings.append(_finding(recipe, "GRD001", "fading-gradient", "Gradient", measured=0.98, unit="ratio"))
        findings.append(
            _finding(
                recipe,
                "NUM001",
                "fp16-overflow",
                "Numerics",
                status="not_applicable",
                message="Needs preset full on a CUDA device.",
            )
        )
    return findings
