"""From a broken init to a sound one: what is wrong, the proposed change, and the findings before and after.

python examples/07_fix_a_model.py
python examples/07_fix_a_model.py reports/fixed-model      # also writes before/ and after/, a report each
"""

import sys
from pathlib import Path

import torch
from torch import nn

import initlab

torch.manual_seed(0)
model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=8, n_head=6, n_embd=384, block_size=128, vocab_size=256))
# Two faults that are met in the wild: position embeddings left at torch's N(0, 1), and output projections that were
# never scaled with the depth, as transformers 5.14.1 drew GPT-2 (huggingface/transformers#47458).
nn.init.normal_(model.transformer.wpe.weight)
for name, parameter in model.named_parameters():
    if name.endswith("c_proj.weight"):
        nn.init.normal_(parameter, std=0.02)

before = initlab.probe(model)
proposal = initlab.fix(model)
print(proposal)
proposal.apply()
after = initlab.probe(model)

for name, probe in (("before", before), ("after", after)):
    print(f"{name}: errors {[f.code for f in probe.findings if f.status == 'fail' and f.severity == 'error']}")
if len(sys.argv) > 1:
    for name, probe in (("before", before), ("after", after)):
        print(probe.report(Path(sys.argv[1]) / name))
