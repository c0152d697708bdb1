"""A rule that fails while a model trains calls a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from initlab.errors import ConfigError
from initlab.judge.rules import RULES, Finding, evaluate
from initlab.rundir import Run
from initlab.schema import Tables

OnFailure = Callable[[int, Finding], Any]


class Alerts:
    """Judges each watched step by itself, and tells of each rule that begins to fail.

    The first step of a run is judged as an init, by every rule; later ones by the rules that judge every step of a
    watch, of initlab or of the user (`later=("watch",)`).

    Args:
        told: called as `told(step, finding)` for an error or a warning, once, until the rule has passed again.

    Attributes:
        failing: the failures that hold now, by code.

    Raises:
        ConfigError: `told` can't be called.
    """

    def __init__(self, told: OnFailure | None):
        if told is not None and not callable(told):
            raise ConfigError(f"on_failure is {told!r:.80}; expected a function (step, finding)")
        self._told = told
        self.failing: dict[str, Finding] = {}

    def judge(self, step: int, tables: Tables, manifest: dict[str, Any]) -> list[Finding]:
        """Judge a step; return the rules that began to fail.

        Args:
            step: updates that were made before it.
            tables: of this step alone.
            manifest: of the run.
        """
        if self._told is None:
            return []
        codes = [rule.code for rule in RULES if not step or "watch" in rule.later]
        began = []
        for finding in evaluate(Run(tables, manifest), select=codes):
            if finding.status == "pass":
                self.failing.pop(finding.code, None)
            elif finding.status == "fail" and finding.severity != "info":
                if finding.code not in self.failing:
                    began.append(finding)
                self.failing[finding.code] = finding
        return began

    def tell(self, step: int, finding: Finding) -> None:
        """Call the function.

        Args:
            step: that was judged.
            finding: of a rule that began to fail.
        """
        if self._told is not None:
            self._told(step, finding)
