"""The estimate of a step's memory, held to closed forms and to the live bytes of the same step."""

from dataclasses import replace

import pytest
import torch
from support.launch import verb
from torch import nn

from diffdpo.models import MODELS
from diffdpo.objectives import OBJECTIVES
from diffdpo.training.config import LoraConfig, ReferenceConfig, TrainConfig
from diffdpo.training.estimate import Deployment, MemoryEstimate, estimate_memory, shard_memory
from diffdpo.training.live_bytes import LiveBytes, count_gradients, tensor_bytes
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow

FRAMES = 128
CFG = TrainConfig(global_batch=1, per_device=1, trackers=[])


def test_live_bytes_of_a_chain_of_layers_are_counted_by_hand():
    """Four layers of 100 x 100 on 1,000 rows in fp32: weights, input and five results live before backward."""
    layers = nn.Sequential(*(nn.Linear(100, 100, bias=False) for _ in range(4)))
    count = LiveBytes()
    count.add(list(layers.parameters()), "weights")
    count_gradients(count, layers.parameters())
    with count:
        x = torch.randn(1000, 100)
        loss = layers(x).square().sum()
    assert count.total == 160_000 + 400_000 * 5 + 4  # the square itself is freed, its input is kept
    assert count.peak == 160_000 + 400_000 * 6 + 4
    with count:
        loss.backward()
    assert count.totals["gradients"] == 160_000
    del x, loss
    layers.zero_grad()
    assert count.total == 160_000


def test_views_and_changes_in_place_are_no_new_bytes():
    count = LiveBytes()
    with count:
        x = torch.zeros(100)
        y = x[:50].view(5, 10)
        y += 1
        x.mul_(2)
    assert count.total == count.peak == 400
    assert tensor_bytes([x, y]) == 400


@pytest.fixture(scope="module")
def model(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


def estimate(model, cfg=CFG, name="dpo", deployment=None, frames=64):
    embedding = model.embed(Prompt(id="p", text="a song", lyrics=""))
    return estimate_memory(model, embedding, OBJECTIVES[name](), cfg, frames, deployment)


def parameter_bytes(model):
    return sum(4 * p.numel() for p in model.network.parameters())


def test_weights_gradients_optimizer_and_reference_are_what_they_must_be(model):
    size, full = parameter_bytes(model), estimate(model)
    assert full.weights == pytest.approx(size, rel=0.01)  # and buffers
    assert (full.gradients, full.optimizer) == (size, 2 * size)
    assert full.reference == full.weights
    assert full.peak >= full.weights + full.optimizer + full.reference
    lora = estimate(model, replace(CFG, lora=LoraConfig(rank=4)))
    assert lora.reference == 0
    assert lora.optimizer == 2 * lora.gradients < size / 2


def test_half_a_reference_is_half(model):
    half = estimate(model, replace(CFG, reference=ReferenceConfig("frozen_copy", dtype="bf16")))
    assert half.reference == pytest.approx(estimate(model).reference / 2, rel=0.01)


@pytest.mark.parametrize("name", ["dpo", "kto", "nft"])
def test_pairs_and_groups_need_less_when_they_are_split(model, name):
    stacked, split = (
        estimate(model, replace(CFG, split_backward=value, lora=LoraConfig(rank=4)), name, frames=256)
        for value in (False, True)
    )
    assert split.weights == stacked.weights
    factor = {"pair": 0.7, "group": 0.5}.get(OBJECTIVES[name].batch_kind, 1.2)
    assert split.activations < factor * stacked.activations


def test_a_split_pair_is_as_small_as_what_must_be_held_allows(model):
    """W bytes of weights, A of a song's activations. Adapters: (W + A) / (W + 2 A), at most 0.6 from A = 2 W. In so
    narrow a network the velocities, which the loss is differentiated by beside A, are 4 to 5 % more.

    Whole networks hold two moments and a reference of W each as well, and the first song's gradients during the
    second's backward: (5 W + A) / (4 W + 2 A), 0.8 at A = 3 W. What is small beside both lets it be a little less.
    """
    size = parameter_bytes(model)
    for lora, held, added in ((LoraConfig(rank=4), 1, 0), (None, 4, 1)):
        stacked, split = (
            estimate(model, replace(CFG, lora=lora, split_backward=value), frames=FRAMES)
            for value in (False, True)
        )
        song = stacked.activations / 2
        assert split.activations >= 3 * size
        expected = ((held + added) * size + song) / (held * size + 2 * song)
        assert expected - 0.04 < split.peak / stacked.peak < expected + 0.05
        if lora is not None:
            assert split.peak <= 0.63 * stacked.peak


def test_checkpointing_needs_less_and_longer_songs_need_more(model):
    plain = estimate(model, frames=256).activations
    assert estimate(model, replace(CFG, gradient_checkpointing=True), frames=256).activations < 0.9 * plain
    assert estimate(model, frames=512).activations > 1.8 * plain


def test_nothing_of_the_model_is_touched(model):
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    estimate(model, replace(CFG, lora=LoraConfig(rank=4)))
    after = model.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


WHOLE = MemoryEstimate(weights=100, gradients=100, optimizer=200, reference=100, activations=50, peak=500)


@pytest.mark.parametrize(
    ("deployment", "expected"),
    [
        (Deployment(1), (100, 100, 200, 500)),
        (Deployment(4), (100, 200, 200, 600)),  # buckets of DDP
        (Deployment(4, 1), (100, 100, 75, 375)),  # the state and DeepSpeed's copy of the weights, by four
        (Deployment(4, 2), (100, 25, 75, 300)),
        (Deployment(4, 3), (35, 25, 75, 235)),  # and a block of ten bytes gathered
        (Deployment(4, 2, offload=True), (100, 25, 0, 225)),  # the state is on the CPU
        (Deployment(4, 3, offload=True), (10, 25, 0, 135)),  # and the weights, but for a block
        (
            Deployment(4, fsdp2=True),
            (45, 35, 50, 165),
        ),  # no second copy; two blocks, and the gradients of one
        (Deployment(4, fsdp2=True, offload=True), (20, 35, 0, 65)),
    ],
)
def test_zero_shards_what_it_says(deployment, expected):
    sharded = shard_memory(WHOLE, deployment, largest_block=10)
    assert (sharded.weights, sharded.gradients, sharded.optimizer, sharded.peak) == expected


def test_the_command_answers_for_the_shipped_model(bundle):
    out = verb("estimate", "tiny/dpo", f"model.args.bundle={bundle}", "data.pairs=none", "--seconds", "3")
    assert out.splitlines()[-1].startswith("peak")
