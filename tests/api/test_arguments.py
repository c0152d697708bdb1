"""Every public function and option with values that can't be used: one sentence at once, and the model as it was."""

import json
import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import initlab
from initlab.errors import InitlabError

SECONDS = 1.0  # of one core, for an answer
SIZES = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
CONFIG = initlab.NanoGPTConfig(**SIZES)
TEXT = initlab.Text("uniform", batch_size=2)
IDS = torch.arange(16).reshape(2, 8)
NOT_UTF8 = "out\udcff"  # how Python reads the byte 0xff in a file's name
NAN = math.nan


def tiny() -> nn.Module:
    """A model that a probe takes some hundredths of a second for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return initlab.NanoGPT(initlab.NanoGPTConfig(**SIZES, vocab_size=16))


def scripted() -> nn.Module:
    """A module of torch.jit, which newer versions of torch warn of."""
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.script(nn.Linear(4, 4))


class Raises(nn.Module):
    """A model whose forward raises what it is told."""

    def __init__(self, error: BaseException):
        super().__init__()
        self.wte = nn.Embedding(16, 8)
        self.error = error

    def forward(self, idx):
        raise self.error


def ends(*arguments: Any, **options: Any) -> Any:
    """What a recipe or a function of a user's may do."""
    raise SystemExit("usage: mine.py")


def makes(n_layer: int, n_embd: int) -> nn.Module:
    """Make a model, for the commands that take functions."""
    return initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=n_layer, n_embd=n_embd, n_head=1, block_size=8, vocab_size=16))


def makes_and_ends(n_layer: int) -> nn.Module:
    """End the process where a model was asked for."""
    raise SystemExit(2)


# What can't be a value of its kind, whatever command asks for it.
SEED = [1.5, None, 2**80, -1, "0", True, NAN, [0]]
SEED_OR_NONE = [value for value in SEED if value is not None]  # where None means something
COUNT = [0, -1, 1.5, "x", True, [1], NAN]
FROM_0 = [-1, 1.5, "x", True, [1]]
RATE = [0, -1.0, NAN, math.inf, "x", True, [0.1]]
FROM_0_ON = [-1.0, NAN, "x", [0.1]]
SIZE_LIST = [5, "4,8", [], [0], [-1], [1.5], ["4"], [4, 4], [True], [None], [2**80], {4: 8}]
RATES = [5, "1e-3", [], [0.0], [-1e-3], [NAN], ["x"], [None], [1e-3, 1e-3]]
CHOICE = ["nope", 5, [], ""]
TEXTS = ["docstrings", None, 5]
RUNS = ["out", None, 5]
BASES = [5, "x", (2, 64)]
CODES = [5, "NOPE", [5], None, [None]]
LIMITS = [5, "EMB001=1", {"EMB001": "x"}, {"EMB001": NAN}, {"NOPE1": 1.0}, {5: 1.0}, [("EMB001", 1.0)], [5]]
NO_PATH = [5, "", " ", b"out", NOT_UTF8, "a\0b"]
PATHS = [*NO_PATH, ["out"]]
RECIPES = ["nope", 5, [], None, ends, "nope.py:init", {"a": 1}, tiny]
LISTED = ["nope", 5, [], None, ends, ["nanogpt", "nanogpt"], ["nanogpt", None], ""]
BATCHES = {
    "x": "x",
    "5": 5,
    "[]": [],
    "{}": {},
    "()": (),
    "[None]": [None],
    "1-d": IDS[0],
    "3-d": IDS[None],
    "0-d": torch.tensor(1),
    "empty": IDS[:0],
    "one token": IDS[:, :1],
    "bool": IDS > 3,
    "complex": IDS.to(torch.complex64),
    "meta": IDS.to("meta"),
    "sparse": IDS.to_sparse(),
    "negative": -IDS,
    "unknown ids": IDS + 10,
    "far ids": IDS + 2**40,
    "targets of another shape": (IDS, IDS[:, :4]),
    "no targets": (IDS, torch.full_like(IDS, -1)),
    "targets beyond": (IDS, IDS + 10),
    "targets -7": (IDS, IDS - 7),
    "-100 and -1": (IDS, torch.where(IDS < 2, -100, torch.where(IDS < 4, -1, IDS))),
    "meta targets": (IDS, IDS.to("meta")),
    "float targets": (IDS, IDS.float()),
    "generator without": iter(()),
    "text ids": np.array([["a", "b"], ["c", "d"]]),
    "object ids": np.array([[None, 1]], dtype=object),
}
MODELS = {
    "None": None,
    "class": initlab.NanoGPT,
    "state_dict": tiny().state_dict(),
    "name": "gpt2",
    "number": 5,
    "config": CONFIG,
    "list": [tiny()],
    "function that ends": ends,
    "function of another thing": dict,
    "no parameters": nn.Identity(),
    "meta": nn.Linear(4, 4, device="meta"),
    "lazy": nn.LazyLinear(4),
    "script": scripted(),
    "ends": Raises(SystemExit(3)),
    "raises": Raises(ValueError("no")),
}
SITES = [5, "nope*", {"nope": "h*"}, [], {}, {"resid_post": 5}, [5]]
MODULES = [5, "nope", [], [5], nn.Linear(2, 2)]
METRICS = [5, {"p99": 5}, ["nope"], {5: torch.mean}, [5], "nope.py:f", {"var": torch.mean}, {"bad name": torch.mean}]


