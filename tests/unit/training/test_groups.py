"""Rated songs and groups in a training step: objectives see the members, never the batch they came in."""

from dataclasses import replace

import pytest
import torch
from support.training import batch, identity, select_examples

from diffdpo.models import MODELS
from diffdpo.objectives import OBJECTIVES
from diffdpo.training.config import LoraConfig, TrainConfig
from diffdpo.training.references import AdapterOff, MovingCopy
from diffdpo.training.setup import add_lora
from diffdpo.training.step import outputs, sample_noise

pytestmark = pytest.mark.slow

LENGTHS = ((30, 24, 17), (18, 18, 18), (30, 30, 22), (12, 20, 16))
KINDS = {name: objective.batch_kind for name, objective in OBJECTIVES.items()}
GROUPS = sorted(name for name, kind in KINDS.items() if kind == "group")
SCORED = sorted(name for name, kind in KINDS.items() if kind in ("group", "rated"))


@pytest.fixture(scope="module")
def model(bundle):
    """A policy that has left its reference."""
    model = MODELS["tiny"](bundle=str(bundle)).load()
    add_lora(model.network, LoraConfig(rank=4), model.lora_targets, seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model


@pytest.fixture(scope="module")
def old(model):
    """Half way between the two."""
    policy = MovingCopy.start(model.network, torch.device("cpu"), identity)
    for weight in policy.weights.values():
        weight.mul_(0.7)
    return policy


def scored(members):
    data = batch(members, LENGTHS)
    score = torch.randn(len(LENGTHS), members, generator=torch.Generator().manual_seed(2))
    return replace(data, score=score)


def losses(model, old, name, data):
    objective = OBJECTIVES[name]()
    random = sample_noise(data, TrainConfig(dropout={"style": 0.5}), seed=3)
    with torch.no_grad():
        seen = outputs(model, model.network, AdapterOff(identity), data, objective, random, old=old)
    return objective(seen)


def test_there_are_objectives_of_both_kinds():
    assert {"awm", "dgpo", "nft", "reward_weighted"} <= set(GROUPS)
    assert "kto" in SCORED


@pytest.mark.parametrize("name", SCORED)
def test_an_example_has_the_loss_it_has_alone(model, old, name):
    columns = [0, 1, 2] if name in GROUPS else [0]
    data = scored(3)
    together = losses(model, old, name, select_examples(data, [0, 1, 2, 3], columns)).loss
    apart = [
        losses(model, old, name, select_examples(data, rows, columns)).loss for rows in ([0], [1, 2], [3])
    ]
    assert together.shape == (4,)
    assert torch.allclose(together, torch.cat(apart), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", GROUPS)
def test_the_order_of_a_groups_members_does_not_matter(model, old, name):
    data = scored(3)
    first, turned = (
        losses(model, old, name, select_examples(data, [0, 1, 2, 3], c)) for c in ([0, 1, 2], [2, 0, 1])
    )
    assert torch.allclose(first.loss, turned.loss, rtol=1e-4, atol=1e-6)
    for key, value in first.metrics.items():
        assert torch.allclose(value, turned.metrics[key], rtol=1e-4, atol=1e-6), key


@pytest.mark.parametrize("name", SCORED)
def test_what_lies_behind_a_songs_end_does_not_matter(model, old, name):
    data = select_examples(scored(3), [0, 1, 2, 3], [0, 1, 2] if name in GROUPS else [0])
    dirty = data.latents.clone()
    for example, row in enumerate(data.frames.tolist()):
        for member, end in enumerate(row):
            dirty[example, member, end:] = 1e6
    assert not torch.equal(dirty, data.latents)
    clean = losses(model, old, name, data).loss
    assert torch.allclose(clean, losses(model, old, name, replace(data, latents=dirty)).loss, rtol=1e-4)


LEARNERS: dict[str, dict[str, float]] = {
    "kto": {"beta": 20.0},
    "dgpo": {"beta": 20.0},
    "nft": {"advantage_clip": 2.0},
    "awm": {"clip": 0.2},
}
"""Not reward_weighted: it imitates all songs, and which of them is learnt fastest is not the score's doing."""


@pytest.mark.parametrize("name", LEARNERS)
def test_training_makes_good_songs_likelier_than_bad_ones(bundle, name):
    """A few steps on a handful of songs: the better a song, the more its error fell below the reference's."""
    learner = MODELS["tiny"](bundle=str(bundle)).load()
    add_lora(learner.network, LoraConfig(rank=8), learner.lora_targets, seed=0)
    objective = OBJECTIVES[name](**LEARNERS[name])
    data = select_examples(scored(3), [0, 1, 2, 3], [0, 1, 2] if name in GROUPS else [0])
    optimizer = torch.optim.Adam([p for p in learner.network.parameters() if p.requires_grad], lr=3e-3)
    reference = AdapterOff(identity)

    def see(step, about):
        here = replace(data, positions=tuple(position + 10 * step for position in data.positions))
        random = sample_noise(here, TrainConfig(), seed=3)
        return outputs(learner, learner.network, reference, here, about, random, old=reference)

    for step in range(20):
        objective(see(step, objective)).loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        seen = [see(step, OBJECTIVES["dgpo"]()) for step in range(100, 108)]
    gain = torch.stack([outputs.reference - outputs.policy for outputs in seen]).mean(0)
    score = data.score if name in GROUPS else data.score.sign()
    centred = [values - values.mean(1 if name in GROUPS else 0, keepdim=True) for values in (gain, score)]
    correlation = torch.nn.functional.cosine_similarity(*(values.flatten() for values in centred), dim=0)
    assert float(correlation) > 0.5
