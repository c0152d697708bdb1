"""initlab: does the signal of a freshly initialised transformer keep its scale, and which line to change if not."""

import importlib
import random
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from initlab.api.adam_groups import adam_groups
    from initlab.api.apply_recipe import apply_recipe
    from initlab.api.compare import compare
    from initlab.api.confirm import confirm
    from initlab.api.describe_init import describe_init
    from initlab.api.diff import diff
    from initlab.api.fix import fix
    from initlab.api.predict import predict
    from initlab.api.probe import assert_healthy, probe
    from initlab.api.scale import scale
    from initlab.api.trace_init import trace_init
    from initlab.api.train import train
    from initlab.api.transfer import transfer
    from initlab.api.watch import watch
    from initlab.engines.base import engine
    from initlab.errors import InitlabError
    from initlab.judge.rules.base import rule
    from initlab.measure.statistics import statistic
    from initlab.models.config import NanoGPTConfig
    from initlab.models.nanogpt import NanoGPT
    from initlab.options import RunOptions, Text
    from initlab.recipes.base import Base
    from initlab.recipes.registry import recipe
    from initlab.report.figures import figure
    from initlab.results import Comparison, Probe, Scaling, Watch, load
    from initlab.results.difference import Difference
    from initlab.results.profile import Profile
    from initlab.results.tracing import InitTrace
    from initlab.results.trained import Confirmation, Training, Transfer

# Loaded on first use: `import initlab` is instant, and `initlab.load` needs no torch.
_HOME = {
    "Base": "initlab.recipes.base",
    "Comparison": "initlab.results",
    "Confirmation": "initlab.results.trained",
    "Difference": "initlab.results.difference",
    "InitTrace": "initlab.results.tracing",
    "InitlabError": "initlab.errors",
    "NanoGPT": "initlab.models.nanogpt",
    "NanoGPTConfig": "initlab.models.config",
    "Probe": "initlab.results",
    "Profile": "initlab.results.profile",
    "RunOptions": "initlab.options",
    "Scaling": "initlab.results",
    "Text": "initlab.options",
    "Training": "initlab.results.trained",
    "Transfer": "initlab.results.trained",
    "Watch": "initlab.results",
    "adam_groups": "initlab.api.adam_groups",
    "apply_recipe": "initlab.api.apply_recipe",
    "assert_healthy": "initlab.api.probe",
    "compare": "initlab.api.compare",
    "confirm": "initlab.api.confirm",
    "describe_init": "initlab.api.describe_init",
    "diff": "initlab.api.diff",
    "engine": "initlab.engines.base",
    "figure": "initlab.report.figures",
    "fix": "initlab.api.fix",
    "load": "initlab.results",
    "predict": "initlab.api.predict",
    "probe": "initlab.api.probe",
    "recipe": "initlab.recipes.registry",
    "rule": "initlab.judge.rules.base",
    "scale": "initlab.api.scale",
    "statistic": "initlab.measure.statistics",
    "trace_init": "initlab.api.trace_init",
    "train": "initlab.api.train",
    "transfer": "initlab.api.transfer",
    "watch": "initlab.api.watch",
}

__all__ = [
    "Base",
    "Comparison",
    "Confirmation",
    "Difference",
    "InitTrace",
    "InitlabError",
    "NanoGPT",
    "NanoGPTConfig",
    "Probe",
    "Profile",
    "RunOptions",
    "Scaling",
    "Text",
    "Training",
    "Transfer",
    "Watch",
    "__version__",
    "adam_groups",
    "apply_recipe",
    "assert_healthy",
    "compare",
    "confirm",
    "describe_init",
    "diff",
    "engine",
    "figure",
    "fix",
    "load",
    "predict",
    "probe",
    "recipe",
    "rule",
    "scale",
    "statistic",
    "trace_init",
    "train",
    "transfer",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'initlab' has no attribute {name!r}")
    drawn = random.getstate()  # rich draws from it as it is imported
    try:
        value = getattr(importlib.import_module(_HOME[name]), name)
    finally:
        random.setstate(drawn)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
