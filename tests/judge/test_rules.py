"""Every rule with a minimal failing and a minimal passing frame."""

import copy
import math
import re

import pandas as pd
import pytest

from initlab import schema
from initlab.errors import ConfigError
from initlab.judge.rules import RULES, chosen, evaluate, named, worst
from initlab.judge.rules.depth import depth_exponents
from initlab.rundir import Run
from initlab.schema import Tables

KEYS = {"run_id": "r", "recipe": "r", "seed": 0, "step": 0, "n_layer": 4, "n_embd": 64}
CELL = {name: value for name, value in KEYS.items() if name != "step"}
RECORD = {**KEYS, "position": 0, "call": 0, "n_tokens": 64, "numel": 100, "frac_nonfinite": 0.0, "module": "m"}
C_ATTN = "transformer.h.0.attn.c_attn.weight"
C_PROJ = "transformer.h.0.attn.c_proj.weight"
MLP = "transformer.h.0.mlp.c_proj.weight"
GATED = ("layers.0.scale_in.weight", "layers.0.alpha")
INDEXER = "layers.0.attn.indexer.wq.weight"
DEEP = "layers.0.attn.packer.indexer.wq.weight"
SUMMARY = {**KEYS, "n_head": 1, "block_size": 64, "vocab_size": 256, "n_params": 1, "n_tokens": 64}


WRITE = {
    "run_id": "r",
    "held": "parameter",
    "state": "set",
    "unset": 0.0,
    "ndim": 2,
    "shape": "64×64",
    "holder": "Linear",
}
WRITE |= {"share": 1.0, "by": "code", "made": 0, "replaced": 0, "operation": "normal_", "arguments": "mean=0, std=0.02"}
WRITE |= {
    "distribution": "normal",
    "text": "normal(0, 0.02)",
    "mean": 0.0,
    "std": 0.02,
    "order": 0,
    "where": "m.py:9 init",
}
DEFAULT = {
    "by": "default",
    "distribution": "uniform",
    "text": "uniform(-0.1, 0.1)",
    "std": 0.06,
    "where": "m.py:3 __init__",
}
ZERO = {
    "distribution": "constant",
    "text": "0",
    "std": 0.0,
    "operation": "zeros_",
    "arguments": "",
    "where": "m.py:5 set",
}
UP, ALSO = "layers.1.up.weight", "layers.0.up.weight"
DRAWN = {"layer": 1, "module": UP, "role": "mlp_in", "rows": 256, "columns": 64, "row_blocks": 1, "column_blocks": 1}
DRAWN |= {
    "row_copies": 0.0,
    "column_copies": 0.0,
    "shared": 1,
    "likeness": 0.1,
    "stable_rank": 30.0,
    "usual_rank": 28.4,
}


MADE = {}


def table_of(name, rows):
    """A table of its own; what is in hundreds of runs, such as an empty one, is made once."""
    key = name, repr(rows)
    if key not in MADE:
        MADE[key] = schema.table(name, rows)
    return MADE[key].copy()


def run_of(
    records=(), summary=(), heads=(), wiring=(), writes=(), behaviour=(), draws=(), declared=(), routing=(), **manifest
):
    given = {
        "records": [RECORD | row for row in records],
        "summary": [SUMMARY | row for row in summary],
        "heads": [KEYS | {"head": 0, "n_rows": 32, "entropy": 1.0} | row for row in heads],
        "writes": [WRITE | row for row in writes],
        "wiring": [CELL | row for row in wiring],
        "routing": [KEYS | row for row in routing],
        "behaviour": [CELL | row for row in behaviour],
        "draws": [CELL | DRAWN | row for row in draws],
        "declared": [CELL | row for row in declared],
    }
    tables = Tables(**{name: table_of(name, given.get(name, [])) for name in schema.TABLES})
    return Run(tables, {"data": {"sum_p2": 0.05}, "cells": []} | manifest)


def stream(slope, write=1e-3, embed=1e-3, depths=(4, 16)):
    """Records of a sweep whose MLPs write write·(L/4)^slope each."""
    rows = []
    for L in depths:
        rows.append({"n_layer": L, "site": "embed", "kind": "activation", "var": embed})
        weight = {"n_layer": L, "site": "mlp_out", "kind": "weight", "role": "mlp_out", "std": 0.02, "var": 4e-4}
        rows.append(weight | {"module": "transformer.h.0.mlp.c_proj.weight"})
        for site in ("attn_out", "mlp_out"):
            value = {"n_layer": L, "site": site, "kind": "activation", "var": write * (L / 4) ** slope}
            rows += [value | {"layer": layer} for layer in range(L)]
    return rows


def routed(*changes, **own):
    """Routers of four blocks over eight experts, two for each of 512 tokens; a change is (layer, columns)."""
    row = {"n_tokens": 512, "experts": 8, "chosen": 2, "most": 0.3, "never": 0, "never_by_chance": 0.0}
    row |= {"load_var_by_chance": 900.0, "evenness": 0.8, "evenness_by_chance": 0.85, "evenness_std_by_chance": 0.03}
    rows = [row | own | {"layer": layer, "module": f"tower.{layer}.pick.weight"} for layer in range(4)]
    for layer, columns in changes:
        rows[layer] |= columns
    return run_of(summary=summary(), routing=rows)


def wired(*changes, blocks=6, logit_std=0.3, gated=1, targets="next-token", **stack):
    """A pre-norm decoder with rotary positions; a change is (layer or None for all, kind, columns)."""
    whole = {"stack": 0, "note": "", "frozen": 0.0, "terms": "token", "final_norm": "norm", "head": "readout.weight"}
    branch = {"keep": 1.0, "scale": 1.0, "detached": 0, "dropout": 0.1}
    attention = {"kind": "attention", "site": "attn_out", "update": 0, "causal": 1, "rotary": 1, "bias": 0}
    attention |= {"score_scale": 0.25, "head_size": 16}
    mlp = {"kind": "mlp", "site": "mlp_out", "update": 1, "activation": "silu", "gated": gated}
    rows = []
    for layer in range(blocks):
        block = {"layer": layer, "block": f"tower.{layer}"}
        for row, name, norm in ((attention, "mix", "pre"), (mlp, "feed", "mid")):
            names = {"module": f"tower.{layer}.{name}", "norm": f"tower.{layer}.{norm}"}
            rows.append(whole | stack | branch | block | row | names)
    for layer, kind, columns in changes:
        for row in rows:
            if row["kind"] == kind and layer in (None, row["layer"]):
                row.update(columns)
    found = [{"layer": layer, "logit_std": logit_std} for layer in range(blocks)]
    return run_of(summary=summary(targets=targets), heads=found, wiring=[row for row in rows if row["layer"] >= 0])


def behaved(check, value, scale=1.0, changes=(), targets="next-token", **row):
    """A run of one perturbation, of the decoder of `wired` with some changes; None: of a model without a stream."""
    run = run_of(summary=summary(targets=targets)) if changes is None else wired(*changes, targets=targets)
    row = {"check": check, "value": value, "scale": scale, "noise": 1e-5, "share": 1.0} | row
    run.tables.behaviour = run_of(behaviour=[row]).tables.behaviour
    return run


REPLACED = {"keep": 0.0, "note": "isn't added"}
UNMASKED = (None, "attention", {"causal": 0})
NOWHERE = (None, "attention", {"rotary": 0})


def frozen(*layers):
    return wired(*((layer, kind, {"frozen": 1.0}) for layer in layers for kind in ("attention", "mlp")))


def summary(**row):
    return [{"token_position_ratio": 1.0, "loss": 5.55, "ln_vocab": math.log(256), "expected_loss": 5.55} | row]


def gradient(*zeros, shut=False, ran=True, role="attn_qkv", modules=(C_ATTN, C_PROJ), gate=C_PROJ, reached=math.nan):
    """Gradients of some parameters, 0 for those named; `shut`: the gate's weight is 0."""
    rows = [
        {"kind": "weight_grad", "site": role, "role": role, "layer": 0, "module": module}
        | {"abs_max": 0.0 if module in zeros else 1.0, "reached": reached if module in zeros else math.nan}
        for module in modules
    ]
    projection = {"kind": "weight", "site": "attn_out", "role": "attn_out", "layer": 0, "module": gate}
    outputs = [
        {"kind": "activation", "site": "q", "layer": 0, "module": module.rpartition(".")[0]} for module in modules
    ]
    return [*rows, projection | {"abs_max": 0.0 if shut else 0.1}, *(outputs if ran else [])]


def silenced(output):
    """A gain of 0 before a matrix that gets no gradient at first, and what its norm gives."""
    gain = {"site": "norm_gain", "role": "norm_gain", "layer": 0, "module": "layers.0.norm.weight"}
    matrix = {"site": "mlp_in", "role": "mlp_in", "layer": 0, "module": "layers.0.up.weight"}
    outputs = [{"site": "module", "layer": 0, "module": "layers.0.norm", "kind": "activation", "abs_max": output}]
    outputs += [outputs[0] | {"module": "layers.0.up", "kind": kind, "abs_max": 1.0} for kind in ("activation", "grad")]
    gradients = [gain | {"abs_max": 1.0}, matrix | {"abs_max": 0.0, "reached": 1.0}]
    return [*outputs, gain | {"kind": "weight", "abs_max": 0.0}, *[row | {"kind": "weight_grad"} for row in gradients]]


def weights(std=0.02, expected=0.02, numel=10_000):
    row = {"kind": "weight", "site": "mlp_in", "role": "mlp_in", "layer": 1, "module": "h.1.c_fc.weight"}
    return [row | {"std": std, "var": std**2, "expected_var": expected**2, "numel": numel}]


ADDED = {"odd": "rows 60–63 of words.weight", "odd_rms": 1.0, "odd_rest": 0.02, "role": "token_embed"}


def matrices(**changes):
    return run_of(summary=summary(), draws=[{"module": ALSO, "layer": 0}, changes])


CODE = "the std in GPT.__init__"


