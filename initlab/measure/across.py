"""A model that several processes train, measured by all of them: who they are, and that they hold the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import nn

from initlab.anatomy.unsharding import check_shards, fingerprints, fully_sharded, replicated, unsharded
from initlab.errors import ProbeError
from initlab.measure.ranks import ALONE, Ranks, opened

_INSIDE = "wrapped in DistributedDataParallel: measured the module inside"


@contextmanager
def across(model: nn.Module) -> Iterator[tuple[nn.Module, Ranks]]:
    """Measure a model together with the other processes that train it, where it is wrapped or sharded for that.

    Args:
        model: as the training loop calls it. In DistributedDataParallel, or with `fully_shard` applied, in a process
            group of several: every process comes here, each with its part. Any other is this process's alone.

    Yields:
        what is measured here, and the processes: of a replicated model the module inside, of a sharded one a copy with
        whole weights.

    Raises:
        ProbeError: the process group is gone, replicas differ, shards can't be gathered, or a process didn't come.
    """
    wrapper, sharded = _shared(model) if isinstance(model, nn.Module) else (None, False)
    if wrapper is None and not sharded:
        yield model, ALONE
        return
    ranks = opened()
    try:
        if sharded:
            _same_shards(model, ranks)
            own = unsharded(model)
        else:
            own = wrapper.module
        how = "fully_shard: measured a copy with whole weights, without its mp_policy," if sharded else _INSIDE
        each = f"on {ranks.size} processes, each with its own batch, and merged" if ranks.size > 1 else "on one process"
        ranks.notes = (f"{how} {each}", *_unlike(own, ranks))
        yield own, ranks
        ranks.agreed()  # they leave together: an error after the last word would be told to nobody
    except Exception as error:
        ranks.tell(error)
        raise
    finally:
        ranks.close()


def alongside(model: nn.Module) -> Ranks:
    """Open what the processes that train a model together say to each other while it is watched.

    Args:
        model: as the training loop calls it; every process comes here, where it is in DistributedDataParallel or has
            `fully_shard` applied.

    Returns:
        to be closed; one process alone where the model is neither.

    Raises:
        ProbeError: replicas differ, shards can't be gathered, or a process didn't come.
    """
    wrapper, sharded = _shared(model)
    if wrapper is None and not sharded:
        return ALONE
    ranks = opened()
    try:
        each = f"on {ranks.size} processes, each with its own batch, and merged"
        if sharded:
            _same_shards(model, ranks)
            ranks.notes = (f"fully_shard: recorded {each}; weights and gradients are gathered for it, one by one",)
        else:
            ranks.notes = (f"{_INSIDE} {each}", *_unlike(wrapper.module, ranks))
    except Exception as error:
        ranks.tell(error)
        ranks.close()
        raise
    return ranks


def _shared(model: nn.Module) -> tuple[Any, bool]:
    """The wrapper of a replica, else None; and whether it is sharded, with a group to gather it from."""
    sharded = fully_sharded(model)
    if sharded and not dist.is_initialized():
        raise ProbeError(f"{type(model).__name__} is sharded, but there is no process group any more to gather it from")
    return _replicated(model), sharded


def _same_shards(model: nn.Module, ranks: Ranks) -> None:
    check_shards(model)
    ranks.same("parameters", {name: tuple(p.shape) for name, p in model.named_parameters()})


def _replicated(model: nn.Module) -> Any:
    """The wrapper of a model of which every one of several processes has a replica, else None."""
    wrapper = replicated(model)
    if wrapper is None or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    own, size = dist.get_world_size(wrapper.process_group), dist.get_world_size()
    if own != size:
        raise ProbeError(
            f"the model is replicated over {own} of {size} processes; expected all: pipeline and tensor parallelism "
            "can't be measured"
        )
    return wrapper


def _unlike(model: nn.Module, ranks: Ranks) -> list[str]:
    """What there is to say of buffers that differ between the processes. Raises ProbeError: parameters do."""
    first, *others = ranks.gathered(fingerprints(model))
    said = []
    for number, other in enumerate(others, 1):
        wrong = [name for name in first | other if first.get(name) != other.get(name)]
        weights = [name for name in wrong if (first.get(name) or other[name])[0] is not None]
        if weights:
            count = sum(each[0] is not None for each in first.values())
            raise ProbeError(
                f"replicas differ: process {number} holds other numbers than process 0 in {len(weights)} of {count} "
                f"parameters, {weights[0]} the first; draw or load weights before the model is wrapped, which hands "
                "round those of process 0"
            )
        if wrong:
            said.append(f"process {number} used buffers of its own, unlike those of process 0: {', '.join(wrong[:6])}")
    return said
