"""What the code that initialises a model did: `trace_init`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from initlab import schema
from initlab.errors import ConfigError
from initlab.options import checked_seed
from initlab.results.tracing import InitTrace


def trace_init(factory: Callable[..., Any], *args: Any, seed: int | None = None, **kwargs: Any) -> InitTrace:
    """Make a model and hear every write to its parameters and buffers: what was drawn, by which line, in which order.

    The weights are those of a plain call, bit for bit. What no line wrote is NaN in parameters, where a plain call
    leaves whatever the memory held. `initlab.probe(trace.model)` then names the lines in its findings, as
    `initlab.probe(factory)` does by itself.

    Args:
        factory: a function that returns a torch.nn.Module, or the class of one; called once.
        args: of it.
        seed: of torch's random numbers, whose state is then left as it was; None draws as a plain call does.
        kwargs: of it, by name.

    Returns:
        InitTrace: `.model`, `.writes` (a pandas frame), `.findings`, `.notes`; its `str` is a table of them.

    Raises:
        ConfigError: the factory can't be called, or the model's weights are out of sight (scripted, quantised).
        ProbeError: it raised, or returned no module.
    """
    import torch

    from initlab.drawing.subject import seeded
    from initlab.drawing.tracing import trace

    if isinstance(factory, torch.nn.Module):
        raise ConfigError(
            f"a {type(factory).__name__} was given, which is made already; give the function that makes it, as in "
            "initlab.trace_init(lambda: Model(config))"
        )
    if not callable(factory):
        raise ConfigError(f"factory is {factory!r:.80}; expected a function that returns a torch.nn.Module, or a class")
    if seed is None:
        traced = trace(factory, *args, **kwargs)
    else:
        with seeded(checked_seed(seed), "cpu"):
            traced = trace(factory, *args, **kwargs)
    rows = [row | {"run_id": "trace"} for row in traced.rows]
    return InitTrace(traced.model, schema.table("writes", rows), traced.notes)
