"""A small model and its data, for the trainers of other libraries."""

import torch

import initlab

T, V = 12, 61


def nano(seed=0):
    torch.manual_seed(seed)
    return initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=T, vocab_size=V))


def rows(count, seed=0):
    """Token ids and next tokens, one example each."""
    ids = torch.randint(V, (count, T + 1), generator=torch.Generator().manual_seed(seed))
    return [(row[:-1], row[1:]) for row in ids]


def batches(count, seed=0):
    """Of three examples each."""
    return torch.utils.data.DataLoader(rows(3 * count, seed), batch_size=3)


def attached(model):
    """How many hooks are on it."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) + sum(
        bool(p._backward_hooks) for p in model.parameters()
    )


def rms_of(records, kind):
    """Of every tensor of a kind at step 0."""
    return records[(records["kind"] == kind) & (records["step"] == 0)]["rms"].to_list()
