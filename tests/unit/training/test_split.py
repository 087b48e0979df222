"""Split backward: songs go through backward one at a time, and the gradient is that of the stacked pass."""

from dataclasses import fields, replace

import pytest
import torch
from support.objectives import MEMBERS, TERMS, with_terms
from support.training import batch, identity

from diffdpo.models import MODELS
from diffdpo.objectives import OBJECTIVES
from diffdpo.training.config import LoraConfig, TrainConfig
from diffdpo.training.references import AdapterOff, FrozenCopy, MovingCopy
from diffdpo.training.setup import add_lora, trainable
from diffdpo.training.split import Standards, split_backward
from diffdpo.training.step import outputs, sample_noise
from diffdpo.training.strategy import build_accelerator

pytestmark = pytest.mark.slow

CFG = TrainConfig(dropout={"style": 0.5}, trackers=[])
LENGTHS = ((30, 24, 17, 21), (18, 18, 18, 12), (30, 30, 22, 9), (12, 20, 16, 16))
STATE = {"steps": 9, "margin_size": 0.05}
BETA = {"dpo": 20.0, "kto": 20.0}
"""Of objectives whose default turns the rounding of a forward pass, 1e-7 of an error, into 1e-4 of a logit."""
CASES = [(name, terms) for name in OBJECTIVES for terms in ((), (None,))]
CASES += [
    (name, (term,))
    for name in OBJECTIVES
    for term in TERMS
    if term in {f.name for f in fields(OBJECTIVES[name])}
]


@pytest.fixture(scope="module")
def accelerator(tmp_path_factory):
    return build_accelerator(CFG, str(tmp_path_factory.mktemp("accelerator")))


def leave_reference(network, std=0.05):
    """Weights at which the margins are no longer zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable(network):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=std)


@pytest.fixture(scope="module")
def lora(bundle):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    add_lora(model.network, LoraConfig(rank=4), model.lora_targets, seed=0)
    leave_reference(model.network)
    return model


def songs(objective):
    data = batch(MEMBERS[objective.batch_kind], LENGTHS)
    generator = torch.Generator().manual_seed(2)
    frame = torch.arange(data.latents.shape[2])
    start = torch.randint(0, 8, (4, 1), generator=generator)
    changes = {"score": torch.randn(data.frames.shape, generator=generator)}
    if objective.batch_kind == "pair":
        changes |= {
            "soft_label": torch.rand(4, generator=generator),
            "span": (frame >= start) & (frame < start + 6),
            "weight": torch.tensor([1.0, 0.5, 2.0, 1.0]),
        }
    if objective.batch_kind == "contrast":
        changes |= {
            "plus_rows": data.rows[1:] + data.rows[:1],
            "minus_rows": data.rows[2:] + data.rows[:2],
            "scale": torch.tensor([1.0, -1.0, 0.5, 2.0]),
        }
    return replace(data, **changes)


def gradients(network):
    values = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return values


def both(accelerator, model, reference, objective, data, old=None, cached=None):
    """Loss and gradients by both ways."""
    noise, network = sample_noise(data, CFG, seed=3), model.network
    values = outputs(model, network, reference, data, objective, noise, old=old, cached=cached)
    expected = objective(replace(values, state=STATE))
    (expected.loss * data.weight).mean().backward()
    stacked = gradients(network)
    _, result = split_backward(
        accelerator, model, network, data, objective, noise,
        standards=Standards(reference=reference, old=old, cached=cached), objective_state=STATE,
    )  # fmt: skip
    return (expected, stacked), (result, gradients(network))


def assert_same(stacked, split, rel=1e-5):
    (expected, stacked), (result, split) = stacked, split
    assert torch.allclose(result.loss, expected.loss, rtol=1e-5, atol=1e-6)
    assert result.metrics.keys() == expected.metrics.keys()
    assert stacked.keys() == split.keys()
    norm = torch.stack([g.norm() for g in stacked.values()]).norm()
    assert norm > 0
    difference = torch.stack([(stacked[name] - split[name]).norm() for name in stacked]).norm()
    assert difference <= rel * norm


@pytest.mark.parametrize(("name", "terms"), CASES, ids=str)
def test_the_gradient_is_that_of_the_stacked_pass(accelerator, lora, name, terms):
    """Every objective: plain, with every term it composes, and with each of them alone."""
    beta = {"beta": BETA[name]} if name in BETA else {}
    objective = OBJECTIVES[name](**beta) if not terms else with_terms(name, *(t for t in terms if t), **beta)
    old = MovingCopy.start(lora.network, torch.device("cpu"), identity)
    for weight in old.weights.values():
        weight.mul_(0.7)
    assert_same(*both(accelerator, lora, AdapterOff(identity), objective, songs(objective), old))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_holds_for_a_whole_network_and_under_checkpointing(accelerator, bundle, checkpointing):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    model.network.requires_grad_(True).train()
    reference = FrozenCopy.take(model.network, torch.device("cpu"))
    leave_reference(model.network, std=0.01)
    if checkpointing:
        model.network.enable_gradient_checkpointing()
    objective = OBJECTIVES["dpo"](beta=20.0)
    assert_same(*both(accelerator, model, reference, objective, songs(objective)))


def test_errors_of_the_reference_may_be_cached(accelerator, lora):
    objective, cached = OBJECTIVES["dpo"](beta=20.0), 1.0 + torch.rand(4, 2)
    data = songs(objective)
    assert_same(*both(accelerator, lora, None, objective, data, cached=cached))


def test_the_policy_sees_one_song_at_a_time(accelerator, lora):
    """With gradient and without; the longest once less."""
    objective, sizes = OBJECTIVES["dpo"](), []
    hook = lora.network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    data = songs(objective)
    split_backward(
        accelerator, lora, lora.network, data, objective, sample_noise(data, CFG, seed=3),
        standards=Standards(reference=AdapterOff(identity)),
    )  # fmt: skip
    hook.remove()
    lora.network.zero_grad()
    assert sizes == [1] * (3 * 8 - 1)