def probe(**given: Any) -> Any:
    """Probe a tiny model."""
    return initlab.probe(given.pop("model", SHARED), **{"text": TEXT, "stats": "light"} | given)


def healthy(**given: Any) -> Any:
    """Assert that it is healthy, of the one rule about what isn't finite."""
    return initlab.assert_healthy(given.pop("model", SHARED), **{"text": TEXT, "select": ["NUM"]} | given)


def compare(**given: Any) -> Any:
    """Compare one recipe at one depth."""
    usual = {"model": CONFIG, "depths": [1], "seeds": 1, "text": TEXT, "stats": "light"}
    return initlab.compare(given.pop("recipes", ["nanogpt"]), **usual | given)


def scale(**given: Any) -> Any:
    """Check one recipe at two widths."""
    usual = {"model": CONFIG, "widths": [8, 16], "steps": 1, "seeds": 1, "text": TEXT}
    return initlab.scale(given.pop("recipes", ["nanogpt"]), **usual | given)


def confirm(**given: Any) -> Any:
    """Train one recipe at one depth and rate."""
    usual = {"model": CONFIG, "depths": [1], "lrs": [1e-3], "warmups": [0], "seeds": 1, "steps": 1, "text": TEXT}
    return initlab.confirm(given.pop("recipes", ["nanogpt"]), **usual | given)


def transfer(**given: Any) -> Any:
    """Train one recipe at two widths and three rates."""
    usual = {"model": CONFIG, "widths": [8, 16], "lrs": [1e-3, 2e-3, 4e-3], "seeds": 1, "steps": 1, "text": TEXT}
    return initlab.transfer(given.pop("recipes", ["nanogpt"]), **usual | given)


def train(**given: Any) -> Any:
    """Train one recipe for a step."""
    return initlab.train(given.pop("recipes", ["nanogpt"]), **{"model": CONFIG, "steps": 1, "text": TEXT} | given)


def watch(**given: Any) -> Any:
    """Begin a watch, and end it."""
    with initlab.watch(given.pop("model", SHARED), **given) as watcher:
        return watcher


def fix(**given: Any) -> Any:
    """Look for what is to be mended of a tiny model."""
    return initlab.fix(given.pop("model", SHARED), **{"text": TEXT, "stats": "light", "select": ["NUM"]} | given)


def describe(**given: Any) -> Any:
    """Describe a tiny model."""
    return initlab.describe_init(given.pop("model", SHARED), **given)


def trace(**given: Any) -> Any:
    """Trace a tiny model."""
    return initlab.trace_init(given.pop("factory", tiny), **given)


def apply(**given: Any) -> Any:
    """Draw a recipe into a tiny model."""
    return initlab.apply_recipe(given.pop("model", SHARED), given.pop("recipe", "nanogpt"), **given)


