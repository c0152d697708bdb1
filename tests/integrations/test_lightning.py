"""The callback inside Lightning's own Trainer."""

import csv

import pytest
import torch

from initlab.errors import ConfigError, RunError

lightning = pytest.importorskip("lightning")
from small_training import attached, batches, nano  # noqa: E402

from initlab.integrations.lightning import WatchCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore", "error:initlab")


class Module(lightning.LightningModule):
    def __init__(self, fail_at=None):
        super().__init__()
        self.model = nano()
        self.losses = []
        self.fail_at = fail_at

    def training_step(self, batch, index):
        if index == self.fail_at:
            raise ValueError("out of data")
        loss = self.model(*batch)[1]
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Whole(Module):
    """A model that is its own LightningModule: several of its modules have parameters."""

    def __init__(self):
        super().__init__()
        own = nano()
        del self.model
        self.body, self.head = own.transformer, own.lm_head
        self.head.weight = torch.nn.Parameter(own.lm_head.weight.detach().clone())

    def forward(self, ids):
        x = self.body.wte(ids) + self.body.wpe(torch.arange(ids.shape[1]))
        for block in self.body.h:
            x = block(x)
        return self.head(self.body.ln_f(x))

    def training_step(self, batch, index):
        return torch.nn.functional.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten())


def fitted(tmp_path, callback, module=None, *, count=6, logger=False, **settings):
    module = Module() if module is None else module
    settings |= {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        callbacks=[callback], logger=logger, enable_checkpointing=False, default_root_dir=tmp_path, **settings
    )
    trainer.fit(module, batches(count))
    return module


def test_updates_are_recorded_with_their_losses(tmp_path):
    watched = WatchCallback(every=2)
    module = fitted(tmp_path, watched)
    summary = watched.result.summary
    assert summary["step"].tolist() == [0, 2, 4]
    assert summary["loss"].tolist() == pytest.approx(module.losses[::2], rel=1e-6)
    assert watched.result.run.manifest["config"]["model"] == "NanoGPT"
    assert attached(module) == 0 and watched.result.run.manifest["finished"]


def test_accumulated_micro_batches_are_one_update(tmp_path):
    watched = WatchCallback(every=1)
    module = fitted(tmp_path, watched, accumulate_grad_batches=3)
    summary = watched.result.summary
    assert summary["step"].tolist() == [0, 1]
    assert summary["loss"].tolist() == pytest.approx([sum(module.losses[:3]) / 3, sum(module.losses[3:]) / 3], rel=1e-6)
    once = WatchCallback(every=1)
    fitted(tmp_path, once, count=1)  # the first micro-batch, alone
    numbers = [
        w.records.query("kind == 'activation' and step == 0")["numel"].sum() for w in (watched.result, once.result)
    ]
    assert numbers[0] == 3 * numbers[1]
    total = nano()
    for x, y in batches(3):
        (total(x, y)[1] / 3).backward()
    expected = {name: p.grad.square().mean().sqrt().item() for name, p in total.named_parameters()}
    found = watched.result.records.query("kind == 'weight_grad' and step == 0").set_index("module")["rms"]
    assert found.to_dict() == pytest.approx(expected, rel=1e-4)


def test_a_model_that_is_the_module_itself_is_watched(tmp_path):
    watched = WatchCallback(every=2)
    fitted(tmp_path, watched, Whole())
    assert watched.result.run.manifest["config"]["model"] == "Whole"
    assert watched.result.at("logits")["step"].tolist() == [0, 2, 4]


def test_the_trainers_loggers_get_the_curves(tmp_path):
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path, name="", version="")
    fitted(tmp_path, WatchCallback(every=2), logger=logger, log_every_n_steps=1)
    with (tmp_path / "metrics.csv").open() as file:
        found = [row for row in csv.DictReader(file) if row["initlab/loss"]]
    assert [row["step"] for row in found] == ["0", "2", "4"]
    assert all(float(row["initlab/resid_post/1/var"]) > 0 for row in found)


def test_a_training_that_raises_ends_the_watch(tmp_path):
    watched, module = WatchCallback(every=2), Module(fail_at=3)
    with pytest.raises(ValueError, match="out of data"):
        fitted(tmp_path, watched, module)
    assert attached(module) == 0
    assert watched.result.summary["step"].tolist() == [0, 2] or watched.result.summary["step"].tolist() == [0]
    assert not watched.result.run.manifest["finished"]


def test_wrong_options_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="module: Module has no module 'net'"):
        fitted(tmp_path, WatchCallback(module="net"))
    with pytest.raises(ConfigError, match="'start_step': the trainer says that"):
        WatchCallback(start_step=2)
    with pytest.raises(RunError, match=r"fit\(\) wasn't called"):
        _ = WatchCallback().result
