"""What goes into every registered song model and what comes out: prompts, their embeddings, recordings, sound."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.model_contract import FRAMES, LENGTH, Inputs, draw, noise, one_line_error

from diffdpo.errors import DataError
from diffdpo.models.base import DecodesWithGradients, require, supports
from diffdpo.models.embeddings import EmbeddingStore, read_embedding, write_embedding
from diffdpo.types import Row

pytestmark = pytest.mark.slow


def test_an_unknown_control_is_refused_with_the_one_that_was_meant(subject):
    for prompt in subject.fixture.prompts:
        with one_line_error("no control 'colour'"):
            subject.model.embed(prompt.with_control("colour", "blue"))
        for name, _ in prompt.controls:
            with one_line_error(f"no control '{name}x'. Did you mean '{name}'"):
                subject.model.embed(prompt.with_control(f"{name}x", "blue"))


def test_a_recording_of_a_style_is_embedded_or_refused(subject):
    prompt = replace(subject.fixture.prompts[0], text=None, style_audio=noise(1.0, 24000))
    if not subject.model.embeds_audio:
        with one_line_error("style_audio"):
            subject.model.embed(prompt)


def test_an_embedding_survives_its_file_bit_for_bit(subject, tmp_path):
    for number in range(3):
        embedding = subject.embed(number)
        write_embedding(tmp_path / "embedding.safetensors", embedding)
        again = read_embedding(tmp_path / "embedding.safetensors")
        assert again.keys() == embedding.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in embedding.items())
        assert all(again[name].dtype == tensor.dtype for name, tensor in embedding.items())


def test_without_encoders_stored_prompts_and_the_null_still_work(fresh, tmp_path):
    model, prompts = fresh.model, fresh.fixture.prompts
    store = EmbeddingStore(model, tmp_path)
    first = [store.embed(prompt) for prompt in prompts]
    model.place("encoders", None)
    again = [EmbeddingStore(model, tmp_path).embed(prompt) for prompt in prompts]
    assert all(torch.equal(b[name], a[name]) for a, b in zip(first, again, strict=True) for name in a)
    rows = [Row(embedding=e, frames=n) for e, n in zip(again, FRAMES, strict=True)]
    condition = model.condition(rows, LENGTH)
    for part in model.unconditional:
        condition = model.without(condition, part, torch.ones(3, dtype=torch.bool))
    inputs = Inputs(
        draw(3, LENGTH, model.spec.channels), torch.full((3,), 0.5), condition, torch.tensor(FRAMES)
    )
    assert fresh.velocity(inputs).isfinite().all()
    with one_line_error("new"):
        store.embed(replace(prompts[0], id="new", text="something else"))


def test_encoders_and_codec_leave_no_network_behind(subject, tmp_path):
    before = {id(module) for module in modules()}
    model = subject.fixture.load(tmp_path)
    model.embed(subject.fixture.prompts[0])
    model.decode(draw(8, model.spec.channels))
    model.place("encoders", None)
    model.place("codec", None)
    gc.collect()
    own = {id(module) for module in model.network.modules()}
    left = [type(module).__name__ for module in modules() if id(module) not in before | own]
    assert not left


def test_the_fingerprint_is_known_without_loading_anything(subject):
    model, before = subject.load(), len(modules())
    fingerprint = model.fingerprint
    assert fingerprint
    assert len(modules()) <= before
    assert subject.load().fingerprint == fingerprint
    model.place("encoders", None)
    assert model.fingerprint == fingerprint


def modules():
    """All networks in memory, and their parts."""
    return [value for value in gc.get_objects() if issubclass(type(value), torch.nn.Module)]


def test_recordings_of_any_rate_and_width_are_encoded(subject):
    model, spec = subject.model, subject.model.spec
    for rate, channels in ((22050, 1), (spec.sample_rate, 2), (48000, 3)):
        latents = model.encode(noise(0.5, rate, channels))
        assert latents.shape[1] == spec.channels
        assert len(latents) == pytest.approx(0.5 * spec.frames_per_second, abs=1)
        assert latents.isfinite().all()


def test_encoding_is_a_draw_of_its_generator_and_certain_without(subject):
    model, clip = subject.model, noise(0.5, subject.model.spec.sample_rate)
    mean, again, one, same, other = (
        model.encode(clip, None if seed is None else torch.Generator().manual_seed(seed))
        for seed in (None, None, 1, 1, 2)
    )
    assert torch.equal(mean, again)
    assert torch.equal(one, same)
    assert torch.equal(one, other) == (not subject.fixture.posterior)
    assert torch.equal(one, mean) == (not subject.fixture.posterior)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_chunk_with_its_surroundings_sounds_as_in_its_song(subject, place):
    model, around = subject.model, subject.model.spec.receptive_frames
    length = 2 * around + 30
    low, high = {"first": (0, 12), "middle": (around + 5, around + 17), "last": (length - 12, length)}[place]
    song = draw(length, model.spec.channels)
    whole = model.decode(song)
    per_frame = whole.samples.shape[1] // length
    assert whole.sample_rate == model.spec.sample_rate
    assert whole.samples.shape[1] == length * per_frame
    assert per_frame * model.spec.frames_per_second == pytest.approx(whole.sample_rate)
    first, last = max(0, low - around), min(length, high + around)
    chunk = model.decode(song[first:last], first).samples[
        :, (low - first) * per_frame : (high - first) * per_frame
    ]
    expected = whole.samples[:, low * per_frame : high * per_frame]
    assert np.abs(chunk - expected).max() <= 1e-4 * np.abs(whole.samples).max()


def test_gradients_pass_through_the_codec_or_are_refused(subject):
    """The sound of `decode`, and a gradient along which levels move as it says."""
    if not supports(subject.model, DecodesWithGradients):
        with pytest.raises(DataError, match="optimised noise"):
            require(subject.model, DecodesWithGradients)
        return
    model = subject.model
    song = draw(20, model.spec.channels)
    sound = torch.from_numpy(model.decode(song, 3).samples)
    weights = torch.randn(2, 20, generator=torch.Generator().manual_seed(3))

    def loss(latents):
        levels = model.decode_tensor(latents, 3).unflatten(1, (20, -1)).square().mean(-1).log()
        return (weights * levels).sum()

    leaf = song.clone().requires_grad_()
    decoded = model.decode_tensor(leaf, 3)
    assert (decoded.detach() - sound).abs().max() <= 1e-4 * sound.abs().max()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        assert not model.decode_tensor(song).requires_grad
        slope = (loss(song + 0.01 * direction) - loss(song - 0.01 * direction)) / 0.02
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=0.3)
