"""Closed-form expectations for a transformer at init: what each site's variance should be, forward and backward.

The recursion follows the covariance of the residual stream between positions: q, its mean square at a position, and
o, the mean product of the streams at two different positions; and on the way back those of the gradient. How the model
is wired it reads from `initlab.wiring`.

What is measured gets its expectation by `expect`. Both that and a model that nobody has built go the same way: a table
of parameters, the wiring and the text's statistics make a `Setting` (`setting_of`), which `predict` follows.
"""

from initlab.judge.theory.expecting import annotate, expect, implied
from initlab.judge.theory.forward import STEEP
from initlab.judge.theory.losses import first_loss
from initlab.judge.theory.parameters import Measured, nanogpt_parameters, setting_of
from initlab.judge.theory.positions import Grid, View
from initlab.judge.theory.predicting import Prediction, predict
from initlab.judge.theory.settings import Setting, TextStatistics, equal_pairs

__all__ = [
    "STEEP",
    "Grid",
    "Measured",
    "Prediction",
    "Setting",
    "TextStatistics",
    "View",
    "annotate",
    "equal_pairs",
    "expect",
    "first_loss",
    "implied",
    "nanogpt_parameters",
    "predict",
    "setting_of",
]
