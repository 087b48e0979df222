"""Sampling: noise belongs to the sample, lengths to the song."""

from dataclasses import replace

import pytest
import torch

from diffdpo.errors import DataError
from diffdpo.models import MODELS
from diffdpo.sampling import Context, Origin, Request, SamplingConfig, batches_of, draw, embed_all, sample
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


def songs(model, *frames):
    random = torch.Generator().manual_seed(1)
    return [torch.randn(n, model.latents.channels, generator=random) for n in frames]


def test_kept_frames_stay_and_the_others_are_made_to_fit_them(model):
    (request,), (given, other) = requests(model, 1.0), songs(model, 21, 21)
    keep = torch.arange(21) < 8
    cfg = SamplingConfig(steps=3)
    edited, elsewhere, free = (
        sample(model, [replace(request, context=context)], cfg, seed=0)[0]
        for context in (Context(given, keep), Context(given.where(keep[:, None], other), keep), None)
    )
    assert torch.equal(edited[:8], given[:8])
    assert torch.equal(edited, elsewhere)  # what is not kept is not seen
    assert not torch.allclose(edited[8:], free[8:], atol=1e-3)


def test_a_variation_begins_on_the_way_to_its_song(model):
    (request,), (given,) = requests(model, 1.0), songs(model, 21)
    cfg = SamplingConfig(steps=4)
    whole, none = (
        sample(model, [replace(request, origin=Origin(given, s))], cfg, seed=0)[0] for s in (1.0, 1e-6)
    )
    assert torch.allclose(whole, sample(model, [request], cfg, seed=0)[0], atol=1e-6)
    assert torch.allclose(none, given, atol=1e-4)


def test_windows_of_one_song_share_the_noise_of_shared_frames(model):
    first, second = (replace(request, sample_id="song") for request in requests(model, 1.0, 1.0))
    noise = draw(model, [first, replace(second, first_frame=13)], 0, 21)
    assert torch.equal(noise[0, 13:], noise[1, :8])
    assert not torch.equal(noise[0, :8], noise[1, :8])


def test_a_context_of_another_length_is_refused(model):
    (request,), (given,) = requests(model, 1.0), songs(model, 20)
    wrong = replace(request, context=Context(given, torch.ones(20, dtype=torch.bool)))
    with pytest.raises(DataError, match=r"'p0.000': its context is \(20, 8\)"):
        sample(model, [wrong], SamplingConfig(), seed=0)
    with pytest.raises(ValueError, match="strength must be in"):
        Origin(given, 0.0)
