"""Songs written in pieces are the songs, and what can be heard early does not change later."""

import numpy as np
import pytest
import torch

from diffdpo import audio
from diffdpo.models import MODELS
from diffdpo.sampling import render
from diffdpo.sampling.render import Preview, Sound, gain, write_song

FRAMES, PER_FRAME = 130, 2048


@pytest.fixture
def sound(bundle, monkeypatch):
    """Six seconds, in pieces of one and a half."""
    monkeypatch.setattr(render, "PIECE_S", 1.5)
    model = MODELS["tiny"](bundle=str(bundle)).load()
    return Sound(model, torch.randn(FRAMES, 8, generator=torch.Generator().manual_seed(0)))


def joined(pieces):
    return np.concatenate(list(pieces), axis=1)


def test_pieces_in_a_row_are_the_whole(sound):
    whole = sound.model.decode(sound.latents).samples
    pieces = list(sound.pieces(0, FRAMES))
    assert len(pieces) == 5
    assert np.allclose(joined(pieces), whole, atol=1e-4 * np.abs(whole).max())
    part = joined(sound.pieces(40, 90))
    assert np.allclose(part, whole[:, 40 * PER_FRAME : 90 * PER_FRAME], atol=1e-4 * np.abs(whole).max())


def test_a_song_after_something_new_sounds_as_it_did(sound):
    whole = joined(sound.pieces(0, FRAMES))
    before, reach = 11, sound.model.latents.reach
    longer = Sound(sound.model, torch.cat([torch.randn(before, 8), sound.latents]), -before)
    heard = joined(longer.pieces(before + reach, before + FRAMES))
    assert np.allclose(heard, whole[:, reach * PER_FRAME :], atol=1e-4 * np.abs(whole).max())


def test_long_and_short_songs_are_written_alike(sound, tmp_path, monkeypatch):
    one = write_song(sound, tmp_path / "short.flac")
    monkeypatch.setattr(render, "WHOLE_S", 1.0)
    other = write_song(sound, tmp_path / "long.flac")
    short, long = (audio.read(tmp_path / f"{name}.flac") for name in ("short", "long"))
    assert np.abs(short.samples - long.samples).max() < 1e-5
    for name, clip in ((one, short), (other, long)):
        assert name == audio.pcm_sha256(clip.samples, 44100)
    assert np.abs(long.samples).max() <= 0.98 + 1e-6
    assert audio.loudness(long) <= -16.0 + 0.01
    assert {path.name for path in tmp_path.iterdir()} == {"short.flac", "long.flac"}


def test_a_given_gain_is_kept_unless_it_would_clip(sound, tmp_path):
    raw = joined(sound.pieces(0, FRAMES))
    for asked in (0.5 * gain(sound), 100 / np.abs(raw).max()):
        write_song(sound, tmp_path / "song.flac", at_gain=float(asked))
        kept = min(asked, 0.98 / np.abs(raw).max())
        assert np.abs(audio.read(tmp_path / "song.flac").samples - kept * raw).max() < 1e-5


def test_a_preview_grows_and_what_it_holds_is_the_song(sound, tmp_path):
    preview, heard = Preview(tmp_path / "song.preview.flac"), []
    unfinished = sound.latents.clone()
    unfinished[60:] = 0
    for latents, finished in ((unfinished, 60), (sound.latents, 100), (sound.latents, FRAMES)):
        preview.grow(Sound(sound.model, latents), finished)
        heard.append(preview.frames)
    reach = sound.model.latents.reach
    assert heard == [60 - reach, 100 - reach, FRAMES]
    preview.file.flush()
    copy = tmp_path / "copy.flac"
    preview.file.close()
    copy.write_bytes(preview.path.read_bytes())
    raw = joined(sound.pieces(0, FRAMES)) * preview.gain
    assert np.abs(audio.read(copy).samples - np.clip(raw, -1, 1)).max() < 1e-4
    preview.remove()
    assert not preview.path.exists()


def test_nothing_is_heard_before_it_is_final(sound, tmp_path):
    preview = Preview(tmp_path / "song.preview.flac")
    preview.grow(sound, sound.model.latents.reach)
    assert not preview.path.exists()
    preview.remove()