def says(std=0.02, kurtosis=0.0, also=(), n_layer=4, name="config.initializer_range", **found):
    """A config, or code, that declares 0.02, and weights of some std by role."""
    stds = dict.fromkeys(("attn_qkv", "attn_out", "mlp_in", "mlp_out", "token_embed"), std) | found
    row = {"kind": "weight", "numel": 100_000, "n_layer": n_layer, "kurtosis": kurtosis, "mean": 0.0}
    rows = [
        row | {"site": role, "role": role, "std": s, "layer": None if "embed" in role else 1, "module": f"h.1.{role}"}
        for role, s in stds.items()
    ]
    said = [{"kind": "std", "name": name, "said": 0.02, "about": ""}]
    said += [{"kind": "other std", "name": f"config.{each}_std", "said": each, "about": ""} for each in also]
    return run_of(rows, summary(), declared=said)


def declared(kind, said, found, **more):
    row = {"kind": kind, "name": "config.it", "said": said, "found": found, "about": "readout.weight words.weight"}
    gain = {"kind": "weight", "site": "gate", "role": "gate", "module": "layers.0.gamma", "mean": 1.0}
    return run_of([gain], summary(), declared=[row | more])


def zeroed(most, **drawn):
    """A matrix that the code sets to 0 by name."""
    row = {"kind": "weight", "site": "other", "role": "other", "module": "blocks.0.modulate.weight", "numel": 10_000}
    row |= {"mean": 0.0, "std": most / 3, "kurtosis": 0.0} | drawn
    said = {"kind": "zero", "name": "Net.reset", "said": 0.0, "found": most, "about": "blocks.0.modulate.weight"}
    return run_of([row], summary(), declared=[said])


def made_of(said, found, std=0.0, gains=0.0):
    """A gate that its class makes of one number, and how the norms' gains are spread."""
    row = {"kind": "weight", "site": "gate", "role": "gate", "module": "blocks.0.gate", "numel": 1, "std": std}
    made = {"kind": "constant", "name": "Net.__init__", "said": said, "found": found, "about": "blocks.0.gate"}
    norm = {"role": "norm_gain", "columns": 1, "mean": 1.0, "spread": gains, "module": "norm.weight"}
    return run_of([row], summary(), declared=[made], draws=[norm])


def held(*parts):
    """What holds trainable tensors that aren't the model's: (what, tensors, elements) each."""
    rows = [{"kind": "unregistered", "name": name, "said": n, "found": size} for name, n, size in parts]
    return run_of(summary=summary(), declared=rows)


def steps(found, least=0.001, most=0.1):
    """The median step in time, and the range that the config declares."""
    row = {"name": "config.dt_min and dt_max", "found": found, "about": "layers.0.dt_proj.bias"}
    return run_of(
        summary=summary(),
        declared=[row | {"kind": "least step", "said": least}, row | {"kind": "most step", "said": most}],
    )


def drawn_by(stds, n_layer=8, n_embd=64):
    """Matrices by role: (std, fan_in) each, alike in all blocks."""
    records, draws = [], []
    for role, (std, fan_in) in stds.items():
        for layer in [None] if role == "token_embed" else range(n_layer):
            name = {"module": "words.weight" if layer is None else f"layers.{layer}.{role}.weight", "layer": layer}
            cell = {"n_layer": n_layer, "n_embd": n_embd}
            out = role in ("attn_out", "mlp_out")
            shape = {"rows": n_embd if out else 4 * n_embd, "columns": fan_in, "role": role}
            draws.append(cell | name | shape)
            records.append(cell | name | {"kind": "weight", "site": role, "role": role, "std": std, "numel": 100_000})
    return run_of(records, summary(), draws=draws)


def gpt(out=0.02, mlp_out=None, mlp_in=0.02, n_layer=8):
    mlp_out = out if mlp_out is None else mlp_out
    stds = {"token_embed": (0.02, 64), "attn_qkv": (0.02, 64), "attn_out": (out, 64), "mlp_gate": (0.02, 64)}
    return drawn_by(stds | {"mlp_in": (mlp_in, 64), "mlp_out": (mlp_out, 256)}, n_layer)


def by_fan(factor=1.0, out=1.0):
    stds = {"attn_qkv": (factor / 8, 64), "attn_out": (out / 8, 64), "mlp_in": (factor / 8, 64)}
    return drawn_by(stds | {"token_embed": (1 / 8, 64), "mlp_out": (out / 16, 256)})


def gains(mean=1.0, spread=0.0):
    row = {"role": "norm_gain", "columns": 1, "mean": mean, "spread": spread, "module": "layers.1.norm.weight"}
    return run_of(summary=summary(), draws=[row])


def level(ratio, loss=5.55):
    rows = [
        {"kind": "activation", "site": site, "layer": layer, "var": 0.01 * ratio, "expected_var": 0.01}
        for site, layer in (("embed", None), ("resid_post", 0), ("resid_post", 3))
    ]
    return run_of(rows, summary(loss=loss))


def scaled(exponent, axis="n_embd", kind="activation", sizes=(64, 128, 256), steps=(0, 1), loss=5.55, **column):
    """A stream, or another site, whose variance after steps goes as size^exponent, the same at two seeds."""
    keys = [
        {"n_embd": 64, "n_layer": 4, axis: size, "seed": seed, "step": step, "run_id": f"{size}-{seed}"}
        for size in sizes
        for seed in (0, 1)
        for step in steps
    ]
    rows = [
        key
        | {"site": "resid_post", "kind": k, "layer": 3, "var": float(key[axis]) ** (exponent if key["step"] else 0)}
        | column
        for key in keys
        for k in dict.fromkeys(("activation", kind))
        if key["step"] or k == "activation"
    ]
    return run_of(rows, [key | {"loss": loss if key["step"] and key[axis] == max(sizes) else 5.5} for key in keys])


def sized(square=None, std=0.02, n_embd=64):
    """What enters an MLP: measured, or by its weights alone."""
    keys = {"n_embd": n_embd, "layer": 0, "n_tokens": 64}
    rows = [keys | {"kind": "weight", "site": "mlp_in", "role": "mlp_in", "rms": std, "std": std, "module": "h.0.fc"}]
    rows.append(keys | {"kind": "activation", "site": "resid_post", "numel": 64 * n_embd, "rms": 1.0})
    return [*rows, keys | {"kind": "activation", "site": "mlp_pre", "rms": square**0.5}] if square else rows


def depth_code(out_std, code="GPT._init_weights", n_layer=8):
    rows = [
        {"kind": "weight", "site": role, "role": role, "layer": 0, "n_layer": n_layer, "std": std, "module": role}
        for role, std in (("attn_qkv", 0.02), ("mlp_in", 0.02), ("attn_out", out_std), ("mlp_out", out_std))
    ]
    return run_of(rows, summary(), init={"depth_code": code, "closest": "", "mismatches": []})


def siblings(stds):
    row = {"kind": "weight", "site": "mlp_in", "role": "mlp_in", "numel": 10_000, "n_layer": len(stds)}
    return run_of(
        [row | {"layer": i, "module": f"h.{i}.fc.weight", "std": s, "var": s * s} for i, s in enumerate(stds)]
    )


def branch_writes(values, expected=None, site="mlp_out"):
    row = {"kind": "activation", "site": site, "n_layer": len(values)}
    expected = expected or [math.nan] * len(values)
    return run_of(
        [row | {"layer": i, "var": v, "expected_var": e} for i, (v, e) in enumerate(zip(values, expected, strict=True))]
    )


def sharing_a_site(*writes):
    """Blocks whose writes come from several modules each: `writes[k][i]` of the k-th in block i, None: it has none."""
    row = {"kind": "activation", "site": "mlp_out", "n_layer": len(writes[0])}
    return run_of(
        [
            row | {"layer": i, "module": f"h.{i}.ffn_{k}", "var": value}
            for k, values in enumerate(writes)
            for i, value in enumerate(values)
            if value is not None
        ]
    )


def added(write, dtype="float32"):
    """A block that writes `write` times its stream, in rms."""
    rows = [{"site": site, "rms": 1.0} for site in ("resid_pre", "resid_mid")]
    rows += [{"site": "attn_out", "rms": 0.5}, {"site": "mlp_out", "rms": write}]
    return run_of([row | {"kind": "activation", "layer": 0, "n_layer": 1, "dtype": dtype} for row in rows])


def grown(factor, like=None, outputs=(C_PROJ, MLP), std=0.02):
    """A stream of four blocks that write alike; with `like`, of a model whose weights were described."""
    rows = [{"site": "embed", "var": 1.0}]
    rows += [{"site": "resid_post", "layer": layer, "var": 1 + (factor - 1) * (layer + 1) / 4} for layer in range(4)]
    drawn = {"names": list(outputs), "stds": [std] * len(outputs), "like": like, "so": bool(like)}
    init = {} if like is None else {"outputs": drawn}
    return run_of([row | {"kind": "activation"} for row in rows], init=init)


def alike(cosine, expected=math.nan):
    return run_of(summary=summary(token_cosine=cosine, expected_token_cosine=expected))


def heads(entropy=0.98, std=0.3, own_entropy=math.nan, own_std=math.nan):
    own = {"entropy_frac_by_input": own_entropy, "logit_std_by_input": own_std}
    found = [own | {"layer": i, "entropy_frac": entropy, "logit_std": std} for i in range(4)]
    return run_of(summary=summary(), heads=found)


def units(dead=0.0, zeros=0.0, step=0):
    row = {"kind": "activation", "site": "mlp_act", "layer": 0, "frac_zero": zeros, "step": step}
    return run_of([row], summary(dead_frac=dead, step=step))


def imbalance(grad_rms):
    rows = []
    for role, rms in (("attn_q", grad_rms), ("mlp_in", 1.0)):
        row = {"site": role, "role": role, "layer": 0, "module": role}
        rows += [row | {"kind": "weight", "rms": 0.02}, row | {"kind": "weight_grad", "rms": rms}]
    return run_of(rows)


def peak(value, dtype="float32", kind="activation"):
    return run_of([{"kind": kind, "site": "mlp_pre", "layer": 1, "abs_max": value, "dtype": dtype}])


def small_gradients(share, dtype="float32"):
    row = {"kind": "weight_grad", "site": "mlp_in", "rms": 1e-6, "dtype": dtype}
    return run_of([row | {"frac_under_fp16": share, "frac_under_e5m2": share}])


def update(ratio, dtype="bfloat16", unmoved=0.0, role="mlp_in"):
    row = {"site": role, "role": role, "layer": 0, "module": "h.0.fc.weight", "step": 5, "dtype": dtype}
    rows = [row | {"kind": "weight", "rms": 0.02}, row | {"kind": "update", "rms": 0.02 * ratio, "frac_zero": unmoved}]
    return run_of(rows, summary(step=5))


