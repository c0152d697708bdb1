"""A real init bug in a real release: huggingface/transformers 5.14.1 never applied GPT-2's depth scaling (#47458).

Opt-in: `pip install --target OLD transformers==5.14.1`, then `INITLAB_TRANSFORMERS_5_14_1=OLD pytest -m slow` runs it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import initlab

OLD = os.environ.get("INITLAB_TRANSFORMERS_5_14_1", "")
SCRIPT = """
import transformers, initlab
assert transformers.__version__ == "5.14.1", transformers.__version__
config = transformers.GPT2Config(n_layer=4, n_embd=64, n_head=4, vocab_size=300, bos_token_id=0, eos_token_id=0)
print(*initlab.describe_init(transformers.GPT2LMHeadModel(config)).mismatches, sep="\\n")
"""


@pytest.mark.slow
@pytest.mark.skipif(not OLD, reason="INITLAB_TRANSFORMERS_5_14_1 names no folder with transformers 5.14.1")
def test_the_release_that_lost_its_depth_scaling_is_found_out():
    path = os.pathsep.join([OLD, str(Path(initlab.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "everything else is nanogpt (GPT-2's init), but attn_out and mlp_out have std 0.02, not 0.02/sqrt(2*n_layer) = "
        "0.0071: not depth-scaled, though GPT2PreTrainedModel._init_weights says so"
    ]
