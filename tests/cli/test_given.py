"""What a user brings to a command: a factory with arguments, weights, a batch, sequences of a length."""

import json
from pathlib import Path

import pytest
import torch

import initlab
from initlab import cli
from initlab.judge.rules import RULES

pytestmark = pytest.mark.integration

MINE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.fc, self.proj = nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x):
        return x + self.proj(torch.relu(self.fc(self.norm(x))))


class Model(nn.Module):
    def __init__(self, n_layer=2, n_embd=32, rows=48):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(256, n_embd), nn.Embedding(rows, n_embd)
        self.blocks = nn.ModuleList(Block(n_embd) for _ in range(n_layer))
        self.head = nn.Linear(n_embd, 256, bias=False)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make(n_layer=2, n_embd=32, *, narrow=False, name="x"):
    assert narrow in (True, False) and isinstance(name, str)
    torch.manual_seed(0)
    return Model(n_layer, n_embd // 2 if narrow else n_embd)


def loud(n_layer=1):
    model = make(n_layer)
    nn.init.normal_(model.head.weight, std=2.0)
    return model


def sized(width):
    return Model(n_embd=width)


def anything(**sizes):
    return Model(**sizes)


MODEL = Model()
NUMBER = 3
IDS = torch.arange(2 * 24).view(2, 24)


def ids():
    return IDS[:, :20]


def of_model(model):
    return IDS[:, : model.positions.num_embeddings // 3], IDS[:, 1 : 1 + model.positions.num_embeddings // 3]


def of_two(model, size):
    return IDS


def broken():
    raise ValueError("no data here")
"""


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """A command, run where mine.py is: exit code, what JSON it printed, stderr."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        more = ["--format", "json", "--fail-on", "never"]
        more += ["--no-report"] if arguments[0] != "fix" else []
        code = cli.main([*map(str, arguments), *more])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return call


def summary(found):
    (row,) = found["summary"]
    return row


def test_arguments_of_a_factory_are_literals_or_text(run):
    options = ["--arg", "n_layer=3", "--arg", "narrow=true", "--arg", "name=a=b", "--block-size", "16"]
    code, found, _ = run("probe", "mine.py:make", *options, "-o", "out")
    assert code == 0 and (summary(found)["n_layer"], summary(found)["n_embd"]) == (3, 16)
    config = json.loads(Path("out/run.json").read_text())["config"]
    assert config["arguments"] == {"n_layer": 3, "narrow": True, "name": "a=b"}
    assert run("probe", "mine.py:anything", "--arg", "rows=20", "--block-size", "20")[0] == 0


def test_sequences_are_as_long_as_they_are_asked_to_be(run):
    code, found, _ = run("probe", "mine.py:make", "--block-size", "20", "--batch-size", "3")
    assert code == 0 and (summary(found)["block_size"], summary(found)["n_tokens"]) == (20, 60)
    assert summary(run("probe", "mine.py:make", "--block-size", "8")[1])["n_tokens"] == 1024
    sizes = ["--n-layer", "1", "--n-embd", "32", "--n-head", "2"]
    found = run("probe", "shakespeare-cpu", *sizes, "--block-size", "96", "-o", "out")[1]
    assert summary(found)["block_size"] == 96  # longer than the preset's own
    code, _, err = run("probe", "mine.py:make", "--block-size", "64")
    assert code == 2 and "IndexError" in err  # what was asked for is not halved


@pytest.mark.parametrize("model", [["nanogpt", "--vocab-size", "256"], ["mine.py:Model"]])
def test_compare_reads_sequences_of_that_length(run, model):
    sizes = ["--depths", "1,2", "--n-embd", "32", "--n-head", "2"] if model[0] == "nanogpt" else ["--depths", "1,2"]
    code, found, err = run("compare", *model, *sizes, "--seeds", "1", "--block-size", "12", "--batch-size", "2")
    assert code == 0, err
    assert {row["block_size"] for row in found["summary"]} == {12}


def test_the_library_takes_it_with_the_text():
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=32, vocab_size=256))
    assert initlab.probe(model, text=initlab.Text(block_size=9)).summary["block_size"].tolist() == [9]
    profile = initlab.predict(n_layer=1, n_embd=64, text=initlab.Text("uniform", block_size=9))
    assert profile.setting.text.block_size == 9


