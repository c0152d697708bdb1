"""initlab: does the signal of a freshly initialised transformer keep its scale, and which line to change if not."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from initlab.api.comparing import compare
    from initlab.api.inits import apply_recipe, describe_init
    from initlab.api.measuring import assert_healthy, probe
    from initlab.api.scaling import scale
    from initlab.errors import InitlabError
    from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
    from initlab.results import Comparison, Probe, Scaling, load

# Loaded on first use: `import initlab` is instant, and `initlab.load` needs no torch.
_HOME = {
    "Comparison": "initlab.results",
    "InitlabError": "initlab.errors",
    "NanoGPT": "initlab.models.nanogpt",
    "NanoGPTConfig": "initlab.models.nanogpt",
    "Probe": "initlab.results",
    "Scaling": "initlab.results",
    "apply_recipe": "initlab.api.inits",
    "assert_healthy": "initlab.api.measuring",
    "compare": "initlab.api.comparing",
    "describe_init": "initlab.api.inits",
    "load": "initlab.results",
    "probe": "initlab.api.measuring",
    "scale": "initlab.api.scaling",
}

__all__ = [
    "Comparison",
    "InitlabError",
    "NanoGPT",
    "NanoGPTConfig",
    "Probe",
    "Scaling",
    "__version__",
    "apply_recipe",
    "assert_healthy",
    "compare",
    "describe_init",
    "load",
    "probe",
    "scale",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'initlab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
