"""Songs written in chunks are the songs, and what can be heard early does not change later."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.local_model import CHANNELS, SPEC, LocalModel
from support.local_model import PER_FRAME as LOCAL_PER_FRAME

from diffdpo import audio
from diffdpo.models import MODELS
from diffdpo.sampling import render
from diffdpo.sampling.render import Preview, SongAudio, song_gain, write_song

pytestmark = pytest.mark.slow

FRAMES, PER_FRAME = 130, 2048


@pytest.fixture
def sound(bundle, monkeypatch):
    """Six seconds, in chunks of one and a half."""
    monkeypatch.setattr(render, "CHUNK_S", 1.5)
    model = MODELS["tiny"](bundle=str(bundle)).load()
    return SongAudio(model, torch.randn(FRAMES, 8, generator=torch.Generator().manual_seed(0)))


def concatenated(chunks):
    return np.concatenate(list(chunks), axis=1)


def test_chunks_in_a_row_are_the_whole(sound):
    whole = sound.model.decode(sound.latents).samples
    chunks = list(sound.chunks(0, FRAMES))
    assert len(chunks) == 5
    assert np.allclose(concatenated(chunks), whole, atol=1e-4 * np.abs(whole).max())
    part = concatenated(sound.chunks(40, 90))
    assert np.allclose(part, whole[:, 40 * PER_FRAME : 90 * PER_FRAME], atol=1e-4 * np.abs(whole).max())


def test_a_song_after_something_new_sounds_as_it_did(sound):
    whole = concatenated(sound.chunks(0, FRAMES))
    before, reach = 11, sound.model.spec.receptive_frames
    longer = SongAudio(sound.model, torch.cat([torch.randn(before, 8), sound.latents]), -before)
    heard = concatenated(longer.chunks(before + reach, before + FRAMES))
    assert np.allclose(heard, whole[:, reach * PER_FRAME :], atol=1e-4 * np.abs(whole).max())


def test_long_and_short_songs_are_written_alike(sound, tmp_path, monkeypatch):
    one = write_song(sound, tmp_path / "short.flac")
    monkeypatch.setattr(render, "IN_MEMORY_S", 1.0)
    other = write_song(sound, tmp_path / "long.flac")
    short, long = (audio.read(tmp_path / f"{name}.flac") for name in ("short", "long"))
    assert np.abs(short.samples - long.samples).max() < 1e-5
    for name, clip in ((one, short), (other, long)):
        assert name == audio.pcm_sha256(clip.samples, 44100)
    assert np.abs(long.samples).max() <= 0.98 + 1e-6
    assert audio.loudness(long) <= -16.0 + 0.01
    assert {path.name for path in tmp_path.iterdir()} == {"short.flac", "long.flac"}


def test_a_given_gain_is_kept_unless_it_would_clip(sound, tmp_path):
    raw = concatenated(sound.chunks(0, FRAMES))
    for asked in (0.5 * song_gain(sound), 100 / np.abs(raw).max()):
        write_song(sound, tmp_path / "song.flac", at_gain=float(asked))
        kept = min(asked, 0.98 / np.abs(raw).max())
        assert np.abs(audio.read(tmp_path / "song.flac").samples - kept * raw).max() < 1e-5


def test_a_preview_grows_and_what_it_holds_is_the_song(sound, tmp_path):
    preview, heard = Preview(tmp_path / "song.preview.flac"), []
    unfinished = sound.latents.clone()
    unfinished[60:] = 0
    for latents, finished in ((unfinished, 60), (sound.latents, 100), (sound.latents, FRAMES)):
        preview.grow(SongAudio(sound.model, latents), finished)
        heard.append(preview.frames)
    reach = sound.model.spec.receptive_frames
    assert heard == [60 - reach, 100 - reach, FRAMES]
    preview.file.flush()
    copy = tmp_path / "copy.flac"
    preview.file.close()
    copy.write_bytes(preview.path.read_bytes())
    raw = concatenated(sound.chunks(0, FRAMES)) * preview.gain
    assert np.abs(audio.read(copy).samples - np.clip(raw, -1, 1)).max() < 1e-4
    preview.remove()
    assert not preview.path.exists()


def test_nothing_is_heard_before_it_is_final(sound, tmp_path):
    preview = Preview(tmp_path / "song.preview.flac")
    preview.grow(sound, sound.model.spec.receptive_frames)
    assert not preview.path.exists()
    preview.remove()


def headroom_sound(seconds, headroom_s):
    """A song of a model that generates more than was asked for; a ramp, so that every sample is known."""
    model = LocalModel(spec=replace(SPEC, headroom_s=headroom_s, rounding="up"))
    latents = torch.arange(model.spec.frames(seconds), dtype=torch.float32)[:, None].repeat(1, CHANNELS)
    return SongAudio(model, latents, seconds=seconds)


@pytest.mark.parametrize("seconds", [2.0, 2.04, 0.3])
def test_headroom_is_cut_off_behind_decoding(monkeypatch, seconds):
    """To the sample, in whatever chunks; chunks that lie in the headroom are empty."""
    monkeypatch.setattr(render, "CHUNK_S", 0.1)
    sound = headroom_sound(seconds, headroom_s=0.5)
    length, count = len(sound.latents), round(seconds * 1000)
    assert length == -(-(count + 500) // LOCAL_PER_FRAME)
    chunks = list(sound.chunks(0, length))
    assert len(chunks) > 1
    expected = np.arange(count) // LOCAL_PER_FRAME
    assert np.array_equal(concatenated(chunks), np.stack([expected, expected]).astype(np.float32))
    part = concatenated(sound.chunks(2, length))
    assert np.array_equal(part, np.stack([expected, expected])[:, 2 * LOCAL_PER_FRAME :])
    whole = replace(sound, seconds=None)
    assert concatenated(whole.chunks(0, length)).shape == (2, length * LOCAL_PER_FRAME)


def test_without_headroom_no_sample_is_cut():
    """A model that rounds down answers with a little less than was asked for, never with less than its latents."""
    sound = headroom_sound(2.04, headroom_s=0.0)
    assert concatenated(sound.chunks(0, len(sound.latents))).shape == (
        2,
        len(sound.latents) * LOCAL_PER_FRAME,
    )


def test_a_song_with_headroom_is_written_as_long_as_it_was_asked_for(monkeypatch, tmp_path):
    """In memory and in chunks; its level is that of what remains."""
    sound = headroom_sound(4.0, headroom_s=1.0)
    noise = torch.randn(len(sound.latents), CHANNELS, generator=torch.Generator().manual_seed(0))
    noise[40:] *= 100  # loud, and cut off
    sound = replace(sound, latents=0.1 * noise)
    one = write_song(sound, tmp_path / "short.flac")
    monkeypatch.setattr(render, "IN_MEMORY_S", 0.5)
    monkeypatch.setattr(render, "CHUNK_S", 0.2)
    two = write_song(sound, tmp_path / "long.flac")
    short, long = (audio.read(tmp_path / f"{name}.flac") for name in ("short", "long"))
    assert short.samples.shape == long.samples.shape == (2, 4000)
    assert np.abs(short.samples - long.samples).max() < 1e-5
    assert np.abs(short.samples).max() > 0.1
    assert {one, two} == {audio.pcm_sha256(clip.samples, 1000) for clip in (short, long)}
