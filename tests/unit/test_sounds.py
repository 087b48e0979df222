"""Sounds in slices equal sounds in one piece; surround is folded down by the standard's coefficients."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.bundle import write_bundle

from diffdpo import audio
from diffdpo.codecs.spectral import SpectralCodec
from diffdpo.encoders.beats import HOP, RATE, onset_curve
from diffdpo.errors import DataError
from diffdpo.models import MODELS
from diffdpo.sounds import open_sound, sound_of
from diffdpo.types import Clip

pytestmark = pytest.mark.slow

HALF = 0.5**0.5


def noise(seconds, rate=44100, channels=2, seed=0):
    samples = np.random.default_rng(seed).normal(0, 0.1, (channels, int(seconds * rate))).astype(np.float32)
    return Clip(samples=samples, sample_rate=rate)


def write_wav(path, samples, rate):
    soundfile.write(path, samples.T, rate, subtype="FLOAT", format="WAV")
    return path


@pytest.mark.parametrize("rate", [44100, 22050, 11025, 48000])
@pytest.mark.parametrize("seconds", [0.3, 47.3])
def test_a_file_in_slices_is_the_file_at_its_loudness(tmp_path, rate, seconds):
    clip = noise(seconds, rate)
    path = write_wav(tmp_path / "song.wav", clip.samples, rate)
    with open_sound(path, tmp_path) as (sound, level):
        assert (sound.length, sound.sample_rate) == (clip.samples.shape[1], rate)
        assert level == audio.loudness(clip)
        np.testing.assert_array_equal(sound.clip().samples, clip.samples)
        np.testing.assert_array_equal(sound.clip(100, 177).samples, clip.samples[:, 100:177])
        blocks = [block.samples for block in sound.blocks(7.0)]
        np.testing.assert_array_equal(np.concatenate(blocks, 1), clip.samples)
        expected = audio.normalise(clip, -16.0).samples
        np.testing.assert_array_equal(sound.scaled(10 ** ((-16.0 - level) / 20)).clip().samples, expected)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["song.wav"]


@settings(max_examples=30, deadline=None)
@given(
    rates=st.sampled_from([(48000, 44100), (22050, 44100), (44100, 22050), (32000, 44100), (96000, 44100)]),
    length=st.integers(1, 30_000),
    cut=st.data(),
)
def test_a_slice_of_a_resampled_sound_is_that_of_the_resampled_whole(rates, length, cut):
    old, new = rates
    clip = Clip(samples=noise(1).samples[:, :length], sample_rate=old)
    whole, sound = audio.resample(clip, new).samples, sound_of(clip).resampled(new)
    assert sound.length == whole.shape[1]
    start = cut.draw(st.integers(0, sound.length - 1))
    stop = cut.draw(st.integers(start + 1, sound.length))
    np.testing.assert_allclose(sound.read(start, stop), whole[:, start:stop], atol=2e-6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return MODELS["tiny"](bundle=str(write_bundle(tmp_path_factory.mktemp("bundle")))).load()


def test_latents_from_slices_are_those_of_the_whole_song(tiny):
    clip = noise(40.2)
    assert torch.equal(tiny.encode_sound(sound_of(clip)), tiny.encode(clip))


@pytest.mark.parametrize(("rate", "channels"), [(48000, 2), (32000, 1)])
def test_latents_of_a_resampled_song_are_those_of_the_whole_but_for_rounding(tiny, rate, channels):
    clip = noise(25.0, rate, channels)
    torch.testing.assert_close(tiny.encode_sound(sound_of(clip)), tiny.encode(clip), atol=1e-4, rtol=1e-4)


def test_the_codec_reads_a_window_at_a_time():
    codec = SpectralCodec(dim=16, latent_channels=8).eval()
    sound, widths = torch.from_numpy(noise(60.0).samples)[None], []

    def read(start, stop):
        widths.append(stop - start)
        return sound[..., start:stop]

    assert torch.equal(codec.encode_windows(read, sound.shape[-1], chunk=64), codec.encode(sound, chunk=64))
    assert max(widths) <= (64 + 2 * 8) * 2048


@pytest.mark.parametrize("seconds", [0.01, 1.0, 33.0, 95.0])
def test_the_onsets_in_pieces_are_librosas_of_the_whole(seconds):
    rng = np.random.default_rng(1)
    samples = (
        rng.normal(0, 0.01, int(seconds * RATE)) + (np.arange(int(seconds * RATE)) % 11025 < 99)
    ).astype(np.float32)
    expected = librosa.onset.onset_strength(y=samples, sr=RATE, hop_length=HOP)
    strength = onset_curve(sound_of(Clip(samples=samples[None], sample_rate=RATE)))
    np.testing.assert_allclose(strength, expected, atol=1e-3)


FIVE_ONE = [(1, 0), (0, 1), (HALF, HALF), (0, 0), (HALF, 0), (0, HALF)]
"""Left, right, centre, low frequencies, left and right surround of ITU-R BS.775."""


@pytest.mark.parametrize("channel", range(6))
def test_each_channel_of_five_one_goes_where_the_standard_says(channel):
    samples = np.zeros((6, 4), np.float32)
    samples[channel] = 1.0
    expected = np.array(FIVE_ONE[channel])[:, None] / (1 + 2 * HALF) * np.ones((1, 4))
    np.testing.assert_allclose(audio.fold_down(samples), expected, rtol=1e-6)


@pytest.mark.parametrize("channels", range(3, 9))
def test_a_fold_never_clips_and_is_the_same_for_left_and_right(channels):
    samples = np.ones((channels, 3), np.float32)
    fold = audio.fold_down(samples)
    assert fold.shape == (2, 3)
    assert np.abs(fold).max() == pytest.approx(1.0)
    np.testing.assert_array_equal(fold[0], fold[1])
    assert np.abs(audio.fold_down(np.eye(channels, dtype=np.float32))).sum(1) == pytest.approx([1.0, 1.0])


def test_sound_in_two_channels_or_one_is_left_alone_and_nine_are_refused():
    for channels in (1, 2):
        samples = noise(0.1, channels=channels).samples
        assert audio.fold_down(samples) is samples
    with pytest.raises(DataError, match="9 channels of no common layout"):
        audio.fold_down(np.zeros((9, 4), np.float32), Path("song.wav"))


def test_a_rate_that_no_filter_bridges_is_refused():
    with pytest.raises(DataError, match="44101 Hz cannot be brought to 44100 Hz"):
        audio.resample(noise(0.1, 44101), 44100)
