"""Watched steps against hooks written out by hand, and what a watch must not change."""

import copy
import pickle

import pytest
import torch
from measure_zoo import ZOO, T, V
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from initlab.anatomy.look import of
from initlab.errors import ProbeError
from initlab.measure.probe import Identity, measure
from initlab.measure.statistics import choose
from initlab.measure.watch.steps import StepRecorder
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig

pytestmark = pytest.mark.integration

B = 3
IDENTITY = Identity(run_id="cell", recipe="as-found", seed=0)


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """A recorder that a test leaves open would keep everything eager for the tests after it."""
    made, begin = [], StepRecorder.__init__
    monkeypatch.setattr(StepRecorder, "__init__", lambda self, *a, **k: (made.append(self), begin(self, *a, **k))[1])
    yield
    for recorder in made:
        recorder.close()


def nano(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return NanoGPT(NanoGPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=T, vocab_size=V, dropout=dropout))


def foreign(name="pre-norm, gated, grouped queries"):
    torch.manual_seed(0)
    return ZOO[name][0]()


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randint(V, (2, B, T), generator=generator).unbind(0)


def loss_of(model, step):
    return loss_on(model, *batch(step))


def loss_on(model, x, y):
    logits = model(x, y)[0] if "targets" in model.forward.__code__.co_varnames else model(x)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten())


