"""Policies beside the trained one: exact at the start, where they should be afterwards, and never trained."""

from dataclasses import replace

import pytest
import torch
from support.training import batch, identity

from diffdpo.errors import ConfigError
from diffdpo.models import MODELS
from diffdpo.models.diffrhythm.adapter import axis_direction
from diffdpo.objectives.dpo import DPO
from diffdpo.objectives.nft import NFT
from diffdpo.training.audit import audit_parameters
from diffdpo.training.config import LoraConfig, ReferenceConfig, TrainConfig
from diffdpo.training.references import AdapterOff, ErrorCache, FrozenCopy, MovingCopy
from diffdpo.training.setup import add_lora, build_optimizer, trainable
from diffdpo.training.step import noise_keys, outputs, sample_noise

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CFG = TrainConfig(dropout={"style": 0.5})


@pytest.fixture
def model(bundle):
    loaded = MODELS["tiny"](bundle=str(bundle)).load()
    add_lora(loaded.network, LoraConfig(rank=2), loaded.lora_targets, seed=0)
    return loaded


def move(network, by=0.05):
    """Stands for optimiser steps: every trained weight goes somewhere else."""
    with torch.no_grad():
        for parameter in trainable(network):
            parameter.add_(by)


def errors(model, reference, objective=None, data=None, **more):
    data = data or batch()
    objective = objective or DPO()
    return outputs(model, model.network, reference, data, objective, sample_noise(data, CFG, 0), **more)


def test_one_that_follows_begins_exactly_at_the_policy(model):
    move(model.network)
    seen = errors(model, MovingCopy.start(model.network, CPU, identity))
    assert torch.equal(seen.policy, seen.reference)


def test_a_moving_average_is_the_closed_form(model):
    auxiliary = MovingCopy.start(model.network, CPU, identity, decay=0.9)
    name, parameter = next((n, p) for n, p in model.network.named_parameters() if p.requires_grad)
    start = parameter.detach().clone()
    for step in (1, 2, 3):
        move(model.network, by=1.0)
        auxiliary.follow(model.network, step)
    # start + sum over steps s of (1 - 0.9) 0.9^(3 - s) s
    expected = start + 0.1 * (0.81 * 1 + 0.9 * 2 + 3)
    assert torch.allclose(auxiliary.weights[name], expected, atol=1e-6)


def test_a_ramp_begins_at_the_policy_and_ends_at_the_decay(model):
    auxiliary = MovingCopy.start(model.network, CPU, identity, decay=0.5, ramp=0.1)
    name, parameter = next((n, p) for n, p in model.network.named_parameters() if p.requires_grad)
    for step, keep in ((1, 0.1), (2, 0.2), (40, 0.5)):
        before = auxiliary.weights[name].clone()
        move(model.network, by=1.0)
        auxiliary.follow(model.network, step)
        assert torch.allclose(auxiliary.weights[name], keep * before + (1 - keep) * parameter, atol=1e-5)


def test_a_synced_reference_is_the_policy_of_the_last_multiple(model):
    auxiliary = MovingCopy.start(model.network, CPU, identity, every=2)
    start = errors(model, AdapterOff(identity)).reference
    move(model.network)
    auxiliary.follow(model.network, 1)
    assert torch.equal(errors(model, auxiliary).reference, start)
    move(model.network)
    auxiliary.follow(model.network, 2)
    seen = errors(model, auxiliary)
    assert torch.equal(seen.reference, seen.policy)
    assert not torch.equal(seen.reference, start)


def test_what_follows_gets_no_gradient_and_leaves_the_policy_alone(model):
    auxiliary = MovingCopy.start(model.network, CPU, identity)
    move(model.network)
    seen = errors(model, auxiliary, DPO(beta=100.0))
    DPO(beta=100.0)(seen).loss.sum().backward()
    assert all(not w.requires_grad for w in auxiliary.weights.values())
    alone = errors(model, auxiliary, DPO(beta=100.0))
    assert torch.equal(alone.policy, seen.policy)


def test_what_follows_is_saved_and_restored(model):
    one = MovingCopy.start(model.network, CPU, identity, decay=0.5)
    two = MovingCopy.start(model.network, CPU, identity, decay=0.5)
    move(model.network)
    one.follow(model.network, 1)
    two.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    assert torch.equal(errors(model, one).reference, errors(model, two).reference)


def test_a_frozen_copy_in_half_precision_is_near_and_waits_on_the_cpu(model):
    exact, half = (FrozenCopy.take(model.network, CPU, dtype, True) for dtype in (None, torch.bfloat16))
    one, two = errors(model, exact).reference, errors(model, half).reference
    assert two.dtype == torch.float32
    assert 0 < (one / two - 1).abs().max() < 0.02
    assert next(half.network.parameters()).device == CPU


CALLS = len(batch().frames.unique())
"""Calls of a network for a batch: songs of one length share one."""


def test_an_old_policy_that_is_the_reference_runs_once(model):
    calls = []
    handle = model.network.register_forward_hook(lambda *_: calls.append(1))
    reference = AdapterOff(identity)
    data = replace(batch(), score=torch.tensor([[1.0, -1.0]] * 4))
    shared = errors(model, reference, NFT(), data, old=reference)
    assert len(calls) == 2 * CALLS
    apart = errors(model, reference, NFT(), data, old=AdapterOff(identity))
    assert len(calls) == 5 * CALLS
    handle.remove()
    assert torch.equal(shared.velocities.old, apart.velocities.old)
    assert NFT()(shared).loss.isfinite().all()


