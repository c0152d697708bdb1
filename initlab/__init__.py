"""initlab: does the signal of a freshly initialised transformer keep its scale, and which line to change if not."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from initlab.api.comparing import compare
    from initlab.api.confirming import confirm
    from initlab.api.fixing import fix
    from initlab.api.inits import apply_recipe, describe_init
    from initlab.api.measuring import assert_healthy, probe
    from initlab.api.predicting import predict
    from initlab.api.scaling import scale
    from initlab.api.training import train
    from initlab.api.watches import watch
    from initlab.errors import InitlabError
    from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
    from initlab.results import Comparison, Confirmation, Probe, Profile, Scaling, Training, Watch, load

# Loaded on first use: `import initlab` is instant, and `initlab.load` needs no torch.
_HOME = {
    "Comparison": "initlab.results",
    "Confirmation": "initlab.results",
    "InitlabError": "initlab.errors",
    "NanoGPT": "initlab.models.nanogpt",
    "NanoGPTConfig": "initlab.models.nanogpt",
    "Probe": "initlab.results",
    "Profile": "initlab.results",
    "Scaling": "initlab.results",
    "Training": "initlab.results",
    "Watch": "initlab.results",
    "apply_recipe": "initlab.api.inits",
    "assert_healthy": "initlab.api.measuring",
    "compare": "initlab.api.comparing",
    "confirm": "initlab.api.confirming",
    "describe_init": "initlab.api.inits",
    "fix": "initlab.api.fixing",
    "load": "initlab.results",
    "predict": "initlab.api.predicting",
    "probe": "initlab.api.measuring",
    "scale": "initlab.api.scaling",
    "train": "initlab.api.training",
    "watch": "initlab.api.watches",
}

__all__ = [
    "Comparison",
    "Confirmation",
    "InitlabError",
    "NanoGPT",
    "NanoGPTConfig",
    "Probe",
    "Profile",
    "Scaling",
    "Training",
    "Watch",
    "__version__",
    "apply_recipe",
    "assert_healthy",
    "compare",
    "confirm",
    "describe_init",
    "fix",
    "load",
    "predict",
    "probe",
    "scale",
    "train",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'initlab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
