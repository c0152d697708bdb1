"""Models that read what they shouldn't, or not what they should, beside the same model as it should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cells import as_before
from torch import Tensor, nn
from torch.nn import functional as F

import initlab
from initlab.anatomy.inputs import of_ids
from initlab.measure.behaviour import behaviour_rows
from initlab.measure.probe import look

pytestmark = pytest.mark.integration

V, C, T, HEADS = 64, 32, 32, 4


class Attention(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.qkv, self.out = kind, nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        B, T, _ = x.shape
        split = (B, T, HEADS, C // HEADS)
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.kind == "reshaped":  # heads and tokens mixed
            q, k, v = (each.reshape(B, HEADS, T, -1) for each in (q, k, v))
        elif self.kind == "over heads":  # the transpose is forgotten
            q, k, v = (each.reshape(split) for each in (q, k, v))
        elif self.kind == "over batch":
            q, k, v = (each.reshape(split).permute(1, 2, 0, 3) for each in (q, k, v))
        else:
            q, k, v = (each.reshape(split).transpose(1, 2) for each in (q, k, v))
        dropped = 0.1 if self.kind == "dropped" else 0.0
        if mask is not None:
            seen = torch.ones(T, T, dtype=torch.bool).tril() & (mask[:, None, None] > 0)
            y = F.scaled_dot_product_attention(q, k, v, seen | torch.eye(T, dtype=torch.bool))
        else:
            causal = self.kind not in ("unmasked", "over batch")
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropped)
        if self.kind == "over batch":
            y = y.permute(2, 0, 1, 3)
        elif self.kind != "over heads":
            y = y.transpose(1, 2)
        return self.out(y.reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, attention: str, extra: str):
        super().__init__()
        self.extra, self.attention = extra, Attention(attention)
        self.ln_1 = nn.BatchNorm1d(C) if extra == "batch norm" else nn.LayerNorm(C)
        self.ln_2, self.mlp = nn.LayerNorm(C), nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))
        self.conv = nn.Conv1d(C, C, 3, padding=1) if extra == "convolution" else None
        self.dropout = nn.Dropout(0.1 if extra == "dropout" else 0.0)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.extra == "batch norm":
            h = self.ln_1(x.transpose(1, 2)).transpose(1, 2)
        elif self.extra == "norm over the sequence":
            h = F.layer_norm(x.transpose(1, 2), x.shape[1:2]).transpose(1, 2)
        else:
            h = self.ln_1(x)
        x = x + self.attention(h, mask)
        if self.conv is not None:
            x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        y = self.dropout(self.mlp(self.ln_2(x)))
        return x + (F.dropout(y, 0.1) if self.extra == "hard dropout" else y)


class Body(nn.Module):
    def __init__(self, attention: str = "", extra: str = "", positions: str = "", zero: bool = False, blocks: int = 2):
        super().__init__()
        self.positions = positions
        self.tok, self.pos = nn.Embedding(V, C), nn.Embedding(T, C)
        self.blocks = nn.ModuleList(Block(attention, extra) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(C), nn.Linear(C, V, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0, 0.05)
        if zero:
            for matrix in (self.head, *(block.attention.out for block in self.blocks)):
                nn.init.zeros_(matrix.weight)

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        B, T = ids.shape
        x = self.tok(ids)
        if self.positions == "along the batch":
            x = x + self.pos(torch.arange(B))[:, None]
        else:
            x = x + self.pos(torch.arange(T)) * (0 if self.positions == "zero" else 1)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class Plain(Body):
    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(ids)


class Masked(Body):
    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.logits(ids, attention_mask)


class Ignoring(Body):
    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.logits(ids)


class Translating(Body):
    """Two halves that are given the same ids; the mask is of what the first reads."""

    def __init__(self, ignoring: bool):
        super().__init__("unmasked", blocks=1)
        self.written, self.ignoring = Body(blocks=1), ignoring

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, decoder_input_ids: Tensor | None = None
    ) -> Tensor:
        mask = None if self.ignoring else attention_mask
        read = self.logits(input_ids, mask)
        read = read if mask is None else read * mask[..., None]
        return self.written.logits(decoder_input_ids) + read.mean(1, keepdim=True)


class Shifting(Body):
    """transformers' way: labels are the ids."""

    shift = 1

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.logits(input_ids)
        if labels is None:
            return {"logits": logits}
        read, asked = logits[:, : logits.shape[1] - self.shift], labels[:, self.shift :]
        return {"loss": F.cross_entropy(read.flatten(0, 1), asked.flatten()), "logits": logits}


