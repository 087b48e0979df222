"""Activation checkpointing: gradients are those without, and activations that are not kept are gone."""

import pytest
import torch
from support.rows import embedding

from diffdpo.models import MODELS
from diffdpo.training.checkpointing import CheckpointingConfig, enable_checkpointing, is_kept
from diffdpo.training.config import TrainConfig, checkpointing_of
from diffdpo.training.live_bytes import LiveBytes
from diffdpo.types import Row

MODES = {
    "full": CheckpointingConfig(),
    "selective": CheckpointingConfig("selective"),
    "half": CheckpointingConfig(every=2),
}


def step(model, cfg):
    """The gradients of a step, and the live bytes that the forward pass leaves behind."""
    network = model.network.train().requires_grad_(True)
    network.disable_gradient_checkpointing()
    enable_checkpointing(network, cfg)
    generator, frames = torch.Generator().manual_seed(0), 96
    x = torch.randn(1, frames, model.spec.channels, generator=generator)
    row = Row(embedding=embedding(torch.randn(16, generator=generator)), frames=frames)
    count = LiveBytes()
    with count:
        v = model.velocity(
            network, x, torch.tensor([0.4]), model.condition([row], frames), torch.tensor([frames])
        )
        loss, kept = v.square().mean(), count.total
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return gradients, kept


@pytest.fixture(scope="module")
def model(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


@pytest.fixture(scope="module")
def plain(model):
    return step(model, None)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_the_same_and_less_is_kept(model, plain, mode):
    gradients, kept = step(model, MODES[mode])
    expected, kept_without = plain
    assert gradients.keys() == expected.keys()
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    assert norm > 0
    assert torch.stack([(gradients[n] - expected[n]).norm() for n in expected]).norm() <= 1e-6 * norm
    assert kept < 0.9 * kept_without


def test_what_is_kept_lies_between_all_and_nothing(model, plain):
    _, full = step(model, MODES["full"])
    for mode in ("selective", "half"):
        _, kept = step(model, MODES[mode])
        assert full < kept < plain[1]


def test_products_and_attention_are_kept_and_the_rest_is_not():
    aten = torch.ops.aten
    attention = aten._scaled_dot_product_flash_attention_for_cpu.default
    for operation in (aten.mm.default, aten.addmm.default, aten.convolution.default, attention):
        assert is_kept(operation)
    for operation in (aten.mul.Tensor, aten.silu.default, aten.native_layer_norm.default, torch.mul):
        assert not is_kept(operation)


def test_the_short_spelling_is_the_long_one_and_both_are_refused():
    assert checkpointing_of(TrainConfig()) is None
    assert checkpointing_of(TrainConfig(gradient_checkpointing=True)) == CheckpointingConfig()
    cfg = CheckpointingConfig("selective", 3)
    assert checkpointing_of(TrainConfig(checkpointing=cfg)) == cfg
    with pytest.raises(ValueError, match="set one of them"):
        TrainConfig(gradient_checkpointing=True, checkpointing=cfg)
