"""Several processes measure one model as one does on the whole batch."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from measure_zoo import ZOO, T, V
from torch import nn

import initlab
from initlab.measure.across import across
from initlab.measure.moments import SAMPLE
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig

HERE = Path(__file__).parent
ROOT = Path(initlab.__file__).parents[1]
NAMES = ("nanogpt", "one column more", "experts", "encoder and decoder", "classes")


def model(name):
    torch.manual_seed(0)
    if name in ZOO:
        return ZOO[name][0]()
    if name == "classes":
        return nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))
    rows = V + (name == "one column more")
    return NanoGPT(NanoGPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=T, vocab_size=rows, bias=False))


def batch(name):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(V, (2, 6, T), generator=generator)
    if name == "encoder and decoder":
        return ids[0], ids[1]
    if name == "classes":
        return torch.randn(6, 3, 4, 4, generator=generator), torch.randint(5, (6,), generator=generator)
    targets = torch.cat([ids[0][:, 1:], torch.full((6, 1), -1)], 1)
    targets[0, :5] = -1  # so that the parts have means over different numbers of targets
    return ids[0], targets


SCRIPT = """
import json, pickle, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
import initlab
from initlab.measure import ranks
from test_across import NAMES, batch, model

dist.init_process_group("gloo")
rank = dist.get_rank()

def mine(name):
    return tuple(x[:4] if rank == 0 else x[4:] for x in batch(name))

def sharded(made):
    for module in reversed(list(made.modules())):  # from the leaves up
        if isinstance(module, torch.nn.ModuleList):
            for block in module:
                fully_shard(block)
    return fully_shard(made)

WRAPPED = {"ddp": DistributedDataParallel, "fsdp": sharded}
found = {}
for name in NAMES:
    for how, wrapped in WRAPPED.items():
        p = initlab.probe(wrapped(model(name)), mine(name))
        codes = [f.code for f in p.findings if f.status == "fail"]
        found[how, name] = dict(p.run.tables.items()), p.run.manifest, codes

def copies(name):
    made = sharded(model(name))
    torch.manual_seed(1)  # the same on both
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter.to_local(), 0, 0.02)
    return {f.code: f.message for f in initlab.probe(made, mine(name)).findings if f.status == "fail"}

def replicas():
    made = DistributedDataParallel(model("nanogpt"))
    if rank:
        with torch.no_grad():
            made.module.transformer.h[1].mlp.c_fc.weight[3, 4] += 1e-6
    initlab.probe(made, mine("nanogpt"))

def buffers():
    made = model("classes")
    made.insert(1, torch.nn.BatchNorm2d(8))
    made = DistributedDataParallel(made)
    made.module[1].running_mean += rank
    return initlab.probe(made, mine("classes")).coverage["note"].tolist()

def raising(place):
    made, calls = DistributedDataParallel(model("nanogpt")), []
    def hook(*_):
        calls.append(None)
        if rank == 1 and len(calls) >= place:
            raise RuntimeError("out of the blue")
    made.module.transformer.h[1].register_forward_hook(hook)
    initlab.probe(made, mine("nanogpt"))

def given(change):
    name = "nanogpt"
    initlab.probe(DistributedDataParallel(model(name)), change(mine(name)) if rank else mine(name), stats="light")

def options():
    initlab.probe(DistributedDataParallel(model("nanogpt")), mine("nanogpt"), seed=rank)

def default():
    return initlab.probe(DistributedDataParallel(model("nanogpt")), stats="light").summary["n_tokens"].item()

def told(function, *given):
    try:
        return function(*given)
    except initlab.InitlabError as error:
        return f"{type(error).__name__}: {error}"

found["copies"] = told(copies, "nanogpt")
found["uneven copies"] = told(copies, "one column more")
found["replicas"] = told(replicas)
found["buffers"] = told(buffers)
found["raising at once"] = told(raising, 1)
found["raising later"] = told(raising, 2)
found["unknown ids"] = told(given, lambda batch: (batch[0] + 1000, batch[1]))
found["no batch"] = told(given, lambda batch: None)
found["other shape"] = told(given, lambda batch: tuple(x[:, :5] for x in batch))
found["options"] = told(options)
found["default"] = told(default)
ranks.WAIT = timedelta(seconds=3)
last = DistributedDataParallel(model("nanogpt"))
if rank == 0:
    found["alone"] = told(initlab.probe, last, mine("nanogpt"))
with open(f"{sys.argv[1]}/{rank}.pkl", "wb") as file:
    pickle.dump(found, file)
