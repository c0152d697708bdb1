"""Where independent calls are made: here, in processes, on a Ray cluster, or wherever a package's engine makes them."""

from initlab.engines.base import ENGINES, Call, Engine, Failed, Making, choose, engine, outcome

__all__ = ["ENGINES", "Call", "Engine", "Failed", "Making", "choose", "engine", "outcome"]
