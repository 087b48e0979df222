"""Sampling: noise belongs to the sample, lengths to the song."""

import pytest
import torch

from diffdpo.errors import DataError
from diffdpo.models import MODELS
from diffdpo.sampling import Request, SamplingConfig, batches_of, embed_all, sample
from diffdpo.types import Prompt


@pytest.fixture
def model(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


def requests(model, *durations):
    prompts = [
        Prompt(id=f"p{i}", text="rock", negative_text="ambient", duration_s=d)
        for i, d in enumerate(durations)
    ]
    embedded = embed_all(model, prompts)
    return [Request(f"{prompt.id}.000", embedded[prompt.id]) for prompt in prompts]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_song_does_not_depend_on_its_batch(model, guidance):
    cfg, wanted = SamplingConfig(steps=4, guidance=guidance), requests(model, 1.0, 2.0, 0.6)
    together = sample(model, wanted, cfg, seed=5)
    alone = [sample(model, [request], cfg, seed=5)[0] for request in wanted]
    assert [len(song) for song in together] == [21, 43, 12]
    for one, two in zip(together, alone, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_seed_and_sample_id_decide_the_song(model):
    cfg, (request,) = SamplingConfig(steps=2), requests(model, 1.0)
    song = sample(model, [request], cfg, seed=0)[0]
    assert torch.equal(song, sample(model, [request], cfg, seed=0)[0])
    assert not torch.equal(song, sample(model, [request], cfg, seed=1)[0])
    other = Request("p0.001", request.prompt)
    assert not torch.equal(song, sample(model, [other], cfg, seed=0)[0])


def test_guidance_is_linear_between_its_branches(model):
    (request,) = requests(model, 1.0)
    ends = {
        g: sample(model, [request], SamplingConfig(steps=1, guidance=g), seed=0)[0] for g in (0.0, 1.0, 3.0)
    }
    assert torch.allclose(ends[3.0], ends[0.0] + 3 * (ends[1.0] - ends[0.0]), atol=1e-5)
    assert not torch.allclose(ends[0.0], ends[1.0])


def test_one_step_follows_the_network_by_hand(model):
    (request,) = requests(model, 1.0)
    from diffdpo.randomness import draw_noise

    noise = draw_noise(0, ["p0.000"], 21, 8)
    with torch.no_grad():
        condition = model.condition([request.prompt], 21)
        v = model.velocity(model.network, noise, torch.ones(1), condition, torch.tensor([21]))
    song = sample(model, [request], SamplingConfig(steps=1, guidance=1.0), seed=0)[0]
    assert torch.allclose(song, (noise - v)[0], atol=1e-6)


def test_a_song_longer_than_the_model_is_refused(model):
    with pytest.raises(DataError, match="'p0': 60 s is longer than this model's 24 s"):
        sample(model, requests(model, 60.0), SamplingConfig(), seed=0)


def test_batches_hold_songs_of_similar_length(model):
    grouped = batches_of(requests(model, 3.0, 1.0, 3.0, 1.0), 2)
    assert [[r.prompt.duration_s for r in group] for group in grouped] == [[1.0, 1.0], [3.0, 3.0]]


@pytest.mark.parametrize("bad", [{"steps": 0}, {"batch": 0}, {"guidance": -1.0}, {"guidance": float("nan")}])
def test_wrong_settings_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        SamplingConfig(**bad)
