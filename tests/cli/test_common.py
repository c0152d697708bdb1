"""What commands say before they measure."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from initlab.cli.common import TerminalProgress


@pytest.mark.parametrize(("no_report", "said"), [(True, "1 model to measure, about 2 s"), (False, "about 5 s")])
def test_the_first_estimate_counts_the_report(no_report: bool, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress(Path("out"), "compare", Namespace(no_report=no_report)) as progress:
        progress.start(1.0, 1, 2.0)
    assert said in capsys.readouterr().err