WIDE = "everything else is nanogpt, but unembed has std 1, not 0.02"


def close_to(*mismatches, closest="nanogpt", **implied):
    init = {"depth_code": "", "closest": closest, "mismatches": list(mismatches), "implied": implied}
    return run_of(summary=summary(), init=init)


# code -> (frames that fail, with their severity), (frames that pass), (frames where it can't say)
def written(*rows, names=("up", "down", "gate"), blocks=4, **common):
    """Writes to matrices of each block, one after another; a row is (names it is for, columns)."""
    found = [
        common | columns | {"parameter": f"tower.{layer}.{name}.weight", "order": order}
        for order, (own, columns) in enumerate(rows)
        for name in names
        for layer in range(blocks)
        if name in own
    ]
    return run_of(summary=summary(), writes=found)


ALL = ("up", "down", "gate")
MORE = (*ALL, "q", "k")
TWICE = {"factor": 0.5, "operation": "mul_", "where": "m.py:12 scale"}
EMPTY = {"order": None, "unset": 1.0, "distribution": None, "by": None, "where": None}
OUTSIDE = {"parameter": "tok.weight", "std": 0.02 * 8**0.5}

CASES = {
    "DRW001": (
        [
            (run_of(summary=summary(), writes=[EMPTY | {"parameter": "norm.weight"}]), "error"),
            (run_of(summary=summary(), writes=[EMPTY | {"parameter": "cache", "held": "buffer"}]), "warning"),
            (run_of(summary=summary(), writes=[{"parameter": "a", "state": "meta"}]), "error"),
            (run_of(summary=summary(), writes=[{"parameter": "a", "unset": 0.5}]), "error"),
            (written((ALL, {}), unset=1.0, replaced=1), "error"),
            (written((ALL, {}), unset=1.0, distribution="constant", mean=math.nan), "error"),
        ],
        [written((ALL, {}))],
        [run_of(summary=summary()), written((ALL, {}), state="unheard")],
    ),
    "DRW002": (
        [
            (written((ALL, DEFAULT), (("up", "gate"), {})), "warning"),
            (written((ALL, DEFAULT), (("up", "gate"), {}), blocks=1), "info"),
        ],
        [written((ALL, DEFAULT), (ALL, {})), written((ALL, DEFAULT)), written((ALL, DEFAULT), (("up",), {}))],
        [run_of(summary=summary())],
    ),
    "DRW003": (
        [
            (written((("down",), ZERO), (ALL, {})), "warning"),
            (written((("down",), ZERO | {"std": 0.01, "distribution": "normal"}), (ALL, {})), "warning"),
            (written((ALL, {}), (ALL, DEFAULT)), "warning"),
            (written((("down",), {"made": 1, "distribution": "computed"}), (ALL, {})), "warning"),
            (written((("down", "up"), {"std": 0.1, "where": "m.py:4 own"}), (MORE, {}), names=MORE), "info"),
        ],
        [
            written((ALL, {}), (("down",), ZERO)),
            written((("down",), ZERO | {"made": 1}), (ALL, {})),
            written((("down",), {"where": "m.py:4 own"}), (ALL, {})),
            written((ALL, DEFAULT), (ALL, {})),
        ],
        [run_of(summary=summary())],
    ),
    "DRW004": (
        [
            (written((ALL, {}), (("down",), TWICE), (("down",), TWICE)), "warning"),
            (written((ALL, {}), (("down",), {"std": 0.01}), (("down",), TWICE)), "warning"),
        ],
        [written((ALL, {}), (("down",), TWICE)), written((ALL, {}), (("down",), {"std": 0.01}))],
        [run_of(summary=summary())],
    ),
    "DRW005": (
        [
            (written((ALL, {}), untied="tok.weight"), "warning"),
            (written((ALL, {"std": 1.0}), (ALL, {}), tied="head.weight"), "warning"),
        ],
        [written((ALL, {}), (ALL, {}), tied="head.weight"), written((ALL, {"std": 1.0}), (ALL, {}))],
        [run_of(summary=summary())],
    ),
    "DRW006": (
        [(written((ALL, {}), (("up",), {"share": 0.1, "std": 1.0, "text": "normal(0, 1)"})), "warning")],
        [
            written((ALL, {}), (("up",), {"share": 0.1})),
            written((ALL, {}), (("up",), {"share": 0.9, "std": 1.0})),
            written((ALL, {}), (("up",), ZERO | {"share": 0.1})),
        ],
        [run_of(summary=summary())],
    ),
    "DRW007": (
        [
            (
                run_of(summary=summary(), writes=[*written((ALL, {})).tables.writes.to_dict("records"), OUTSIDE]),
                "warning",
            )
        ],
        [
            run_of(
                summary=summary(), writes=[*written((ALL, {})).tables.writes.to_dict("records"), {"parameter": "tok"}]
            )
        ],
        [run_of(summary=summary()), written((ALL, {}))],
    ),
    "DRW008": (
        [(written((ALL, {}), copied="tower.0.up.weight"), "warning")],
        [written((ALL, {}))],
        [run_of(summary=summary())],
    ),
    "RES001": (
        [(run_of(stream(0.0)), "warning"), (run_of(stream(-0.3)), "warning"), (run_of(stream(-3.0)), "info")],
        [
            run_of(stream(-1.0)),
            run_of(stream(-2.0)),  # GPT-NeoX's wang_init
            run_of(stream(0.0, write=1e-6)),  # unscaled, but the embedding stays the larger part
            run_of(stream(0.0, write=0.0)),  # zero projections
        ],
        [run_of(stream(0.0, depths=(4,)))],
    ),
    "EMB001": (
        [
            (run_of(summary=summary(token_position_ratio=0.001)), "error"),
            (run_of(summary=summary(token_position_ratio=0.05)), "warning"),
            (run_of(summary=summary(token_position_ratio=0.0)), "error"),
        ],
        [run_of(summary=summary()), run_of(summary=summary(token_position_ratio=4.0))],
        [run_of(summary=summary(token_position_ratio=math.nan))],
    ),
    "LOG001": (
        [
            (run_of(summary=summary(loss=6.9, own_logit=5.4, logit_std=0.7)), "info"),
            (run_of(summary=summary(loss=6.3, own_logit=0.4, logit_std=0.7)), "warning"),
            (run_of(summary=summary(loss=12.0, own_logit=0.0, logit_std=3.6)), "error"),
        ],
        [
            run_of(summary=summary()),
            run_of(summary=summary(loss=5.9)),
            run_of(summary=summary(loss=6.3, own_logit=5.4, logit_std=0.7)),  # unlearned in a few steps
        ],
        [run_of(summary=summary(loss=math.nan))],
    ),
    "LOG002": (
        [(run_of(summary=summary(expected_loss=6.5, logit_std=0.4)), "warning")],
        [run_of(summary=summary(logit_std=0.4)), run_of(summary=summary(expected_loss=5.4, logit_std=0.4))],
        [
            run_of(summary=summary(expected_loss=math.nan)),
            run_of(summary=summary(loss=3.0)),  # a trained model
        ],
    ),
    "GRD001": (
        [
            (run_of(gradient(C_ATTN)), "error"),
            (run_of(gradient(C_ATTN, ran=False)), "warning"),  # an expert that wasn't chosen
            # one of two zeros isn't explained by the projection
            (run_of(gradient(C_ATTN, C_PROJ, shut=True)), "error"),
            # a zero in its block explains nothing where a further pass found no gradient either
            (run_of(gradient(C_ATTN, shut=True, modules=(C_ATTN, MLP), gate=MLP, reached=0.0)), "error"),
            (run_of(silenced(output=0.0)), "error"),
            # a part of a branch that learns otherwise, as what feeds a top-k
            (run_of(gradient(INDEXER, modules=(INDEXER, "layers.0.attn.q_proj.weight"))), "warning"),
            (run_of(gradient(DEEP, modules=(DEEP, "layers.0.attn.packer.proj.weight"))), "warning"),
            (run_of(gradient("pooler.weight", role=None, modules=("pooler.weight", C_ATTN))), "warning"),
        ],
        [
            run_of(gradient()),
            run_of(gradient(shut=True)),
            run_of(gradient(C_ATTN, shut=True)),
            run_of(gradient(C_ATTN, reached=1.0)),
            run_of(silenced(output=1.0)),
            run_of(gradient("layers.0.scale_in.weight", shut=True, modules=GATED, gate="layers.0.alpha")),
        ],
        [run_of(stream(0.0))],
    ),
    "INI001": (
        [
            (run_of(weights(std=0.0071)), "error"),
            (run_of(weights(std=0.02, expected=0.0)), "error"),  # a bias that should be 0
            (run_of(weights(std=0.0)), "error"),
        ],
        [run_of(weights()), run_of(weights(0.0205)), run_of(weights(0.0, 0.0)), run_of(weights(0.024, numel=64))],
        [run_of(weights(expected=math.nan))],
    ),
    "RES002": (
        [(level(3.0), "warning"), (level(0.3), "warning"), (level(0.0), "warning")],
        [level(1.0), level(1.5), level(0.7)],
        [level(30.0, loss=3.0), run_of([row | {"expected_var": math.nan} for row in stream(0.0)], summary())],
    ),
    "SCL001": (
        [
            (scaled(1.0), "warning"),
            (scaled(0.3), "warning"),
            (scaled(0.0, loss=math.nan), "warning"),
            (scaled(-1.0, site="mlp_out"), "warning"),
        ],
        # a stream of a small embedding, and muP's logits, shrink by design
        [scaled(0.0), scaled(0.15), scaled(-1.0), scaled(-1.0, site="logits"), scaled(-0.15, site="mlp_out")],
        [scaled(1.0, steps=(0,)), scaled(1.0, sizes=(64,)), scaled(1.0, axis="n_layer"), scaled(math.nan)],
    ),
    "SCL002": (
        [
            (scaled(1.8, "n_layer", "change"), "warning"),
            (scaled(0.6, "n_layer", "change"), "warning"),
            (scaled(0.0, "n_layer", "change", loss=math.nan), "warning"),
            (scaled(-2.0, "n_layer", "change"), "warning"),
        ],
        [scaled(0.1, "n_layer", "change"), scaled(-0.3, "n_layer", "change")],
        [scaled(1.8, "n_embd", "change"), scaled(1.8, "n_layer", "change", steps=(0,)), scaled(1.8, "n_layer")],
    ),
    "INI002": (
        [(depth_code(0.02), "error"), (depth_code(0.018), "error")],
        [depth_code(0.005), depth_code(0.02 / math.sqrt(8))],
        [depth_code(0.02, code=""), depth_code(0.02, n_layer=1), depth_code(math.inf), run_of(summary=summary())],
    ),
    "INI003": (
        [
            (siblings([0.02] * 5 + [0.0883] + [0.02] * 2), "warning"),
            (siblings([0.02, 0.02, 0.02, 0.0]), "warning"),
            (siblings([0.02, 0.02, 0.1]), "warning"),
        ],
        [
            siblings([0.02] * 4),
            siblings([0.1 / math.sqrt(layer + 1) for layer in range(8)]),  # layer-indexed
            siblings([0.02, 0.06] * 4),  # two kinds of blocks in turn
            siblings([0.1 / math.sqrt(layer + 1) for layer in range(3)]),  # no two alike
            siblings([0.0] * 4),
        ],
        [run_of(summary=summary())],
    ),
    "INI004": (
        [
            (close_to("everything else is nanogpt, but bias has std 0.1, not 0"), "info"),
            (close_to(WIDE, found={"loss": 0.5}, meant={"loss": 0.01}), "info"),
            (close_to(WIDE, found={"loss": 0.7}, meant={"loss": 0.65}), "info"),  # the recipe's cost
            (close_to(WIDE, found={"loss": 5.0}, meant={"loss": 0.01}), "warning"),
            (
                close_to(WIDE, found={"logit_std": 10.0}, meant={"logit_std": 0.5}),
                "warning",
            ),  # no loss over a vocabulary
            (close_to(WIDE, found={"score_std": 3.0}, meant={"score_std": 0.02}), "warning"),
            (close_to(WIDE, found={"growth": 1e4}, meant={"growth": 2.0}), "warning"),
            (close_to(WIDE, found={"growth": 1e4}), "info"),  # no closed form of the recipe
        ],
        [close_to()],
        [close_to(closest=""), run_of(summary=summary())],
    ),
    "INI005": (
        [
            (matrices(likeness=1.0, like=ALSO), "warning"),
            (matrices(module="moe.up[1]", likeness=1.0, like="moe.up[0]"), "warning"),
            (matrices(module="q.weight", likeness=0.95, like="k.weight"), "warning"),
            (matrices(row_blocks=4, row_copies=0.75), "warning"),  # shards of one seed
            (matrices(column_copies=0.1, column_which="8 to 15 are 0 to 7"), "warning"),  # two heads
            (matrices(role="token_embed", row_copies=0.6), "warning"),
        ],
        [
            matrices(),
            matrices(likeness=0.6, like=ALSO),
            matrices(likeness=math.nan, row_blocks=None, row_copies=math.nan),  # zeros
            matrices(role="token_embed", row_copies=0.2, row_which="9 is 8"),  # added tokens
        ],
        [run_of(summary=summary())],
    ),
    "INI006": (
        [
            (matrices(value=0.02, stable_rank=math.nan), "warning"),
            (matrices(stable_rank=1.0), "warning"),
            (matrices(**ADDED), "warning"),
        ],
        [
            matrices(),
            matrices(value=0.0, stable_rank=math.nan),
            matrices(stable_rank=64.0),  # orthogonal
            matrices(**ADDED | {"odd_rms": 0.05}),
            matrices(**ADDED | {"odd_rms": 0.001}),  # as where they are kept for later
            matrices(stable_rank=1.0, usual_rank=3.5),  # too few rows to tell
            matrices(stable_rank=8.0),
        ],
        [run_of(summary=summary())],
    ),
    "INI007": (
        [
            (matrices(shared=6, shared_as=UP), "warning"),
            (matrices(shared=6, shared_as=UP, shared_by="config.share_layers"), "info"),
        ],
        [matrices()],
        [run_of(summary=summary())],
    ),
    "INI008": (
        [
            (says(0.088, kurtosis=-1.2), "warning"),  # torch's defaults
            (says(1e-5), "warning"),
            (says(token_embed=0.6), "warning"),
            (says(attn_qkv=0.16), "warning"),
            (says(attn_qkv=0.08), "info"),  # logits of std 0.4
            (says(attn_qkv=0.08, mlp_in=0.08), "warning"),
            (says(pos_embed=1.0), "warning"),
            (says(0.08, attn_out=0.08 / math.sqrt(8), mlp_out=0.08 / math.sqrt(8)), "warning"),
            (says(attn_qkv=0.16, name=CODE), "warning"),
            (says(attn_qkv=0.08, name=CODE), "info"),
        ],
        [
            says(),
            says(0.0176),  # cut at two std
            says(attn_out=0.02 / math.sqrt(8), mlp_out=0.02 / math.sqrt(8)),
            says(0.1, also=[0.1]),  # the number of another key
            says(0.05, attn_qkv=0.06, mlp_out=0.04),  # another formula
            says(token_embed=0.125),  # 1/√n_embd
            says(pos_embed=0.7, kurtosis=-1.5),  # sinusoids
            says(0.02 / math.sqrt(8), token_embed=1.0),  # that all are smaller by a depth factor says nothing
            says(token_embed=1.0, name=CODE),  # code that draws the linear layers alone
            says(0.088, kurtosis=-1.2, token_embed=0.02, name=CODE),  # or the tables
        ],
        [run_of(weights(), summary())],
    ),
    "INI009": (
        [
            (declared("tied", 1.0, 0.0), "warning"),
            (declared("tied", 0.0, 1.0), "warning"),
            (declared("embed scale", 8.0, 1.0), "warning"),
            (declared("layer scale", 0.1, math.nan, about="layers.0.gamma"), "warning"),
        ],
        [
            declared("tied", 1.0, 1.0),
            declared("embed scale", 8.0, 8.0),
            declared("layer scale", 1.0, math.nan, about="layers.0.gamma"),
        ],
        [run_of(summary=summary()), declared("layer scale", 0.1, math.nan, about="gone")],
    ),
    "INI010": (
        [
            (gpt(0.005, mlp_out=0.02), "warning"),
            (gpt(0.005, mlp_out=0.02, mlp_in=0.005), "warning"),  # llama2.c
            (gpt(0.02, mlp_out=0.005), "warning"),
            (by_fan(0.25, 0.25), "warning"),  # every matrix
            (gpt(0.02 / 16), "info"),  # twice
        ],
        [
            *[gpt(), gpt(0.005), gpt(0.01, n_layer=2), gpt(0.01, mlp_out=0.015)],
            *[by_fan(), by_fan(1.0, 0.25), by_fan(0.5, 0.125)],
            drawn_by(
                {"token_embed": (0.02, 64), "attn_q": (0.005, 64), "attn_out": (0.005, 64), "mlp_in": (0.005, 64)}
            ),
        ],
        [run_of(summary=summary())],
    ),
    "INI011": (
        [(gains(0.0, 0.01), "warning"), (gains(math.nan, math.nan), "warning"), (gains(0.5, 0.3), "warning")],
        [gains(), gains(0.1), gains(0.0), gains(1.0, 0.01)],
        [run_of(summary=summary())],
    ),
    "INI012": (
        [(zeroed(0.06), "warning"), (zeroed(0.06, kurtosis=-1.2), "warning")],
        [zeroed(0.0), zeroed(0.06, kurtosis=5.0), zeroed(0.06, mean=0.01)],  # what training made of zeros is no draw
        [run_of(summary=summary()), declared("tied", 1.0, 0.0)],
    ),
    "INI013": (
        [(steps(0.693), "warning"), (steps(1e-5), "warning"), (steps(math.nan), "warning")],
        [steps(0.01), steps(0.15), steps(0.001)],
        [run_of(summary=summary())],
    ),
    "INI014": (
        [
            (made_of(0.2, 0.0), "warning"),
            (made_of(0.0, 1.0), "warning"),
            (made_of(1.0, 1.05, std=0.02), "warning"),
            (made_of(0.2, math.nan), "warning"),
        ],
        [made_of(0.2, 0.2), made_of(0.2, 0.2001), made_of(0.0, 0.0)],
        [run_of(summary=summary()), made_of(0.0, 0.3, gains=0.1)],  # trained: so are the norms
    ),
    "RES003": (
        [
            (branch_writes([1.0, 1.0, 3.0], [1.0] * 3), "warning"),
            (branch_writes([1.0, 0.3, 1.0], [1.0] * 3, site="attn_out"), "warning"),
        ],
        [branch_writes([1.0, 0.7, 1.5], [1.0] * 3)],
        [branch_writes([1.0] * 4)],
    ),
    "RES004": (
        [
            (branch_writes([1.0, 1.1, 1.0, 25.0, 0.9, 1.0]), "warning"),
            (branch_writes([0.0, 1.0, 1.0, 1.0, 1.0], site="attn_out"), "warning"),  # one block writes nothing
            (branch_writes([1.0, 2.0, 3.0, 100.0], [1.0, 2.0, 3.0, 4.0]), "warning"),
            (branch_writes([0.05, 1.0, 1.0, 1.0], [1.0] * 4), "warning"),
            (sharing_a_site([1.0, 1.0, 20.0, 1.0], [30.0] * 4), "warning"),
        ],
        [
            branch_writes([1.0, 1.1, 0.9, 1.0]),
            branch_writes([1.0 / (layer + 1) ** 2 for layer in range(12)]),  # layer-indexed
            branch_writes([1.0, 30.0, 1.0, 30.0], [1.0, 30.0, 1.0, 30.0]),  # as predicted
            branch_writes([0.03, 1.0, 1.0, 1.0], site="attn_out"),  # unlike tokens, averaged away
            branch_writes([0.0] * 4),
            sharing_a_site([1.0] * 6, [None, None, 30.0, None, None, None]),  # one block has a module more
            sharing_a_site([1.0, 1.1, 0.9, 1.0], [30.0, 29.0, 31.0, 30.0]),
        ],
        [branch_writes([1.0, 30.0, 1.0])],
    ),
    "RES005": (
        [(added(0.001, "bfloat16"), "warning"), (added(0.001), "info"), (added(2e-4, "float16"), "warning")],
        [added(0.1), added(0.1, "bfloat16"), added(0.001, "float16"), added(0.0, "bfloat16"), added(math.inf)],
        [run_of(summary=summary())],
    ),
    "RES006": (
        [
            (grown(2000.0), "info"),
            (grown(20000.0), "info"),
            (grown(20000.0, "hf-llama"), "info"),
            (grown(20000.0, ""), "warning"),
            (grown(20000.0, "", outputs=()), "warning"),
            (grown(2000.0, ""), "info"),
            (grown(20.0, ""), "info"),
            (grown(20.0, "hf-llama"), "info"),
        ],
        [grown(556.0), grown(0.5), grown(556.0, "nanogpt", outputs=()), grown(1.9, "hf-llama")],
        [run_of(summary=summary())],
    ),
    "RES007": (
        [
            (alike(0.97), "warning"),
            (alike(0.8, 0.5), "warning"),
            (alike(0.97, 0.96), "warning"),
            (alike(0.33, 0.01), "info"),
        ],
        [alike(0.7, 0.7), alike(0.9), alike(-0.1)],
        [alike(math.nan)],
    ),
    "ACT001": (
        [
            (run_of(sized(std=0.0025)), "warning"),
            (run_of(sized(square=0.002, std=0.1)), "warning"),  # measured before the weights
            (run_of(sized()), "info"),
            (run_of(sized(n_embd=128)), "info"),
        ],
        [run_of(sized(n_embd=384)), run_of(sized(std=0.0693)), run_of(sized(square=0.3))],
        [run_of(sized(std=0.0)), run_of(summary=summary())],
    ),
    "ACT002": (
        [(units(dead=0.4), "warning"), (units(zeros=0.97), "warning"), (units(dead=0.4, step=9), "warning")],
        [units(), units(dead=0.1, zeros=0.5)],
        [run_of(summary=summary())],
    ),
    "ACT003": (
        [
            (routed((1, {"evenness": 0.1, "most": 0.9})), "warning"),
            (routed((2, {"never": 1})), "warning"),
            (routed(evenness=0.0, never=6, most=1.0), "warning"),
        ],
        [
            routed(),
            routed((1, {"evenness": 0.5})),
            routed((1, {"evenness": 0.1, "evenness_std_by_chance": 0.2})),
            # one cluster of tokens: chance leaves as many without
            routed(never=3, never_by_chance=2.5, load_var_by_chance=3e4, evenness=0.3, evenness_by_chance=0.35),
        ],
        [run_of(summary=summary())],
    ),
    "ATT001": (
        [(heads(entropy=0.4), "warning"), (heads(entropy=0.1), "error"), (heads(entropy=0.0), "error")],
        [heads(), heads(entropy=0.6), heads(entropy=0.3, own_entropy=0.9)],
        [run_of(summary=summary()), heads(entropy=math.nan)],
    ),
    "ATT002": (
        [(heads(std=4.0), "warning"), (heads(std=4.0, own_std=3.9), "warning")],
        [heads(), heads(std=2.0), heads(std=5.0, own_std=0.3)],
        [run_of(summary=summary()), heads(std=math.nan)],
    ),
    "GRD002": (
        [(imbalance(1e-6), "info"), (imbalance(1e6), "info")],
        [imbalance(0.01), imbalance(0.0)],
        [run_of(stream(0.0))],
    ),
    "NUM002": (
        [(peak(2e4, "float16"), "warning"), (peak(1e5), "info"), (peak(2e4, "float16", "weight"), "warning")],
        [peak(2e4), peak(100.0, "float16"), peak(0.0)],
        [peak(1e30, "bfloat16")],
    ),
    "NUM003": (
        [(small_gradients(0.3, "float16"), "warning")],
        [small_gradients(0.3), small_gradients(0.01, "float16"), small_gradients(0.3, "bfloat16")],
        [run_of(summary=summary()), small_gradients(math.nan)],
    ),
    "NUM004": (
        [(update(1e-4), "warning"), (update(1e-2, unmoved=0.8), "warning"), (update(1e-4, "float16"), "warning")],
        [update(1e-2), update(1e-4, "float32"), update(5e-4, "float16")],
        [run_of(summary=summary()), update(1e-4, role="token_embed")],
    ),
    "WIR001": (
        [
            (wired((2, "mlp", {"norm": ""})), "warning"),
            (wired((5, "mlp", {"post_norm": "tower.5.late"})), "warning"),
            (wired((1, "attention", {"scale": 0.5}), (4, "attention", {"scale": 0.5}), blocks=9), "warning"),
            (wired((2, "mlp", {"activation": "relu"})), "warning"),
            (wired((3, "mlp", {"layer": -1})), "warning"),  # nothing of it is there
            (wired((3, "attention", {"score_scale": 1.0})), "warning"),
        ],
        [
            wired(),
            wired((0, "mlp", {"norm": ""})),  # the first block may be special
            # the last norm of sums is the model's own
            wired((None, "mlp", {"sum_norm": "n"}), (5, "mlp", {"sum_norm": ""})),
            wired((1, "mlp", {"norm": ""}), (4, "mlp", {"norm": ""})),  # every third
            wired((4, "mlp", {"scale": 0.5}), (5, "mlp", {"scale": 0.5})),  # the last ones
            wired(*((layer, "mlp", {"scale": 1 / (layer + 1)}) for layer in range(6))),  # by depth
            wired((3, "attention", {"window": 4, "rotary": 0, "head_size": 64, "score_scale": 0.125})),
            wired((3, "mlp", {"activation": "relu", "gated": 0})),
            wired((3, "mlp", {"kind": "unknown", "norm": "", "site": "mixer_out"})),
        ],
        [wired(blocks=2), run_of(summary=summary())],
    ),
    "WIR002": (
        [(wired((2, "mlp", REPLACED)), "error"), (wired((None, "attention", REPLACED)), "warning")],
        # a gate that is shut at first; something else than attention or an MLP
        [wired(), wired((2, "mlp", {"keep": 0.0})), wired((2, "mlp", REPLACED | {"kind": "unknown"}))],
        [run_of(summary=summary())],
    ),
    "WIR003": (
        [(wired(final_norm=""), "warning")],
        [wired()],
        [wired(head="", final_norm=""), wired((None, "mlp", {"sum_norm": "n"}), final_norm="")],
    ),
    "WIR004": (
        [(frozen(2), "warning"), (frozen(1, 2), "warning")],
        [frozen(), frozen(0, 1, 2), frozen(0), frozen(4, 5), frozen(*range(6)), frozen(0, 2, 4)],
        [run_of(summary=summary())],
    ),
    "WIR005": (
        [
            (wired(UNMASKED, aim="next-token"), "error"),
            (wired((2, "attention", {"causal": 0})), "error"),
            (wired(UNMASKED), "warning"),
        ],
        [wired(), wired((2, "attention", {"causal": 0, "cross": 0}))],
        [wired(UNMASKED, aim="else"), wired(UNMASKED, targets="labels"), run_of(summary=summary())],
    ),
    "WIR006": (
        [
            (wired((None, "mlp", {"activation": "identity"}), gated=0), "warning"),
            (wired((None, "mlp", {"activation": "identity"})), "warning"),
            (wired((None, "mlp", {"kind": "experts", "activation": "identity"})), "warning"),
        ],
        [wired(), wired((None, "mlp", {"kind": "experts"}))],
        [run_of(summary=summary())],
    ),
    "WIR007": (
        [
            (wired((None, "attention", {"score_scale": 1.0})), "info"),
            (wired((None, "attention", {"score_scale": 1.0}), logit_std=3.0), "warning"),
            (wired((None, "attention", {"score_scale": 1 / 16}), logit_std=3.0), "info"),
            (wired((None, "attention", {"score_scale": 64**-0.5, "n_embd": 64})), "warning"),
            (wired((None, "attention", {"score_scale": 1 / 16, "n_embd": 256})), "info"),  # muP's as well
        ],
        [wired(), wired((None, "attention", {"score_scale": 0.2525}))],
        [wired((None, "attention", {"score_scale": 1.0, "qk_norm": "n"})), run_of(summary=summary())],
    ),
    "WIR008": (
        [
            (wired(NOWHERE), "warning"),
            (wired(NOWHERE, UNMASKED), "warning"),
            (wired(NOWHERE, (1, "mlp", {"kind": "unknown"})), "warning"),
            (wired(NOWHERE, placeless="GPT.pos is None"), "info"),
            (wired(NOWHERE, UNMASKED, placeless="GPT.pos is None"), "warning"),
        ],
        [wired(), wired(NOWHERE, terms="token position"), wired(NOWHERE, (None, "attention", {"bias": 1}))],
        [
            wired(NOWHERE, terms=""),
            wired(NOWHERE, (1, "mlp", {"kind": "unknown", "site": "mixer_out"})),
            wired(NOWHERE, (1, "attention", {"kind": "unknown", "site": "mlp_out"})),  # a convolution with a gate
        ],
    ),
    "WIR010": (
        [
            (wired((2, "attention", {"turned": "queries"})), "warning"),
            (wired((None, "attention", {"turned": "values"})), "warning"),
            (wired((None, "attention", {"turned": "uneven values"})), "warning"),
            (wired((None, "attention", {"kind": "unknown", "turned": "still"})), "warning"),
        ],
        [wired(), wired(NOWHERE)],
        [wired((None, "attention", {"turned": "uneven"}), terms="")],  # images have no order
    ),
    "WIR011": (
        [(wired((None, "mlp", {"detached": 1})), "warning"), (wired((3, "attention", {"detached": 1})), "warning")],
        [wired()],
        [run_of(summary=summary()), wired(*((None, kind, {"detached": math.nan}) for kind in ("mlp", "attention")))],
    ),
    "WIR012": (
        [(wired((None, "mlp", {"dropout": 0.9})), "warning"), (wired((1, "attention", {"dropout": 0.8})), "warning")],
        [wired(), wired((None, "mlp", {"dropout": 0.5}))],
        [run_of(summary=summary())],
    ),
    "GRD003": (
        [
            (held(("GPT.layers, a list of Block", 24.0, 1000.0)), "error"),
            (held(("", 1.0, 10.0)), "error"),
        ],
        [held(("", 0.0, 0.0))],
        [run_of(summary=summary())],
    ),
    "WIR009": (
        [
            (wired((None, "attention", {"crossed": "output", "n_head": 4})), "warning"),
            (wired((2, "attention", {"crossed": "queries keys output", "n_head": 4})), "warning"),
            (wired((None, "attention", {"crossed": "positions", "n_head": 4})), "warning"),
        ],
        [wired((None, "attention", {"crossed": "", "n_head": 4}))],
        [wired((None, "attention", {"n_head": 1})), run_of(summary=summary())],
    ),
    "BEH001": (
        [
            (behaved("later", 0.01), "error"),
            (behaved("later", 0.01, changes=None), "info"),
            (behaved("later", 0.01, changes=None, aim="next-token", targets="labels"), "error"),
            (behaved("later", 0.01, changes=None, share=0.2), "error"),
            (behaved("later", 0.01, routed=1), "info"),
            (behaved("later", math.inf), "error"),
        ],
        [behaved("later", 0.0, 0.01), behaved("later", 9e-6, 0.01)],
        [
            behaved("later", 0.01, changes=[UNMASKED]),
            behaved("later", 0.01, changes=None, aim="else"),
            behaved("later", 0.01, changes=None, targets="labels"),
            behaved("later", 0.0, 0.0),
            behaved("later", math.nan, note="it raised"),
            wired(),
        ],
    ),
    "BEH002": (
        [(behaved("order", 1e-7), "warning"), (behaved("order", 1e-7, changes=None), "warning")],
        [behaved("order", 0.01)],
        [behaved("order", 1e-7, changes=[NOWHERE]), behaved("order", 1e-7, 1e-3), behaved("order", math.nan), wired()],
    ),
    "BEH003": (
        [
            (behaved("samples", 0.01), "warning"),
            (behaved("samples", 0.01, routed=1), "info"),
            (behaved("samples", 0.01, where="first axis"), "info"),
            (behaved("samples", 0.01, where="batch axis"), "error"),
            (behaved("samples", 0.01, where="tower.0.pre"), "warning"),
            (behaved("samples", 0.01, targets="mean square of the output"), "warning"),
        ],
        [behaved("samples", 0.0), behaved("samples", 0.01, where="tower.0.pre", targets="mean square of the output")],
        [behaved("samples", math.nan, note="it raised"), wired()],
    ),
    "BEH004": (
        [
            (behaved("targets", 0.0), "error"),
            (behaved("targets", 0.0, where="labels that are the ids"), "info"),
            (behaved("targets", 2.0, where="the caller's labels"), "error"),
            (behaved("targets", -1.0, where="the caller's labels"), "error"),
            (behaved("targets", 2.0, where="labels that are the ids"), "error"),
            (behaved("targets", 3.0, where="targets made by the probe"), "error"),
        ],
        [
            behaved("targets", 1.0),
            behaved("targets", 1.0, where="the caller's targets"),
            behaved("targets", 2.0),  # of several tokens on
        ],
        [
            behaved("targets", 1.0, where="labels that are the ids"),
            behaved("targets", 1.0, where="targets made by the probe"),
            behaved("targets", 2.0, where="targets made by the probe"),
            behaved("targets", math.nan),
            wired(),
        ],
    ),
    "BEH005": (
        [(behaved("random", 0.1, where="tower.0.mix"), "warning"), (behaved("random", 0.1), "info")],
        [behaved("random", 0.0)],
        [behaved("random", math.nan), wired()],
    ),
    "BEH006": (
        [
            (behaved("padding", 0.01, 0.01, where="attention_mask"), "warning"),
            (behaved("padding", 0.01, 0.01, where="attention_mask", changes=None), "info"),
        ],
        [behaved("padding", 0.0), behaved("padding", 0.01, 0.03)],
        [behaved("padding", 0.0, 0.0), behaved("padding", math.nan), wired()],
    ),
    "BEH007": (
        [(behaved("context", 0.0), "error"), (behaved("context", 0.0, changes=None, aim="next-token"), "error")],
        [behaved("context", 0.01), behaved("context", 0.01, changes=None)],
        [
            behaved("context", 0.0, where="batch axis"),
            behaved("context", 0.0, 1e-4),
            behaved("context", 0.0, changes=None),
            behaved("context", math.nan),
        ],
    ),
    "BEH008": (
        [(behaved("rows", 0.1), "warning"), (behaved("rows", 0.1, routed=1), "info")],
        [behaved("rows", 0.0)],
        [behaved("rows", math.nan), wired()],
    ),
    "NUM001": (
        [(run_of([{"kind": "activation", "site": "mlp_pre", "layer": 3, "frac_nonfinite": 0.01}]), "error")],
        [run_of([{"kind": "activation", "site": "mlp_pre", "layer": 3}])],
        [],
    ),
}