@pytest.mark.parametrize(("name", "size"), [("IDS", 24), ("ids", 20), ("of_model", 16)])
def test_a_batch_of_ones_own(run, name, size):
    code, found, err = run("probe", "mine.py:make", "--batch", f"mine.py:{name}")
    assert code == 0, err
    assert (summary(found)["block_size"], summary(found)["n_tokens"]) == (size, 2 * size)


def test_compare_reads_a_batch_of_ones_own(run):
    command = ["compare", "mine.py:Model", "--depths", "1,2", "--seeds", "1", "--batch"]
    code, found, err = run(*command, "mine.py:ids")
    assert code == 0, err
    assert {row["block_size"] for row in found["summary"]} == {20}
    code, _, err = run(*command, "mine.py:of_model")
    assert code == 2 and "needs model; expected a function of no parameter" in err


def test_weights_are_loaded_before_anything_is_measured(run, tmp_path):
    path = tmp_path / "w.pt"
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, vocab_size=256))
    (tmp_path / "nano.py").write_text(
        "import initlab\n\ndef make(n_layer=1):\n    return initlab.NanoGPT(initlab.NanoGPTConfig("
        "n_layer=n_layer, n_head=2, n_embd=32, block_size=16, vocab_size=256))\n"
    )
    torch.nn.init.constant_(model.transformer.wte.weight, 0.25)
    torch.save({"model": model.state_dict()}, path)
    command = ["probe", "nano.py:make", "--weights", path, "-o", "out"]
    assert run(*command)[0] == 0
    records = initlab.load("out").records
    embedding = records[(records["kind"] == "weight") & (records["role"] == "token_embed")]
    assert embedding["rms"].tolist() == [0.25]
    assert run(*command)[0] == 0  # the same command resumes
    torch.nn.init.constant_(model.transformer.wte.weight, 0.5)
    torch.save({"model": model.state_dict()}, path)
    code, _, err = run(*command)
    assert code == 2 and "out holds another run (" in err and "weights: " in err
    code, _, err = run("fix", "nano.py:make", "--weights", path, "--arg", "n_layer=2")
    assert code == 2 and "w.pt doesn't fit this NanoGPT: it lacks transformer.h.1.ln_1.weight" in err


def test_fix_takes_what_probe_takes(run):
    options = ["--arg", "n_layer=1", "--batch", "mine.py:ids"]
    code, found, err = run("fix", "mine.py:loud", *options, "--save", "w.pt")
    assert code == 0, err
    assert [row["role"] for row in found["changes"]] == ["unembed"]
    assert [each["code"] for each in found["left"]] == ["WIR003"]  # which no draw mends
    code, after, _ = run("probe", "mine.py:loud", *options, "--weights", found["saved"])
    assert code == 0 and not [each for each in after["findings"] if each["severity"] == "error"]


def test_another_batch_or_argument_is_another_run(run):
    command = ["probe", "mine.py:make", "-o", "out"]
    assert run(*command, "--batch", "mine.py:IDS", "--arg", "name=a")[0] == 0
    assert run(*command, "--batch", "mine.py:IDS", "--arg", "name=a")[0] == 0
    for other in (["--batch", "mine.py:ids", "--arg", "name=a"], ["--batch", "mine.py:IDS", "--arg", "name=b"]):
        code, _, err = run(*command, *other)
        assert code == 2 and "out holds another run" in err


OF_A_RULE = """
import initlab
from mine import make


def spread(run):
    return run.tables.summary[["recipe", "loss"]]


@initlab.rule(
    code="MINE001", question="Logits", measures="loss", needs="a loss", limits={"most": 1.0}, unit="nats",
    limit="≤ {most}", basis="heuristic", why="…", advice="…", false_alarms="none known", source="here", since="1.0",
    measure=spread,
)
def loss_of_mine(case, rows):
    return case.failed("The loss is what it is", severity="warning", measured=float(rows["loss"].iloc[0]))
"""


