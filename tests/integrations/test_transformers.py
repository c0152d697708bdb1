"""The callback inside transformers' own Trainer."""

import math

import pytest
import torch

import initlab
from initlab.errors import ConfigError, RunError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
from small_training import T, V, attached, rows  # noqa: E402

from initlab.integrations.transformers import WatchCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore", "error:initlab")


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": T, "vocab_size": V}
    dropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **dropped, bos_token_id=0, eos_token_id=0))


def trained(tmp_path, callback, *, steps=4, micro_batches=1, rows_each=3, resume=None, model=None, **settings):
    model = gpt2() if model is None else model
    data = [{"input_ids": x, "labels": x} for x, _ in rows(rows_each * micro_batches * 8)]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path / "hf"),
        max_steps=steps,
        per_device_train_batch_size=rows_each,
        gradient_accumulation_steps=micro_batches,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        learning_rate=1e-2,
        **{"save_strategy": "no", **settings},
    )
    callbacks = [] if callback is None else [callback]
    trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_updates_are_recorded_with_the_losses_that_the_trainer_logs(tmp_path, micro_batches):
    watched = WatchCallback(every=2)
    trainer = trained(tmp_path, watched, micro_batches=micro_batches)
    summary = watched.result.summary.set_index("step")
    assert summary.index.tolist() == [0, 2]
    logged = {row["step"] - 1: row["loss"] for row in trainer.state.log_history if "loss" in row}
    for step in (0, 2):
        assert summary.loc[step, "loss"] == pytest.approx(logged[step], abs=1e-3)
    assert attached(trainer.model) == 0
    assert watched.result.run.manifest["finished"]


def test_micro_batches_are_recorded_as_their_batch(tmp_path):
    one, three = WatchCallback(every=1), WatchCallback(every=1)
    trained(tmp_path / "1", one, steps=1, rows_each=9)
    trained(tmp_path / "3", three, steps=1, micro_batches=3)
    for kind in ("activation", "grad"):
        found = [w.result.at("resid_post", 0, kind).iloc[0] for w in (one, three)]
        assert found[1]["numel"] == found[0]["numel"]
        assert found[1]["rms"] == pytest.approx(found[0]["rms"], rel=1e-4)


def test_training_is_as_without_it(tmp_path):
    found = [trained(tmp_path / str(i), each).model for i, each in enumerate([None, WatchCallback(every=1)])]
    for a, b in zip(*(model.parameters() for model in found), strict=True):
        assert torch.equal(a, b)


def test_a_resumed_training_goes_on_in_its_folder(tmp_path):
    out = tmp_path / "watch"
    trained(tmp_path, WatchCallback(every=2, out=out), save_strategy="steps", save_steps=4)
    checkpoint = str(tmp_path / "hf" / "checkpoint-4")
    trained(tmp_path, WatchCallback(every=2, out=out), steps=8, resume=checkpoint, save_strategy="no")
    assert initlab.load(out).summary["step"].tolist() == [0, 2, 4, 6]


def test_options_reach_the_watch_and_alarms_sound(tmp_path):
    told, model = [], gpt2()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = math.nan
    watched = WatchCallback(every=1, drift=True, on_failure=lambda step, finding: told.append((step, finding.code)))
    trained(tmp_path, watched, model=model, steps=2)
    assert [each for each in told if each[1] == "NUM001"] == [(0, "NUM001")]
    assert not watched.result.drift.empty


def test_a_training_that_raised_is_let_go_by_the_next_one(tmp_path):
    class Stops(transformers.TrainerCallback):
        def on_substep_end(self, args, state, control, **given):
            raise KeyboardInterrupt

    model, watched = gpt2(), WatchCallback(every=1)
    data = [{"input_ids": x, "labels": x} for x, _ in rows(48)]
    settings = {"max_steps": 2, "gradient_accumulation_steps": 2, "report_to": [], "use_cpu": True}
    args = transformers.TrainingArguments(output_dir=str(tmp_path), disable_tqdm=True, **settings)
    with pytest.raises(KeyboardInterrupt):
        transformers.Trainer(model, args, train_dataset=data, callbacks=[watched, Stops()]).train()
    stopped = watched.watcher
    transformers.Trainer(model, args, train_dataset=data, callbacks=[watched]).train()
    assert not stopped.watched and watched.result.summary["step"].tolist() == [0, 1]
    assert attached(model) == 0


def test_wrong_options_and_too_early_a_look_are_refused():
    with pytest.raises(ConfigError, match="'evry': watch has no such option; known: every"):
        WatchCallback(evry=1)
    with pytest.raises(ConfigError, match="'loss_scale': the trainer says that"):
        WatchCallback(loss_scale=2)
    with pytest.raises(RunError, match=r"train\(\) wasn't called"):
        _ = WatchCallback().result
