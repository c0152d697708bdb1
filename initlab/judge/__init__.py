"""Predictions and verdicts. Torch-free: works on tables alone."""

from typing import Literal, get_args

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # the worst first
