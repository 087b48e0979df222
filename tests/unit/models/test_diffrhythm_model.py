"""DiffRhythm and the tiny model as song models: what the contract of all models (tests/contract) does not say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.bundle import write_bundle

from diffdpo.errors import CheckpointError, DataError
from diffdpo.flow import mask_from_frames
from diffdpo.models import MODELS
from diffdpo.models.base import LatentSpec
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.models.diffrhythm.lines import line_tensors, token_lines
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.sampling.windowed import window_row
from diffdpo.types import Clip, Prompt, Row
from diffdpo.windows import Window

LINES = ((0.2, (1, 2, 3)), (1.4, (2, 1)))
CHANNELS, WINDOW = 8, 48


def tiny(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


def fixed_window():
    """A network that only knows windows of 48 frames."""
    torch.manual_seed(0)
    network = DiffRhythmTransformer(
        dim=32, depth=2, num_attention_heads=2, ff_mult=2, latent_channels=CHANNELS, text_num_embeds=4, text_dim=16,
        style_dim=16, cond_dim=16, conv_layers=1, conv_pos_groups=4, max_frames=WINDOW,
    )  # fmt: skip
    spec = LatentSpec(
        channels=CHANNELS, frames_per_second=20.0, sample_rate=44100, max_frames=WINDOW, window="fixed"
    )
    return DiffRhythm(network=network.eval(), spec=spec)


def row(frames, seed=0, **place):
    style = torch.randn(16, generator=torch.Generator().manual_seed(seed))
    start = torch.tensor(0.0, dtype=torch.float64)
    return Row(embedding={"style": style, "start": start, **line_tensors(LINES)}, frames=frames, **place)


@torch.no_grad()
def velocity(model, x, condition, frames, t=0.25):
    return model.velocity(model.network, x, torch.full((len(x),), t), condition, torch.tensor(frames))


def latents(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def noise(seconds=1.0, rate=44100, channels=2):
    samples = np.random.default_rng(0).normal(0, 0.1, (channels, int(seconds * rate))).astype(np.float32)
    return Clip(samples=samples, sample_rate=rate)


@pytest.mark.slow
def test_the_networks_time_and_velocity_are_turned_round(bundle):
    model, x = tiny(bundle), latents(1, 20, CHANNELS)
    condition = model.condition([row(20)], 20)
    inputs = {name: condition[name] for name in ("style", "audio", "start_time", "duration")}
    with torch.no_grad():
        raw = model.network(
            x, torch.tensor([0.75]), text=condition["lyrics"], **inputs, frames=torch.tensor([20])
        )
    assert torch.equal(velocity(model, x, condition, [20]), -raw)


def test_a_song_that_fills_a_fixed_window_is_the_published_call():
    model, x = fixed_window(), latents(2, WINDOW, CHANNELS)
    condition = model.condition([row(WINDOW), row(WINDOW, seed=1)], WINDOW)
    inputs = {name: condition[name] for name in ("style", "audio", "start_time")}
    with torch.no_grad():
        published = -model.network(x, torch.full((2,), 0.75), text=condition["lyrics"], **inputs)
    assert torch.equal(velocity(model, x, condition, [WINDOW, WINDOW]), published)


def test_behind_the_end_a_fixed_window_shows_zeros():
    model, x, frames = fixed_window(), latents(2, 40, CHANNELS), [40, 17]
    condition = model.condition([row(40), row(17, seed=1)], 40)
    inside = mask_from_frames(torch.tensor(frames), 40)
    condition["audio"] = latents(2, 40, CHANNELS)
    padded = torch.nn.functional.pad(x.where(inside[..., None], 0), (0, 0, 0, WINDOW - 40))
    context = torch.nn.functional.pad(condition["audio"].where(inside[..., None], 0), (0, 0, 0, WINDOW - 40))
    lyrics = torch.nn.functional.pad(condition["lyrics"].where(inside, 0), (0, WINDOW - 40))
    inputs = {name: condition[name] for name in ("style", "start_time")}
    with torch.no_grad():
        published = -model.network(padded, torch.full((2,), 0.75), text=lyrics, audio=context, **inputs)
    expected = published[:, :40].where(inside[..., None], 0)
    behind = x.where(inside[..., None], torch.nan)
    assert torch.equal(velocity(model, behind, condition, frames), expected)


def test_a_song_longer_than_a_fixed_window_is_refused():
    model, x = fixed_window(), latents(1, WINDOW + 1, CHANNELS)
    with pytest.raises(DataError, match="49 frames: this network knows songs of 48 only"):
        velocity(model, x, model.condition([row(WINDOW + 1)], WINDOW + 1), [WINDOW + 1])


def test_a_row_knows_its_place_in_the_song(bundle):
    model = tiny(bundle)
    embedding = row(40).embedding
    later = embedding | {"start": torch.tensor(0.5, dtype=torch.float64)}
    rows = [
        Row(embedding=embedding, frames=40),
        Row(embedding=embedding, frames=10, first_frame=10, song_frames=40),
        Row(embedding=later, frames=40),
        Row(embedding=later, frames=10, first_frame=20, song_frames=40),
    ]
    condition = model.condition(rows, 40)
    assert condition["start_time"].tolist() == pytest.approx([0.0, 0.25, 0.5, 0.75])
    assert condition["duration"].tolist() == pytest.approx([r.frames / 512 for r in rows])


def test_lines_survive_as_tensors_and_begin_in_the_row_that_shows_them(bundle):
    assert token_lines(line_tensors(LINES)) == LINES
    assert token_lines(line_tensors(())) == ()
    model = tiny(bundle)
    first, second = (int(start * model.spec.frames_per_second) for start, _ in LINES)
    whole = model.condition([row(40)], 40)["lyrics"][0]
    assert whole.nonzero().flatten().tolist() == [first, first + 1, first + 2, second, second + 1]
    window = model.condition([row(20, first_frame=20, song_frames=40)], 24)["lyrics"][0]
    assert torch.equal(window, torch.cat([whole[20:40], whole.new_zeros(4)]))
    inside = model.condition([row(20, first_frame=first + 1, song_frames=40)], 20)["lyrics"][0]
    assert not inside.any()  # a line whose beginning is not shown is not shown at all


def test_encoding_takes_any_rate_and_channels_and_decoding_gives_stereo(bundle):
    model = tiny(bundle)
    encoded = model.encode(noise(rate=22050, channels=1))
    assert encoded.shape == (22, 8)  # one second is 21.5 frames
    clip = model.decode(encoded)
    assert clip.samples.shape == (2, 22 * 2048)
    assert clip.sample_rate == 44100


def test_where_a_chunk_begins_in_its_song_matters_to_the_spectral_codec(bundle):
    model, song = tiny(bundle), latents(40, CHANNELS)
    here, there = (model.decode(song[10:], first).samples for first in (10, 0))
    assert not np.allclose(here, there, atol=1e-2 * np.abs(here).max())


def test_styles_come_from_text_from_audio_and_from_both(bundle):
    model = tiny(bundle)
    text, sound, both, nothing = (
        model.embed(Prompt(id="x", text=words, style_audio=clip))["style"]
        for words, clip in (("Heavy rock", None), (None, noise()), ("Heavy rock", noise()), ("?!", None))
    )
    for style in (text, sound, both):
        assert style.norm().item() == pytest.approx(1.0)
    assert torch.dot(text, both) > 0.3
    assert torch.dot(sound, both) > 0.3
    assert nothing.abs().max() == 0
    assert model.embed(Prompt(id="x"))["style"].abs().max() == 0


def test_a_network_of_another_size_is_refused(bundle, tmp_path):
    wide = write_bundle(tmp_path, dim=64)
    (wide / "network" / "config.json").write_text((bundle / "network" / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"of another model: .* misshapen"):
        MODELS["diffrhythm"](network=str(wide / "network")).load()
    (wide / "network" / "config.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        MODELS["diffrhythm"](network=str(wide / "network")).load()


def test_what_a_model_cannot_do_is_said(bundle):
    checkpoint = MODELS["diffrhythm"](network=str(bundle / "network")).load()
    with pytest.raises(DataError, match="without a style encoder"):
        checkpoint.embed(Prompt(id="x", text="rock"))
    with pytest.raises(DataError, match="no codec in memory"):
        checkpoint.decode(torch.zeros(3, 8))
    with pytest.raises(DataError, match="no codec in memory"):
        checkpoint.encode(noise())
    with pytest.raises(DataError, match="cannot sing"):
        tiny(bundle).embed(Prompt(id="x", lyrics="la"))
    freed = tiny(bundle)
    freed.place("codec", None)
    with pytest.raises(DataError, match="no codec in memory"):
        freed.decode(torch.zeros(3, 8))


def test_a_fingerprint_is_of_the_encoders_and_not_of_the_network(bundle, tmp_path):
    base = tiny(bundle).fingerprint
    for part, same in (("network", True), ("style", False)):
        folder = write_bundle(tmp_path / part)
        weights = next((folder / part).glob("*.safetensors"))
        weights.write_bytes(
            (write_bundle(tmp_path / f"{part}-other", seed=1) / part / weights.name).read_bytes()
        )
        assert (tiny(folder).fingerprint == base) == same


def test_a_window_of_a_row_is_a_row():
    song = row(40, first_frame=5, song_frames=100)
    part = window_row(song, Window(10, 30, 12, 28))
    assert (part.frames, part.first_frame, part.song_frames) == (20, 15, 100)
    assert not part.is_full_song
    assert replace(part, first_frame=0, song_frames=None).is_full_song
