"""Predictions and verdicts. Torch-free: works on tables alone."""

from typing import Literal, get_args

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # the worst first


def reaches(severity: Severity | None, lowest: Severity | None) -> bool:
    """Tell whether a severity is at or above another; none is, and none is above none.

    Args:
        severity: in question.
        lowest: that counts.
    """
    return severity is not None and lowest is not None and SEVERITIES.index(severity) <= SEVERITIES.index(lowest)
