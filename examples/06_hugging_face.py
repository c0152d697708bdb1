"""A Hugging Face model from a config: what was it drawn from, and is that what its code says?

python examples/06_hugging_face.py      (needs `pip install '.[hf]'`; downloads nothing)
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import initlab

torch.manual_seed(0)
llama = LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, hidden_size=128, intermediate_size=256, vocab_size=512))
print(initlab.probe(llama))
print(initlab.describe_init(llama), "\n")

gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=128, n_head=4, vocab_size=512, bos_token_id=0, eos_token_id=0))
with torch.no_grad():  # what transformers 5.14.1 did: its depth scaling was never applied
    for block in gpt2.transformer.h:
        block.attn.c_proj.weight.mul_(8**0.5)
        block.mlp.c_proj.weight.mul_(8**0.5)
print(initlab.describe_init(gpt2))

initlab.apply_recipe(gpt2, "nanogpt", seed=0)  # any model whose parameters' roles are known
print(*initlab.describe_init(gpt2).mismatches or ["Now every role fits."])