def test_how_much_larger_rows_may_be_is_for_the_caller_to_say():
    (finding,) = evaluate(matrices(**ADDED), select=["INI006"], limits={"INI006.rows": 60.0})
    assert finding.status == "pass"


def test_slopes_are_measured_and_only_judged_by_the_limit():
    """`measure` hands on numbers, so that another limit asks for no other measurement."""
    measured = named("SCL001").measure(scaled(0.3))
    fits = measured[(measured["what"] == "fit") & (measured["step"] == 1)]
    assert fits["slope"].tolist() == pytest.approx([0.3])
    each = measured[(measured["what"] == "seed") & (measured["step"] == 1)]
    assert each["slope"].tolist() == pytest.approx([0.3, 0.3])
    assert measured[["smallest", "largest"]].drop_duplicates().to_numpy().tolist() == [[64, 256]]
    (finding,) = evaluate(scaled(0.3), select=["SCL001"], limits={"SCL001": 0.4})
    assert finding.status == "pass"
    lost = named("SCL001").measure(scaled(0.0, loss=math.nan))
    assert lost.loc[lost["what"] == "lost", ["n_embd", "step", "lost", "of"]].to_numpy().tolist() == [[256, 1, 2, 2]]


@pytest.mark.parametrize(
    ("exponent", "site", "said", "advice"),
    [
        (-4.0, "logits", "still goes as n_embd^-4.00", "let the logits fall as 1/n_embd, and no faster"),
        (
            -1.0,
            "mlp_out",
            "still goes as n_embd^-1.00",
            "let the std of hidden matrices fall as 1/√n_embd (1/√fan_in), ",
        ),
        (1.0, "resid_post", "goes as n_embd^+1.00", "Use a parametrisation whose rates transfer (muP: "),
    ],
)
def test_what_goes_with_width_is_said_with_its_exponent_and_what_to_change(exponent, site, said, advice):
    (finding,) = evaluate(scaled(exponent, site=site), select=["SCL001"])
    assert finding.message.startswith(f"After 1 step the variance of {site} {said}")
    assert "(at init n_embd^+0.00 " in finding.message and "1 of 1 sites" in finding.message
    assert finding.advice.startswith(advice)
    assert (finding.measured, finding.seeds_failing) == (pytest.approx(exponent), 2)
    assert finding.effect == pytest.approx(abs(exponent) - 0.2)


