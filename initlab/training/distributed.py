"""One run over several processes, as torchrun starts them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from initlab.errors import ConfigError


@dataclass(frozen=True, slots=True)
class World:
    """The processes of this run, and which one this is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Say whether this is the process that writes and speaks."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Average a tensor over the processes.

        Args:
            values: one that each of them holds; it is overwritten.
        """
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def told(self, value: Any = None) -> Any:
        """Return on every process what the first one passes in; the others wait for it.

        Args:
            value: of the first process.
        """
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def share(self, batch_size: int, grad_accum: int) -> tuple[int, int]:
        """Divide a step of batch_size * grad_accum rows: (micro-batches, rows in each) of a process.

        nanoGPT divides the micro-batches over the processes; where there are too few, their rows are divided too.

        Args:
            batch_size: rows of a micro-batch.
            grad_accum: micro-batches of a step.

        Raises:
            ConfigError: the rows can't be shared out evenly.
        """
        rows = batch_size * grad_accum
        micros = -(-grad_accum // self.size)
        if rows % (self.size * micros):
            raise ConfigError(
                f"a step of {batch_size} x {grad_accum} rows (batch_size x grad_accum) can't be shared out evenly over "
                f"{self.size} processes; make grad_accum, or batch_size, a multiple of {self.size}"
            )
        return micros, rows // (self.size * micros)


def current() -> World:
    """Return the process group that was joined, or a world of one."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


@contextmanager
def joined(device: str) -> Iterator[tuple[World, str]]:
    """Join the other processes that torchrun started, if it did, and leave them at the end.

    Args:
        device: what was asked for; where it is CUDA, each process has a GPU of its own.

    Yields:
        the world, and the device of this process: on CUDA the GPU of its LOCAL_RANK.

    Raises:
        ConfigError: more processes than GPUs.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield current(), device
        return
    cuda = device.startswith("cuda")
    if cuda:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if here > torch.cuda.device_count():  # told alike by each process
            raise ConfigError(
                f"{here} processes were started for the {torch.cuda.device_count()} GPUs that torch sees here; "
                "give torchrun --nproc-per-node that number, or use device cpu"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    # Without its device NCCL guesses one at the first barrier, and may wait for good where the guess is wrong.
    dist.init_process_group("nccl" if cuda else "gloo", device_id=torch.device(device) if cuda else None)
    try:
        yield current(), device
        dist.barrier()  # a process that leaves while another still talks to it can abort that one
    finally:
        gc.collect()  # DDP's reducer is in a cycle, and holds the group's threads beyond the group
        dist.destroy_process_group()
