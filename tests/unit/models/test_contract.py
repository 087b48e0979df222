"""What trainer and sampler rely on, for every registered model, on random weights of the real classes."""

import shutil

import numpy as np
import pytest
import torch
from support.bundle import write_bundle
from support.rows import embedding

from diffdpo.errors import CheckpointError, DataError
from diffdpo.hub import sha256_of
from diffdpo.models import MODELS
from diffdpo.models.adapters import save_adapter
from diffdpo.models.base import Inpaints, Plans, Prepares, Transcribes, move, require, supports, take
from diffdpo.training.config import LoraConfig
from diffdpo.training.setup import add_lora
from diffdpo.types import Clip, Prompt, Row


def load(name, bundle):
    return {
        "tiny": lambda: MODELS["tiny"](bundle=str(bundle)),
        "diffrhythm": lambda: MODELS["diffrhythm"](network=str(bundle / "network")),
    }[name]().load()


@pytest.fixture(params=sorted(MODELS))
def model(request, bundle):
    return load(request.param, bundle)


def rows(model):
    """A whole song, and an excerpt that begins at its half."""
    draw = torch.randn(2, model.network.config.style_dim, generator=torch.Generator().manual_seed(0))
    first, second = torch.nn.functional.normalize(draw, dim=1)
    return [
        Row(embedding=embedding(first, lines=((0.2, (1, 2, 3)),)), frames=40),
        Row(embedding=embedding(second, start=0.5), frames=21),
    ]


def call(model, x, t, condition, frames):
    with torch.no_grad():
        return model.velocity(model.network, x, t, condition, frames)


def inputs(model):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 40, model.spec.channels, generator=generator)
    return x, torch.tensor([0.3, 0.8]), torch.tensor([40, 21])


def test_a_velocity_has_the_shape_of_the_latents_and_every_condition_matters(model):
    x, t, frames = inputs(model)
    condition = model.condition(rows(model), 40)
    v = call(model, x, t, condition, frames)
    assert v.shape == x.shape
    assert not torch.equal(v, call(model, x, 1 - t, condition, frames))
    for part in model.parts:
        none = model.without(condition, part, torch.tensor([False, False]))
        assert all(torch.equal(none[name], condition[name]) for name in condition)
        dropped = call(model, x, t, model.without(condition, part, torch.tensor([True, False])), frames)
        assert not torch.equal(dropped[0], v[0]), part
        assert torch.allclose(dropped[1], v[1], atol=1e-5), (
            f"dropping {part} of one song changed its neighbour"
        )
    with pytest.raises(DataError, match="no part 'audio'"):
        model.without(condition, "audio", torch.tensor([True, False]))


def test_a_song_that_is_shown_matters_only_where_it_is_kept(model):
    """And which comes first, showing or dropping, does not."""
    x, t, frames = inputs(model)
    condition = model.condition(rows(model), 40)
    latents, other = torch.randn(2, 2, 40, model.spec.channels, generator=torch.Generator().manual_seed(2))
    keep_mask = torch.arange(40).expand(2, -1) < torch.tensor([[8], [0]])
    shown = model.with_context(condition, latents, keep_mask)
    elsewhere = model.with_context(condition, torch.where(keep_mask[..., None], latents, other), keep_mask)
    assert all(torch.equal(shown[name], elsewhere[name]) for name in shown)
    nothing = model.with_context(condition, latents, torch.zeros_like(keep_mask))
    assert all(torch.equal(nothing[name], condition[name]) for name in nothing)
    v, plain = (call(model, x, t, c, frames) for c in (shown, condition))
    assert not torch.allclose(v[0], plain[0], atol=1e-4)
    assert torch.allclose(v[1], plain[1], atol=1e-5)
    where = torch.tensor([True, True])
    for part in model.parts:
        one = model.with_context(model.without(condition, part, where), latents, keep_mask)
        two = model.without(shown, part, where)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_song_in_a_batch_equals_the_song_alone_and_is_zero_behind_its_end(model):
    x, t, frames = inputs(model)
    dirty = x.clone()
    dirty[1, 21:] = torch.nan
    both = call(model, dirty, t, model.condition(rows(model), 40), frames)
    alone = call(model, x[1:, :21], t[1:], model.condition(rows(model)[1:], 21), frames[1:])
    assert torch.allclose(both[1, :21], alone[0], atol=1e-5)
    assert not both[1, 21:].any()