NANOGPTS = re.compile(r"transformer\.|c_proj|c_attn|c_fc|\bwte\b|\bwpe\b|lm_head|ln_[f12]\b")
FOREIGN = {
    "transformer.h": "tower",
    "attn.c_attn": "mix.qkv",
    "attn.c_proj": "mix.merge",
    "mlp.c_proj": "feed.down",
    "mlp.c_fc": "feed.up",
    "c_fc": "up",
}
# weights of a model that isn't laid out as nanoGPT
OWN_NAMES = {
    "token_embed": "words.weight",
    "pos_embed": "places.weight",
    "unembed": "readout.weight",
    "attn_out": "tower.0.mix.merge.weight",
    "mlp_in": "tower.0.feed.up.weight",
    "mlp_out": "tower.0.feed.down.weight",
}


def abroad(run, *, tied):
    """The same run of a model with names of its own, and with all that may be named on record."""
    records = run.tables.records
    for ours, theirs in FOREIGN.items():
        records["module"] = records["module"].str.replace(ours, theirs, regex=False)
    missing = set(OWN_NAMES) - set(records.loc[records["kind"] == "weight", "role"].dropna())
    cells = [KEYS, *run.tables.summary[list(KEYS)].to_dict("records"), *records[list(KEYS)].to_dict("records")]
    cells = [dict(cell) for cell in {tuple(cell.items()) for cell in cells}]
    row = {"kind": "weight", "std": 0.02, "var": 4e-4, "rms": 0.02, "abs_max": 0.1}
    more = [
        RECORD | cell | row | {"site": role, "role": role, "module": OWN_NAMES[role]}
        for cell in cells
        for role in sorted(missing - ({"unembed"} if tied else set()))
    ]
    tables = Tables(**dict(run.tables.items()) | {"records": pd.concat([records, schema.table("records", more)])})
    tables.records = schema.cast("records", tables.records.reset_index(drop=True))
    manifest = copy.deepcopy(run.manifest)
    drawn = manifest.get("init", {}).get("outputs", {"names": []})
    for ours, theirs in FOREIGN.items():
        drawn["names"] = [name.replace(ours, theirs) for name in drawn["names"]]
    return Run(tables, manifest)


