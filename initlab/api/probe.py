"""One model measured: `probe`, and `assert_healthy` for tests."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab import schema
from initlab.api.gradients import with_gradients
from initlab.api.manifest import in_words, new_manifest
from initlab.api.probed import config_of, dtype_of, init_facts
from initlab.api.reading import text_of
from initlab.errors import ConfigError
from initlab.judge import SEVERITIES, Severity, reaches, rules, theory
from initlab.options import Text, checked_choice, checked_path, checked_seed, refuse_unknown, with_fields
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule
from initlab.recipes.tabulating import evaluate
from initlab.report.terminal import one_line
from initlab.report.waiting import drawn
from initlab.results import Probe, now
from initlab.rundir import Run
from initlab.schema import Tables

if TYPE_CHECKING:
    from torch import nn

    from initlab.anatomy.declared import Sites
    from initlab.anatomy.inputs import Inputs
    from initlab.anatomy.look import Anatomy
    from initlab.measure.statistics import Metrics


@with_fields
@drawn
@with_gradients()
def probe(
    model: nn.Module | Callable[[], nn.Module],
    batch: Any = None,
    *,
    recipe: str | Recipe | Rule | None = None,
    text: Text = Text(),
    seed: int = 0,
    stats: str = "full",
    dtype: str = "float32",
    sites: Sites | None = None,
    modules: Any = None,
    metrics: Metrics = None,
    progress: bool = True,
) -> Probe:
    """Measure forward and backward scale at every site of one model, whatever it is.

    Answers: does the signal keep its scale from embedding to logits, and the gradient on the way back?

    The residual stream is found by following the numbers (see `initlab.anatomy.stream`); what was found, and what
    could not be verified, is in `.coverage`.

    Args:
        model: probed in the mode it is in and left exactly as found, also after an error: weights, `.grad`, buffers,
            plain attributes, hooks, modes and random states (not what its forward changes outside it: globals, files,
            objects of other packages; see `initlab.anatomy.restoring.untouched`). A compiled model is measured eagerly,
            through the original with the same parameters; a lazy one must have been initialised. Or a function that
            makes one, or its class: it is called once, under `trace_init`, and findings name the lines that drew what
            they are about. One in DistributedDataParallel, or with `fully_shard` applied, is measured by all its
            processes together: each calls this with its own batch, and gets what the bare model gives on the whole
            batch; replicas must be equal. Of shards each process gathers a copy with whole weights and gradients, of
            which `sites` and `modules` are given by name. `model.module` of DistributedDataParallel is measured by one
            process alone.
        batch: token ids (B, T), whose targets are the next tokens; (ids, targets), -1 where there is no target; a
            tuple of arguments; a dict of keyword arguments; or a loader of any of these. Two ids for a forward that
            needs two are its arguments. Default: about 1024 tokens of `text` for a model with a vocabulary, in
            sequences that its forward can read; else Gaussian inputs in the shape of its first layer. Masks, steps
            and classes that the forward needs are made too, and named in `.coverage`.
        recipe: id of the recipe that the model should have been drawn from. With it, predictions answer «was it
            initialised as intended?»; without, they follow from the weights' own scale and answer «does it behave
            as its weights imply?» Predictions exist for nanoGPT's layout and, without a recipe, for transformers'
            GPT-2, Llama, Mistral and Qwen2.
        text: for the default batch. A vocabulary too small for it is a DataError where its data or tokenizer was named,
            and gets uniform random ids where neither was.
        seed: of the default batch and of dropout.
        stats: `full`, or `light` for mean, var, rms and abs_max alone, without attention heads and without the passes
            over changed tokens that the rules about behaviour (BEH) need.
        dtype: `bfloat16` or `float16` run the forward pass under autocast.
        sites: where the residual stream runs, for a model whose blocks aren't found: a glob over dotted names
            (`"net.layer*"`: the blocks), a module (`model.layers`), a list of these, or a dict from site to these
            (`{"resid_post": "net.layer*", "attn_out": "net.layer*.mix"}`). Verified like what is found by itself; see
            `initlab.anatomy.declared`.
        modules: look at these alone: a glob over dotted names (`"*.mlp.*"`), a compiled regular expression, a function
            `(name, module) -> bool`, a class (`nn.Linear`), a module, a role (`"mlp_out"`), or a list of these. Checks
            that need the others don't apply.
        metrics: statistics beside the usual ones: a dict from columns to functions of a tensor
            (`{"p99": lambda x: x.abs().float().quantile(0.99)}`), names of registered ones (`["abs_median"]`) or
            `file.py:name`. Each becomes a column of `records`, or `heads`; see `initlab.statistic`.
        progress: whether a bar is drawn, after two seconds, on a terminal or in a notebook.

    Returns:
        Probe. Variances are over every element of a tensor; gradients are of a mean loss, so they scale as 1/(B·T).

    Raises:
        ProbeError: the model's forward or backward raised (a line shows what to pass), or its weights can't be
            measured (meta device, several devices, sharded otherwise, quantised). Where one process raises, all do.
        SiteError: `sites` names what the model doesn't have.
        RecipeError, DataError, ConfigError: an argument can't be used, or no batch can be made for the model.
        ConfigError: also where a statistic raised, or returned something else than it should.
    """
    from initlab.anatomy.filters import chosen_modules
    from initlab.anatomy.restoring import random_state_kept
    from initlab.anatomy.unwrapping import unwrap
    from initlab.drawing.tracing import writes_of
    from initlab.measure.across import across
    from initlab.measure.batches import describe_batch, inputs_for
    from initlab.measure.behaviour import behaviour_rows
    from initlab.measure.moments import PRESETS
    from initlab.measure.probe import Identity, look, measure_inputs
    from initlab.measure.statistics import choose, meanings
    from initlab.measure.sweep import DTYPES

    started = time.perf_counter()
    text, seed = text_of(text), checked_seed(seed)
    checked_choice("stats", stats, PRESETS)
    checked_choice("dtype", dtype, DTYPES)
    statistics = choose(metrics, stats)
    entry = registry.get(recipe) if recipe is not None else None
    model = made(model)
    with across(model) as (model, ranks):
        inside, _ = unwrap(model)
        sites = list(sites) if isinstance(sites, Iterator) else sites  # both are read more than once
        modules = list(modules) if isinstance(modules, Iterator) else modules
        label = entry.id if entry else "as-found"
        step = getattr(inside, "iter_num", 0)
        step = step if isinstance(step, int) else 0
        identity = Identity(run_id=f"{label}-s{seed}", recipe=label, seed=seed, step=step)
        given: dict[str, Any] = {"stats": stats, "dtype": dtype, "seed": seed, "recipe": label}
        given["text"] = getattr(text.data, "sha256", text)
        given |= {"batch": "none" if batch is None else "given", "metrics": [each.name for each in statistics]}
        ranks.same("arguments", given)

        def measured(inputs: Inputs) -> tuple[Anatomy, set[str] | None, Tables]:
            anatomy = look(model, first, seed=seed, autocast=DTYPES[dtype], declared=sites)
            chosen = None if modules is None else chosen_modules(anatomy, modules)
            options: dict[str, Any] = {"preset": stats, "recipe": entry, "autocast": DTYPES[dtype], "chosen": chosen}
            options |= {"anatomy": anatomy, "statistics": statistics, "ranks": ranks}
            tables = measure_inputs(model, inputs, identity, **options)
            return anatomy, chosen, tables

        with random_state_kept(inside):  # a loader that shuffles draws from it
            inputs, described = inputs_for(inside, batch, text=text, seed=seed + ranks.rank)
        light = ("stats='light': no passes over changed tokens (rules BEH)",) if stats == "light" else ()
        inputs = replace(inputs, notes=(*ranks.notes, *inputs.notes, *light))
        first, whole = ranks.batch(inputs)
        if batch is not None and ranks.size > 1:
            described = describe_batch(inside, whole)
        anatomy, chosen, tables = measured(inputs)
        keys = {"run_id": identity.run_id, "recipe": label, "seed": seed} | {
            name: int(tables.summary[name].iloc[0]) for name in ("n_layer", "n_embd")
        }
        if stats == "full":
            rows = behaviour_rows(keys, anatomy, first, autocast=DTYPES[dtype], seed=seed)
            tables.behaviour = schema.table("behaviour", rows)
        _expect(tables, anatomy, whole, described, entry)
        facts = None if step else init_facts(anatomy, declared=entry is not None)
        if facts and facts["mismatches"]:
            facts["implied"] = _implied(tables, anatomy, whole, described, facts["closest"])
        if chosen is not None:  # only now: the closed form needs every weight
            _keep(tables, chosen)
        config = config_of(tables, anatomy, whole)
        config |= {
            "preset": stats,
            "dtype": dtype_of(inside, dtype),
            "sites": in_words(sites, inside),
            "modules": in_words(modules, inside),
        }
        if ranks.size > 1:
            config["processes"] = ranks.size
        recipes = {}
        if entry and anatomy.layout == "nanogpt":
            size = {name: config[name] for name in ("n_head", "block_size", "vocab_size")}
            size |= {"n_layer": config["depths"][0], "n_embd": config["widths"][0]}
            recipes = {label: evaluate(entry, [size], bias=config["bias"], tied=config["tie_weights"])}
        manifest = new_manifest("probe", config, recipes, described, [identity.run_id])
        if statistics:
            manifest["config"]["metrics"] = [each.name for each in statistics]
            manifest["metrics"] = meanings(statistics)
        if facts:
            manifest["init"] = facts
            rows = writes_of(inside)
            tables.writes = schema.table("writes", [row | {"run_id": identity.run_id} for row in rows])
        manifest.update(finished=now(), seconds=round(time.perf_counter() - started, 1))
        return Probe(Run(tables, manifest))


@with_fields
def assert_healthy(
    model: nn.Module | Callable[[], nn.Module],
    batch: Any = None,
    *,
    fail_on: Severity = "error",
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    limits: Mapping[str, float] | None = None,
    baseline: str | Path | None = None,
    **options: Any,
) -> Probe:
    """Fail a test when signal propagation at init is broken; the message is the findings, one a line.

    Args:
        model: as `probe` takes it.
        batch: as `probe` takes it.
        fail_on: the lowest severity that fails: `error`, `warning` or `info`.
        select: codes of the rules that count, or their beginnings; nothing selected is all of them.
        ignore: codes of those that don't.
        limits: numbers by code, as `Result.judge` takes them.
        baseline: findings that are known, and don't fail; see `Result.against`.
        **options: of `probe`.

    Returns:
        The probe, for further assertions.

    Raises:
        AssertionError: a finding of that severity or above.
        ConfigError: an unknown severity, code or limit, or a baseline that can't be read.
    """
    __tracebackhide__ = True  # pytest then shows the test, and not the model's repr
    if fail_on not in SEVERITIES:
        raise ConfigError(f"fail_on is {fail_on!r}; expected {', '.join(SEVERITIES)}")
    refuse_unknown("assert_healthy", options, assert_healthy, probe)
    rules.chosen(select, ignore, limits)  # a wrong code fails before anything is measured
    baseline = None if baseline is None else checked_path("baseline", baseline)
    found = probe(model, batch, **options)
    found.judge(select=select, ignore=ignore, limits=limits)
    if baseline is not None:
        found.against(baseline)
    broken = [f for f in found.failures if reaches(f.severity, fail_on)]
    if broken:
        lines = [one_line(f"{f.severity} {f.code} {f.name}: {f.message}; {f.advice}") for f in broken]
        head = one_line(f"{found.run.manifest['config']['model']} isn't healthy at init:")
        raise AssertionError("\n".join([head, *lines]))
    return found


def made(model: Any) -> nn.Module:
    """Give a model, or make it: what is done to its parameters meanwhile is heard.

    Args:
        model: a module, or what makes one without arguments.

    Raises:
        ProbeError: the function raised, which is chained, or returned no module.
    """
    from torch import nn

    from initlab.drawing.tracing import trace

    if isinstance(model, nn.Module) or not callable(model) or (isinstance(model, type) and _asks(model)):
        found: nn.Module = model
        return found
    return trace(model).model


def _asks(factory: Any) -> bool:
    """Whether it can't be called without arguments, as most classes of modules can't."""
    try:
        given = inspect.signature(factory).parameters.values()
    except ValueError:  # of Python's own, as dict: it is called
        return False
    return any(
        each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in given
    )


def _expect(tables: Tables, anatomy: Anatomy, inputs: Inputs, described: dict[str, Any], recipe: Recipe | None) -> None:
    """Fill in what the closed form expects of the model."""
    theory.expect(*_given(tables, anatomy, inputs, described), recipe=recipe, **_asked(anatomy, inputs, recipe))


def _implied(
    tables: Tables, anatomy: Anatomy, inputs: Inputs, described: dict[str, Any], closest: str
) -> dict[str, dict[str, float]]:
    """What the weights mean for the model as found, and what they would if all of them were drawn as a recipe does."""
    given, recipe = _given(tables, anatomy, inputs, described), registry.get(closest)
    return {
        "found": theory.implied(*given, **_asked(anatomy, inputs, None)),
        "meant": theory.implied(*given, recipe=recipe, **_asked(anatomy, inputs, recipe)),
    }


def _given(tables: Tables, anatomy: Anatomy, inputs: Inputs, described: dict[str, Any]) -> tuple[Any, ...]:
    targets = None if inputs.targets is None else inputs.targets.cpu().numpy()
    return tables, anatomy.wirings, described, targets


def _asked(anatomy: Anatomy, inputs: Inputs, recipe: Recipe | None) -> dict[str, Any]:
    return {"dims": anatomy.dims if recipe else None, "sequences": _sequences(inputs)}


def _sequences(inputs: Inputs) -> int | None:
    """How many examples the batch holds, of a model that reads no tokens."""
    from initlab.anatomy.tensors import tensors

    first = next(tensors((inputs.args, inputs.kwargs)), None)
    return None if first is None or first.dim() < 2 else len(first)


def _keep(tables: Tables, chosen: set[str]) -> None:
    """Drop the records of other modules, and of parameters that other modules hold."""
    rows = tables.records
    parameter = ~rows["kind"].isin(["activation", "grad"])
    owner = rows["module"].mask(parameter, rows["module"].str.rpartition(".")[0])
    tables.records = rows[owner.isin(chosen)].reset_index(drop=True)
