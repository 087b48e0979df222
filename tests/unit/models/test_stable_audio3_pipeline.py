"""Stable Audio 3 against diffusers' pipelines on the same small parts, with the same noise: whole trajectories."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableAudio3InpaintPipeline
from support.model_contract import distance
from support.stable_audio3 import CHANNELS, pipeline, write_diffusers

from diffdpo.models import MODELS
from diffdpo.randomness import draw_noise
from diffdpo.registry import Choice
from diffdpo.sampling.config import LogSnrGrid, SamplingConfig
from diffdpo.sampling.render import SongAudio
from diffdpo.sampling.request import InpaintContext, prompt_request
from diffdpo.sampling.sampler import follow, start
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow

LENGTHS = ((1.3, 0), (0.52, 1), (2.04, 2))
OTHER = Prompt(id="other", text="a longer neighbour, with many more words in it", duration_s=3.0)
"""A song in the same batch, so that every other one is padded."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stable_audio3")
    write_diffusers(path)
    return path


def load(folder, **arguments):
    return MODELS["stable_audio_3"](checkpoint=str(folder), **arguments).load()


def prompts(seed, seconds):
    return Prompt(id=f"p{seed}", text=f"song {seed}, " + "slow " * seed, duration_s=seconds)


@torch.no_grad()
def sample(model, prompt, cfg, seed, step_noises=None, context=None):
    """The latents of a prompt beside its neighbour's, before given frames are put back."""
    requests = [
        prompt_request(p, p.id, model.spec.frames(p.duration_s), model.embed) for p in (OTHER, prompt)
    ]
    requests[1] = replace(requests[1], context=context)
    path = start(model, requests, cfg, seed=seed)
    if step_noises is not None:
        path = replace(path, noise=lambda step: lambda purpose, state: step_noises[step].expand_as(path.x))
    return follow(path, cfg)[0][1, : requests[1].row.frames]


def step_noises(seed, frames, length, steps):
    """The noise that diffusers' scheduler draws from a generator, step by step, padded to the batch."""
    generator = torch.Generator().manual_seed(seed)
    noises = []
    for _ in range(steps):
        noise = torch.zeros(1, length, CHANNELS)
        noise[0, :frames] = torch.randn(1, CHANNELS, frames, generator=generator)[0].T
        noises.append(noise)
    return noises


@pytest.mark.parametrize(("seconds", "seed"), LENGTHS)
@pytest.mark.parametrize("negative", [None, "noise, hiss"])
def test_guided_songs_in_a_padded_batch_are_the_pipelines_alone(folder, seconds, seed, negative):
    model = load(folder, behavior="diffusers", headroom_s=0.0)
    prompt = replace(prompts(seed, seconds), negative_text=negative)
    frames = model.spec.frames(seconds)
    cfg = SamplingConfig(steps=7, solver=Choice("euler"), log_snr=LogSnrGrid(), guidance_scale=4.0)
    published = pipeline(folder)(
        prompt.text, duration=seconds, num_inference_steps=7, guidance_scale=4.0, negative_prompt=negative,
        latents=draw_noise(seed, [prompt.id], frames, CHANNELS).transpose(1, 2), output_type="latent",
        return_dict=False,
    )[0][0].T  # fmt: skip
    assert len(published) == frames
    assert distance(sample(model, prompt, cfg, seed), published) <= 1e-5


@pytest.mark.parametrize(("seconds", "seed"), LENGTHS)
def test_ping_pong_with_the_same_noise_is_the_pipelines(folder, seconds, seed):
    """Eight steps of a distilled network, whose times the model brings along, with headroom."""
    model = load(folder, behavior="diffusers", headroom_s=0.4, distilled=True)
    prompt, whole = prompts(seed, seconds), pipeline(folder)
    whole.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, stochastic_sampling=True)
    frames, length = model.spec.frames(seconds), model.spec.frames(OTHER.duration_s)
    cfg = SamplingConfig(steps=8, solver=Choice("ping_pong"), guidance_scale=1.0)
    published = whole(
        prompt.text, duration=seconds, silence_padding_duration=0.4,
        latents=draw_noise(seed, [prompt.id], frames, CHANNELS).transpose(1, 2),
        generator=torch.Generator().manual_seed(seed), output_type="latent", return_dict=False,
    )[0][0].T  # fmt: skip
    ours = sample(model, prompt, cfg, seed, step_noises(seed, frames, length, 8))
    assert len(published) == frames
    assert distance(ours, published) <= 1e-5