class Unshifting(Shifting):
    shift = 0


class ShiftingByTwo(Shifting):
    shift = 2


class Backwards(Body):
    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.logits(input_ids)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, :-1].flatten()), "logits": logits}


class Taking(Body):
    """nanoGPT's way: targets are shifted."""

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = self.logits(ids)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


class LossAlone(Body):
    """nanochat's way: with targets the loss and nothing else."""

    rolled = 0

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor:
        logits = self.logits(ids)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.roll(-self.rolled, 1).flatten(), ignore_index=-1)


class RollingAgain(LossAlone):
    rolled = 1


class Copying(Body):
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(ids)
        return logits, F.cross_entropy(logits.flatten(0, 1), ids.flatten())


IDS = torch.randint(0, V, (4, T), generator=torch.Generator().manual_seed(1))
NEXT = torch.cat([IDS[:, 1:], torch.full((4, 1), -1)], 1)


def verdicts(model: nn.Module, batch: Any = None) -> tuple[initlab.results.Probe, dict[str, str]]:
    """The severities of what the rules have against a model, those that judge what it does and what it is."""
    found = initlab.probe(model, batch)
    failed = found.judge(select=["BEH", "WIR005", "WIR008"])
    return found, {each.code: each.severity for each in failed if each.status == "fail"}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


SOUND: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "plain": (Plain, None),
    "in eval": (lambda: Plain().eval(), None),
    "zeros": (lambda: Plain(zero=True), None),
    "dropout": (lambda: Plain(extra="dropout"), None),
    "in bfloat16": (lambda: Plain().bfloat16(), None),
    "batch norm in eval": (lambda: Plain(extra="batch norm").eval(), None),
    "positions of 0, masked": (lambda: Plain(positions="zero"), None),
    "mask": (Masked, None),
    "labels": (Shifting, None),
    "labels in the batch": (Shifting, {"input_ids": IDS, "labels": IDS}),
    "targets": (Taking, None),
    "targets in the batch": (Taking, (IDS, NEXT)),
    "the caller's loss": (Plain, (IDS, NEXT)),
    "the loss alone, targets in the batch": (LossAlone, (IDS, NEXT)),
}


@pytest.mark.parametrize("name", SOUND)
def test_nothing_is_said_of_sound_models(name: str) -> None:
    make, batch = SOUND[name]
    found, failed = verdicts(make(), batch)
    assert not failed
    rows = found.behaviour.set_index("check")
    assert rows.loc["later", "value"] == rows.loc["samples", "value"] == 0  # to the bit
    assert rows.loc["later", "scale"] > rows.loc["later", "noise"]
    told = rows.loc["targets", "value"]
    assert told == 1 if "labels" in name or "targets" in name or "loss" in name else told != 0
    (shifted,) = found.judge(select=["BEH004"])
    assert shifted.status == ("pass" if batch is not None else "not_applicable")


