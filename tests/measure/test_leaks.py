"""Many probes in one process hold no more than one does."""

import gc
import resource
from pathlib import Path

import pytest
import torch

import initlab
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig

pytestmark = pytest.mark.integration

SIZES = NanoGPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=64)
ids = torch.randint(64, (4, 32), generator=torch.Generator().manual_seed(0))


def held():
    """Tensors, modules and frames of pandas that are alive."""
    gc.collect()
    kinds = ("Tensor", "Parameter", "Linear", "DataFrame")
    names = [type(each).__name__ for each in gc.get_objects()]
    return {kind: names.count(kind) for kind in kinds}


def probed(model):
    assert len(initlab.probe(model, ids, progress=False).findings)


def test_a_probe_holds_nothing_once_its_result_is_gone():
    torch.manual_seed(0)
    model = NanoGPT(SIZES)
    for _ in range(2):
        probed(model)
    before = held()
    for _ in range(5):
        probed(model)
    # fewer is fine: caches that other tests of this process filled give theirs up
    assert all(count <= before[kind] for kind, count in held().items())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from /proc")
def test_two_hundred_probes_take_no_more_memory():
    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    model = NanoGPT(SIZES)
    for _ in range(50):
        probed(model)
    before = resident()
    for _ in range(150):
        probed(model)
    assert resident() - before < 20  # MiB; a probe's tables are 1