def train(model, steps, recorder=None, inside=None, lr=1e-2):
    """A plain loop; the tables of every watched step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    found = []
    for step in range(steps):
        loss = loss_of(model, step)
        if inside:
            inside(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if recorder:
            found.append(recorder.step(loss))
    return found


def hooks(model):
    tensors = [p for p in model.parameters() if p._backward_hooks or p._post_accumulate_grad_hooks]
    return len(tensors) + sum(
        len(each)
        for m in model.modules()
        for each in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    )


def test_a_watched_step_equals_a_pass_hooked_by_hand():
    model, twin = nano(), nano()
    found = train(model, 3, StepRecorder(model, 2))
    assert found[1] is None
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2)
    for step in range(3):
        seen = {}

        def keep(name, module, args, output, seen=seen):
            output.retain_grad()
            seen[name] = output

        handles = [
            twin.get_submodule(name).register_forward_hook(lambda m, a, o, n=name, keep=keep: keep(n, m, a, o))
            for name in ("transformer.h.0", "transformer.h.1", "transformer.h.1.mlp")
        ]
        before = {name: p.detach().clone() for name, p in twin.named_parameters()}
        loss = loss_of(twin, step)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in twin.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        for handle in handles:
            handle.remove()
        if found[step] is None:
            continue
        tables = found[step]
        records = tables.records
        assert (records["step"] == step).all() and (records["run_id"] == f"as-found-step{step}").all()
        assert tables.summary["loss"].item() == pytest.approx(loss.item())
        for name, site in (
            ("transformer.h.0", "resid_post"),
            ("transformer.h.1", "resid_post"),
            ("transformer.h.1.mlp", "mlp_out"),
        ):
            for kind, value in (("activation", seen[name]), ("grad", seen[name].grad)):
                at = (records["module"] == name) & (records["kind"] == kind) & (records["site"] == site)
                assert records[at]["var"].item() == pytest.approx(value.var(correction=0).item(), rel=1e-5)
        for name, p in twin.named_parameters():
            for kind, value in (
                ("weight", before[name]),
                ("weight_grad", gradients[name]),
                ("update", p.detach() - before[name]),
            ):
                row = records[(records["module"] == name) & (records["kind"] == kind)]
                value = value.double()
                assert row["abs_max"].item() == value.abs().max().item(), (name, kind)  # exact: the same subtraction
                assert row["rms"].item() == pytest.approx(value.square().mean().sqrt().item(), rel=1e-5, abs=1e-30)


def test_step_0_equals_a_probe_of_the_same_batch():
    model = nano()
    expected = measure(model, *batch(0), IDENTITY)
    (found,) = train(model, 1, StepRecorder(model, 1))
    keys = ["site", "layer", "kind", "module", "call"]
    merged = expected.records.merge(found.records, on=keys, suffixes=("", "_watched"))
    assert len(merged) == len(expected.records)
    for column in ("mean", "var", "abs_max", "kurtosis"):
        torch.testing.assert_close(
            torch.tensor(merged[column]), torch.tensor(merged[f"{column}_watched"]), equal_nan=True
        )
    assert set(found.records["kind"]) == set(expected.records["kind"]) | {"update"}
    for column in ("n_head", "vocab_size", "logit_std", "own_logit", "token_cosine", "dead_frac", "n_tokens", "mode"):
        assert found.summary[column].item() == pytest.approx(expected.summary[column].item()), column
    assert found.summary["repeat_rate"].isna().all()  # the loop's targets aren't seen
    assert len(found.heads) == len(expected.heads)
    assert (found.coverage["expected"] == found.coverage["fired"]).all()


def test_unwatched_steps_have_nothing_attached():
    model = nano()
    model.transformer.h[0].register_forward_hook(lambda *_: None)  # a hook of the user's
    own = hooks(model)
    counts = []
    recorder = StepRecorder(model, 3)
    train(model, 7, recorder, inside=lambda m: counts.append(hooks(m)))
    parameters = sum(1 for _ in model.parameters())
    watched = own + 2 + parameters  # during backward: two on the model, one on each parameter
    assert counts == [watched, own, own, watched, own, own, watched]
    assert hooks(model) == own


@pytest.mark.parametrize(
    ("make", "autocast"),
    [
        (lambda: nano(dropout=0.2), False),
        (lambda: nano(dropout=0.2), True),
        (foreign, False),
        (foreign, True),
        (lambda: foreign("experts"), False),
    ],
)
def test_training_is_bit_identical_to_training_unwatched(make, autocast):
    def final(watched):
        model = make()
        torch.manual_seed(5)
        recorder = StepRecorder(model, 2) if watched else None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            train(model, 5, recorder)
        return model.state_dict(), torch.get_rng_state()

    (with_, rng), (without, plain_rng) = final(True), final(False)
    assert torch.equal(rng, plain_rng)
    for name, value in without.items():
        assert torch.equal(value, with_[name]), name


def test_a_model_of_another_layout_is_discovered_once_and_recorded():
    model = foreign()
    calls = []
    model.layers[0].register_forward_hook(lambda m, a, o: calls.append(m.training))
    found = train(model, 3, StepRecorder(model, 1))
    assert calls == [True] * 4  # one pass more than the steps, in the mode that the model is in
    assert model.training
    stream = found[2].records.query("site == 'resid_post' and kind == 'grad'")
    assert stream["layer"].tolist() == [0, 1, 2]
    assert (found[2].records["site"] == "logits").sum() == 2  # the model has no lm_head: taken from what it returned


MERGED = ("numel", "mean", "var", "std", "rms", "abs_mean", "abs_max", "kurtosis", "n_tokens", "together")


@pytest.mark.parametrize("made", [nano, foreign])
@pytest.mark.parametrize("preset", ["light", "full"])
def test_micro_batches_are_recorded_as_the_whole_batch(made, preset):
    found = []
    x, y = (torch.cat(parts)[:8] for parts in zip(*(batch(step) for step in range(4)), strict=True))
    for rows in (2, 8):
        model = made().double()
        recorder = StepRecorder(model, 1, preset=preset)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            for at in range(0, 8, rows):
                loss = loss_on(model, x[at : at + rows], y[at : at + rows])
                (loss * rows / 8).backward()
            optimizer.step()
            optimizer.zero_grad()
            tables = recorder.step(loss)
        found.append(tables)
    for tables in found:  # heads are looked at in the first sequences of each batch alone
        tables.records = tables.records[~tables.records["site"].isin(["attn_logits", "attn_pattern"])].reset_index()
    micro, whole = found
    keys = ["kind", "site", "module", "layer", "call"]
    assert micro.records[keys].equals(whole.records[keys])
    assert {"activation", "grad", "weight", "weight_grad", "update"} <= set(micro.records["kind"])
    for name in (each for each in MERGED if each in whole.records):
        one, other = (torch.tensor(tables.records[name].astype(float)) for tables in found)
        size = torch.tensor(whole.records["rms"].to_numpy()) if name == "mean" else other.abs()
        near = (one - other).abs() <= 1e-6 * size + (3e-6 if name == "kurtosis" else 1e-15)
        far = whole.records[~(near | (one.isnan() & other.isnan())).numpy()]
        assert far.empty, (name, far[keys])
    for name in ("n_tokens", "loss", "own_logit", "token_cosine", "embed_together", "dead_frac", "logit_std"):
        one, other = (tables.summary[name].item() for tables in found)
        if name != "loss":  # each loop's own
            assert one == pytest.approx(other, rel=1e-5, nan_ok=True), name
    notes = set(micro.coverage["note"])
    assert "of 4 micro-batches, merged by their sums" in notes
    assert not any("third_of_part" in note for note in notes) and "third_of_part" not in micro.records
    assert (micro.coverage["expected"] == micro.coverage["fired"]).all()


def test_statistics_of_ones_own_cannot_be_merged_and_say_so():
    own = choose({"p99": lambda x: x.abs().float().quantile(0.99)}, "full")
    model = nano()
    recorder = StepRecorder(model, 1, statistics=own)
    for micro in range(2):
        (loss_of(model, micro) / 2).backward()
    tables = recorder.step()
    known = tables.records.set_index("kind")["p99"]
    assert known["weight"].notna().all() and known[["activation", "grad"]].isna().all()
    assert "not merged over the micro-batches, and NaN: p99" in set(tables.coverage["note"])


def test_two_passes_of_one_backward_are_parts_of_one_batch():
    model, twin = nano(), nano()
    recorder = StepRecorder(model, 1)
    (loss_of(model, 0) + loss_of(model, 1)).backward()
    (loss_of(twin, 0) + loss_of(twin, 1)).backward()
    tables = recorder.step()
    expected = {name: p.grad.abs().max().item() for name, p in twin.named_parameters()}
    assert found_gradients(tables) == pytest.approx(expected, rel=1e-6)
    assert tables.summary["n_tokens"].item() == 2 * B * T


def test_gradients_are_divided_by_the_scalers_scale():
    model = nano()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = StepRecorder(model, 1, loss_scale=scaler)
    scaler.scale(loss_of(model, 0)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    records = recorder.step().records.set_index(["module", "kind", "site", "layer"])
    expected = measure(nano(), *batch(0), IDENTITY).records.set_index(["module", "kind", "site", "layer"])
    for kind in ("grad", "weight_grad"):
        own = records[records.index.get_level_values("kind") == kind]
        for column in ("rms", "abs_max"):
            wanted = torch.tensor(expected.loc[own.index, column].to_numpy())
            torch.testing.assert_close(torch.tensor(own[column].to_numpy()), wanted, rtol=1e-4, atol=0)


def test_evaluation_between_steps_is_not_recorded():
    model = nano()
    recorder = StepRecorder(model, 1)
    model.eval()
    with torch.no_grad():
        model(*batch(99))
    model.train()
    (tables,) = train(model, 1, recorder)
    assert tables.summary["mode"].item() == "train"
    assert not tables.records.duplicated(["site", "module", "kind", "call"]).any()
    assert (tables.records["call"] == 0).all()


def checkpointed(model, use_reentrant):
    blocks = list(model.layers)

    def forward(input_ids):
        x = model.embed(input_ids)
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=use_reentrant)
        return model.head(model.norm(x))

    model.forward = forward
    return model


def test_checkpointed_blocks_are_counted_once():
    model = checkpointed(foreign(), use_reentrant=False)
    (found,) = train(model, 1, StepRecorder(model, 1))
    plain = foreign()
    (expected,) = train(plain, 1, StepRecorder(plain, 1))
    assert found.records["var"].tolist() == pytest.approx(expected.records["var"].tolist(), nan_ok=True)


def test_reentrant_checkpoints_have_weights_and_activations():
    model = checkpointed(foreign(), use_reentrant=True)
    (found,) = train(model, 1, StepRecorder(model, 1))
    counts = found.records["kind"].value_counts()
    assert counts["weight_grad"] == counts["weight"] == counts["update"]
    assert not found.records.duplicated(["site", "module", "kind", "call"]).any()


class Counting:
    """A compiler that counts the calls of what it compiled."""

    def __init__(self):
        self.calls = 0
        self.compiled = 0

    def __call__(self, graph, inputs):
        self.compiled += 1

        def run(*args):
            self.calls += 1
            return graph(*args)

        return run


@pytest.mark.parametrize("how", ["wrapped", "in place", "after the watch began"])
def test_a_compiled_model_is_eager_on_watched_steps_alone(how):
    torch._dynamo.reset()
    backend = Counting()
    model = inner = foreign()
    recorder = StepRecorder(model, 2) if how == "after the watch began" else None
    if how == "in place":
        model.compile(backend=backend)
    else:
        model = torch.compile(model, backend=backend)
    recorder = recorder or StepRecorder(model, 2)
    optimizer = torch.optim.AdamW(inner.parameters(), lr=1e-2)
    calls, found = [], []
    for step in range(6):
        x, y = batch(step)
        before = backend.calls
        F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        calls.append(backend.calls - before)
        optimizer.step()
        optimizer.zero_grad()
        found.append(recorder.step())
    assert [bool(count) for count in calls] == [False, True] * 3
    assert backend.compiled == calls[1]  # once: watched steps in between compile nothing anew
    plain = foreign()
    expected = train(plain, 5, StepRecorder(plain, 2))[4].records
    torch.testing.assert_close(torch.tensor(found[4].records["var"]), torch.tensor(expected["var"]), equal_nan=True)
    if how != "after the watch began":
        assert any(note.startswith("compiled: watched steps run eagerly") for note in found[0].coverage["note"])


def test_watches_that_overlap_leave_compilation_as_it_was():
    torch._dynamo.reset()
    backend = Counting()
    model, other = foreign(), foreign()
    compiled = torch.compile(model, backend=backend)
    recorders = [StepRecorder(compiled, 2), StepRecorder(other, 2)]
    compiled(batch(0)[0]).sum().backward()
    other(batch(0)[0]).sum().backward()
    for recorder in recorders:  # not the last one first
        recorder.step()
    compiled(batch(1)[0])
    assert backend.calls > 0


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), AveragedModel])
def test_a_model_may_be_copied_on_a_watched_step(again):
    model = nano()
    recorder = StepRecorder(model, 1)
    before = again(model)
    loss_of(model, 0).backward()
    after = copy.deepcopy(model)
    for twin in (before, after):
        twin(*batch(1))  # isn't what is watched
    tables = recorder.step()
    assert not any("forward passes" in note for note in tables.coverage["note"])


def test_closing_in_the_middle_of_a_watched_step_leaves_nothing():
    model = nano()
    model.compile(backend="eager")
    recorder = StepRecorder(model, 1)
    loss_of(model, 0).backward()
    recorder.close()
    assert hooks(model) == 0 and model._compiled_call_impl is not None


def test_a_forward_that_raises_is_taken_off_and_the_next_one_recorded():
    model = nano()
    recorder = StepRecorder(model, 1)
    with pytest.raises(IndexError):
        model(batch(0)[0] + V)
    assert hooks(model) == 2
    assert hooks(model.transformer) == 0
    (tables,) = train(model, 1, recorder)
    assert not tables.records.duplicated(["site", "module", "kind", "call"]).any()
    assert hooks(model) == 2 + 0  # waiting for step 1
    recorder.close()
    assert hooks(model) == 0


def test_a_failure_in_the_recorder_reaches_step_and_not_the_forward(monkeypatch):
    model = nano()
    recorder = StepRecorder(model, 2)
    monkeypatch.setattr("initlab.measure.watch.steps.of_call", lambda *_: 1 / 0)
    loss_of(model, 0).backward()
    with pytest.raises(ProbeError, match="step 0 could not be recorded: ZeroDivisionError"):
        recorder.step()
    assert hooks(model) == 0 and recorder.done == 1


def test_a_step_without_a_forward_says_what_to_watch():
    recorder = StepRecorder(nano(), 1)
    with pytest.raises(ProbeError, match="wasn't called with gradients enabled; watch the module that the loop"):
        recorder.step()
    recorder.close()


def test_parameters_added_between_steps_are_seen():
    model = foreign()
    recorder = StepRecorder(model, 1)
    train(model, 1, recorder)
    model.layers.append(ZOO["sequential"][0]().body[1])
    (tables,) = train(model, 1, recorder)
    assert tables.summary["n_layer"].item() == 4
    assert tables.records.query("kind == 'update'")["module"].str.startswith("layers.3.").any()


def test_a_parameter_replaced_during_a_step_has_no_update():
    model = foreign()
    recorder = StepRecorder(model, 2)
    loss_of(model, 0).backward()
    model.head = nn.Linear(model.head.in_features, V + 1, bias=False)
    tables = recorder.step()
    assert "head.weight" not in set(tables.records.query("kind == 'update'")["module"])
    rows = tables.coverage.query("kind == 'update' and fired < expected")
    assert rows["note"].tolist() == ["frozen, or replaced during the step"]


def test_frozen_parameters_have_weights_alone():
    model = foreign()
    model.embed.requires_grad_(False)
    (tables,) = train(model, 1, StepRecorder(model, 1))
    assert set(tables.records.query("module == 'embed.weight'")["kind"]) == {"weight"}


def test_sparse_gradients_and_graphs_run_backward_twice():
    model = foreign()
    model.embed = nn.Embedding(V, model.embed.embedding_dim, sparse=True)
    recorder = StepRecorder(model, 1)
    loss = loss_of(model, 0)
    loss.backward(retain_graph=True)
    first = model.layers[0].attn.q_proj.weight.grad.clone()
    loss.backward()
    tables = recorder.step()
    recorder.close()
    assert not tables.records.duplicated(["site", "module", "kind", "call"]).any()
    row = tables.records.query("module == 'layers.0.attn.q_proj.weight' and kind == 'weight_grad'")
    assert row["abs_max"].item() == first.abs().max().item()
    assert tables.records.query("module == 'embed.weight' and kind == 'weight_grad'")["abs_max"].item() > 0


def test_a_step_that_moved_nothing_says_so():
    model = nano()
    (tables,) = train(model, 1, StepRecorder(model, 1), lr=0.0)
    assert any(note.startswith("no weight changed on a watched step") for note in tables.coverage["note"])


def test_start_step_continues_the_count():
    model = nano()
    recorder = StepRecorder(model, 4, start_step=6)
    found = train(model, 3, recorder)
    assert found[:2] == [None, None] and found[2].summary["step"].item() == 8


def test_a_distributed_model_is_watched_inside(tmp_path):
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        inner = nano()
        model = nn.parallel.DistributedDataParallel(inner)
        recorder = StepRecorder(model, 2)
        model(*batch(0))[1].backward()
        torch.optim.SGD(inner.parameters(), lr=0.1).step()
        tables = recorder.step()
        assert any("DistributedDataParallel" in note for note in tables.coverage["note"])
        counts = tables.records["kind"].value_counts()
        assert counts["weight_grad"] == counts["update"] == counts["weight"]
    finally:
        distributed.destroy_process_group()


def test_two_watches_of_a_discovered_model_do_not_see_each_others_pass():
    model = foreign()
    recorders = StepRecorder(model, 1), StepRecorder(model, 2)
    loss_of(model, 0).backward()
    for tables in [recorder.step() for recorder in recorders]:
        assert {"grad", "weight_grad"} <= set(tables.records["kind"])
        assert (tables.coverage["expected"] == tables.coverage["fired"]).all()
        assert not tables.coverage["note"].str.contains("forward passes of a step").any()


def own_gradients(model, step, loss=loss_of):
    """abs_max of every parameter's gradient, by autograd alone."""
    loss(model, step).backward()
    return {name: p.grad.abs().max().item() for name, p in model.named_parameters()}