@pytest.mark.parametrize(("seconds", "seed"), LENGTHS)
def test_in_painting_is_the_pipelines(folder, seconds, seed):
    """In both behaviours, since with a context they are the same."""
    whole, prompt = pipeline(folder, StableAudio3InpaintPipeline), prompts(seed, seconds)
    model = load(folder, headroom_s=0.0)
    frames = model.spec.frames(seconds)
    sound = torch.randn(1, 2, int(seconds * 800), generator=torch.Generator().manual_seed(seed)) * 0.1
    keep = torch.arange(frames) % 7 < 4
    with torch.no_grad():
        latents = torch.zeros(frames, CHANNELS)
        encoded = whole.vae.encode(sound).latents[0].T
        latents[: len(encoded)] = encoded
    published = whole(
        prompt.text, duration=seconds, audio=sound, mask=keep[None, None].float(), num_inference_steps=6,
        latents=draw_noise(seed, [prompt.id], frames, CHANNELS).transpose(1, 2), output_type="latent",
        return_dict=False,
    )[0][0].T  # fmt: skip
    cfg = SamplingConfig(steps=6, solver=Choice("euler"), log_snr=LogSnrGrid(), guidance_scale=1.0)
    for behavior in ("original", "diffusers"):
        model = load(folder, headroom_s=0.0, behavior=behavior)
        ours = sample(model, prompt, cfg, seed, context=InpaintContext(latents, keep))
        assert distance(ours, published) <= 1e-5


@torch.no_grad()
def test_the_original_has_zeros_where_diffusers_has_no_input(folder):
    """Without a context: in-painting channels of zeros, and zeros for text and duration as the null; diffusers' own
    network computes both, and they are not what its pipeline does."""
    model, network = load(folder), pipeline(folder).transformer
    prompt = prompts(1, 1.0)
    request = prompt_request(prompt, "p", 25, model.embed)
    x, t, frames = torch.randn(1, 25, CHANNELS), torch.tensor([0.6]), torch.tensor([25])
    condition = model.condition([request.row], 25)
    null = model.without(condition, "prompt", torch.tensor([True]))

    def published(text, mask, local):
        return network(
            x.transpose(1, 2), t, text, condition["duration"], mask, local_add_cond=local, return_dict=False
        )[0].transpose(1, 2)

    zeros = torch.zeros(1, CHANNELS + 1, 25)
    text, mask = condition["text"], condition["text_mask"]
    cond = model.velocity(model.network, x, t, condition, frames)
    uncond = model.velocity(model.network, x, t, null, frames)
    assert distance(cond, published(text, mask, zeros)) <= 1e-5
    assert distance(uncond, published(torch.zeros_like(text), torch.ones_like(mask), zeros)) <= 1e-5
    assert distance(cond, published(text, mask, None)) > 0.01
    theirs = load(folder, behavior="diffusers")
    condition = theirs.condition([prompt_request(prompt, "p", 25, theirs.embed).row], 25)
    empty = theirs.without(condition, "prompt", torch.tensor([True]))
    assert distance(theirs.velocity(theirs.network, x, t, empty, frames), uncond) > 0.001


def test_a_text_is_embedded_as_the_pipeline_does_and_a_long_one_refused(folder):
    model, whole = load(folder), pipeline(folder)
    prompt = prompts(2, 12.5)
    embedding = model.embed(prompt)
    states, mask = whole.encode_prompt(prompt.text, torch.device("cpu"), 1)
    assert distance(embedding["text"], states[0][mask[0].bool()]) <= 1e-5
    assert distance(embedding["duration"], whole.encode_duration(12.5, torch.device("cpu"), 1, 1)[0]) <= 1e-6


@torch.no_grad()
def test_a_song_is_cut_to_its_duration_after_decoding(folder):
    """The sound of the pipeline with six seconds of headroom, to its last sample."""
    model, whole, seconds = load(folder), pipeline(folder), 1.3
    frames = model.spec.frames(seconds)
    latents = draw_noise(0, ["p"], frames, CHANNELS)
    published = whole(
        "p", duration=seconds, silence_padding_duration=6.0, num_inference_steps=1, latents=latents.transpose(1, 2),
        return_dict=False,
    )[0][0]  # fmt: skip
    final = whole(
        "p", duration=seconds, silence_padding_duration=6.0, num_inference_steps=1, latents=latents.transpose(1, 2),
        return_dict=False, output_type="latent",
    )[0][0].T  # fmt: skip
    song = np.concatenate(list(SongAudio(model, final, seconds=seconds).chunks(0, frames)), 1)
    assert song.shape == published.shape == (2, 1040)
    assert np.abs(song.clip(-1, 1) - published.numpy()).max() <= 1e-4
