"""One model, one batch -> tables. The model is left exactly as it was found."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initlab import schema
from initlab.errors import InitlabError, ProbeError
from initlab.measure.attention import ROWS, SEQUENCES
from initlab.measure.moments import Moments, Preset
from initlab.measure.recorder import Recorder, first_tensor, recording
from initlab.measure.sites import SiteMap, find_sites
from initlab.models.roles import assign_roles
from initlab.recipes import Recipe
from initlab.schema import Tables


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The key columns of a cell."""

    run_id: str
    recipe: str
    seed: int
    step: int = 0


@contextmanager
def untouched(model: nn.Module, seed: int) -> Iterator[None]:
    """Restore buffers and random state afterwards, and seed the latter: dropout draws the same masks every time.

    Weights, gradients and mode need no care: a probe doesn't write them. (Gradients are taken with
    torch.autograd.grad, which leaves `.grad` alone.)
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def measure(
    model: nn.Module,
    idx: Tensor,
    targets: Tensor,
    identity: Identity,
    *,
    preset: Preset = "full",
    recipe: Recipe | None = None,
    targets_kind: str = "next-token",
    autocast: torch.dtype | None = None,
) -> Tables:
    """Record every site of a nanoGPT-like model, forward and backward, and its weights and weight gradients.

    Args:
        model: `model(idx, targets)` returns logits (B, T, V), or a tuple that starts with them; measured in the
            mode (train or eval) that it is in.
        idx: token ids, (B, T), int64; moved to the model's device.
        targets: token ids of the same shape, -1 where there is none.
        recipe: what the weights should have been drawn from; gives the weight rows their expected_var.
        autocast: run the forward pass under autocast to this dtype.

    Returns:
        records, heads (preset `full`), summary (one row) and coverage; other `expected_*` columns are NaN.

    Raises:
        SiteError: the model isn't laid out as nanoGPT's GPT.
        ProbeError: the model's own forward or backward raised (chained), or a tensor is on the meta device.
    """
    started = time.perf_counter()
    sites = find_sites(model)
    device = next(model.parameters()).device
    if device.type == "meta":
        raise ProbeError(f"{type(model).__name__} is on the meta device: it has shapes but no weights to measure")
    idx, targets = idx.to(device), targets.to(device)
    with untouched(model, identity.seed), recording(model, sites, preset) as recorder:
        loss, own = _forward(model, idx, targets, autocast)
        recorder.close()
        weights = _weights(model, loss, recorder.moments)
    values = recorder.moments.read()
    vocab_size = dict(model.named_modules())[sites.token_embedding].weight.shape[0]
    keys = {
        "run_id": identity.run_id,
        "recipe": identity.recipe,
        "seed": identity.seed,
        "step": identity.step,
        "n_layer": sites.n_layer,
        "n_embd": dict(model.named_modules())[sites.token_embedding].weight.shape[1],
    }
    shared = {**keys, "n_tokens": idx.numel(), "targets": targets_kind}
    records = _activation_rows(recorder, values, shared)
    records += _weight_rows(weights, values, shared, recipe, first=len(sites.taps))
    summary = {
        **shared,
        "n_head": sites.n_head,
        "block_size": idx.shape[1],
        "vocab_size": vocab_size,
        "n_params": sum(p.numel() for p in model.parameters()),
        "mode": "train" if model.training else "eval",
        "loss": float(loss.detach()),
        "ln_vocab": math.log(vocab_size),
        "logit_std": next((row["std"] for row in records if row["site"] == "logits"), math.nan),
        "own_logit": float(own),
        "repeat_rate": float((targets == idx).float().mean()),
        **_scalars(recorder),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return Tables(
        records=schema.table("records", records),
        heads=schema.table("heads", _head_rows(recorder, keys, idx)),
        summary=schema.table("summary", [summary]),
        coverage=schema.table("coverage", _coverage_rows(identity.run_id, sites, recorder, weights, preset)),
    )


def _forward(model: nn.Module, idx: Tensor, targets: Tensor, autocast: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """The loss, and the mean logit of the token just read."""
    try:
        with torch.autocast(idx.device.type, dtype=autocast, enabled=autocast is not None):
            logits = first_tensor(model(idx, targets))
    except InitlabError:
        raise
    except Exception as error:
        raise ProbeError(
            f"{type(model).__name__} raised in its forward pass: {type(error).__name__}: {error}"
        ) from error
    if logits is None or logits.dim() != 3 or logits.shape[:2] != idx.shape:
        found = "no tensor" if logits is None else f"shape {tuple(logits.shape)}"
        raise ProbeError(f"{type(model).__name__} returned {found}; expected logits (B, T, V) with B, T = {idx.shape}")
    # Taken here and not from the model, so that it is the same quantity whatever the model returns beside its logits.
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=-1)
    own = logits.detach().gather(2, idx[..., None]).float().mean()
    return loss, own


def _weights(model: nn.Module, loss: Tensor, moments: Moments) -> list[dict[str, Any]]:
    """Statistics of every parameter and of its gradient."""
    named = dict(model.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    gradients: dict[str, Tensor | None] = {}
    if loss.requires_grad:
        try:
            found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        except Exception as error:
            raise ProbeError(f"the backward pass raised: {type(error).__name__}: {error}") from error
        gradients = dict(zip(trained, found, strict=True))
    rows = []
    for place in assign_roles(model):
        pairs = [("weight", named[place.name]), ("weight_grad", gradients.get(place.name))]
        rows += [
            {"place": place, "kind": kind, "tensor_dtype": str(value.dtype), "slot": moments.add(value)}
            for kind, value in pairs
            if value is not None
        ]
    return rows


def _activation_rows(
    recorder: Recorder, values: list[dict[str, float]], shared: dict[str, Any]
) -> list[dict[str, Any]]:
    position = {(tap.site, tap.layer): place for place, tap in enumerate(recorder.sites.taps)}
    rows = [
        {
            **shared,
            **values[seen.slot],
            "layer": seen.tap.layer,
            # attention logits and pattern come between v and attn_z
            "position": position.get((seen.tap.site, seen.tap.layer), position.get(("v", seen.tap.layer), 0)),
            "site": seen.tap.site,
            "kind": seen.kind,
            "module": seen.tap.module,
            "call": seen.call,
            "dtype": seen.dtype,
        }
        for seen in recorder.seen
    ]
    return sorted(rows, key=lambda row: (row["kind"], row["position"]))


def _weight_rows(
    weights: list[dict[str, Any]],
    values: list[dict[str, float]],
    shared: dict[str, Any],
    recipe: Recipe | None,
    *,
    first: int,
) -> list[dict[str, Any]]:
    position = {name: first + place for place, name in enumerate(dict.fromkeys(row["place"].name for row in weights))}
    drawn = (
        {row["place"].name: recipe(row["place"].role, row["place"].dims).std ** 2 for row in weights} if recipe else {}
    )
    return [
        {
            **shared,
            **values[row["slot"]],
            "layer": row["place"].layer,
            "position": position[row["place"].name],
            "site": row["place"].role.value,
            "kind": row["kind"],
            "role": row["place"].role.value,
            "module": row["place"].name,
            "call": 0,
            "dtype": row["tensor_dtype"].removeprefix("torch."),
            "expected_var": drawn.get(row["place"].name, math.nan) if row["kind"] == "weight" else math.nan,
        }
        for row in weights
    ]


def _head_rows(recorder: Recorder, keys: dict[str, Any], idx: Tensor) -> list[dict[str, Any]]:
    if not recorder.heads:
        return []
    B, T = idx.shape
    rows = []
    for layer, (entropy, fraction, logit_std) in enumerate(torch.stack(recorder.heads).cpu().tolist()):
        rows += [
            {
                **keys,
                "layer": layer,
                "head": head,
                "n_rows": min(ROWS, T - 1) * min(SEQUENCES, B),
                "entropy": entropy[head],
                "entropy_frac": fraction[head],
                "logit_std": logit_std[head],
            }
            for head in range(len(entropy))
        ]
    return rows


def _scalars(recorder: Recorder) -> dict[str, float]:
    found = {name: float(value) for name, value in recorder.scalars.items()}
    token, position = found.get("token", math.nan), found.get("position", math.nan)
    return {
        "token_cosine": found.get("token_cosine", math.nan),
        "token_position_ratio": token / position if position else math.inf if token else math.nan,
        "dead_frac": float(torch.stack(recorder.dead).mean()) if recorder.dead else math.nan,
    }


def _coverage_rows(
    run_id: str, sites: SiteMap, recorder: Recorder, weights: list[dict[str, Any]], preset: Preset
) -> list[dict[str, Any]]:
    expected = Counter(tap.site for tap in sites.taps)
    fired = Counter((seen.kind, seen.tap.site) for seen in recorder.seen)
    rows = []
    for kind in ("activation", "grad"):
        for site, count in expected.items():
            seen = fired[kind, site]
            note = (
                "" if seen == count else "not reached by the pass" if kind == "activation" else "no gradient reached it"
            )
            rows.append({"run_id": run_id, "kind": kind, "site": site, "expected": count, "fired": seen, "note": note})
    for site in ("attn_logits", "attn_pattern"):
        note = (
            f"from q and k on {ROWS} query rows a sequence, forward only"
            if preset == "full"
            else "skipped by preset light"
        )
        seen = fired["activation", site]
        rows.append(
            {
                "run_id": run_id,
                "kind": "activation",
                "site": site,
                "expected": sites.n_layer if preset == "full" else 0,
                "fired": seen,
                "note": note,
            }
        )
    roles = Counter((row["kind"], row["place"].role.value) for row in weights)
    for role in sorted({role for _, role in roles}):
        count = roles["weight", role]
        for kind in ("weight", "weight_grad"):
            seen = roles[kind, role]
            note = "" if seen == count else "frozen, or not used by the loss"
            rows.append({"run_id": run_id, "kind": kind, "site": role, "expected": count, "fired": seen, "note": note})
    return rows
