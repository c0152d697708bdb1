"""Operations and peaks behind the share of a GPU that a run uses."""

import math

import pytest
import torch

from initlab.models.config import PRESETS, NanoGPTConfig
from initlab.models.nanogpt import NanoGPT
from initlab.training.speed import flops_per_token, named_peak, peak_flops, tf32_allowed


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_operations_are_nanogpts_count(bias, tied):
    """estimate_mfu: 6 * get_num_params() + 12 * L * H * Q * T, where position embeddings don't count."""
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 50}
    config = NanoGPTConfig(**sizes, bias=bias, tie_weights=tied)
    N = NanoGPT(config).num_params(non_embedding=True)
    assert flops_per_token(config) == 6 * N + 12 * 3 * 2 * 8 * 32


def test_gpt2_at_full_speed_on_a_known_gpu():
    # 444k tokens/s of a compiled 124M on one H100 (bench): 382 TFLOP/s
    assert flops_per_token(PRESETS["gpt2"]) * 444e3 == pytest.approx(382e12, rel=0.01)
    assert named_peak("NVIDIA H100 80GB HBM3") == 989e12
    for name, peak in (
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
    ):
        assert named_peak(name) == peak
    assert math.isnan(named_peak("NVIDIA RTX A1000"))
    assert math.isnan(peak_flops(torch.device("cpu")))


def test_tf32_is_allowed_while_training_on_a_gpu():
    def now():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = now()
    with tf32_allowed(torch.device("cpu")):
        assert now() == before
    with pytest.raises(ZeroDivisionError), tf32_allowed(torch.device("cuda", 0)):
        assert now() == (True, True)
        raise ZeroDivisionError
    assert now() == before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_a_precision_that_the_caller_chose_stands():
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.fp32_precision = "ieee" if before else "tf32"  # torch refuses to read allow_tf32 from here on
    chosen = matmul.fp32_precision
    try:
        with tf32_allowed(torch.device("cuda", 0)):
            assert matmul.fp32_precision == chosen
        assert matmul.fp32_precision == chosen
    finally:
        matmul.fp32_precision = "none"
        matmul.allow_tf32 = before