def groups(**given: Any) -> Any:
    """Group the parameters of a tiny model."""
    return initlab.adam_groups(given.pop("model", SHARED), given.pop("recipe", "nanogpt"), **{"lr": 1e-3} | given)


def predict(**given: Any) -> Any:
    """Predict a tiny model."""
    return initlab.predict(**{"model": CONFIG} | given)


def diff(**given: Any) -> Any:
    """Compare two draws of a tiny model."""
    usual = {"text": TEXT, "stats": "light"}
    return initlab.diff(given.pop("a", SHARED), given.pop("b", OTHER), **usual | given)


SHARED, OTHER = tiny(), tiny()
GRID = {"base": BASES, "seeds": COUNT, "text": TEXTS, "run": RUNS}
JUDGING = {"select": CODES, "ignore": CODES, "limits": LIMITS}
NETS = ["gpt2", 5, [CONFIG], Raises(ValueError("no")), makes_and_ends, dict]
TRAINED = {"schedule": CHOICE, "weight_decay": FROM_0_ON, "grad_clip": FROM_0_ON, "dtype": CHOICE}
PROBED = {"batch": list(BATCHES.values()), "text": TEXTS, "seed": SEED, "stats": [*CHOICE, None]}
PROBED |= {"dtype": [*CHOICE, None], "sites": SITES, "modules": MODULES, "metrics": METRICS}
MEASURED_NEVER = [value for name, value in MODELS.items() if name not in ("function that ends", "ends", "raises")]
ROLES = [5, "x", {"nope*": "attn_out"}, {"*": "nope"}, {5: "other"}, {"*": 5}]
NO_MODELS = [value for name, value in MODELS.items() if name in ("None", "class", "state_dict", "name", "script")]

