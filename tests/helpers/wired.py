"""A model drawn and run as a theory's `Setting` describes it, written out in torch operation by operation."""

import math

import torch
from torch.nn import functional as F

from initlab.judge.theory.settings import MLP, Attention

FUNCTIONS = {
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "identity": lambda x: x,
}


class Wired:
    """One draw of a setting, run once: `var` and `grad` hold variances by (site, layer).

    Gradients are of the sum of the tokens' losses, against uniform targets.

    Args:
        setting: of the model.
        seed: of weights, tokens and targets.
        sequences: in the batch.
    """

    def __init__(self, setting, seed, sequences=4):
        self.generator = torch.Generator().manual_seed(seed)
        self.sequences, self.setting, self.seen, self.states = sequences, setting, {}, []
        for number, stack in enumerate(setting.stacks):
            x = self.embed(stack)
            if not number:
                self.show("embed", None, x)
            for block in stack.blocks:
                x = self.block(block, x)
            self.states.append(self.norm(x, stack.final_norm, None))
        if stack.final_norm is not None:
            self.show("final_norm", None, self.states[-1])
        self.grad = {}
        if (head := stack.head) is not None:
            table = self.table if stack.tied else self.draw(head.square, head.fan_out, head.fan_in)
            logits = self.show("logits", None, cap(stack.logit_scale * self.states[-1] @ table.T, stack.logit_cap))
            targets = torch.randint(head.fan_out, logits.shape[:-1], generator=self.generator)
            self.loss = float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()).detach())
            F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
            self.grad = {at: float(x.grad.var()) for at, x in self.seen.items() if x.grad is not None}
        last = x.detach()
        cosine = F.cosine_similarity(last[:, :, None], last[:, None], dim=-1)
        T = last.shape[1]
        self.cosine = float((cosine.sum() / sequences - T) / (T * (T - 1)))
        self.var = {at: float(x.detach().var()) for at, x in self.seen.items()}

    def draw(self, square, *shape):
        return torch.randn(*shape, generator=self.generator) * math.sqrt(square)

    def show(self, site, layer, x):
        if not x.requires_grad:
            x.requires_grad_(True)
        x.retain_grad()
        self.seen[site, layer] = x
        return x

    def embed(self, stack):
        x = torch.zeros(self.sequences, stack.positions, stack.n_embd)
        for term in stack.terms:
            if term.kind == "token":
                vocabulary = self.setting.vocab_size
                ids = torch.randint(vocabulary, x.shape[:2], generator=self.generator)
                self.table = self.draw(term.square, vocabulary, stack.n_embd)
                x = x + term.scale * self.table[ids]
            elif term.sinusoid:
                frequency = 10000.0 ** (-torch.arange(0, stack.n_embd, 2) / stack.n_embd)
                angle = torch.arange(stack.positions)[:, None] * frequency
                both = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
                x = x + term.scale * math.sqrt(2 * term.square) * both
            else:
                rows = stack.positions if term.kind == "position" else 1
                x = x + term.scale * self.draw(term.square, rows, stack.n_embd)
        return self.norm(stack.embed_scale * x, stack.embed_norm, None)

    def norm(self, x, norm, layer):
        if norm is None:
            return x
        centre = x.mean(-1, keepdim=True) if norm.centred else 0.0
        y = (x - centre) * torch.rsqrt((x - centre).square().mean(-1, keepdim=True) + norm.eps)
        y = y * math.sqrt(norm.gain) + self.draw(norm.bias, x.shape[-1])
        return self.show(norm.site, layer, y) if norm.site else y

    def linear(self, x, matrix):
        weight = self.draw(matrix.square, matrix.fan_out, matrix.fan_in)
        return x @ weight.T + self.draw(matrix.bias, matrix.fan_out)

    def block(self, block, x):
        layer = block.layer
        self.show("resid_pre", layer, x := x * 1.0)
        for place, update in enumerate(block.updates):
            total = update.keep * x
            shared = {}  # branches in parallel may read the same norm
            for branch in update.branches:
                if branch.norm not in shared:
                    shared[branch.norm] = self.norm(x, branch.norm, layer)
                inside = shared[branch.norm]
                run = self.attention if isinstance(branch.body, Attention) else self.mlp
                assert isinstance(branch.body, Attention | MLP)
                out = self.norm(run(inside, branch.body, layer), branch.post, layer)
                total = total + self.show(branch.site, layer, out * math.sqrt(branch.square))
            if place == 0 and len(block.updates) == 2:
                self.show("resid_mid", layer, total)
            x = self.norm(total, update.norm, layer)
        return self.show("resid_post", layer, x * 1.0)

    def attention(self, x, body, layer):
        other = x if body.cross is None else self.states[body.cross]
        q = self.norm_heads(self.linear(x, body.query), body.n_head, body.query_norm)
        k = self.norm_heads(self.linear(other, body.key), body.n_kv_head, body.key_norm)
        v = heads(self.linear(other, body.value), body.n_kv_head)
        if body.cross is None:
            for site, state in (("q", q), ("k", k), ("v", v)):
                self.show(site, layer, state)
        k, v = (state.repeat_interleave(body.n_head // body.n_kv_head, 1) for state in (k, v))
        scores = cap(body.score_scale * q @ k.transpose(-1, -2), body.soft_cap)
        to, of = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
        hidden = (of > to) if body.causal and body.cross is None else torch.zeros(1, 1, dtype=torch.bool)
        if body.window is not None:
            hidden = hidden | (to - of >= body.window if body.causal else (to - of).abs() > body.window // 2)
        z = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
        z = z * math.sqrt(body.head_square)
        z = self.norm(z.transpose(1, 2).flatten(2), body.out_norm, layer)
        if body.cross is None:
            self.show("attn_z", layer, z)
        return z if body.out is None else self.linear(z, body.out)

    def norm_heads(self, x, n_head, norm):
        return self.norm(heads(x, n_head), norm, None)

    def mlp(self, x, body, layer):
        up = self.linear(x, body.up)
        if body.gate is None:
            act = self.activate(self.show("mlp_pre", layer, up), body.activation)
        else:
            gate = self.show("mlp_pre", layer, self.linear(x, body.gate))
            act = self.activate(gate, body.activation) * self.show("mlp_linear", layer, up)
        return self.linear(self.show("mlp_act", layer, self.norm(act, body.inner_norm, layer)), body.out)

    def activate(self, x, activation):
        return FUNCTIONS[activation](x) if isinstance(activation, str) else TORCH[activation](x)


def heads(x, n_head):
    """(B, T, n_head · size) -> (B, n_head, T, size)."""
    return x.unflatten(-1, (n_head, -1)).transpose(1, 2)


def cap(x, limit):
    """A soft cap, where there is one."""
    return x if limit is None else limit * torch.tanh(x / limit)


def half_wave(x):
    """An activation that has no name: numpy's, for the theory."""
    import numpy as np

    return np.where(x > 0, x, 0.2 * np.sin(x))


TORCH = {half_wave: lambda x: torch.where(x > 0, x, 0.2 * torch.sin(x))}
