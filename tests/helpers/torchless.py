"""A program that begins as where torch isn't installed."""

# as where it isn't installed: scipy takes a module that is None for one that is there
WITHOUT_TORCH = """
import sys

class Blocker:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is blocked")

sys.meta_path.insert(0, Blocker())
"""
