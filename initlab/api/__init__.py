"""The public functions: the only place that joins the half that measures and the half that judges and shows.

torch is imported inside the functions, so that loading a saved run, and the command line's help, don't pay for it.
"""

from initlab.api.comparing import compare
from initlab.api.confirming import confirm
from initlab.api.fixing import fix
from initlab.api.inits import apply_recipe, describe_init
from initlab.api.measuring import assert_healthy, probe
from initlab.api.predicting import predict
from initlab.api.running import Progress
from initlab.api.scaling import scale
from initlab.api.training import train
from initlab.api.watches import watch

__all__ = [
    "Progress",
    "apply_recipe",
    "assert_healthy",
    "compare",
    "confirm",
    "describe_init",
    "fix",
    "predict",
    "probe",
    "scale",
    "train",
    "watch",
]