@pytest.mark.parametrize("command", ["probe", "fix", "compare"])
def test_a_rule_of_the_models_own_file_can_be_selected(run, tmp_path, command):
    name = f"of_{command}"  # a file is imported once in a process
    (tmp_path / f"{name}.py").write_text(OF_A_RULE.replace("MINE", command.upper()) + f"# {command}\n")
    code = f"{command.upper()}001"
    with RULES.temporary():
        more = ["--depths", "1", "--seeds", "1"] if command == "compare" else []
        exit_code, found, err = run(command, f"{name}.py:make", *more, "--select", code, "--block-size", "8")
    assert exit_code == 0, err
    assert {each["code"] for each in found["problems" if command == "fix" else "findings"]} == {code}
    exit_code, _, err = run(command, f"{name}.py:make", "--select", "NONE001")
    assert exit_code == 2 and "no rule has the code 'NONE001'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["mine.py:make", "--arg", "n_layers=3"],
            "has no argument 'n_layers'; did you mean n_layer? it takes n_layer, ",
        ),
        (["mine.py:sized"], "mine.py:sized needs width: give --arg width=…"),
        (["mine.py:make", "--arg", "n_layer"], "argument 'n_layer' can't be used; expected name=value"),
        (["mine.py:make", "--arg", "n_layer=1", "--arg", "n_layer=2"], "argument n_layer was given more than once"),
        (["mine.py:make", "--arg", "narrow=perhaps"], "model 'mine.py:make' can't be made: AssertionError"),
        (["mine.py:MODEL", "--arg", "n_layer=1"], "mine.py:MODEL is a model, and takes no arguments (n_layer)"),
        (["mine.py:NUMBER"], "mine.py:NUMBER is of type int; expected a function"),
        (["mine.py:mak"], "mine.py has nothing of that name; did you mean make?"),
        (
            ["shakespeare", "--arg", "n_layer=1"],
            "arguments (n_layer) are of a factory, file.py:make; shakespeare takes",
        ),
        (["mine.py:make", "--weights", "none.pt"], "no checkpoint at none.pt; --weights takes a file"),
        (["mine.py:make", "--weights", "mine.py"], "mine.py is no checkpoint by its name"),
        (["mine.py:make", "--batch", "ids"], "batch 'ids': expected file.py:function"),
        (["mine.py:make", "--batch", "none.py:ids"], "batch 'none.py:ids': there is no file none.py"),
        (["mine.py:make", "--batch", "mine.py:idx"], "mine.py has nothing of that name; did you mean ids?"),
        (
            ["mine.py:make", "--batch", "mine.py:of_two"],
            "needs model, size; expected a function of no parameter, or the",
        ),
        (
            ["mine.py:make", "--batch", "mine.py:broken"],
            "batch 'mine.py:broken' can't be made: ValueError: no data here",
        ),
        (["mine.py:make", "--batch", "mine.py:NUMBER"], "batch is int; expected token ids"),
        (
            ["mine.py:make", "--batch", "mine.py:ids", "--block-size", "8"],
            "--block-size is of text; --batch mine.py:ids",
        ),
        (["mine.py:make", "--block-size", "0"], "block_size is 0; expected a whole number from 1 on"),
    ],
)
@pytest.mark.parametrize("command", ["probe", "fix"])
def test_what_cannot_be_used_is_one_error(run, tmp_path, command, arguments, message):
    code, found, err = run(command, *arguments)
    assert code == 2 and found is None and message in err
    assert "Traceback" not in err and not (tmp_path / "initlab-runs").exists()


def test_weights_in_several_files_are_told_apart(tmp_path, capsys):
    from safetensors.torch import save_file

    (tmp_path / "mine.py").write_text(MINE + "\n\ndef make():\n    return Model()\n")
    space = {}
    exec(MINE, space)
    state = space["Model"]().state_dict()
    names = {name: f"part{place % 2}.safetensors" for place, name in enumerate(state)}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    command = ["probe", f"{tmp_path / 'mine.py'}:make", "--weights", str(index), "--stats", "light", "--quiet"]
    found = []
    for factor in (1, 2):
        for file in set(names.values()):
            scale = factor if file == "part1.safetensors" else 1
            save_file({name: state[name] * scale for name in names if names[name] == file}, tmp_path / file)
        assert cli.main([*command, "-o", str(tmp_path / str(factor))]) in (0, 1)
        found.append(initlab.load(tmp_path / str(factor)))
    one, two = found
    assert one.run.manifest["config"]["weights"] != two.run.manifest["config"]["weights"]
    weights = [run.records[run.records["kind"] == "weight"].set_index("module")["abs_max"] for run in found]
    for name in state:
        before, after = (each[name] for each in weights)
        assert after == pytest.approx((2 if names[name] == "part1.safetensors" else 1) * before, rel=1e-6)
    assert cli.main(["probe", str(index)]) == 2
    assert "holds weights alone; name what makes the model" in capsys.readouterr().err