def verdicts(run, code):
    return evaluate(run, select=[code])


def test_every_rule_has_cases_and_a_text():
    assert {rule.code for rule in RULES} == set(CASES)
    assert len({rule.code for rule in RULES}) == len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        for text in ("measures", "needs", "unit", "limit", "why", "advice", "false_alarms", "source", "since"):
            assert getattr(rule, text), (rule.code, text)
        assert CASES[rule.code][0] and CASES[rule.code][1], rule.code
        assert rule.measure.__doc__, rule.code  # `initlab rules CODE` shows it
        assert all(f"{{{name}}}" in rule.limit for name in rule.limits), rule.code


LAST_NUMBER = {"ACT": 3, "ATT": 2, "BEH": 8, "DRW": 8, "EMB": 1, "GRD": 3, "INI": 14, "LOG": 2, "NUM": 4, "RES": 7}
LAST_NUMBER |= {"SCL": 2, "WIR": 12}
CODES_EVER = {f"{family}{number:03}" for family, last in LAST_NUMBER.items() for number in range(1, last + 1)}


def test_no_code_goes_away_or_comes_unseen():
    """Codes are the contract with users' --ignore lists: one that is retired stays listed here and is never reused."""
    assert {rule.code for rule in RULES} == CODES_EVER


@pytest.mark.parametrize("code", CASES)
def test_fails(code):
    for run, severity in CASES[code][0]:
        (finding,) = verdicts(run, code)
        assert (finding.status, finding.severity) == ("fail", severity), finding.message
        assert finding.advice and finding.message and finding.limit and finding.unit
        assert finding.seeds_failing == finding.seeds_total == (2 if code.startswith("SCL") else 1)