def test_cached_errors_equal_live_ones_and_save_the_forward(model):
    cfg = TrainConfig(reference=ReferenceConfig(cached_draws=3), dropout={"style": 0.5})
    cache, reference = ErrorCache(3, {}), AdapterOff(identity)
    first = replace(batch(), ids=("a", "b", "c", "d"), visits=(0, 1, 2, 3))
    keys = noise_keys(first, cfg)
    assert keys == ("a|0", "b|1", "c|2", "d|0")
    live = outputs(model, model.network, reference, first, DPO(), sample_noise(first, cfg, 0))
    cache.store(keys, live.reference)
    move(model.network)
    again = replace(first, visits=(3, 4, 5, 6), positions=(7, 8, 9, 10))
    cached = cache.lookup(noise_keys(again, cfg), CPU)
    calls = []
    handle = model.network.register_forward_hook(lambda *_: calls.append(1))
    remembered = outputs(
        model, model.network, reference, again, DPO(), sample_noise(again, cfg, 0), cached=cached
    )
    handle.remove()
    assert len(calls) == CALLS
    fresh = outputs(model, model.network, reference, again, DPO(), sample_noise(again, cfg, 0))
    assert torch.equal(remembered.reference, fresh.reference)
    assert torch.equal(remembered.policy, fresh.policy)
    assert cache.lookup(("a|0", "a|1"), CPU) is None


def test_the_reference_has_conditions_of_its_own(model):
    """Such as those without the axis that a pair was chosen on; shared ones are encoded once."""
    plain = batch()
    direction = axis_direction("harmony.key", 16)
    rows = tuple(
        tuple(
            replace(row, embedding=row.embedding | {"style": row.embedding["style"] + direction})
            for row in example
        )
        for example in plain.rows
    )
    named = replace(plain, rows=rows, reference_rows=plain.rows)
    shared, apart = (errors(model, AdapterOff(identity), data=data) for data in (plain, named))
    assert torch.equal(shared.reference, apart.reference)
    dropped = sample_noise(plain, CFG, 0).drop_masks["style"]
    assert not dropped.all()
    assert torch.equal(torch.isclose(shared.policy, apart.policy).all(1), dropped)
    everywhere = errors(model, AdapterOff(identity), data=replace(plain, rows=rows))
    assert torch.equal(everywhere.policy, apart.policy)
    assert torch.equal(torch.isclose(everywhere.reference, apart.reference).all(1), dropped)


def test_the_audit_counts_what_is_trained(model):
    optimizer = build_optimizer(model.network, TrainConfig(), CPU)
    auxiliaries = {"reference": MovingCopy.start(model.network, CPU, identity), "old": None}
    count = audit_parameters(model.network, optimizer, auxiliaries, lora=True)
    assert count == sum(p.numel() for p in trainable(model.network))


def test_the_audit_finds_what_must_not_train(model):
    network = model.network
    optimizer = build_optimizer(network, TrainConfig(), CPU)

    shared = FrozenCopy(network, CPU)
    with pytest.raises(ConfigError, match=r"train\.reference: .* requires a gradient"):
        audit_parameters(network, optimizer, {"reference": shared}, lora=True)

    tied = FrozenCopy.take(network, CPU)
    name, parameter = next((n, p) for n, p in network.named_parameters() if p.requires_grad)
    dict(tied.network.named_parameters())[name].data = parameter.data
    with pytest.raises(ConfigError, match="the policy's own"):
        audit_parameters(network, optimizer, {"reference": tied}, lora=True)

    network.proj_out.requires_grad_(True)
    with pytest.raises(ConfigError, match="not given to the optimiser"):
        audit_parameters(network, optimizer, {}, lora=True)
    with pytest.raises(ConfigError, match=r"proj_out.* would be trained"):
        audit_parameters(network, build_optimizer(network, TrainConfig(), CPU), {}, lora=True)


def test_the_audit_finds_the_wrong_adapter(model):
    network = model.network
    network.set_adapter("default")
    add = next(iter(network.peft_config.values()))
    network.add_adapter(add, adapter_name="other")  # switches the new one on, the first stays trainable too
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".default." in name)
    with pytest.raises(ConfigError, match=r"\.default.* would be trained, but the active adapter"):
        audit_parameters(network, build_optimizer(network, TrainConfig(), CPU), {}, lora=True)


def test_the_reference_does_not_move_while_the_policy_trains_with_checkpointing(bundle):
    """A hundred steps: adapters off stays the frozen copy, bit for bit, conditioners included."""
    model = MODELS["tiny"](bundle=str(bundle)).load()
    frozen = FrozenCopy.take(model.network, CPU)
    add_lora(model.network, LoraConfig(rank=2), model.lora_targets, seed=0)
    model.network.enable_gradient_checkpointing()
    model.network.train()
    optimizer, objective = (
        build_optimizer(model.network, TrainConfig(learning_rate=1e-2), CPU),
        DPO(beta=50.0),
    )
    data = batch(lengths=((8, 6), (6, 8)))
    start = errors(model, frozen, data=data).reference
    for _ in range(100):
        objective(errors(model, AdapterOff(identity), objective, data)).loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    off, copy = (errors(model, reference, data=data) for reference in (AdapterOff(identity), frozen))
    assert torch.equal(off.reference, start)
    assert torch.equal(copy.reference, start)
    assert not torch.allclose(off.policy, start, rtol=1e-2)
