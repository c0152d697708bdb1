"""`initlab transfer` on the command line."""

from pathlib import Path

import pytest

import initlab
from initlab import cli

pytestmark = pytest.mark.integration

TINY = (
    "--widths 16,32 --lrs 1e-3,1e-2,1e-1 --seeds 1 --steps 3 --warmup 0 --block-size 8 --batch-size 2 --n-head 2 "
    "--jobs 1 --n-layer 1"
)


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_it_trains_and_says_whether_the_rate_holds(capsys, tmp_path: Path):
    arguments = TINY.replace(" --n-head 2", "").replace(" --n-layer 1", "").split()
    code, stdout, stderr = run(capsys, "transfer", "mup", *arguments, "--base", "1,64", "-o", tmp_path / "run")
    assert code == 0, stderr
    assert "initlab: 8 models to train, about" in stderr
    assert "Over width: n_embd 16, 32" in stdout
    assert "The best rate of mup" in stdout
    for name in ("report.html", "transfers.csv", "optima.csv", "figures/transfer.png", "figures/transfer-width.png"):
        assert (tmp_path / "run" / name).exists()
    found = initlab.load(tmp_path / "run")
    assert found.run.manifest["recipes"]["mup"]["base"] == {"n_layer": 1, "n_embd": 64, "head_size": None}


def test_a_base_that_is_none_is_refused(capsys):
    code, _, stderr = run(capsys, "transfer", "mup", "--base", "64")
    assert code == 2
    assert stderr.strip() == "initlab: error: --base has 1 numbers; expected n_layer,n_embd, as in --base 2,64"
