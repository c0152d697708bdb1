"""Several threads measure at once: each gets the whole tables of its own model."""

import sys
import threading

import pandas as pd
import pytest
import torch

import initlab
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig

SIZES = NanoGPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=256)


@pytest.fixture
def switching():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
def test_threads_that_probe_at_once_get_what_one_gets():
    models = []
    for seed in range(4):
        torch.manual_seed(seed)
        models.append(NanoGPT(SIZES))
    expected = [initlab.probe(model).records for model in models]
    found = {}

    def go(number):
        found[number] = initlab.probe(models[number]).records

    threads = [threading.Thread(target=go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, records in enumerate(expected):
        pd.testing.assert_frame_equal(found[number], records)
