"""initlab: does the signal of a freshly initialised transformer keep its scale, and which line to change if not."""

__version__ = "0.1.0"
