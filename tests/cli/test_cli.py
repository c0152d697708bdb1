"""The command line, from arguments to exit codes."""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import ENVIRONMENT, held
from torchless import WITHOUT_TORCH

import initlab
from initlab import cli

pytestmark = pytest.mark.integration

SMALL = [
    "--depths",
    "2,4",
    "--n-embd",
    "64",
    "--seeds",
    "2",
    "--block-size",
    "16",
    "--batch-size",
    "2",
    "--data",
    "uniform",
]


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder made by a real process, so that stdout and stderr are what a user sees."""
    out = tmp_path_factory.mktemp("runs") / "run"
    command = [sys.executable, "-m", "initlab", "compare", "nanogpt", "torch-default", *SMALL, "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    return out, done


def test_compare_prints_results_on_stdout_and_progress_on_stderr(compared):
    out, done = compared
    assert "initlab: 8 models to measure, about" in done.stderr
    assert "nanogpt" in done.stdout and "EMB001" in done.stdout
    assert done.stdout.strip().splitlines()[-1] == f"report  {out / 'report.html'}"
    assert "\x1b" not in done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100 + len(str(out))


def test_command_is_kept_in_the_manifest(compared):
    out, _ = compared
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["command"].startswith("initlab compare nanogpt torch-default --depths 2,4")


def test_report_renders_again(compared, capsys, tmp_path):
    out, done = compared
    code, stdout, _ = run(capsys, "report", out, "-o", tmp_path / "copy")
    assert code == 0
    assert (tmp_path / "copy" / "report.html").read_bytes() == (out / "report.html").read_bytes()
    assert stdout.splitlines()[:-1] == done.stdout.splitlines()[:-1]


def test_report_needs_no_torch(compared, tmp_path):
    out, _ = compared
    again = f"from initlab.cli import main; sys.exit(main(['report', {str(out)!r}, '-o', {str(tmp_path / 'r')!r}]))"
    command = [sys.executable, "-c", WITHOUT_TORCH + again]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "report.html").exists()


@pytest.fixture
def no_page(monkeypatch):
    """Pages take seconds and have tests of their own."""
    monkeypatch.setattr(initlab.Comparison, "report", lambda self, out: Path(out) / "report.html")


@pytest.mark.usefixtures("no_page")
def test_fail_on_turns_findings_into_an_exit_code(compared, capsys):
    out, _ = compared
    assert run(capsys, "report", out, "--fail-on", "error")[0] == 1  # torch-default drowns its tokens


@pytest.mark.usefixtures("no_page")
def test_json_is_json_and_nothing_else(compared, capsys):
    out, _ = compared
    code, stdout, _ = run(capsys, "report", out, "--format", "json")
    found = json.loads(stdout, parse_constant=pytest.fail)
    assert code == 0
    assert {finding["code"] for finding in found["findings"]} >= {"RES001", "EMB001"}


def test_probe_of_a_preset(capsys, tmp_path):
    code, stdout, _ = run(
        capsys, "probe", "shakespeare-cpu", "--data", "uniform", "--n-layer", "2", "-o", tmp_path / "run", "--no-report"
    )
    assert code == 0 and "nanogpt" in stdout
    assert not (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "records.csv").exists()


def test_probe_fails_on_errors_by_default(capsys, tmp_path):
    arguments = ["probe", "shakespeare-cpu", "--recipe", "torch-default", "--data", "uniform", "--no-report"]
    assert run(capsys, *arguments, "-o", tmp_path / "run")[0] == 1
    assert run(capsys, *arguments, "-o", tmp_path / "other", "--fail-on", "never")[0] == 0


def test_probe_of_a_factory_and_of_a_checkpoint(capsys, tmp_path):
    import torch

    (tmp_path / "mine.py").write_text(
        "import initlab\n\n\ndef make():\n    return initlab.NanoGPT(initlab.NanoGPTConfig("
        "n_layer=1, n_head=2, n_embd=32, block_size=16, vocab_size=256))\n"
    )
    code, stdout, _ = run(capsys, "probe", f"{tmp_path / 'mine.py'}:make", "-o", tmp_path / "a", "--no-report")
    assert code == 0 and "NanoGPT passes all checks that apply (49/50; 1 note)" in " ".join(stdout.split())

    sizes = {
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 32,
        "block_size": 16,
        "vocab_size": 256,
        "bias": False,
        "dropout": 0.0,
    }
    model = initlab.NanoGPT(initlab.NanoGPTConfig(**sizes))
    torch.save({"model": model.state_dict(), "model_args": sizes}, tmp_path / "ckpt.pt")
    assert run(capsys, "probe", tmp_path / "ckpt.pt", "-o", tmp_path / "b", "--no-report")[0] == 0


def test_recipes_lists_and_shows(capsys):
    code, stdout, _ = run(capsys, "recipes")
    assert code == 0
    lines = stdout.splitlines()
    assert lines.index("OLMo") < next(n for n, line in enumerate(lines) if line.startswith("  olmo-normal "))
    assert max(map(len, lines)) <= 100
    assert "mlp_gate" in run(capsys, "recipes", "torchtitan-llama3")[1]
    code, stdout, _ = run(capsys, "recipes", "nanogpt", "--n-layer", "12", "--n-embd", "768")
    assert "attn_out" in stdout and "0.004082" in stdout and "0.02 / sqrt(2 * n_layer)" in stdout
    assert "karpathy/nanoGPT" in stdout
    code, stdout, _ = run(capsys, "recipes", "zero-out", "--format", "json")
    assert {row["role"]: row["std"] for row in json.loads(stdout)["rows"]}["mlp_out"] == 0.0


def test_recipes_lists_and_shows_what_looks_at_a_batch(capsys):
    lines = run(capsys, "recipes")[1].splitlines()
    assert lines.index("that look at a batch") < next(n for n, line in enumerate(lines) if line.startswith("  lsuv "))
    code, stdout, _ = run(capsys, "recipes", "lsuv")
    assert code == 0
    assert "Mishkin & Matas 2016" in stdout and "orthonormal" in stdout
    assert stdout.splitlines()[-1] == '    initlab.apply_recipe(model, "lsuv", batch=ids)'
    shown = json.loads(run(capsys, "recipes", "gradinit", "--format", "json")[1])
    assert shown["id"] == "gradinit" and "one number each" in shown["note"]
    assert "gradinit" in {row["id"] for row in json.loads(run(capsys, "recipes", "--format", "json")[1])}


def test_rules_are_listed_and_explained(capsys, monkeypatch):
    from initlab.judge.rules import RULES

    monkeypatch.setenv("COLUMNS", "300")
    code, stdout, _ = run(capsys, "rules")
    assert code == 0 and max(map(len, stdout.splitlines())) <= 100
    assert all(rule.code in stdout and rule.name in stdout for rule in RULES)
    for rule in RULES:
        code, stdout, _ = run(capsys, "rules", rule.code)
        assert code == 0 and max(map(len, stdout.splitlines())) <= 100
        headings = [line for line in stdout.splitlines()[1:] if line and not line.startswith(" ")]
        assert headings == [
            "What it measures", "Why", "How it is measured", "Limit", "Advice", "Known false alarms", "Needs", "Source",
            "Since",
        ]  # fmt: skip
        assert " ".join(rule.why.split()) in " ".join(stdout.split())
    listed = json.loads(run(capsys, "rules", "--format", "json")[1])
    assert [rule["code"] for rule in listed] == [rule.code for rule in RULES]
    assert json.loads(run(capsys, "rules", "emb001", "--format", "json")[1])["limits"] == {
        "warning": 0.1,
        "error": 0.01,
    }


@pytest.mark.usefixtures("no_page")
def test_rules_and_limits_are_chosen_on_the_command_line(compared, capsys):
    out, _ = compared
    ignored = ("report", out, "--ignore", "EMB", "--fail-on", "error")
    assert run(capsys, *ignored)[0] == 0
    _, stdout, _ = run(capsys, "report", out, "--select", "EMB001", "--limit", "EMB001.error=0", "--format", "json")
    found = json.loads(stdout)
    assert {finding["code"] for finding in found["findings"]} == {"EMB001"}
    assert {finding["severity"] for finding in found["findings"] if finding["status"] == "fail"} == {"warning"}
    assert found["judging"] == {"select": ["EMB001"], "limits": {"EMB001.error": 0.0}}
    assert "judged by only EMB001, EMB001.error=0" in run(
        capsys, *ignored[:2], "--select", "EMB001", "--limit", "EMB001.error=0"
    )[1].replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rules", "EMB009"], "no rule has the code 'EMB009'; there are EMB001"),
        (["compare", "nanogpt", "--select", "XYZ"], "no rule has the code 'XYZ'"),
        (["probe", "--limit", "EMB001=low"], "'low' is no number; expected CODE=number"),
        (["probe", "--limit", "EMB001"], "it has no ="),
        (["probe", "--limit", "NUM001=1"], "NUM001 (non-finite-value) has no limit to change"),
        (["compare", "nanogtp"], "did you mean nanogpt"),
        (["compare", "nanogpt", "--n-embd", "100", "--n-head", "3"], "n_embd"),
        (["compare", "nanogpt", "--data", "/no/such.txt"], "/no/such.txt"),
        (["compare", "nanogpt", "--threads", "0"], "--threads is 0"),
        (["probe", "gpt5"], "unknown model 'gpt5'"),
        (["probe", "no/such/ckpt.pt"], "ckpt.pt"),
        (["probe", "nowhere.py:make"], "there is no file nowhere.py; expected file.py:factory"),
        (["fix", "nowhere.py:make"], "there is no file nowhere.py"),
        (["probe", "no_such_package:make"], "can't be made"),
        (["probe", "json:dumps", "--n-layer", "3"], "only presets can be resized"),
        (["report", "/no/such/run"], "no run in /no/such/run"),
        (["report", "a", "b", "-o", "c"], "-o takes one run"),
        (["recipes", "nanogpt", "--n-layer", "0"], "n_layer is 0"),
        (
            ["compare", "nanogpt", "gradinit"],
            "gradinit looks at what a model does with a batch, so that it isn't a rec",
        ),
        (["confirm", "lsuv"], 'apply it to a model, initlab.apply_recipe(model, "lsuv", batch=ids); commands take a'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run(capsys, *arguments)
    assert code == 2 and stdout == ""
    assert message in stderr and stderr.startswith("initlab: error: ")
    assert len(stderr.strip().splitlines()) == 1
    assert not (tmp_path / "initlab-runs").exists()


def test_usage_errors_exit_with_2(capsys):
    for arguments in (["compare"], ["compare", "nanogpt", "--depths", "4,x"], ["nonsense"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
    assert "is no list of numbers such as 4,8,16" in capsys.readouterr().err
    assert cli.main([]) == 2


def test_unwritable_output_is_one_clear_error(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, stderr = run(capsys, "compare", "nanogpt", *SMALL, "-o", tmp_path / "file" / "run")
    assert code == 2 and "can't be written" in stderr


@pytest.mark.usefixtures("no_page")
def test_interrupt_keeps_finished_models_and_the_same_command_resumes(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["compare", "nanogpt", "--depths", "1,2", "--n-embd", "64", "--seeds", "2", "--data", "uniform"]
    arguments += ["--block-size", "32", "--no-report", "-o", str(out)]
    with held(out / "commits.jsonl", 3, *arguments) as process:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert f"initlab report {out}" in stderr and "resumes" in stderr and "Traceback" not in stderr
    assert len(initlab.load(out).summary) == 3
    code, stdout, _ = run(capsys, "report", out)
    assert code == 0 and "3 of 4" in stdout
    code, _, stderr = run(capsys, *arguments)
    assert code == 0 and "1 model to measure" in stderr
    assert len(initlab.load(out).summary) == 4


def test_help_is_instant_and_imports_nothing_heavy():
    script = (
        "import sys, contextlib, io\nfrom initlab.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    main(['--help'])\n"
        "print([m for m in ('torch', 'pandas', 'numpy', 'matplotlib', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_option_of_every_command_has_help():
    parser = cli.parser()
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for name, command in commands.choices.items():
        for action in command._actions:
            assert action.help, (name, action.dest)


def test_threads_are_those_asked_for(capsys, tmp_path):
    before = torch.get_num_threads()
    try:
        arguments = [
            "probe",
            "--n-layer",
            "1",
            "--n-embd",
            "32",
            "--n-head",
            "2",
            "--no-report",
            "-o",
            tmp_path / "run",
        ]
        assert run(capsys, *arguments, "--threads", "1")[0] == 0
        assert torch.get_num_threads() == 1
        assert json.loads((tmp_path / "run" / "run.json").read_text())["environment"]["threads"] == 1
    finally:
        torch.set_num_threads(before)
    code, _, err = run(capsys, *arguments, "--threads", "0")
    assert code == 2 and "--threads is 0; expected at least 1" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "nanogpt", "--data", ""],
        ["compare", "nanogpt", "--tokenizer", " "],
        ["compare", "nanogpt", "--depths", ""],
        ["compare", "nanogpt", "--depths", ","],
        ["compare", "nanogpt", "-o", ""],
        ["compare", "nanogpt", "--select", ""],
        ["compare", ""],
        ["probe", ""],
        ["probe", "--blocks", ""],
        ["probe", "--metrics", ","],
        ["report", ""],
        ["compare", "nanogpt", "--depths", "99999999999999999999"],
        ["compare", "nanogpt", "--batch-size", "100000000"],
        ["predict", "--n-layer", "1000000000000"],
    ],
)
def test_an_empty_or_absurd_argument_is_one_error_at_once(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code, _, stderr = run(capsys, *arguments)
    except SystemExit as ended:  # of argparse, with the usage above
        code, stderr = ended.code, capsys.readouterr().err
    assert code == 2
    said = stderr.strip().splitlines()[-1]
    assert "error: " in said and ("empty" in said or "expected" in said or "no list" in said)
    assert not list(tmp_path.iterdir()) or "batch" in said
