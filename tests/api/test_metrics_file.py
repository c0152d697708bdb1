"""The rows that a training run leaves while it goes on."""

import pytest

from initlab.api.metrics_file import COLUMNS, MetricsFile
from initlab.errors import RunError


def test_a_file_that_is_deleted_under_a_run_is_one_error(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    row = dict.fromkeys(COLUMNS, 1.0) | {"step": 7}
    file.append(row)
    assert len(file.path.read_text().splitlines()) == 2
    file.path.unlink()
    with pytest.raises(RunError, match=r"could not write .*metrics\.csv: No such file"):
        file.append(row)
    assert not file.path.exists()
