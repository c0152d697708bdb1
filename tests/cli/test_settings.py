"""[tool.initlab] of pyproject.toml, --quiet, --baseline and --format on the command line."""

import json

import pytest
from synthetic import synthetic_run

from initlab import cli
from initlab.cli.examples import EXAMPLES
from initlab.results import Probe

pytestmark = pytest.mark.integration


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A folder with a run; the project is the folder above."""
    project = tmp_path / "project"
    (project / "deeper").mkdir(parents=True)
    monkeypatch.chdir(project / "deeper")
    Probe(synthetic_run(("nanogpt",), depths=(2,), seeds=1, kind="probe")).save(tmp_path / "run")
    return tmp_path / "run"


def settings(saved, text):
    (saved.parent / "project" / "pyproject.toml").write_text(f"[tool.initlab]\n{text}\n")


def codes(text):
    return {each["code"] for each in json.loads(text)["findings"]}


def test_rules_and_limits_of_a_project_count_and_the_command_line_wins(saved, capsys):
    show = ("report", saved, "--format", "json")
    assert len(codes(run(capsys, *show)[1])) > 40
    settings(saved, 'select = ["RES"]\nignore = ["RES006"]\n[tool.initlab.limits]\n"RES001.share" = 3.5\nRES004 = 9')
    found = run(capsys, *show)[1]
    assert all(code.startswith("RES") for code in codes(found)) and "RES006" not in codes(found)
    assert json.loads(found)["judging"]["limits"] == {"RES001.share": 3.5, "RES004": 9.0}
    again = json.loads(run(capsys, *show, "--select", "EMB001", "--limit", "RES004=8")[1])
    assert {each["code"] for each in again["findings"]} == {"EMB001"}
    assert again["judging"]["limits"]["RES004"] == 8.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("selct = 3", "unknown selct"),
        ("select = 3", "select is 3"),
        ('fail-on = "often"', "fail-on is 'often'"),
        ("limits = 3", "limits is 3"),
        ('select = ["NOPE"]', "no rule has the code 'NOPE'"),
        ("select = [", "can't be read"),
    ],
)
def test_settings_that_cannot_be_used_are_one_error(saved, capsys, text, said):
    settings(saved, text)
    code, _, stderr = run(capsys, "report", saved)
    assert code == 2 and said in stderr and stderr.count("\n") == 1


def test_fail_on_of_a_project_is_for_commands_that_fail_by_themselves(saved, capsys):
    settings(saved, 'fail_on = "info"')
    assert run(capsys, "report", saved)[0] == 0
    assert run(capsys, "report", saved, "--fail-on", "info", "--limit", "LOG001=-9")[0] == 1
    options = cli.parser().parse_args(["probe"])
    cli.apply_settings(options, saved.parent / "project" / "deeper")
    assert options.fail_on == "info"
    options = cli.parser().parse_args(["probe", "--fail-on", "never", "--blocks", "a.*"])
    cli.apply_settings(options, saved.parent / "project")
    assert options.fail_on == "never" and options.blocks == ["a.*"]


def test_other_commands_and_other_projects_are_left_alone(saved, capsys):
    (saved.parent / "project" / "pyproject.toml").write_text("[tool.other]\nselect = 3\n")
    assert run(capsys, "report", saved)[0] == 0
    settings(saved, "selct = 3")
    assert run(capsys, "rules", "RES001")[0] == 0


def test_a_project_whose_tool_is_no_table_has_no_settings(saved, capsys):
    (saved.parent / "project" / "pyproject.toml").write_text("tool = 3\n")
    assert run(capsys, "report", saved, "--format", "concise")[0] == 0


def test_a_baseline_leaves_what_is_new(saved, capsys, tmp_path):
    command = ("report", saved, "--fail-on", "info", "--limit", "LOG001=-9", "--format", "concise")
    code, stdout, _ = run(capsys, *command)
    assert code == 1 and "LOG001" in stdout
    code, stdout, _ = run(capsys, *command, "--baseline", saved)
    assert code == 0 and len(stdout.splitlines()) == 1
    settings(saved, f'baseline = "{saved / "findings.json"}"')
    assert run(capsys, *command)[0] == 0
    code, _, stderr = run(capsys, *command, "--baseline", tmp_path / "none.json")
    assert code == 2 and "can't be read" in stderr


def test_quiet_says_errors_alone(saved, capsys, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "import sys, torch\ndef make():\n    print('noise', file=sys.stderr)\n    return torch.nn.Linear(4, 4)\n"
    )
    command = ("probe", f"{script}:make", "--no-report", "--stats", "light", "-o")
    assert "initlab: measuring Linear" in run(capsys, *command, tmp_path / "a")[2]
    assert run(capsys, *command, tmp_path / "b", "--quiet")[2] == ""
    code, _, stderr = run(capsys, "probe", f"{script}:none", "--quiet")
    assert code == 2 and stderr.startswith("initlab: error: ")


def test_failures_are_what_is_wrong():
    healthy = Probe(synthetic_run(("nanogpt",), depths=(3,), seeds=1, kind="probe"))
    assert len(healthy.findings) > 40
    assert [each.status for each in healthy.failures] == ["fail"] * len(healthy.failures)


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_of_the_help_can_be_parsed(command):
    for line in EXAMPLES[command]:
        arguments = line.split()
        assert arguments[:2] == ["initlab", command]
        assert cli.parser().parse_args(arguments[1:]).run is not None


def test_a_script_completes_commands_in_a_shell(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--print-completion", "bash"])
    assert ended.value.code == 0 and "trace-init" in capsys.readouterr().out


def test_a_baseline_is_read_before_a_model_is_measured_and_before_the_report_writes_over_it(saved, capsys, tmp_path):
    command = ("report", saved, "--fail-on", "info", "--limit", "LOG001=-9", "--baseline", saved)
    code, _, stderr = run(capsys, *command)  # of a run without a report there is none, and it isn't made up
    assert code == 2 and "findings.json can't be read" in stderr and not (saved / "findings.json").exists()
    assert run(capsys, "report", saved)[0] == 0
    code, stdout, _ = run(capsys, *command, "--format", "concise")
    assert code == 1 and "LOG001" in stdout
    assert run(capsys, *command)[0] == 0  # now it has failed before
    gone = ("--baseline", tmp_path / "none.json", "-o", tmp_path / "new")
    sizes = ("--steps", 1, "--n-layer", 1, "--n-head", 1, "--n-embd", 8, "--block-size", 8)
    for measuring in (("probe", "shakespeare-cpu"), ("train", "nanogpt", *sizes)):
        code, _, stderr = run(capsys, *measuring, *gone)
        assert code == 2 and "can't be read" in stderr and not (tmp_path / "new").exists()
    code, _, stderr = run(capsys, "train", "nanogpt", *sizes, "--select", "NOPE", "-o", tmp_path / "new")
    assert code == 2 and "NOPE" in stderr and not (tmp_path / "new").exists()


def test_fix_refuses_a_folder_of_other_files_before_it_measures(capsys, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").touch()
    code, _, stderr = run(capsys, "fix", "shakespeare-cpu", "-o", tmp_path / "other")
    assert code == 2 and "holds other files (x)" in stderr and "measuring" not in stderr