def test_positions_alike_name_the_norms_behind_the_sum():
    rows = summary(token_cosine=0.97)
    wiring = [{"stack": 0, "layer": 0, "sum_norm": "LayerNorm"}]
    (plain,), (post,) = (
        verdicts(run_of(summary=rows), "RES007"),
        verdicts(run_of(summary=rows, wiring=wiring), "RES007"),
    )
    assert "post-norm" not in plain.message + plain.advice
    assert "post-norm" in post.message and "norm_first=True" in post.advice


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("code", CASES)
def test_a_model_is_told_its_own_names(code, tied):
    rule = named(code)
    for text in (rule.measures, rule.needs, rule.limit, rule.why, rule.advice):
        assert not NANOGPTS.search(text), text
    for run, _ in CASES[code][0]:
        for finding in verdicts(abroad(copy.deepcopy(run), tied=tied), code):
            assert not NANOGPTS.search(f"{finding.message} {finding.advice}"), finding


def test_advice_says_which_weights():
    """The parameters by which the model itself knows them."""
    drowned = abroad(run_of(summary=summary(token_position_ratio=0.001)), tied=False)
    trained = {"kind": "weight_grad", "site": "pos_embed", "role": "pos_embed", "module": "places.weight"}
    drowned.tables.records = pd.concat([drowned.tables.records, schema.table("records", [RECORD | trained])])
    assert verdicts(drowned, "EMB001")[0].advice == "draw places.weight with the std of words.weight (GPT-2: 0.02 both)"
    loud = summary(loss=12.0, own_logit=0.0, logit_std=3.6)
    assert "draw readout.weight with" in verdicts(abroad(run_of(summary=loud), tied=False), "LOG001")[0].advice
    assert (
        "draw words.weight, which the head is tied to,"
        in verdicts(abroad(run_of(summary=loud), tied=True), "LOG001")[0].advice
    )
    own = summary(loss=6.9, own_logit=5.4, logit_std=0.7)
    said = verdicts(abroad(run_of(summary=own), tied=True), "LOG001")[0].advice
    assert said.startswith("untie the head from words.weight") and "mix.merge.weight and feed.down.weight" in said
    assert "std of feed.up.weight" in verdicts(abroad(units(dead=0.4), tied=False), "ACT002")[0].advice


@pytest.mark.parametrize("code", CASES)
def test_passes(code):
    for run in CASES[code][1]:
        (finding,) = verdicts(run, code)
        assert finding.status == "pass", finding.message


@pytest.mark.parametrize("code", CASES)
def test_not_applicable(code):
    for run in CASES[code][2]:
        (finding,) = verdicts(run, code)
        assert finding.status == "not_applicable"
        assert finding.message


def test_exponent_is_the_mean_over_seeds_and_its_error_their_scatter():
    rows = [row | {"seed": 0} for row in stream(-1.0, depths=(4, 8, 16))]
    rows += [row | {"seed": 1} for row in stream(-0.8, depths=(4, 8, 16))]
    fitted = depth_exponents(run_of(rows).tables.records).set_index("site")
    assert fitted["slope"].tolist() == pytest.approx([-0.9, -0.9])
    assert fitted["stderr"].tolist() == pytest.approx([0.1, 0.1])
    one = depth_exponents(run_of(stream(-1.0)).tables.records)
    assert one["slope"].tolist() == pytest.approx([-1, -1]) and one["stderr"].isna().all()


def test_unscaled_outputs_of_one_model_have_their_consequence_in_numbers():
    (note,) = verdicts(grown(21.0, "hf-llama"), "RES006")
    assert note.message.endswith(
        "grows 21×; attn.c_proj.weight and mlp.c_proj.weight (std 0.02) aren't scaled by depth, as hf-llama draws them,"
        " so that it would be 41× at 8 layers"
    )
    assert (
        note.advice == "divide the std of attn.c_proj.weight and mlp.c_proj.weight by √(2·4), as recipe='megatron' does"
    )
    (loud,) = verdicts(grown(20001.0, "", outputs=(MLP,), std=0.12), "RES006")
    assert "mlp.c_proj.weight (std 0.12) isn't scaled by depth, so that it would be 40001× at 8 layers" in loud.message
    assert "or the embedding with a larger one (now std 1)" in loud.advice
    (scaled,) = verdicts(grown(20000.0, "", outputs=()), "RES006")
    assert "scaled by depth" not in scaled.message and "draw the output projections with a smaller std" in scaled.advice
    (named_too,) = verdicts(abroad(grown(20000.0, "", outputs=()), tied=False), "RES006")
    assert named_too.advice == (
        "draw mix.merge.weight and feed.down.weight with a smaller std, or words.weight with a larger one (now std 1)"
    )


def test_one_unscaled_branch_is_enough_and_is_named():
    rows = [row for row in stream(-1.0) if row["site"] != "attn_out"]
    rows += [row for row in stream(0.0) if row["site"] == "attn_out"]
    rows += [
        {"n_layer": L, "site": "attn_out", "kind": "weight", "role": "attn_out", "std": 0.02, "var": 4e-4}
        | {"module": "transformer.h.0.attn.c_proj.weight"}
        for L in (4, 16)
    ]
    (finding,) = verdicts(run_of(rows), "RES001")
    assert finding.status == "fail" and finding.site == "attn_out"
    assert "attn.c_proj.weight" in finding.advice and "mlp.c_proj.weight" not in finding.advice


@pytest.mark.parametrize(("scaled", "status"), [(True, "pass"), (False, "fail")])
def test_a_write_whose_input_isnt_on_record_is_judged_by_its_weights(scaled: bool, status: str) -> None:
    rows = []
    for L in (4, 16):
        std = 0.02 / math.sqrt(2 * L) if scaled else 0.02
        # attention averages less away where positions are more alike: its write grows although the weights don't
        rows += [
            row | {"var": 1e-3 * (L / 4) ** 0.3} if row["site"] == "attn_out" else row
            for row in stream(-1.0, depths=(L,))
        ]
        rows.append(
            {
                "n_layer": L,
                "site": "attn_out",
                "kind": "weight",
                "role": "attn_out",
                "module": "tower.0.mix.merge.weight",
            }
            | {"std": std, "rms": std, "var": std**2}
        )
    (finding,) = verdicts(run_of(rows), "RES001")
    assert finding.status == status
    if not scaled:
        assert "0.02 → 0.0035" in finding.advice and "mix.merge.weight" in finding.advice
        assert finding.measured == pytest.approx(0.0) and "c_proj" not in finding.advice


def test_a_branch_scaled_in_the_forward_pass_is_no_unscaled_one() -> None:
    rows = stream(-1.0)  # what is written falls, though the weights don't
    rows += [row | {"rms": 0.02} for row in rows if row["kind"] == "weight"]
    (finding,) = verdicts(run_of(rows), "RES001")
    assert finding.status == "pass"


def test_growing_writes_get_other_advice_and_factors():
    (finding,) = verdicts(run_of(stream(2.0)), "RES001")
    assert "makes that 8 times as much" in finding.message
    # the weights' std is 0.02 at both depths
    assert "0.02 → 0.0035" in finding.advice and "now it goes" not in finding.advice
    assert "; it goes as n_layer^+0.00, so the rest of the growth isn't of the weights" in finding.advice


@pytest.mark.parametrize(("power", "said"), [(0.5, "+0.50"), (-0.3, "-0.30")])
def test_the_exponent_in_the_advice_is_that_of_the_weights_std(power, said):
    rows = [
        row | {"std": 0.02 * (row["n_layer"] / 4) ** power} if row["kind"] == "weight" else row for row in stream(0.2)
    ]
    (finding,) = verdicts(run_of(rows), "RES001")
    assert f"mlp.c_proj.weight fall as 1/√n_layer; now it goes as n_layer^{said}" in finding.advice


def test_weights_that_are_scaled_already_are_not_to_be_scaled_again():
    rows = [
        row | {"std": 0.02 * (row["n_layer"] / 4) ** -0.5} if row["kind"] == "weight" else row for row in stream(0.2)
    ]
    (finding,) = verdicts(run_of(rows), "RES001")
    assert "mlp.c_proj.weight falls with depth as it should: look for a factor in the forward" in finding.advice


def test_without_weights_on_record_the_advice_is_of_the_write():
    (finding,) = verdicts(run_of([row for row in stream(2.0) if row["kind"] != "weight"]), "RES001")
    assert "its writes' variance goes as n_layer^+2.00" in finding.advice


def test_advice_names_the_std_to_draw():
    (finding,) = verdicts(run_of(stream(0.0)), "RES001")
    assert "0.02 → 0.0035" in finding.advice and "mlp.c_proj.weight" in finding.advice


def test_widths_are_judged_apart():
    wide = [row | {"n_embd": 128} for row in stream(-1.0)]
    findings = verdicts(run_of([*stream(0.0), *wide]), "RES001")
    assert sorted((f.status, f.message.partition(" at n_embd ")[2].partition(":")[0]) for f in findings) == [
        ("fail", "64"),
        ("pass", "128"),
    ]


def test_order_and_worst():
    run = run_of(stream(0.0), summary(token_position_ratio=0.001, loss=6.3, own_logit=5.0, logit_std=0.5))
    findings = evaluate(run)
    statuses = [finding.status for finding in findings]
    assert statuses == sorted(statuses, key=["fail", "not_applicable", "pass"].index)
    failed = [finding.severity for finding in findings if finding.status == "fail"]
    assert failed[0] == "error" and failed == sorted(failed)
    assert worst(findings) == "error"
    assert worst([]) is None


