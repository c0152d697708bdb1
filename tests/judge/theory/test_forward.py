"""The forward recursion, as a whole and in parts."""

import tracemalloc

import pytest

import initlab
from initlab.judge.theory import forward


@pytest.mark.integration
def test_a_long_stack_is_followed_once_more_in_parts_and_gives_the_same(monkeypatch):
    """To the bit, in a fraction of the memory: 0.1 MB of each block are kept otherwise."""
    found = []
    for long in (10**6, 16):
        monkeypatch.setattr(forward, "LONG", long)
        tracemalloc.start()
        found.append(initlab.predict("nanogpt", n_layer=400, n_embd=768).expected)
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    whole, much, parts, less = found
    assert whole.var == parts.var and whole.grad == parts.grad
    assert less < much / 3
