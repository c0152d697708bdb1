"""Several processes train as one does."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import initlab
from initlab.errors import ConfigError
from initlab.training.distributed import World, current, joined

pytestmark = pytest.mark.integration

ROOT = Path(initlab.__file__).parents[1]
SCRIPT = """
import json, sys
import numpy as np, torch
from pathlib import Path
from initlab.corpus import Corpus
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.training.config import TrainConfig
from initlab.training.data import split
from initlab.training.distributed import joined
from initlab.training.trainer import train

walk = np.random.default_rng(0).integers(-1, 2, 4000).cumsum() % 16
parts = split(Corpus("walk", "none", 16, walk.astype("<u2"), "0" * 64, "all tokens"))
sizes = NanoGPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=16, bias=False)
out = Path(sys.argv[1])
found = {}
with joined("cpu") as (world, device):
    for accumulated in (1, 2, 4):
        torch.manual_seed(1 + world.rank)  # weights of the first process count
        config = TrainConfig(
            steps=10, lr=1e-2, warmup=3, batch_size=8 // accumulated, grad_accum=accumulated, eval_every=5,
            eval_batches=3, device=device,
        )
        rows = []
        trained = train(NanoGPT(sizes), parts, config, on_row=rows.append, checkpoint=out / f"{accumulated}.pt")
        assert (rows == trained.rows) if world.first else not rows
        names = ("step", "loss", "grad_norm", "val_loss", "tokens")
        found[accumulated] = [[row[name] for name in names] for row in trained.rows]
    if world.first:
        (out / f"{world.size}.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_two_processes_make_the_losses_of_one(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    starts = {
        1: [sys.executable],
        2: [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    }
    found = {}
    for size, start in starts.items():
        out = tmp_path / str(size)
        out.mkdir()
        done = subprocess.run([*start, str(script), str(out)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        found[size] = json.loads((out / f"{size}.json").read_text(encoding="utf-8"))
    for accumulated, rows in found[1].items():
        assert len(rows) == 11
        for alone, together in zip(rows, found[2][accumulated], strict=True):
            assert together == pytest.approx(alone, rel=1e-5, nan_ok=True)


def test_a_step_is_shared_out_as_nanogpt_does_it():
    assert World().share(12, 40) == (40, 12)
    assert World(0, 8).share(12, 40) == (5, 12)
    assert World(0, 2).share(12, 1) == (1, 6)  # more processes than micro-batches: their rows are divided
    assert World(0, 2).share(12, 3) == (2, 9)
    with pytest.raises(ConfigError, match=r"12 x 1 rows.*5 processes.*multiple of 5"):
        World(0, 5).share(12, 1)


def test_alone_without_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with joined("cpu") as (world, device):
        assert (world, device) == (World(0, 1), "cpu")
        assert world.first
        assert world.told("x") == "x"
    assert current() == World(0, 1)


def test_a_process_joins_with_the_gpu_that_is_its_own(monkeypatch):
    joins, own = [], []
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", own.append)
    for name in ("barrier", "destroy_process_group"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda: None)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda kind, **options: joins.append((kind, options)))
    with joined("cuda") as (_, device):
        assert device == "cuda:1"
    with joined("cpu") as (_, device):
        assert device == "cpu"
    assert own == ["cuda:1"]
    assert joins == [("nccl", {"device_id": torch.device("cuda", 1)}), ("gloo", {"device_id": None})]