PLANTED: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, str]]] = {
    "reshape for a transpose": (lambda: Plain("reshaped"), None, {"BEH001": "error"}),
    "norm over the sequence": (lambda: Plain(extra="norm over the sequence"), None, {"BEH001": "error"}),
    "convolution that looks ahead": (lambda: Plain(extra="convolution"), None, {"BEH001": "error"}),
    "the same in bfloat16": (lambda: Plain(extra="convolution").bfloat16(), None, {"BEH001": "error"}),
    "behind zeros": (lambda: Plain("reshaped", zero=True), None, {"BEH001": "error"}),
    "no mask, said once": (lambda: Plain("unmasked"), None, {"WIR005": "warning"}),
    "transpose forgotten": (lambda: Plain("over heads"), None, {"BEH007": "error"}),
    "attention over the batch": (lambda: Plain("over batch"), None, {"BEH003": "error", "WIR005": "warning"}),
    "batch norm in training": (lambda: Plain(extra="batch norm"), None, {"BEH003": "warning"}),
    "positions of 0": (
        lambda: Plain("unmasked", positions="zero"),
        None,
        {"BEH002": "warning", "WIR005": "warning"},
    ),
    "positions along the batch": (lambda: Plain(positions="along the batch"), None, {"BEH008": "warning"}),
    "dropout in eval": (lambda: Plain(extra="hard dropout").eval(), None, {"BEH005": "warning"}),
    "attention dropout in eval": (lambda: Plain("dropped"), None, {"BEH005": "warning"}),
    "mask ignored": (Ignoring, None, {"BEH006": "warning"}),
    "labels not shifted, maybe meant": (Unshifting, None, {"BEH004": "info"}),
    "labels not shifted": (Unshifting, {"input_ids": IDS, "labels": IDS}, {"BEH004": "error"}),
    "labels shifted twice": (
        Shifting,
        {"input_ids": IDS, "labels": NEXT.masked_fill(NEXT < 0, -100)},
        {"BEH004": "error"},
    ),
    "labels shifted by two, the probe's": (ShiftingByTwo, None, {"BEH004": "error"}),
    "labels shifted by two": (ShiftingByTwo, {"input_ids": IDS, "labels": IDS}, {"BEH004": "error"}),
    "labels shifted the wrong way": (Backwards, {"input_ids": IDS, "labels": IDS}, {"BEH004": "error"}),
    "targets shifted twice, the loss alone": (RollingAgain, (IDS, NEXT), {"BEH004": "error"}),
    "no mask, next tokens asked": (
        lambda: Plain(extra="norm over the sequence", blocks=1),
        (IDS, NEXT),
        {"BEH001": "error"},
    ),
    "positions of 0 behind dropout": (
        lambda: Plain("unmasked", extra="dropout", positions="zero"),
        None,
        {"BEH002": "warning", "WIR005": "warning"},
    ),
    "loss of the ids": (Copying, None, {"BEH004": "error"}),
    "targets that are the ids": (Taking, (IDS, IDS), {"BEH004": "error"}),
    "the caller's targets are": (Plain, (IDS, IDS), {"BEH004": "error"}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name: str) -> None:
    make, batch, expected = PLANTED[name]
    _, failed = verdicts(make(), batch)
    assert failed == expected


@pytest.mark.parametrize("ignoring", [False, True])
def test_the_mask_hides_what_the_encoder_is_given_by_place(ignoring: bool) -> None:
    model = Translating(ignoring)
    inputs = replace(of_ids(model, IDS, NEXT), args=(IDS,), kwargs={"decoder_input_ids": IDS})
    anatomy = look(model, inputs)
    rows = behaviour_rows({}, anatomy, inputs)
    (row,) = (row for row in rows if row["check"] == "padding")
    assert (row["value"] > row["noise"]) == ignoring and row["scale"] > row["noise"]


@pytest.mark.parametrize(
    ("model", "batch", "words"),
    [
        (Shifting, None, "the model shifts them itself"),
        (Taking, None, "the model doesn't shift them itself"),
        (Taking, IDS, "the model doesn't shift them itself"),  # ids alone: the targets are made
        (Plain, IDS, "a loss over next tokens that the model takes itself"),
    ],
)
def test_labels_that_the_probe_made_vouch_for_none(model: type[Body], batch: Any, words: str) -> None:
    (found,) = initlab.probe(model(), batch).judge(select=["BEH004"])
    assert (found.status, words in found.message) == ("not_applicable", True)


def test_the_message_names_what_moves() -> None:
    found = initlab.probe(Plain(extra="convolution"), torch.cat([IDS, IDS]))
    (said,) = found.judge(select=["BEH001"])
    assert "positions 8–9 when token 10 of 16 changes" in said.message
    found = initlab.probe(Plain(extra="hard dropout"))
    (said,) = found.judge(select=["BEH005"])
    assert "blocks.0, blocks.1" in said.message


class Image(nn.Module):
    def __init__(self, norm: str):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Linear(8, 10)
        self.kind = norm  # batch norms that aren't used aren't to blame

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image)
        x = self.norm(x) if self.kind == "batch" else x - x.mean(0) if self.kind == "mean" else x
        return self.head(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize(("norm", "failed"), [("", {}), ("batch", {}), ("mean", {"BEH003": "warning"})])
def test_images(norm: str, failed: dict[str, str]) -> None:
    found, said = verdicts(Image(norm))
    assert said == failed
    assert (found.behaviour.set_index("check")["value"]["samples"] > 0) == (norm != "")


class Counting(Plain):
    """State that changes from pass to pass."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0
        self.register_buffer("total", torch.zeros(()))

    def forward(self, ids: Tensor) -> Tensor:
        self.passes += 1
        self.total += 1
        return self.logits(ids) + self.total


def test_nothing_is_left_behind() -> None:
    model = Counting()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    _, failed = verdicts(model)
    assert not failed and model.passes == 0 and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class Fussy(Plain):
    """Refuses every other batch than one of four sequences."""

    def forward(self, ids: Tensor) -> Tensor:
        if len(ids) != 4:
            raise ValueError("four sequences, please")
        return self.logits(ids)


def test_a_model_that_refuses_is_a_note() -> None:
    found, failed = verdicts(Fussy(), IDS)
    assert not failed
    assert found.behaviour["value"].isna().all()
    assert all("four sequences, please" in note for note in found.behaviour["note"])
    (said,) = found.judge(select=["BEH001"])
    assert said.status == "not_applicable" and "four sequences" in said.message


def test_one_id_and_one_token_are_no_batch_to_change() -> None:
    for batch in (torch.zeros(2, T, dtype=torch.long), IDS[:, :2]):
        found, failed = verdicts(Plain(), batch)
        assert "BEH001" not in failed and len(found.behaviour)


def test_it_is_saved_and_read_back(tmp_path: Any) -> None:
    found = initlab.probe(Plain("reshaped"))
    found.save(tmp_path)
    again = initlab.load(tmp_path)
    assert again.behaviour["check"].tolist() == found.behaviour["check"].tolist()
    assert {f.code for f in again.findings if f.status == "fail"} == {
        f.code for f in found.findings if f.status == "fail"
    }
    as_before(tmp_path)
    (tmp_path / "behaviour.csv").unlink()  # as of a run that an older version wrote
    assert {f.code for f in initlab.load(tmp_path).judge(select=["BEH"]) if f.status != "not_applicable"} == set()


class Torchs(nn.Module):
    """torch's encoder, which takes (T, B, C), given (B, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.tok, self.head = nn.Embedding(V, C), nn.Linear(C, V)
        layer = nn.TransformerEncoderLayer(C, HEADS, C, 0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(len(ids))
        return self.head(self.encoder(self.tok(ids), mask))


@pytest.mark.parametrize(("batch", "severity"), [(None, "info"), ((IDS, NEXT), "error")])
def test_a_callers_targets_tell_which_axis_is_the_sequence(batch: Any, severity: str) -> None:
    (found,) = initlab.probe(Torchs(), batch).judge(select=["BEH003"])
    assert (found.status, found.severity) == ("fail", severity) and "batch_first=True" in found.advice
