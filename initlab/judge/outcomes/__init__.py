"""What training did, and how well it was foreseen: pure functions of a run's tables."""

from initlab.judge.outcomes.effects import EFFECT_DEFINITION, FAMILY, QUESTIONS, effects
from initlab.judge.outcomes.grading import (
    GRADE_DEFINITIONS,
    OUTCOME_DEFINITIONS,
    OUTCOME_SCOPE,
    WORSE,
    outcomes,
    trained_text,
)
from initlab.judge.outcomes.measures import DEFINITIONS, ESCAPE_MARGIN, curves, losses, regrets, run_measures
from initlab.judge.outcomes.pairs import PAIRS_DEFINITION
from initlab.judge.outcomes.ranking import (
    BEHIND_DEFINITION,
    METRICS,
    PROBE,
    RANKING_DEFINITION,
    compared_text,
    rankings,
)
from initlab.judge.outcomes.transferring import DEFINITIONS as TRANSFER_DEFINITIONS
from initlab.judge.outcomes.transferring import optima, transfers

__all__ = [
    "BEHIND_DEFINITION",
    "DEFINITIONS",
    "EFFECT_DEFINITION",
    "ESCAPE_MARGIN",
    "FAMILY",
    "GRADE_DEFINITIONS",
    "METRICS",
    "OUTCOME_DEFINITIONS",
    "OUTCOME_SCOPE",
    "PAIRS_DEFINITION",
    "PROBE",
    "QUESTIONS",
    "RANKING_DEFINITION",
    "TRANSFER_DEFINITIONS",
    "WORSE",
    "compared_text",
    "curves",
    "effects",
    "losses",
    "optima",
    "outcomes",
    "rankings",
    "regrets",
    "run_measures",
    "trained_text",
    "transfers",
]
