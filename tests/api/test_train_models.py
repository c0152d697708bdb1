"""`initlab.train` on models that aren't NanoGPT."""

from __future__ import annotations

import math

import pytest
import torch
from decoders import VOCAB, Decoder, decoder, small_start

import initlab
from initlab import cli, rundir
from initlab.errors import ConfigError
from initlab.training.data import load_split

pytestmark = pytest.mark.integration

TEXT = initlab.Text("uniform", batch_size=2, block_size=8)
SHORT = {"model": decoder, "n_layer": 2, "n_embd": 16, "text": TEXT, "steps": 6, "warmup": 2}
SHORT |= {"eval_every": 3, "eval_batches": 2}


def train(recipes, *, out=None, progress=None, **options):
    return initlab.train(recipes, run=initlab.RunOptions(out=out, progress=progress), **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "train"
    return train(["nanogpt", small_start], **SHORT, watch_every=2, out=out), out


def test_the_tables_hold_a_run_a_recipe_measured_before_and_after(trained):
    result, out = trained
    runs = result.runs.set_index("recipe")
    assert list(runs.index) == ["nanogpt", "small_start"] and (runs["steps_done"] == 6).all()
    assert (runs["ln_vocab"] - math.log(VOCAB)).abs().max() < 1e-8
    assert (runs["n_params"] == sum(p.numel() for p in Decoder(2, 16).parameters())).all()
    assert result.summary.groupby("recipe")["step"].apply(list).tolist() == [[0, 6], [0, 6]]
    config = result.run.manifest["config"]
    assert (config["model"], config["depths"], config["widths"], config["block_size"]) == ("Decoder", [2], [16], 8)
    assert set(result.records.loc[result.records["step"] == 6, "site"]) == set(initlab.schema.RESIDUAL_SITES)
    for name in result.run.manifest["cells"]:
        folder = out / "runs" / name
        assert {"metrics.csv", "ckpt.pt", "watch"} <= {path.name for path in folder.iterdir()}
        assert rundir.load(folder / "watch").tables.records["step"].nunique() == 3
    assert "Decoder" in repr(result)


def test_the_first_loss_is_that_of_the_models_own_init(trained):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_start(2, 16)
    split = load_split("uniform", None, VOCAB)
    found = []
    for idx, targets in split.evaluation(2, 2, 8):
        found.append(torch.nn.functional.cross_entropy(model(idx).flatten(0, 1), targets.flatten()).item())
    runs = trained[0].runs.set_index("recipe")
    assert runs.loc["small_start", "first_loss"] == pytest.approx(sum(found) / 2, rel=1e-6)


def test_a_run_that_was_stopped_goes_on_to_the_same_losses(trained, tmp_path):
    class Stop:
        def start(self, work, cells, seconds):
            pass

        def advance(self, work, text):
            if "step 5" in text:
                raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(["nanogpt", small_start], **SHORT, watch_every=2, out=out, progress=Stop())
    kept = torch.load(out / "runs" / "nanogpt-L2-d16-s0" / "ckpt.pt", weights_only=True)
    assert kept["iter_num"] == 3 and kept["model_args"]["class"] == "Decoder"
    resumed = train(["nanogpt", small_start], **SHORT, watch_every=2, out=out)
    assert resumed.runs["val_loss"].tolist() == trained[0].runs["val_loss"].tolist()
    assert resumed.curves["loss"].dropna().tolist() == trained[0].curves["loss"].dropna().tolist()


def test_the_command_line_takes_a_file(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from decoders import Decoder\n\ndef make(n_layer, n_embd):\n    return Decoder(n_layer, n_embd)\n")
    sizes = "--n-layer 1 --n-embd 16 --block-size 8 --batch-size 2 --steps 2 --eval-batches 1 --data uniform"
    arguments = ["train", "nanogpt", "--model", f"{file}:make", *sizes.split(), "--no-report"]
    assert cli.main([*arguments, "-o", str(tmp_path / "run")]) == 0
    assert rundir.load(tmp_path / "run").tables.runs["n_layer"].tolist() == [1]
    capsys.readouterr()
    assert cli.main([*arguments, "--n-head", "2", "-o", str(tmp_path / "other")]) == 2
    assert "n_head is an option of NanoGPTs" in capsys.readouterr().err


def test_several_processes_are_refused(monkeypatch, tmp_path):
    from contextlib import contextmanager

    from initlab.training import distributed

    @contextmanager
    def joined(device):
        yield distributed.World(0, 2), device

    monkeypatch.setattr(distributed, "joined", joined)
    with pytest.raises(ConfigError, match=r"decoder makes models that aren't NanoGPTs .* in one process; .* in 2"):
        train(["nanogpt"], **SHORT, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
