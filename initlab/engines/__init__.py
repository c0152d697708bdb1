"""Where independent calls are made: here, in processes, or wherever a package that adds an engine makes them."""

from initlab.engines.base import ENGINES, Call, Engine, Failed, choose, engine, outcome

__all__ = ["ENGINES", "Call", "Engine", "Failed", "choose", "engine", "outcome"]
