"""Sounds of any length, of which only a slice is in memory: decoded once into a file without a name, then read in
slices, at another sample rate if need be.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
from jaxtyping import Float

from diffdpo import audio
from diffdpo.errors import DataError
from diffdpo.types import Clip

BLOCK_S = 20.0
"""Seconds in memory at once; whole gating blocks of the loudness meter, so that it measures as in one piece."""
MIN_RATE = 4000
"""The lowest sample rate, in Hz, at which loudness is defined: its filter has a corner at 1.7 kHz."""
SINC_WIDTH, SINC_ROLLOFF = 6, 0.99
"""Zero crossings and roll-off of the resampler's kernel, torchaudio's defaults."""

Read = Callable[[int, int], Float[np.ndarray, "channel _"]]
"""The samples from start to stop, both within the sound."""


@dataclass(frozen=True, eq=False)
class Sound:
    """A sound that is read in slices."""

    read: Read
    length: int
    """In samples."""
    sample_rate: int

    @property
    def seconds(self) -> float:
        return self.length / self.sample_rate

    def clip(self, start: int = 0, stop: int | None = None) -> Clip:
        """A slice, by default all of it."""
        return Clip(
            samples=self.read(start, self.length if stop is None else stop), sample_rate=self.sample_rate
        )

    def blocks(self, seconds: float = BLOCK_S) -> Iterator[Clip]:
        """All of it, slice by slice."""
        size = max(1, int(seconds * self.sample_rate))
        for start in range(0, self.length, size):
            yield self.clip(start, min(start + size, self.length))

    def map(self, change: Callable[[Clip], Clip]) -> "Sound":
        """The sound with every slice changed, sample by sample."""
        return Sound(
            lambda start, stop: change(self.clip(start, stop)).samples, self.length, self.sample_rate
        )

    def scaled(self, factor: float) -> "Sound":
        """The sound at another level."""
        gain = np.float32(factor)
        return self.map(lambda clip: Clip(samples=clip.samples * gain, sample_rate=clip.sample_rate))

    def resampled(self, sample_rate: int) -> "Sound":
        """The sound at another rate, as `audio.resample` makes it of the whole, but for rounding."""
        if sample_rate == self.sample_rate:
            return self
        divisor = math.gcd(sample_rate, self.sample_rate)
        old, new = self.sample_rate // divisor, sample_rate // divisor
        width = math.ceil(SINC_WIDTH * old / (min(old, new) * SINC_ROLLOFF))
        context = -(-(width + old) // old)  # in steps of `old` samples before and `new` behind

        def read(start: int, stop: int) -> Float[np.ndarray, "channel _"]:
            first = max(0, start // new - context)
            last = min(self.length, (-(-stop // new) + context) * old)
            piece = audio.resample(self.clip(first * old, last), sample_rate).samples
            return piece[:, start - first * new : stop - first * new]

        return Sound(read, -(-new * self.length // old), sample_rate)


def sound_of(clip: Clip) -> Sound:
    """A clip, read in slices."""
    return Sound(lambda start, stop: clip.samples[:, start:stop], clip.samples.shape[1], clip.sample_rate)


@contextmanager
def open_sound(path: Path, folder: Path) -> Iterator[tuple[Sound, float]]:
    """The sound of a file in at most two channels, and its integrated loudness in LUFS.

    `folder` has room for the samples as 32-bit numbers, in a file that vanishes with the process. DataError for
    what cannot be decoded, holds no samples, samples that are not numbers or one value throughout.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        with audio.decode(path) as decoder:
            sound, meter = _spool(decoder, path, file)
        is_short = sound.length < sound.sample_rate
        yield sound, audio.loudness(sound.clip()) if is_short else meter.loudness()


def _spool(decoder: soundfile.SoundFile, path: Path, file: IO[bytes]) -> tuple[Sound, audio.Meter]:
    """Write the samples of a file, folded down, to another; the sound there, and its level."""
    rate, length, channels = decoder.samplerate, 0, min(2, decoder.channels)
    if rate < MIN_RATE:
        raise DataError(f"{path}: a sample rate of {rate} Hz, below {MIN_RATE}; replace or remove the file")
    meter, extremes = audio.Meter(rate, channels), (np.inf, -np.inf)
    for block in decoder.blocks(int(BLOCK_S * rate), dtype="float32", always_2d=True):
        samples = audio.fold_down(block.T, path)
        audio.check_numbers(samples, path)
        meter.add(samples)
        extremes = min(extremes[0], float(samples.min())), max(extremes[1], float(samples.max()))
        file.write(np.ascontiguousarray(samples.T).tobytes())
        length += samples.shape[1]
    if not length:
        raise DataError(f"{path}: holds no audio (0 samples); replace or remove the file")
    if length > 1 and extremes[0] == extremes[1] != 0:
        raise DataError(f"{path}: one value throughout, which cannot be heard; replace or remove the file")
    return Sound(_reader(file, channels), length, rate), meter


def _reader(file: IO[bytes], channels: int) -> Read:
    size = 4 * channels

    def read(start: int, stop: int) -> Float[np.ndarray, "channel _"]:
        file.seek(start * size)
        samples = np.frombuffer(file.read((stop - start) * size), np.float32)
        return np.ascontiguousarray(samples.reshape(-1, channels).T)

    return read