def test_the_networks_time_and_velocity_are_turned_round(model):
    x, frames = inputs(model)[0][:1, :20], torch.tensor([20])
    condition = model.condition(rows(model)[:1], 20)
    with torch.no_grad():
        raw = model.network(
            x, torch.tensor([0.75]), text=condition["lyrics"], style=condition["style"], audio=condition["audio"],
            start_time=condition["start_time"], duration=condition["duration"], frames=frames,
        )  # fmt: skip
    assert torch.equal(call(model, x, torch.tensor([0.25]), condition, frames), -raw)


def test_rows_are_taken_and_moved_as_a_whole(model):
    """A condition's rows follow an index, and so do the velocities."""
    x, t, frames = inputs(model)
    condition = model.condition(rows(model), 40)
    assert all(len(tensor) == 2 for tensor in condition.values())
    index = torch.tensor([1, 0, 1])
    v = call(model, x, t, condition, frames)
    again = call(model, x[index], t[index], take(condition, index), frames[index])
    assert torch.allclose(again, v[index], atol=1e-5)
    there = move(condition, torch.device("meta"))
    assert {tensor.device.type for tensor in there.values()} == {"meta"}
    assert {name: tensor.shape for name, tensor in there.items()} == {
        n: c.shape for n, c in condition.items()
    }


def test_fingerprints_tell_encoders_apart_without_loading_them(bundle, tmp_path):
    one = load("tiny", bundle)
    one.place("encoders", None)
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    assert one.fingerprint == load("tiny", copy).fingerprint
    assert len({load("tiny", bundle).fingerprint, load("diffrhythm", bundle).fingerprint}) == 2
    config = copy / "style" / "config.json"
    config.write_text(config.read_text() + " ")
    sha256_of.cache_clear()
    assert one.fingerprint != load("tiny", copy).fingerprint


def test_an_adapter_starts_as_nothing_and_takes_the_gradient(model):
    x, t, frames = torch.randn(1, 12, model.spec.channels), torch.tensor([0.4]), torch.tensor([12])
    condition = model.condition(rows(model)[:1], 12)
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
    x, t, frames = torch.randn(1, 12, model.spec.channels), torch.tensor([0.4]), torch.tensor([12])
    condition = model.condition(rows(model)[:1], 12)
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
    whole, reach = model.decode(song).samples, model.spec.receptive_frames
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
    text, recording, both, nothing, neither = (
        model.embed(Prompt(id="x", text=t, style_audio=a))["style"]
        for t, a in (("Heavy rock", None), (None, noise), ("Heavy rock", noise), ("?!", None), (None, None))
    )
    for style in (text, recording, both):
        assert style.norm().item() == pytest.approx(1.0)
    assert torch.dot(text, both) > 0.3
    assert torch.dot(recording, both) > 0.3
    assert nothing.abs().max() == 0
    assert neither.abs().max() == 0


def test_what_a_model_cannot_do_is_said(bundle):
    checkpoint = load("diffrhythm", bundle)
    with pytest.raises(DataError, match="without a style encoder"):
        checkpoint.embed(Prompt(id="x", text="rock"))
    with pytest.raises(DataError, match="no codec in memory"):
        checkpoint.decode(torch.zeros(3, 8))
    with pytest.raises(DataError, match="cannot sing"):
        load("tiny", bundle).embed(Prompt(id="x", lyrics="la"))
    with pytest.raises(DataError, match=r"'x': this model knows no control 'axes'. Did you mean 'axis'\?"):
        load("tiny", bundle).embed(Prompt(id="x", controls=(("axes", "a"),)))
    assert all(supports(checkpoint, protocol) for protocol in (Inpaints, Prepares, Transcribes))
    assert not supports(checkpoint, Plans)
    with pytest.raises(DataError, match="this model cannot plan songs; choose another model"):
        require(checkpoint, Plans)


def test_what_was_freed_is_gone(bundle):
    """Training needs neither; a null and a velocity do not either."""
    model = load("tiny", bundle)
    row = Row(embedding=model.embed(Prompt(id="x", text="rock")), frames=20)
    for part in ("encoders", "codec"):
        model.place(part, "cpu")
    model.embed(Prompt(id="x", text="rock"))
    for part in ("encoders", "codec", "codec"):
        model.place(part, None)
    with pytest.raises(DataError, match="'y': the encoders were freed"):
        model.embed(Prompt(id="y", text="rock"))
    with pytest.raises(DataError, match="no codec in memory"):
        model.decode(torch.zeros(3, 8))
    condition = model.without(model.condition([row], 20), "style", torch.tensor([True]))
    assert (
        call(model, torch.randn(1, 20, 8), torch.tensor([0.5]), condition, torch.tensor([20]))
        .isfinite()
        .all()
    )
