"""Audio files: what comes back is what went in, and what cannot be read is named."""

import numpy as np
import pyloudnorm
import pytest
import soundfile

from diffdpo import audio
from diffdpo.errors import DataError
from diffdpo.types import Clip


def sine(seconds=1.0, rate=44100, hertz=440.0, level=0.1, channels=2):
    wave = level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return Clip(samples=np.repeat(wave[None].astype(np.float32), channels, 0), sample_rate=rate)


@pytest.mark.parametrize("suffix", ["flac", "wav"])
def test_a_written_file_comes_back_to_24_bits(tmp_path, suffix):
    clip = sine()
    audio.write(tmp_path / f"a.{suffix}", clip)
    again = audio.read(tmp_path / f"a.{suffix}")
    assert again.sample_rate == 44100
    assert np.abs(again.samples - clip.samples).max() < 2**-22


def test_an_excerpt_is_a_slice(tmp_path):
    audio.write(tmp_path / "a.wav", sine(3.0))
    whole, part = audio.read(tmp_path / "a.wav"), audio.read(tmp_path / "a.wav", start_s=1.0, seconds=0.5)
    assert np.array_equal(part.samples, whole.samples[:, 44100 : 44100 + 22050])
    assert audio.seconds_of(tmp_path / "a.wav") == 3.0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such audio file"),
        (b"", "cannot decode"),
        (b"RIFFnonsense", "cannot decode"),
        ("empty", "holds no audio"),
        ("nan", "not numbers"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, content, says):
    path = tmp_path / "song.wav"
    if content == "empty":
        soundfile.write(path, np.zeros((0, 2)), 44100)
    elif content == "nan":
        soundfile.write(path, np.full((10, 2), np.nan, np.float32), 44100, subtype="FLOAT")
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        audio.read(path)
    assert "song.wav" in str(caught.value)


def test_a_tone_of_known_loudness():
    """A 997 Hz sine at 0 dB in one channel is -3.01 LUFS (BS.1770-4), so in two channels at 0.1 it is -20.0."""
    assert audio.loudness(sine(5.0, 48000, 997.0)) == pytest.approx(-20.0, abs=0.1)


@pytest.mark.parametrize("seconds", [0.2, 3.0])
def test_normalising_reaches_the_target_and_forgets_the_level(seconds):
    one, two = (audio.normalise(sine(seconds, level=level), -16.0) for level in (0.05, 0.5))
    assert audio.loudness(one) == pytest.approx(-16.0, abs=0.05)
    assert np.allclose(one.samples, two.samples, rtol=1e-4, atol=1e-6)


def test_silence_stays_silence():
    silent = Clip(samples=np.zeros((2, 44100), np.float32), sample_rate=44100)
    assert audio.normalise(silent, -16.0).samples.max() == 0


def test_limiting_only_turns_down():
    assert np.abs(audio.limit(sine(level=3.0)).samples).max() == pytest.approx(0.98)
    assert audio.limit(sine(level=0.3)).samples.max() == sine(level=0.3).samples.max()


def test_resampling_keeps_the_sine():
    down = audio.resample(sine(1.0, 44100), 16000)
    assert down.samples.shape == (2, 16000)
    expected = sine(1.0, 16000).samples
    assert np.abs(down.samples - expected)[:, 100:-100].max() < 1e-3


def test_mono_is_doubled():
    assert audio.stereo(sine(channels=1)).samples.shape[0] == 2


def test_the_identity_of_a_sound_is_its_samples_not_its_file(tmp_path):
    clip = sine()
    for suffix in ("flac", "wav"):
        audio.write(tmp_path / f"a.{suffix}", clip)
    hashes = {audio.pcm_sha256(c.samples, c.sample_rate) for c in (audio.read(p) for p in tmp_path.iterdir())}
    assert len(hashes) == 1
    louder = sine(level=0.11)
    assert audio.pcm_sha256(louder.samples, 44100) not in hashes


@pytest.mark.parametrize(("rate", "seconds"), [(44100, 7.38), (22050, 5.0), (16000, 3.26), (48000, 1.08)])
def test_loudness_in_blocks_and_at_once_is_pyloudnorms(rate, seconds):
    swell = np.linspace(0.001, 1, int(rate * seconds))
    noise = (np.random.default_rng(0).normal(0, 0.1, (2, len(swell))) * swell).astype(np.float32)
    meter = audio.Meter(rate, 2)
    for block in np.split(noise, [1, 999, 30000], axis=1):
        meter.add(block)
    reference = pyloudnorm.Meter(rate).integrated_loudness(noise.T.astype(np.float64))
    assert meter.loudness() == pytest.approx(reference, abs=1e-6)
    assert audio.loudness(Clip(samples=noise, sample_rate=rate)) == pytest.approx(reference, abs=1e-6)
    assert meter.peak == np.abs(noise).max()


def test_the_gain_is_what_normalising_and_limiting_multiply_with():
    quiet, loud = (sine(level=level) for level in (0.001, 0.4))
    for clip in (quiet, loud):
        for target in (-30.0, -3.0):
            expected = audio.limit(audio.normalise(clip, target)).samples
            peak = float(np.abs(clip.samples).max())
            factor = audio.gain(audio.loudness(clip), peak, target)
            assert np.allclose(clip.samples * factor, expected, rtol=1e-5)
    assert audio.gain(-np.inf, 0.0, -16.0) == 1.0


def test_a_file_written_and_hashed_in_blocks_is_the_one_written_at_once(tmp_path):
    clip = sine()
    audio.write(tmp_path / "once.flac", clip)
    with audio.writer(tmp_path / "blocks.flac", 44100) as file:
        for block in np.split(clip.samples, [5000, 5001, 30000], axis=1):
            audio.extend(file, block)
    once, blocks = (audio.read(tmp_path / f"{name}.flac") for name in ("once", "blocks"))
    assert np.array_equal(once.samples, blocks.samples)
    assert audio.file_sha256(tmp_path / "blocks.flac") == audio.pcm_sha256(once.samples, 44100)
    pieces = list(audio.blocks(tmp_path / "once.flac", seconds=0.3))
    assert len(pieces) > 1
    assert np.array_equal(np.concatenate([p.samples for p in pieces], axis=1), once.samples)


def test_a_growing_file_can_be_heard(tmp_path):
    """What was written before a kill, or is read by a player meanwhile, decodes from the start."""
    rate, noise = 44100, np.random.default_rng(0).normal(0, 0.1, (2, 3 * 44100)).astype(np.float32)
    with audio.writer(tmp_path / "growing.flac", rate) as file:
        audio.extend(file, noise)
        copy = tmp_path / "copy.flac"
        copy.write_bytes((tmp_path / "growing.flac").read_bytes())
        with soundfile.SoundFile(copy) as heard:
            begun = heard.read(rate, dtype="float32")
    assert np.allclose(begun.T, noise[:, :rate], atol=1e-6)