def found_gradients(tables):
    rows = tables.records.query("kind == 'weight_grad'")
    return dict(zip(rows["module"], rows["abs_max"], strict=True))


@pytest.mark.parametrize("before", ["forward", "backward"])
def test_a_probe_of_a_watched_model_is_not_recorded(before):
    model = nano()
    recorder = StepRecorder(model, 1)
    if before == "forward":
        measure(model, *batch(1), IDENTITY)
    loss = loss_of(model, 0)
    if before == "backward":
        measure(model, *batch(1), IDENTITY)
    loss.backward()
    assert found_gradients(recorder.step()) == own_gradients(nano(), 0)


@pytest.mark.parametrize("through", ["the parameter alone", "the recorded pass", "another model"])
def test_gradients_of_another_backward_pass_are_not_taken(through):
    model = nano()
    recorder = StepRecorder(model, 1)
    loss = loss_of(model, 0)
    weight = model.lm_head.weight
    if through == "the parameter alone":
        torch.autograd.grad(weight.square().sum(), weight)
        weight.square().sum().backward()
    elif through == "the recorded pass":
        torch.autograd.grad(loss * 7, weight, retain_graph=True)
    else:
        weights = dict(model.named_parameters())
        shared = nn.Linear(1, 1).requires_grad_(False)
        shared.weight = weights["transformer.wte.weight"]
        (shared.weight.square().sum() * 7).backward()
    loss.backward()
    tables = recorder.step()
    assert found_gradients(tables) == own_gradients(nano(), 0)
    expected = measure(nano(), *batch(0), IDENTITY).records.query("site == 'logits' and kind == 'grad'")
    found = tables.records.query("site == 'logits' and kind == 'grad'")
    assert found["abs_max"].tolist() == pytest.approx(expected["abs_max"].tolist(), rel=1e-6)


