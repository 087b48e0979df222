"""Noise that a request brings: the song of a seed is that of its noise, and gradients reach it."""

from dataclasses import replace

import pytest
import torch
from support.local_model import CHANNELS, LocalModel, LocalNetwork
from support.rows import song_row

from diffdpo.errors import DataError
from diffdpo.randomness import draw_noise
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.guidance import GUIDERS
from diffdpo.sampling.longform import LongformConfig, SongRequest, compose
from diffdpo.sampling.request import Request
from diffdpo.sampling.sampler import follow, sample_batch, start
from diffdpo.sampling.solver import SOLVERS
from diffdpo.types import Prompt

MODEL = LocalModel(network=LocalNetwork(1))
WAYS = [
    *({"solver": Choice(name)} for name in SOLVERS),
    *({"guidance": Choice(name)} for name in GUIDERS),
    {"guidance_every": 2, "cache_threshold": 0.2},
]


def row(frames, text="rock"):
    return song_row(MODEL, Prompt(id=text, text=text, duration_s=(frames + 0.5) / 10))


def requests(*frames):
    names = "abc"
    return [Request(sample_id=name, row=row(count, name)) for name, count in zip(names, frames, strict=False)]


def with_noise(request, seed):
    (noise,) = draw_noise(seed, [request.sample_id], request.row.total_frames, CHANNELS)
    return replace(request, noise=noise)


@pytest.mark.parametrize("settings", [{}, {"solver": Choice("sde")}], ids=str)
def test_the_noise_of_a_seed_makes_the_song_of_that_seed(settings):
    cfg = SamplingConfig(steps=3, **settings)
    batch = requests(7, 12)
    plain = sample_batch(MODEL, batch, cfg, seed=5)
    same = sample_batch(MODEL, [with_noise(request, 5) for request in batch], cfg, seed=5)
    mixed = sample_batch(MODEL, [batch[0], with_noise(batch[1], 6)], cfg, seed=5)
    for a, b in zip(plain, same, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(plain[0], mixed[0])
    assert not torch.isclose(plain[1], mixed[1]).all()


@pytest.mark.parametrize("method", ["continue", "joint"])
def test_windows_of_a_long_song_take_the_noise_of_their_frames(method):
    cfg, longform = SamplingConfig(steps=2), LongformConfig(method=method, window_s=2.0, overlap_s=0.5)
    song = SongRequest(sample_id="a", row=row(38))
    (noise,) = draw_noise(3, ["a"], 38, CHANNELS)
    (plain,) = compose(MODEL, [song], cfg, longform, seed=3)
    (same,) = compose(MODEL, [replace(song, noise=noise)], cfg, longform, seed=3)
    changed_noise = noise.clone()
    changed_noise[-1] += 1
    (changed,) = compose(MODEL, [replace(song, noise=changed_noise)], cfg, longform, seed=3)
    assert torch.equal(plain, same)
    assert torch.equal(plain[:10], changed[:10])
    assert not torch.equal(plain[-1], changed[-1])


def test_noise_of_another_length_is_refused():
    (request,) = requests(7)
    with pytest.raises(DataError, match=r"sample 'a': its noise is \(6, 4\)"):
        sample_batch(
            MODEL, [replace(request, noise=torch.zeros(6, CHANNELS))], SamplingConfig(steps=2), seed=0
        )


def make_songs(model, batch, cfg, checkpointing):
    songs, _ = follow(start(model, batch, cfg, seed=2), cfg, checkpointing=checkpointing)
    return [song[: request.row.frames] for song, request in zip(songs, batch, strict=True)]


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_checkpointed_gradients_are_the_plain_ones(settings):
    cfg = SamplingConfig(steps=4, **settings)
    batch = [with_noise(request, 1) for request in requests(7, 5)]
    gradients, songs = [], []
    for checkpointing in (False, True):
        leaves = [request.noise.clone().requires_grad_() for request in batch]
        given = [replace(request, noise=leaf) for request, leaf in zip(batch, leaves, strict=True)]
        results = make_songs(MODEL, given, cfg, checkpointing)
        loss = sum((song**3).sum() for song in results)
        gradients.append(torch.autograd.grad(loss, leaves))
        songs.append([song.detach() for song in results])
    for plain, checked in zip(songs[0], songs[1], strict=True):
        assert torch.equal(plain, checked)
    for plain, checked in zip(*gradients, strict=True):
        assert (plain - checked).abs().max() <= 1e-6 * max(1.0, plain.abs().max().item())


def test_checkpointing_computes_each_step_twice_and_keeps_one_in_memory():
    network = LocalNetwork(1)
    calls = []
    network.mix.register_forward_hook(lambda *_: calls.append(1))
    model = LocalModel(network=network)
    (request,) = [with_noise(request, 1) for request in requests(7)]
    leaf = request.noise.clone().requires_grad_()
    cfg = SamplingConfig(steps=5)
    (song,) = make_songs(model, [replace(request, noise=leaf)], cfg, checkpointing=True)
    assert len(calls) == 5  # both branches of guidance in one call
    song.sum().backward()
    assert len(calls) == 10
    with torch.no_grad():
        make_songs(model, [request], cfg, checkpointing=True)
    assert len(calls) == 15
