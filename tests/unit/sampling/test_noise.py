"""Noise is a function of seed, sample, slot and step: nothing else about a batch can reach a song."""

from dataclasses import replace

import pytest
import torch
from support.local_model import CHANNELS, LocalModel, LocalNetwork
from support.rows import song_row

from diffdpo.models.base import take
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.noise import start_noise, step_noise
from diffdpo.sampling.request import Request
from diffdpo.sampling.sampler import generate
from diffdpo.sampling.solver import SOLVERS
from diffdpo.types import Prompt

STOCHASTIC = [name for name, solver in SOLVERS.items() if solver.stochastic]


@pytest.fixture(scope="module")
def model():
    return LocalModel(network=LocalNetwork(1))


def requests(model, *frames):
    """Songs of different prompts and lengths."""
    return [
        Request(
            sample_id=f"{text}.000",
            row=song_row(model, Prompt(id=text, text=text, duration_s=(count + 0.5) / 10)),
            negative=song_row(model, Prompt(id="n", text="noise", duration_s=(count + 0.5) / 10)),
        )
        for text, count in zip(("rock", "jazz", "folk", "soul"), frames, strict=False)
    ]


def draws(batch, rows, *, seed=0, step=3, purpose="step", length=6):
    like = torch.zeros(len(rows), length, CHANNELS)
    return step_noise(batch, seed, step, like)(purpose, {"row": torch.tensor(rows)})


def test_a_draw_is_a_function_of_seed_sample_slot_step_and_purpose(model):
    batch = requests(model, 6, 6)
    first = draws(batch, [0, 1])
    assert torch.equal(draws(batch, [0, 1]), first)
    assert torch.equal(draws(batch[::-1], [1, 0]), first)
    assert torch.equal(draws(batch[1:], [0]), first[1:])
    for change in ({"seed": 1}, {"step": 4}, {"purpose": "other"}):
        assert not torch.isclose(draws(batch, [0, 1], **change), first).all((1, 2)).any(), change
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, start_noise(batch, 0, 6, CHANNELS))
    longer = draws(batch, [0, 1], length=11)
    assert torch.equal(longer[:, :6], first)


def test_particles_of_one_sample_have_slots_in_their_order(model):
    """Copies of a particle go apart; a slot keeps its noise whatever stands between."""
    batch = requests(model, 6, 6)
    noise = draws(batch, [0, 1, 0, 0, 1])
    pairs = [(i, j) for i in range(5) for j in range(i)]
    assert not any(torch.isclose(noise[i], noise[j]).all() for i, j in pairs)
    assert torch.equal(noise[[0, 2, 3]], draws(batch, [0, 0, 0]))
    assert torch.equal(noise[[1, 4]], draws(batch, [1, 1]))


def test_windows_of_one_song_share_the_noise_of_every_step_on_shared_frames(model):
    (whole,) = requests(model, 20)
    window = replace(whole, row=replace(whole.row, frames=8, first_frame=12, song_frames=20))
    noise = draws([whole], [0], length=20)
    assert torch.equal(draws([window], [0], length=8)[0], noise[0, 12:])


def test_noise_is_standard_normal_in_every_step_and_independent_of_the_step_before(model):
    batch = requests(model, 6)
    noise = torch.stack([draws(batch, [0], step=step, length=500).flatten() for step in range(20)])
    count = noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=5 / count**0.5)
    assert noise.var().item() == pytest.approx(1, abs=5 * (2 / count) ** 0.5)
    assert (noise[1:] * noise[:-1]).mean().item() == pytest.approx(0, abs=5 / count**0.5)


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_songs_are_permuted_as_their_requests_are(model, solver):
    cfg = SamplingConfig(steps=4, solver=Choice(solver), guidance_scale=3.0)
    batch, order = requests(model, 12, 12, 12, 12), [2, 0, 3, 1]
    with torch.no_grad():
        songs = generate(model, batch, cfg, seed=5)
        permuted = generate(model, [batch[i] for i in order], cfg, seed=5)
    for i, song in zip(order, permuted, strict=True):
        assert torch.equal(song.latents, songs[i].latents)


@pytest.mark.parametrize("solver", STOCHASTIC)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_song_alone_is_the_song_in_a_batch_of_mixed_lengths(model, solver, guidance_scale):
    cfg = SamplingConfig(steps=4, solver=Choice(solver), guidance_scale=guidance_scale)
    batch = requests(model, 12, 30, 7)
    with torch.no_grad():
        songs = generate(model, batch, cfg, seed=5)
        alone = [generate(model, [request], cfg, seed=5)[0] for request in batch]
    assert [len(song.latents) for song in songs] == [12, 30, 7]
    for here, there in zip(songs, alone, strict=True):
        assert torch.allclose(here.latents, there.latents, atol=1e-6)


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_the_particles_of_a_sample_begin_alike_and_go_apart(model, solver):
    """Copied behind the first step: the first slot goes on as if it were alone, the second has noise of its own."""
    cfg = SamplingConfig(steps=6, solver=Choice(solver), guidance_scale=1.0)
    (request,) = requests(model, 12)

    def copy(step, x, t, state):
        twice = torch.tensor([0, 0])
        return (x[twice], take(state, twice)) if step == 0 else (x, state)

    with torch.no_grad():
        (alone,) = generate(model, [request], cfg, seed=5)
        first, second = generate(model, [request], cfg, seed=5, hook=copy)
    assert torch.allclose(first.latents, alone.latents, atol=1e-6)
    assert not torch.allclose(second.latents, alone.latents, atol=0.05)
    assert first.nfe == second.nfe == alone.nfe