TABLE: dict[Callable[..., Any], dict[str, list[Any]]] = {
    probe: {"model": list(MODELS.values()), "recipe": [r for r in RECIPES if r is not None]} | PROBED,
    healthy: {"fail_on": CHOICE, "baseline": [5, "", "none.json", NOT_UTF8], "seed": SEED[:2], "nope": [1]} | JUDGING,
    compare: {"recipes": LISTED, "model": NETS, "depths": SIZE_LIST, "widths": SIZE_LIST, "stats": CHOICE}
    | {"dtype": CHOICE, "batch": [IDS]}
    | GRID,
    scale: {"recipes": LISTED, "model": [*NETS, SHARED], "depths": SIZE_LIST, "widths": [*SIZE_LIST, [8]]}
    | {"steps": FROM_0, "lr": RATE, "optimizer": ["nope", 5, [], None], "stats": CHOICE, "dtype": CHOICE}
    | GRID,
    confirm: {"recipes": LISTED, "model": NETS, "depths": SIZE_LIST, "n_embd": COUNT, "lrs": RATES}
    | {"warmups": [5, [], [-1], [1.5], ["x"], [0, 0], [1]], "steps": COUNT, "eval_every": FROM_0, "thorough": ["x"]}
    | TRAINED
    | GRID,
    transfer: {"recipes": LISTED, "model": [*NETS, SHARED], "depths": SIZE_LIST, "widths": [*SIZE_LIST, [8]]}
    | {"lrs": [*RATES, [1e-3]], "warmup": FROM_0, "steps": COUNT, "thorough": ["x"]}
    | TRAINED
    | GRID,
    train: {"recipes": LISTED, "model": NETS, "preset": CHOICE, "n_layer": COUNT, "n_embd": COUNT, "text": TEXTS}
    | {"run": RUNS, "seed": SEED_OR_NONE, "watch_every": [*FROM_0, 1]}
    | {"checkpoint_every": FROM_0, "steps": COUNT, "lr": RATE, "warmup": FROM_0, "min_lr": [-1, 2, "x"]}
    | {
        "grad_accum": COUNT,
        "betas": [5, "x", (0.9,), (0.9, 1.0), ("a", "b"), (NAN, 0.9)],
        "batch_size": [0],
        "vocab_size": [1, 2.5],
    }
    | {"eval_every": FROM_0, "eval_batches": COUNT, "log_every": COUNT, "compile": ["x", 5], "nope": [1]}
    | TRAINED,
    watch: {"model": MEASURED_NEVER, "every": [*COUNT, None], "out": PATHS, "start_step": [*FROM_0, None]}
    | {"stats": [*CHOICE, None], "loss_scale": [*RATE, None], "metrics": METRICS, "callback": [5, "x", [5]]},
    fix: {"model": list(MODELS.values()), "recipe": ["nope", 5], "batch": ["x", 5], "seed": SEED, "apply": ["x", None]}
    | {"text": TEXTS, "nope": [1]}
    | JUDGING,
    describe: {
        "model": NO_MODELS,
        "roles": [5, "x", {"nope*": "attn_out"}, {"*": "nope"}, {5: "other"}, {"*": 5}],
    },
    trace: {
        "factory": [None, 5, "x", SHARED, ends, dict, initlab.NanoGPT, makes],
        "seed": [s for s in SEED if s is not None],
    },
    apply: {"model": NO_MODELS, "recipe": [r for r in RECIPES if r is not tiny], "batch": [IDS], "base": BASES}
    | {"seed": SEED, "roles": ROLES},
    groups: {"model": NO_MODELS, "recipe": ["nope", 5, None], "base": BASES, "lr": RATE}
    | {"weight_decay": FROM_0_ON, "eps": FROM_0_ON},
    predict: {
        "recipe": RECIPES,
        "model": ["gpt2", 5, SHARED],
        "n_layer": [*COUNT, 10**12],
        "n_embd": [*COUNT, 10**12],
    }
    | {"activation": ["nope", 5, ends, lambda x: "x"], "text": [*TEXTS, initlab.Text("mine.txt")]}
    | {"sum_p2": [-1, 2, NAN, "x", []], "repeat_rate": [-1, 2, NAN, "x"], "same_target": [-1, 2, NAN, "x"]}
    | {"exact": ["x", 5]},
    diff: {"a": [None, 5, "none", "", SHARED.state_dict(), initlab.NanoGPT, ends, dict, OTHER, NOT_UTF8, []]}
    | {"b": [None, 5, SHARED], "seeds": [*COUNT, 2], "seed": SEED, "text": TEXTS, "batch": ["x", 5], "nope": [1]}
    | JUDGING,
    initlab.Text: {
        "data": [*NO_PATH, None],
        "tokenizer": [5, "", b"x"],
        "batch_size": COUNT,
        "block_size": COUNT,
        "vocab_size": COUNT,
    },
    initlab.RunOptions: {"device": [5, None, "", []], "jobs": COUNT, "engine": [5, None, "", []], "out": PATHS}
    | {"address": [5, ""], "progress": [5, "x", print]},
    initlab.Base: {"n_layer": COUNT, "n_embd": COUNT, "head_size": COUNT},
    initlab.NanoGPTConfig: {name: [*COUNT, 2**80] for name in (*SIZES, "vocab_size", "n_kv_head")}
    | {"dropout": [-1, 1.0, NAN, "x", None], "activation": CHOICE, "norm": CHOICE, "positions": CHOICE}
    | {"bias": ["x", 5, None], "tie_weights": ["x", None], "qk_norm": ["x", None], "gate": ["x", NAN]}
    | {"residual_multiplier": ["x", NAN, [1.0, 1.0, 1.0], None, ["x"]], "logit_cap": [0, -1, NAN, "x"]},
    initlab.load: {"path": [*PATHS, None, "none"]},
}


def shown(value: Any) -> str:
    """A value in a test's name."""
    known = [name for named in (BATCHES, MODELS) for name, each in named.items() if each is value]
    text = known[0] if known else getattr(value, "__name__", None) or f"{value!r}"
    return re.sub(r"\s+", " ", text).encode("ascii", "backslashreplace").decode()[:40]


def cases() -> Iterator[Any]:
    """One of each line of the table."""
    for call, options in TABLE.items():
        usual = {"n_layer": 1, "n_embd": 8} if call is initlab.Base else SIZES if call is initlab.NanoGPTConfig else {}
        for name, values in options.items():
            for value in values:
                yield pytest.param(call, name, usual | {name: value}, id=f"{call.__name__}-{name}-{shown(value)}")