def test_first_non_finite_is_the_one_computed_first():
    run = run_of(
        [
            {"kind": "grad", "site": "embed", "position": 0, "module": "late", "frac_nonfinite": 1.0},
            {"kind": "activation", "site": "mlp_out", "position": 9, "module": "second", "frac_nonfinite": 1.0},
            {"kind": "activation", "site": "mlp_pre", "position": 7, "module": "first", "frac_nonfinite": 0.1},
        ]
    )
    (finding,) = verdicts(run, "NUM001")
    assert finding.message.startswith("3 tensors hold NaN or infinity, first first (activation at mlp_pre")


@pytest.mark.parametrize(
    ("row", "status"),
    [
        ({"kind": "activation", "module": "scores"}, "pass"),
        ({"kind": "weight", "module": "mask"}, "pass"),  # a parameter that isn't trained
        ({"kind": "weight", "module": "up"}, "fail"),
        ({"kind": "grad", "module": "scores"}, "fail"),
        ({"kind": "activation", "module": "scores", "frac_nonfinite": 0.6}, "fail"),  # NaN beside it
    ],
)
def test_minus_infinity_that_hides_keys_is_no_fault(row, status):
    rows = [{"frac_nonfinite": 0.5, "frac_minus_inf": 0.5, "site": "module"} | row]
    rows.append({"kind": "weight_grad", "site": "mlp_in", "module": "up", "frac_minus_inf": 0.0})
    run = run_of()
    run.tables.records = schema.table("records", [RECORD | each for each in rows], ["frac_minus_inf"])
    (finding,) = verdicts(run, "NUM001")
    assert finding.status == status, finding.message


def test_what_is_too_large_for_its_squares_is_named_and_is_not_infinite():
    gain = {"kind": "weight", "site": "norm_gain", "module": "norm.weight", "abs_max": 1e30}
    rows = [gain, {"kind": "activation", "site": "ln_1", "module": "norm", "abs_max": 4e30}]
    (fine,) = verdicts(run_of(rows), "NUM001")
    assert fine.status == "pass"
    rows.append({"kind": "activation", "site": "q", "module": "query", "position": 9, "frac_nonfinite": 1.0})
    (finding,) = verdicts(run_of(rows), "NUM001")
    assert "first query (activation at q); norm.weight is finite but too large for its squares" in finding.message
    assert finding.advice.startswith("look at what norm.weight is given and drawn with")


def test_an_empty_run_is_judged_without_error():
    assert evaluate(run_of()) == []


def test_every_rule_says_something_of_every_recipe():
    run = run_of(summary=summary(recipe="a") + summary(recipe="b"))
    found = {(finding.code, finding.recipe) for finding in evaluate(run)}
    assert found == {(rule.code, recipe) for rule in RULES for recipe in ("a", "b")}
    unjudged = next(f for f in evaluate(run) if f.code == "RES001" and f.recipe == "a")
    assert unjudged.status == "not_applicable"
    assert unjudged.message == "Needs two depths or more (--depths 4,8,16), and branches without a norm behind them"


@pytest.mark.parametrize("loss", [5.55, 3.0])
@pytest.mark.parametrize("step", [0, 7])
def test_a_trained_model_is_not_judged_as_an_init(loss, step):
    """By its steps, or by a loss that no init has; rules about every model still apply."""
    rows = [row | {"step": step} for row in (*sized(), *gradient(C_ATTN))]
    found = {f.code: f for f in evaluate(run_of(rows, summary(loss=loss, step=step, token_position_ratio=0.001)))}
    fresh = step == 0 and loss > 5
    about = {rule.code for rule in RULES if rule.about_init}
    assert {"EMB001", "ACT001", "INI001", "RES002"} <= about and {"GRD001", "NUM001", "NUM004"}.isdisjoint(about)
    assert {found[code].status for code in ("EMB001", "ACT001")} == ({"fail"} if fresh else {"not_applicable"})
    assert fresh or all(found[code].status == "not_applicable" for code in about)
    assert found["GRD001"].status == "fail" and found["NUM001"].status == "pass"
    reason = found["EMB001"].message
    assert fresh or ("After 7 steps" in reason if step else "2.55 nats below ln V: a trained model" in reason)


def test_a_watched_run_is_judged_by_its_first_step():
    later = summary(step=9, loss=2.0, token_position_ratio=0.001)
    found = {f.code: f for f in evaluate(run_of(summary=[*summary(token_position_ratio=0.001), *later]))}
    assert found["EMB001"].status == "fail" and found["LOG001"].measured == pytest.approx(5.55 - math.log(256))


def test_a_bad_start_names_the_rows_that_are_larger_than_the_others():
    run = run_of(summary=summary(loss=12.0, own_logit=9.0, logit_std=3.6), draws=[ADDED])
    (finding,) = verdicts(run, "LOG001")
    assert finding.message.endswith("rows 60–63 of words.weight have std 1, the others 0.02")
    assert finding.advice == "draw these rows as the others, with std 0.02"


def test_an_all_zero_head_lets_everything_wait():
    head = {"site": "unembed", "role": "unembed", "module": "lm_head.weight"}
    rows = gradient(C_ATTN, modules=(C_ATTN,))
    rows += [head | {"kind": "weight_grad", "abs_max": 1.0}, head | {"kind": "weight", "abs_max": 0.0}]
    (finding,) = verdicts(run_of(rows), "GRD001")
    assert finding.status == "pass" and "1 parameter without a gradient waits" in finding.message


def test_a_fixed_position_table_is_a_warning_with_its_own_advice():
    tables = [{"kind": "weight", "site": "pos_embed", "role": "pos_embed", "module": "places.weight"}]
    tables += [{"kind": "weight_grad", "site": "mlp_in"}]
    (fixed,) = verdicts(run_of(tables, summary(token_position_ratio=0.001)), "EMB001")
    assert fixed.severity == "warning" and "√n_embd" in fixed.advice
    trained = [*tables, {"kind": "weight_grad", "site": "pos_embed", "role": "pos_embed"}]
    (learned,) = verdicts(run_of(trained, summary(token_position_ratio=0.001)), "EMB001")
    assert learned.severity == "error" and "draw places.weight with the std of the token embedding" in learned.advice


def test_an_overrated_own_token_is_unlearned_and_so_milder():
    (own,) = verdicts(run_of(summary=summary(loss=11.0, own_logit=11.0, logit_std=0.6)), "LOG001")
    (spread,) = verdicts(run_of(summary=summary(loss=11.0, own_logit=0.0, logit_std=3.4)), "LOG001")
    (lost,) = verdicts(run_of(summary=summary(loss=234.0, own_logit=239.0, logit_std=35.0)), "LOG001")
    assert (own.severity, spread.severity, lost.severity) == ("info", "error", "error")


@pytest.mark.parametrize(
    ("loss", "std", "seen"), [(0.03, 1.0, None), (0.95, 1.0, None), (1.5, 1.0, 1.5), (0.1, 1.2, 0.71)]
)
def test_a_first_loss_is_judged_without_the_luck_of_its_batch(loss, std, seen):
    """Logits of std 1 cost 0.5 nats in 256 tokens, whatever these are; of a text of few tokens a batch has 0 to 1."""
    (finding,) = verdicts(run_of(summary=summary(loss=math.log(256) + loss, own_logit=0.0, logit_std=std)), "LOG001")
    usual = std**2 / 2
    luck = 3 * std * math.sqrt(0.05)
    assert finding.measured == pytest.approx(usual if abs(loss - usual) < luck else loss, abs=0.02)
    assert finding.status == ("pass" if seen is None else "fail")
    if seen is not None:
        beside = " on average (0.10 in this batch)" if loss < seen else ""
        assert f"{seen:.2f} nats above ln V{beside} at 4 layers" in finding.message


def test_select_ignore_and_prefixes():
    run = run_of(stream(0.0), summary(token_position_ratio=0.001))
    codes = {finding.code for finding in evaluate(run, select=["emb", "RES001"])}
    assert codes == {"EMB001", "RES001"}
    assert {f.code for f in evaluate(run, select="RES,EMB", ignore=["RES"])} == {"EMB001"}
    assert {f.code for f in evaluate(run, select=["ALL"])} == {rule.code for rule in RULES}
    assert chosen(select=["all"]).overrides == {}


def test_limits_by_code_and_by_name():
    run = run_of(summary=summary(token_position_ratio=0.05))
    assert verdicts(run, "EMB001")[0].severity == "warning"
    (lower,) = [f for f in evaluate(run, limits={"EMB001": 0.04}) if f.code == "EMB001"]
    assert lower.status == "pass" and lower.limit == "≥ 0.04; below 0.01 an error"
    (error,) = [f for f in evaluate(run, limits={"EMB001.error": 0.07}) if f.code == "EMB001"]
    assert error.severity == "error"
    assert chosen(limits={"EMB001": 0.04}).overrides == {"limits": {"EMB001": 0.04}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": ["XYZ"]}, "no rule has the code 'XYZ'"),
        ({"ignore": ["EMB009"]}, "no rule has the code 'EMB009'"),
        ({"limits": {"EMB009": 1.0}}, "no rule has the code 'EMB009'; there are EMB001"),
        ({"limits": {"NUM001": 1.0}}, "has no limit to change"),
        ({"limits": {"EMB001.worst": 1.0}}, "has no limit named 'worst'; it has warning, error"),
        ({"limits": {"EMB001": "low"}}, "the limit of EMB001 is 'low'; expected a number"),
        ({"limits": {"EMB001": math.nan}}, "expected a number"),
    ],
)
def test_overrides_that_mean_nothing_are_one_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(run_of(summary=summary()), **options)


def test_a_rule_is_found_by_code_or_name():
    assert named("emb001") is named("token-drowned-by-position")
    with pytest.raises(ConfigError, match="there are ATT001, ATT002"):
        named("ATT009")


def test_a_recipe_that_wires_its_scores_is_not_judged_by_their_scale():
    run = wired((None, "attention", {"score_scale": 1.0}))
    (found,) = evaluate(run, select=["WIR007"])
    assert found.status == "fail"
    told = Run(
        run.tables, run.manifest | {"recipes": {found.recipe: {"wiring": [{"options": {"attention_multiplier": 1}}]}}}
    )
    assert [each.status for each in evaluate(told, select=["WIR007"])] == ["not_applicable"]