time.sleep(4 * rank)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    script = out / "run.py"
    script.write_text(SCRIPT, encoding="utf-8")
    paths = os.pathsep.join(map(str, (ROOT, HERE, HERE.parent / "helpers")))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*start, str(script), str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [pickle.loads((out / f"{rank}.pkl").read_bytes()) for rank in range(2)]


def tolerance(frame, column):
    """How far apart sums of float32 may be that were taken in another order."""
    if column == "mean" and "std" in frame:  # of next to nothing
        return 1e-6 * frame["std"] + 1e-5 * frame["mean"].abs()
    if column == "kurtosis":  # a ratio near 3, less 3
        return 1e-5 * (frame["kurtosis"] + 3)
    if column.startswith("frac_"):
        # Above 16384 elements they are of samples, with a standard error of 0.004 at most. The query of a first
        # position has a gradient of 0, or of a rounding: one of the 12 positions in a batch here.
        sampled = np.where(frame["numel"] > SAMPLE, 5 * 0.004 * 2**0.5, 0.5 / frame["numel"])
        return np.where(frame["kind"] == "grad", np.maximum(sampled, 1 / T), sampled)
    if column in ("together", "embed_together", "token_cosine", "own_logit"):  # means of what mostly cancels
        return 1e-5 * frame[column].abs() + 1e-7
    return 1e-5 * frame[column].abs()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", NAMES)
def test_both_get_the_tables_of_the_unsharded_model_on_the_whole_batch(found, how, name):
    expected = initlab.probe(model(name), batch(name))
    for each in found:
        tables, manifest, codes = each[how, name]
        for table, frame in expected.run.tables.items():
            if table == "coverage":
                assert set(frame["note"]) <= set(tables[table]["note"])
                continue
            assert len(tables[table]) == len(frame), table
            for column in frame.columns.drop("seconds", errors="ignore"):
                one, other = frame[column], tables[table][column]
                if one.dtype == "float64":
                    off = np.nan_to_num((one - other).abs().where(one != other, 0.0), nan=np.inf)
                    off[one.isna() & other.isna()] = 0.0
                    assert (off <= np.nan_to_num(tolerance(frame, column))).all(), (table, column)
                else:
                    assert one.astype(str).tolist() == other.astype(str).tolist(), (table, column)
        assert codes == [f.code for f in expected.findings if f.status == "fail"]
        assert manifest["data"] == expected.run.manifest["data"]


@pytest.mark.slow
def test_shards_that_drew_the_same_numbers_are_a_finding(found):
    for each in found:
        assert "transformer.wte.weight is made of 2 identical blocks" in each["copies"]["INI005"]
        assert "c_attn.weight is made of 2 identical blocks" in each["copies"]["INI005"]
        # the second process's stream is one row of the table ahead
        assert "(rows 25 to 47 are 0 to 22)" in each["uneven copies"]["INI005"]
        assert "INI005" not in each["fsdp", "nanogpt"][2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("replicas", "ProbeError: replicas differ: process 1 holds other numbers than process 0 in 1 of 15 parameters"),
        ("raising at once", r"NanoGPT raised in its forward pass at .*run\.py:\d+: RuntimeError: out of the blue"),
        ("raising later", r"NanoGPT raised in its forward pass at .*run\.py:\d+: RuntimeError: out of the blue"),
        ("unknown ids", "ConfigError: .*the model knows ids below"),
        (
            "no batch",
            "ConfigError: arguments differ between the processes: batch is 'given' on process 0 and 'none' on",
        ),
        (
            "other shape",
            r"ConfigError: batches differ between the processes: .* is \(\d+,\) on process 0 and \(5,\) on",
        ),
        ("options", "ConfigError: arguments differ between the processes: seed is 0 on process 0 and 1 on process 1"),
    ],
)
def test_all_say_what_is_wrong_with_one(found, what, said):
    for each in found:
        assert re.search(said, each[what]), each[what]


@pytest.mark.slow
def test_buffers_may_differ_and_that_is_said(found):
    for each in found:
        assert "process 1 used buffers of its own, unlike those of process 0: 1.running_mean" in each["buffers"]


@pytest.mark.slow
def test_each_has_a_default_batch_of_its_own(found):
    alone = initlab.probe(model("nanogpt"), stats="light").summary["n_tokens"].item()
    assert [each["default"] for each in found] == [2 * alone] * 2


@pytest.mark.slow
def test_one_that_is_alone_says_so_after_a_while(found):
    assert "not every process of the group came" in found[0]["alone"]


def test_a_model_that_nobody_shares_is_measured_alone():
    plain = model("nanogpt")
    with across(plain) as (own, ranks):
        assert own is plain
        assert (ranks.rank, ranks.size, ranks.notes) == (0, 1, ())
