"""What trainer and sampler rely on, for every registered model, on random weights of the real classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.bundle import write_bundle

from diffdpo.errors import CheckpointError, DataError
from diffdpo.models import MODELS
from diffdpo.models.adapters import save_adapter
from diffdpo.models.base import drop, repeat
from diffdpo.training.config import LoraConfig
from diffdpo.training.setup import add_lora
from diffdpo.types import Clip, Prompt


def load(name, bundle):
    return {
        "tiny": lambda: MODELS["tiny"](bundle=str(bundle)),
        "diffrhythm": lambda: MODELS["diffrhythm"](network=str(bundle / "network")),
    }[name]().load()


@pytest.fixture(params=sorted(MODELS))
def model(request, bundle):
    return load(request.param, bundle)


def prompts(model):
    draw = torch.randn(2, model.network.config.style_dim, generator=torch.Generator().manual_seed(0))
    style = torch.nn.functional.normalize(draw, dim=1)
    return [
        Prompt(id="a", style=style[0], lyric_lines=((0.2, (1, 2, 3)),), duration_s=2.0),
        Prompt(id="b", style=style[1], duration_s=1.0, start=0.5),
    ]


def call(model, x, t, condition, frames):
    with torch.no_grad():
        return model.velocity(model.network, x, t, condition, frames)


def test_a_velocity_has_the_shape_of_the_latents_and_every_condition_matters(model):
    x, t, frames = (
        torch.randn(2, 40, model.latents.channels),
        torch.tensor([0.3, 0.8]),
        torch.tensor([40, 21]),
    )
    condition = model.condition(prompts(model), 40)
    v = call(model, x, t, condition, frames)
    assert v.shape == x.shape
    assert not torch.equal(v, call(model, x, 1 - t, condition, frames))
    condition["audio"] = torch.randn_like(condition["audio"])
    full = call(model, x, t, condition, frames)
    for part in ("style", "lyrics", "audio"):
        without = call(model, x, t, drop(condition, part, torch.tensor([True, False])), frames)
        assert not torch.equal(without[0], full[0]), part
        assert torch.allclose(without[1], full[1], atol=1e-5), (
            f"dropping {part} of one song changed its neighbour"
        )


def test_a_song_in_a_batch_equals_the_song_alone(model):
    x, t, frames = (
        torch.randn(2, 40, model.latents.channels),
        torch.tensor([0.3, 0.8]),
        torch.tensor([40, 21]),
    )
    both = call(model, x, t, model.condition(prompts(model), 40), frames)
    alone = call(model, x[1:, :21], t[1:], model.condition(prompts(model)[1:], 21), frames[1:])
    assert torch.allclose(both[1, :21], alone[0], atol=1e-5)


def test_the_networks_time_and_velocity_are_turned_round(model):
    x, frames = torch.randn(1, 20, model.latents.channels), torch.tensor([20])
    condition = model.condition(prompts(model)[:1], 20)
    with torch.no_grad():
        raw = model.network(
            x, torch.tensor([0.75]), text=condition["lyrics"], style=condition["style"], audio=condition["audio"],
            start_time=condition["start_time"], duration=condition["duration"], frames=frames,
        )  # fmt: skip
    assert torch.equal(call(model, x, torch.tensor([0.25]), condition, frames), -raw)


def test_repeating_a_condition_stacks_it_behind_itself(model):
    condition = model.condition(prompts(model), 10)
    twice = repeat(condition, 2)
    assert all(torch.equal(twice[name][2:], condition[name]) for name in condition)


def test_an_adapter_starts_as_nothing_and_takes_the_gradient(model):
    x, t, frames = torch.randn(1, 12, model.latents.channels), torch.tensor([0.4]), torch.tensor([12])
    condition = model.condition(prompts(model)[:1], 12)
    before = call(model, x, t, condition, frames)
    add_lora(model.network, LoraConfig(rank=2), model.lora_targets, seed=0)
    assert torch.equal(call(model, x, t, condition, frames), before)
    model.velocity(model.network, x, t, condition, frames).square().mean().backward()
    moved = {n for n, p in model.network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved
    assert all("lora_" in name for name in moved)


def test_a_saved_adapter_merges_into_the_same_function(model, bundle, tmp_path):
    add_lora(model.network, LoraConfig(rank=2), model.lora_targets, seed=0)
    for name, parameter in model.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_adapter(model.network, model.network.state_dict(), tmp_path)
    x, t, frames = torch.randn(1, 12, model.latents.channels), torch.tensor([0.4]), torch.tensor([12])
    condition = model.condition(prompts(model)[:1], 12)
    merged = MODELS["tiny"](bundle=str(bundle), adapter=str(tmp_path)).load()
    assert torch.allclose(
        call(merged, x, t, condition, frames), call(model, x, t, condition, frames), atol=1e-5
    )
    assert not getattr(merged.network, "peft_config", None)


def test_an_adapter_or_network_of_another_model_is_refused(bundle, tmp_path):
    other = write_bundle(tmp_path, dim=64)
    (other / "network" / "config.json").write_text((bundle / "network" / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"of another model: .* misshapen"):
        MODELS["diffrhythm"](network=str(other / "network")).load()
    (other / "network" / "config.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        MODELS["diffrhythm"](network=str(other / "network")).load()


def test_encoding_takes_any_rate_and_channels_and_decoding_gives_stereo(bundle):
    model = load("tiny", bundle)
    mono = Clip(
        samples=np.random.default_rng(0).normal(0, 0.1, (1, 22050)).astype(np.float32), sample_rate=22050
    )
    latents = model.encode(mono)
    assert latents.shape == (22, 8)  # one second is 21.5 frames
    clip = model.decode(latents)
    assert clip.samples.shape == (2, 22 * 2048)
    assert clip.sample_rate == 44100


@pytest.mark.parametrize(("low", "high"), [(30, 55), (0, 20), (61, 90)])
def test_a_piece_with_its_surroundings_sounds_as_in_its_song(bundle, low, high):
    model = load("tiny", bundle)
    song = torch.randn(90, 8, generator=torch.Generator().manual_seed(0))
    whole, reach = model.decode(song).samples, model.latents.reach
    first, last = max(0, low - reach), min(90, high + reach)
    piece = model.decode(song[first:last], first).samples
    inside = piece[:, (low - first) * 2048 : (high - first) * 2048]
    assert np.allclose(inside, whole[:, low * 2048 : high * 2048], atol=1e-4 * np.abs(whole).max())
    if first:  # where it begins in its song matters
        moved = model.decode(song[first:last]).samples
        assert not np.allclose(moved, piece, atol=1e-2 * np.abs(whole).max())


def test_styles_come_from_text_from_audio_and_from_both(bundle):
    model = load("tiny", bundle)
    noise = Clip(
        samples=np.random.default_rng(0).normal(0, 0.1, (2, 44100)).astype(np.float32), sample_rate=44100
    )
    text, heard, both, nothing = (
        model.embed(Prompt(id="x", text=t, style_audio=a)).style
        for t, a in (("Heavy rock", None), (None, noise), ("Heavy rock", noise), ("?!", None))
    )
    for style in (text, heard, both):
        assert style.norm().item() == pytest.approx(1.0)
    assert torch.dot(text, both) > 0.3
    assert torch.dot(heard, both) > 0.3
    assert nothing.abs().max() == 0
    already = Prompt(id="x", text="ambient", style=text)
    assert torch.equal(model.embed(already).style, text)
    assert model.embed(replace(already, style=None, text=None)).style is None


def test_what_a_model_cannot_do_is_said(bundle):
    checkpoint = load("diffrhythm", bundle)
    with pytest.raises(DataError, match="without a style encoder"):
        checkpoint.embed(Prompt(id="x", text="rock"))
    with pytest.raises(DataError, match="without a codec"):
        checkpoint.decode(torch.zeros(3, 8))
    with pytest.raises(DataError, match="cannot sing"):
        load("tiny", bundle).embed(Prompt(id="x", lyrics="la"))
