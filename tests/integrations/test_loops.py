"""A loop of accelerate, and the loggers of experiments, each the real one."""

import json
import math
import struct
import time

import pytest
import torch
from small_training import attached, batches, nano

import initlab

pytestmark = pytest.mark.filterwarnings("ignore", "error:initlab")


def train(model, w, count, log=None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step, (x, y) in enumerate(batches(count)):
        loss = model(x, y)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if log is not None:
            log(step, loss.item())
        w.step(loss=loss)


def test_the_loop_of_accelerate_that_the_docs_show(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=4, cpu=True)
    model = nano()
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), batches(8))
    with initlab.watch(model, every=1) as w:
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = model(x, y)[1]
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                w.step(loss=loss)
    assert w.result.summary["step"].tolist() == [0, 1]
    assert attached(accelerator.unwrap_model(model)) == 0
    alone = nano()
    for x, y in batches(4):
        (alone(x, y)[1] / 4).backward()
    expected = {name: p.grad.square().mean().sqrt().item() for name, p in alone.named_parameters()}
    found = w.records.query("kind == 'weight_grad' and step == 0").set_index("module")["rms"]
    assert found.to_dict() == pytest.approx(expected, rel=1e-4)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = nano()
    with SummaryWriter(tmp_path) as board, initlab.watch(model, every=2, callback=board) as w:
        train(model, w, 5)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    losses = events.Scalars("initlab/loss")
    assert [event.step for event in losses] == [0, 2, 4]
    assert [event.value for event in losses] == pytest.approx(w.result.summary["loss"].tolist(), rel=1e-6)
    variances = w.result.at("resid_post", 1)["var"].tolist()
    assert [event.value for event in events.Scalars("initlab/resid_post/1/var")] == pytest.approx(variances, rel=1e-6)


def wandb_records(path):
    """The records of an offline run's file: LevelDB's log of 32 KiB blocks, after a header of 7 bytes."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) and left < 7:
            at += left
        length, kind = struct.unpack_from("<HB", data, at + 4)  # after the checksum
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb_rows(folder):
    """What an offline run has written, a dict a row; its own process may still write when `finish` has returned."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    kinds, deadline = {}, time.monotonic() + 20
    while "exit" not in kinds and time.monotonic() < deadline:
        kinds = {}
        for data in wandb_records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kinds.setdefault(record.WhichOneof("record_type"), []).append(record)
        time.sleep(0.05)
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in kinds["history"]
    ]


@pytest.mark.parametrize("other", ["nothing", "without a step", "twice a step", "with a step"])
def test_weights_and_biases_loses_no_row_whatever_the_loop_logs(tmp_path, monkeypatch, other):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="test", mode="offline", dir=tmp_path)
    model = nano()

    def log(step, loss):
        if other != "nothing":
            run.log({"loss": loss}, **({"step": step} if other == "with a step" else {}))
        if other == "twice a step":
            run.log({"lr": 1e-2})

    with initlab.watch(model, every=2, callback=run) as w:
        train(model, w, 5, log)
    run.finish()
    rows = wandb_rows(tmp_path)
    own = [row for row in rows if "initlab/loss" in row]
    assert [row["initlab/step"] for row in own] == [0, 2, 4]
    assert [row["initlab/loss"] for row in own] == pytest.approx(w.result.summary["loss"].tolist())
    assert sum("loss" in row for row in rows) == (0 if other == "nothing" else 5)


def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    from trackio.run import Run
    from trackio.sqlite_storage import SQLiteStorage

    if "step" not in Run.log.__code__.co_varnames:
        pytest.skip("a trackio of before log(step=)")
    run = trackio.init(project="test", embed=False)
    model = nano()
    with initlab.watch(model, every=2, callback=run) as w:
        train(model, w, 3)
    trackio.finish()
    rows = SQLiteStorage.get_logs("test", run.name)
    losses = {row["step"]: row["initlab/loss"] for row in rows if "initlab/loss" in row}
    assert losses == pytest.approx(dict(zip(w.result.summary["step"], w.result.summary["loss"], strict=True)))


def test_loggers_without_their_libraries():
    class Accelerator:
        def log(self, values, step=None):
            self.seen = step, values

    class Logger:
        def log_metrics(self, values, step=None):
            self.seen = step, values

    model, told = nano(), [Accelerator(), Logger()]
    with initlab.watch(model, every=1, callback=told) as w:
        train(model, w, 1)
    assert told[0].seen == told[1].seen
    step, values = told[0].seen
    assert step == 0 and values["initlab/loss"] == w.result.summary["loss"].item()
    assert all(math.isfinite(value) for value in values.values())
