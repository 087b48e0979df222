"""Stable Audio Open against diffusers' pipeline on the same small parts, from the text to the sound."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableAudio3DiTModel as StableAudio3Network
from diffusers import StableAudio3Pipeline, StableAudioPipeline
from peft import PeftModel
from support.adapters import write_export
from support.model_contract import distance, one_line_error
from support.stable_audio_open import CHANNELS, FRAMES, open_pipeline, write_open

from diffdpo.errors import CheckpointError, DataError
from diffdpo.models import MODELS
from diffdpo.models.stable_audio_open.network import StableAudioDiTModel
from diffdpo.randomness import draw_noise
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.render import SongAudio
from diffdpo.sampling.request import prompt_request
from diffdpo.sampling.sampler import follow, start
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stable_audio_open")
    write_open(path)
    return path


def load(folder, **arguments):
    return MODELS["stable_audio_open"](checkpoint=str(folder), **arguments).load()


@pytest.mark.parametrize(("seconds", "seed"), [(2.0, 0), (0.7, 1), (1.25, 2)])
@pytest.mark.parametrize("negative", [None, "noise"])
@torch.no_grad()
def test_guided_songs_are_the_pipelines(folder, seconds, seed, negative):
    """The pipeline steps in sigma = t / (1 - t) and scales latents by 1 + sigma; its Euler steps are the same."""
    compare_songs(load(folder), open_pipeline(folder), seconds, seed, negative)


@torch.no_grad()
def test_the_pipeline_has_no_loader_and_peft_puts_the_adapter_on_its_network(folder, tmp_path):
    """As the how-to says of diffusers 0.42: neither pipelines nor networks of Stable Audio load adapters."""
    for kind in (StableAudioPipeline, StableAudio3Pipeline):
        assert not hasattr(kind, "load_lora_weights")
    assert not hasattr(StableAudio3Network, "load_lora_adapter")
    export, whole = write_export(load(folder), tmp_path, "peft"), open_pipeline(folder)
    assert not hasattr(whole.transformer, "load_lora_adapter")
    PeftModel.from_pretrained(whole.transformer, str(export))
    compare_songs(load(folder, adapter=str(export)), whole, 1.25, 2, "noise")
    with pytest.raises(AssertionError):
        compare_songs(load(folder), whole, 1.25, 2, "noise")


def compare_songs(model, whole, seconds, seed, negative):
    """The song of the pipeline, from the text to the sound, and ours beside a neighbour."""
    steps = 6
    prompt = Prompt(id=f"p{seed}", text=f"song {seed}", negative_text=negative, duration_s=seconds)
    noise = draw_noise(seed, [prompt.id], FRAMES, CHANNELS)
    sound = whole(
        prompt.text, audio_end_in_s=seconds, num_inference_steps=steps, guidance_scale=4.0,
        negative_prompt=negative, latents=noise.transpose(1, 2), return_dict=False,
    )[0][0]  # fmt: skip
    sigmas = whole.scheduler.sigmas.double()
    scale = whole.scheduler.init_noise_sigma / (1 + sigmas[0])
    other = Prompt(id="other", text="something longer", duration_s=0.5)
    requests = [
        prompt_request(p, p.id, model.spec.frames(p.duration_s), model.embed) for p in (other, prompt)
    ]
    cfg = SamplingConfig(steps=steps, solver=Choice("euler"), guidance_scale=4.0)
    path = start(model, requests, cfg, seed=seed)
    times = (sigmas / (1 + sigmas))[:, None].expand(-1, 2)
    song = follow(replace(path, x=path.x * scale, times=times), cfg)[0][1]
    assert len(song) == FRAMES  # the whole window, as published
    ours = np.concatenate(list(SongAudio(model, song, seconds=seconds).chunks(0, FRAMES)), 1)
    assert ours.shape == sound.shape == (2, int(seconds * 400))
    assert distance(torch.from_numpy(ours), sound) <= 1e-5


@torch.no_grad()
def test_a_prompt_is_embedded_as_the_pipeline_does(folder):
    model, whole = load(folder), open_pipeline(folder)
    embedding = model.embed(Prompt(id="p", text="slow jazz", duration_s=1.5))
    states = whole.encode_prompt("slow jazz", torch.device("cpu"), False)[0]
    count = len(embedding["text"])
    assert distance(embedding["text"], states[:count]) <= 1e-5
    assert not states[count:].any()
    begin, end = whole.encode_duration(0.0, 1.5, torch.device("cpu"), False, 1)
    assert distance(embedding["seconds"], torch.cat([begin, end], 1)[0]) <= 1e-5


def test_the_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = StableAudioDiTModel()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(1057, abs=1)


def test_bad_input_is_refused_in_one_line(folder, tmp_path):
    model = load(folder)
    with one_line_error("33 tokens, this model takes 32", DataError):
        model.embed(Prompt(id="p", text="x" * 32))
    with one_line_error("instrumental", DataError):
        model.embed(Prompt(id="p", text="x", lyrics="la"))
    with one_line_error("has no transformer", CheckpointError):
        load(tmp_path)
    with pytest.raises(ValueError, match="needs a checkpoint"):
        MODELS["stable_audio_open"]()