def test_a_pass_of_which_no_loss_is_taken_gives_way_to_the_next():
    model = nano()
    recorder = StepRecorder(model, 1)
    model.eval()
    model(batch(1)[0])  # with gradients enabled
    model.train()
    loss_of(model, 0).backward()
    tables = recorder.step()
    assert tables.summary["mode"].item() == "train"
    assert found_gradients(tables) == own_gradients(nano(), 0)
    assert not tables.coverage["note"].str.contains("forward passes of a step").any()


def test_a_pass_that_is_kept_without_a_loss_is_left_out_and_that_is_said():
    model = nano()
    recorder = StepRecorder(model, 1)
    kept = model(batch(1)[0])
    loss_of(model, 0).backward()
    tables = recorder.step()
    assert kept is not None
    assert found_gradients(tables) == own_gradients(nano(), 0)
    assert tables.summary["n_tokens"].item() == B * T
    assert tables.coverage["note"].str.startswith("1 of 2 forward passes of a step was recorded: no backward").any()


def test_gradients_of_other_passes_alone_are_none_and_that_is_said():
    model = nano()
    recorder = StepRecorder(model, 1)
    kept = model(batch(1)[0])
    model.lm_head.weight.square().sum().backward()
    tables = recorder.step()
    assert kept is not None
    assert set(tables.records["kind"]) == {"activation", "weight", "update"}
    assert tables.coverage["note"].str.startswith("no gradients: no backward pass of this step went through").any()


def test_an_interrupted_forward_gives_way_to_the_next():
    model = nano()
    recorder = StepRecorder(model, 1)

    def interrupt(module, args):
        raise KeyboardInterrupt

    handle = model.transformer.h[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loss_of(model, 1)
    handle.remove()
    loss_of(model, 0).backward()
    tables = recorder.step()
    assert (tables.coverage["expected"] == tables.coverage["fired"]).all()
    assert found_gradients(tables) == own_gradients(nano(), 0)
    assert tables.records.query("kind == 'activation'")["call"].max() == 0


def test_a_model_is_looked_at_once(monkeypatch):
    calls = []
    monkeypatch.setattr("initlab.measure.watch.steps.of", lambda m, *rest: (calls.append(m), of(m, *rest))[1])
    model = nano()
    train(model, 3, StepRecorder(model, 1))
    assert len(calls) == 1