@pytest.fixture
def nothing_starts(monkeypatch, tmp_path):
    """No grid is measured or trained, and nothing is written but here."""
    import initlab.api.grids as grids

    def started(*arguments: Any, **options: Any) -> None:
        pytest.fail("it was started")

    for command in ("compare", "scale", "train"):
        __import__(f"initlab.api.{command}")
        monkeypatch.setattr(sys.modules[f"initlab.api.{command}"], "run_cells", started)
    monkeypatch.setattr(grids, "run_cells", started)
    monkeypatch.chdir(tmp_path)


def state(model: nn.Module) -> dict[str, Any]:
    """What a command must leave as it is."""
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    grads = [parameter.grad is None for parameter in model.parameters()]
    return tensors | {"hooks": hooks, "grads": grads, "mode": model.training, "random": torch.get_rng_state()}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether nothing of it changed."""
    return before.keys() == after.keys() and all(
        torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key]
        for key, value in before.items()
    )


@pytest.fixture(scope="module", autouse=True)
def warm():
    """What the first pass of a process loads and compiles isn't a call's own time."""
    with pytest.raises(InitlabError):
        probe(model=Raises(ValueError("no")))


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(("call", "option", "given"), list(cases()))
def test_what_cannot_be_used_is_one_sentence_at_once(call, option, given, tmp_path):
    before, started = state(SHARED), time.process_time()
    with pytest.raises(InitlabError) as raised:
        call(**given)
    spent = time.process_time() - started
    said = str(raised.value)
    assert said and "\n" not in said and len(said) < 600, said
    assert said.encode(), "it can be printed"
    assert spent < SECONDS
    assert same(before, state(SHARED)) and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def found():
    """A probe in memory."""
    return probe()


@pytest.mark.parametrize("out", [*PATHS, None])
@pytest.mark.parametrize("method", ["report", "save"])
def test_a_folder_that_is_none_is_refused(method, out, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InitlabError, match=r"out is|only in memory"):
        getattr(found, method)(out)
    for other in (predict(), initlab.results.difference.Difference(found, found), fix()):
        call = getattr(other, method, None)
        if call is not None:
            with pytest.raises(InitlabError, match="out is"):
                call(out)
    assert not list(tmp_path.iterdir())


METHODS = {
    "judge": [{"select": value} for value in CODES] + [{"ignore": 5}] + [{"limits": value} for value in LIMITS],
    "against": [{"baseline": value} for value in [*PATHS, None, "none.json"]],
    "at": [
        {"site": "embed"} | wrong
        for wrong in ({"site": 5}, {"site": None}, {"layer": "x"}, {"layer": 1.5}, {"kind": 5})
    ],
    "plot": [{"name": value} for value in CHOICE] + [{"name": "residual", "theme": value} for value in CHOICE],
    "only": [{"recipe": value} for value in CHOICE],
}


@pytest.mark.parametrize(
    ("method", "given"),
    [
        pytest.param(name, given, id=f"{name}-{shown(list(given.values())[-1])}")
        for name, values in METHODS.items()
        for given in values
    ],
)
def test_methods_of_a_result_refuse_in_one_sentence(method, given, found):
    with pytest.raises(InitlabError) as raised:
        getattr(found, method)(**given)
    assert "\n" not in str(raised.value) and str(raised.value).encode()


I64 = np.int64
ACCEPTED: dict[str, Callable[[], Any]] = {
    "ids of numpy": lambda: probe(batch=IDS.numpy()),
    "short ids of numpy": lambda: probe(batch=IDS.numpy().astype(np.uint16)),
    "ids and targets of numpy": lambda: probe(batch=(IDS.numpy(), IDS.numpy())),
    "numpy by name": lambda: probe(batch={"idx": IDS.numpy()}),
    "a loader of numpy": lambda: probe(batch=iter([IDS.numpy()])),
    "read-only ids": lambda: probe(batch=np.broadcast_to(np.arange(8), (2, 8))),
    "-1 alone": lambda: probe(batch=(IDS, torch.where(IDS < 2, -1, IDS))),
    "-100 alone": lambda: probe(batch=(IDS, torch.where(IDS < 2, -100, IDS))),
    "ids of inference": lambda: probe(batch=in_inference(IDS.clone)),
    "seed of numpy": lambda: probe(seed=I64(3)),
    "one rule as text": lambda: healthy(select="NUM"),
    "limit of numpy": lambda: healthy(select=["EMB"], fail_on="error", limits={"EMB001": np.float32(1e-9)}),
    "compare": lambda: compare(depths=[I64(1)], widths=np.array([8]), seeds=I64(1)),
    "compare a range": lambda: compare(depths=range(1, 3)),
    "scale": lambda: scale(widths=np.array([8, 16]), depths=np.array([1]), steps=I64(1), lr=np.float32(1e-3)),
    "confirm": lambda: confirm(depths=np.array([1]), lrs=np.array([1e-3]), warmups=np.array([0]), steps=I64(1)),
    "transfer": lambda: transfer(lrs=np.geomspace(1e-3, 4e-3, 3), warmup=I64(0), grad_clip=np.float32(1), run=HERE),
    "train": lambda: train(n_layer=I64(1), seed=I64(1), steps=I64(1), lr=np.float32(1e-3), betas=[0.9, 0.95]),
    "watch": lambda: watch(every=I64(2), start_step=I64(0), loss_scale=np.float32(2)),
    "diff": lambda: diff(a=tiny, b=tiny, seeds=I64(1), seed=I64(3)),
    "predict": lambda: predict(n_layer=I64(2), sum_p2=np.float32(0.5), activation=None, repeat_rate=0),
    "apply": lambda: apply(model=tiny(), seed=I64(3), base=initlab.Base(n_layer=I64(2), n_embd=I64(8))),
    "groups": lambda: groups(lr=np.float32(1e-3), weight_decay=np.float64(0.1)),
    "trace": lambda: trace(seed=I64(1)),
    "config": lambda: initlab.NanoGPTConfig(**{name: I64(value) for name, value in SIZES.items()}, dropout=I64(0)),
}
HERE = initlab.RunOptions(engine="here", jobs=I64(1))


def in_inference(call: Callable[[], Any]) -> Any:
    """Call it where torch follows no gradient, and marks what is made for good."""
    with torch.inference_mode():
        return call()


def without_gradients(call: Callable[[], Any]) -> Any:
    """Call it where torch follows no gradient."""
    with torch.no_grad():
        return call()


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_can_be_used_is(name):
    before = state(SHARED)
    result = ACCEPTED[name]()
    assert same(before, state(SHARED))
    if hasattr(result, "run"):
        assert not result.run.manifest["failed"]
        json.dumps(result.run.manifest)  # what was given is in it, as plain numbers


@pytest.mark.integration
@pytest.mark.parametrize("where", [without_gradients, in_inference])
@pytest.mark.parametrize(
    "call",
    [
        probe,
        healthy,
        compare,
        scale,
        confirm,
        transfer,
        train,
        watch,
        fix,
        describe,
        trace,
        apply,
        groups,
        predict,
        diff,
    ],
)
def test_what_the_caller_switched_off_is_on_where_it_is_needed(call, where):
    given = {"run": HERE} if call in (compare, scale, confirm, transfer, train) else {}
    given |= {"model": tiny()} if call is apply else {}
    result = where(lambda: call(**given))
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    if hasattr(result, "run"):
        assert not result.run.manifest["failed"]


@pytest.mark.parametrize("call", [probe, fix, apply, watch])
def test_a_model_that_can_never_learn_is_told_so(call):
    with pytest.raises(InitlabError, match=r"wte.weight was made under torch.inference_mode.*outside of it"):
        call(model=in_inference(tiny))


def test_either_mark_of_no_target_gives_one_loss():
    losses = [probe(batch=(IDS, torch.where(IDS % 3 == 0, mark, IDS))).summary["loss"].iloc[0] for mark in (-1, -100)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
