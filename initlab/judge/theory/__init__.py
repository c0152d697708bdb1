"""Closed-form expectations for a pre-norm decoder at init: what each site's variance should be, forward and backward.

The recursion follows the covariance of the residual stream between positions: q, its mean square at a position, and
o, the mean product of the streams at two different positions; and on the way back those of the gradient.
"""

from initlab.judge.theory.found import from_weights
from initlab.judge.theory.losses import first_loss
from initlab.judge.theory.positions import Grid
from initlab.judge.theory.predicting import STEEP, Prediction, equal_pairs, predict
from initlab.judge.theory.settings import BlockScales, Setting, from_recipe
from initlab.judge.theory.tables import annotate

__all__ = [
    "STEEP",
    "BlockScales",
    "Grid",
    "Prediction",
    "Setting",
    "annotate",
    "equal_pairs",
    "first_loss",
    "from_recipe",
    "from_weights",
    "predict",
]
