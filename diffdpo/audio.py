"""Audio files and levels. Samples are float32 [channel, sample], the sample rate always beside them.

torchaudio, pyloudnorm and scipy are imported by the functions that need them: everything that reads a file imports
this module, and a command's start should not wait for them.
"""

import hashlib
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float, Int

from diffdpo.disk import disk_errors
from diffdpo.errors import DataError
from diffdpo.runs import atomic_write
from diffdpo.types import Clip

SILENCE_LUFS = -70.0
MAX_FILTER = 2**28
"""Coefficients of the largest filter for another sample rate."""
PEAK_LIMIT = 0.98
"""Highest absolute value of a sample in a generated file."""


HALF_POWER = 0.5**0.5
FOLDS: Mapping[int, Sequence[tuple[float, float]]] = {
    3: ((1, 0), (0, 1), (HALF_POWER, HALF_POWER)),
    4: ((1, 0), (0, 1), (HALF_POWER, 0), (0, HALF_POWER)),
    5: ((1, 0), (0, 1), (HALF_POWER, HALF_POWER), (HALF_POWER, 0), (0, HALF_POWER)),
    6: ((1, 0), (0, 1), (HALF_POWER, HALF_POWER), (0, 0), (HALF_POWER, 0), (0, HALF_POWER)),
    7: ((1, 0), (0, 1), (HALF_POWER, HALF_POWER), (0, 0), (0.5, 0.5), (HALF_POWER, 0), (0, HALF_POWER)),
    8: (
        (1, 0), (0, 1), (HALF_POWER, HALF_POWER), (0, 0),
        (HALF_POWER, 0), (0, HALF_POWER), (HALF_POWER, 0), (0, HALF_POWER),
    ),
}  # fmt: skip
"""By number of channels the share of each in the left and the right of two (ITU-R BS.775-3, table 2), in the order
of WAV and FLAC: left, right, centre, low frequencies (left out), back or side left and right; with seven the back
centre comes before the sides, with four there is no centre."""


@contextmanager
def decode(path: str | os.PathLike[str]) -> Iterator[soundfile.SoundFile]:
    """An open audio file. DataError, naming the file, when it is missing or cannot be decoded."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such audio file")
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            yield file
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(
            f"{path}: cannot decode ({_first_line(error)}); replace or remove the file"
        ) from error


def fold_down(
    samples: Float[np.ndarray, "channel sample"], path: str | os.PathLike[str] = "a clip"
) -> Float[np.ndarray, "channel_of_two sample"]:
    """At most two channels: surround sound of 3 to 8 channels mixed by ITU-R BS.775, scaled so that nothing clips.

    DataError for more channels, whose places are not told by their number.
    """
    if len(samples) <= 2:
        return samples
    if len(samples) not in FOLDS:
        raise DataError(f"{path}: {len(samples)} channels of no common layout; mix the file down to two")
    shares = np.array(FOLDS[len(samples)], np.float32).T
    return (shares / shares.sum(1).max()) @ samples


def check_numbers(samples: Float[np.ndarray, "channel sample"], path: str | os.PathLike[str]) -> None:
    """DataError, naming the file, for samples that are not numbers."""
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: holds samples that are not numbers; replace or remove the file")


def read(
    path: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    seconds: float | None = None,
    with_fold: bool = True,
) -> Clip:
    """Decode a file (WAV, FLAC, Ogg, Opus, MP3), or `seconds` of it from `start_s` on.

    More than two channels are folded down to two, see `fold_down`, unless `with_fold` is false.

    Raises DataError, naming the file, when it is missing, damaged, empty or holds values that are not numbers.
    """
    path = Path(path)
    with decode(path) as file:
        rate = file.samplerate
        file.seek(min(int(start_s * rate), file.frames))
        samples = file.read(-1 if seconds is None else int(seconds * rate), "float32", always_2d=True).T
    if samples.shape[1] == 0:
        raise DataError(f"{path}: holds no audio (0 samples); replace or remove the file")
    check_numbers(samples, path)
    samples = fold_down(samples, path) if with_fold else samples
    return Clip(samples=np.ascontiguousarray(samples), sample_rate=rate)


def seconds_of(path: str | os.PathLike[str]) -> float:
    """Length of an audio file in seconds, from its header."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such audio file")
    try:
        info = soundfile.info(os.fsencode(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(
            f"{path}: cannot decode ({_first_line(error)}); replace or remove the file"
        ) from error
    return info.frames / info.samplerate


def write(path: str | os.PathLike[str], clip: Clip) -> None:
    """Write FLAC or WAV by the suffix, 24 bits, never a half file. Samples beyond ±1 are clipped."""
    path = Path(path)
    buffer = io.BytesIO()
    samples = _quantise(clip.samples)
    soundfile.write(buffer, samples, clip.sample_rate, format=path.suffix[1:].upper(), subtype="PCM_24")
    atomic_write(path, buffer.getvalue())


def _quantise(samples: Float[np.ndarray, "channel sample"]) -> Int[np.ndarray, "sample channel"]:
    """Samples as integers of 24 bits in the upper part of 32, so that FLAC and WAV hold the same numbers."""
    integers = np.round(np.clip(samples, -1.0, 1.0).astype(np.float64) * (2**23 - 1))
    return integers.astype(np.int32).T << 8


def writer(path: Path, sample_rate: int, channels: int = 2) -> soundfile.SoundFile:
    """A FLAC or WAV file that grows block by block, see `extend`; what is flushed can already be heard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path):
        return soundfile.SoundFile(
            os.fsencode(path), "w", sample_rate, channels, subtype="PCM_24", format=path.suffix[1:].upper()
        )


def extend(file: soundfile.SoundFile, samples: Float[np.ndarray, "channel sample"]) -> None:
    """Append to a file of `writer`, as `write` would have written it."""
    with disk_errors(Path(os.fsdecode(file.name))):
        file.write(_quantise(samples))
        file.flush()


def blocks(path: Path, seconds: float = 20.0) -> Iterator[Clip]:
    """The clips of an audio file, block by block; one block is in memory at a time."""
    with soundfile.SoundFile(os.fsencode(path)) as file:
        for samples in file.blocks(int(seconds * file.samplerate), dtype="float32", always_2d=True):
            yield Clip(samples=np.ascontiguousarray(samples.T), sample_rate=file.samplerate)


def resample(clip: Clip, sample_rate: int) -> Clip:
    """The same sound at another rate (windowed sinc, torchaudio's defaults).

    DataError for two rates whose ratio needs a filter of more than a gigabyte, such as 44,101 to 44,100 Hz.
    """
    if clip.sample_rate == sample_rate:
        return clip
    divisor = math.gcd(clip.sample_rate, sample_rate)
    if clip.sample_rate // divisor * (sample_rate // divisor) > MAX_FILTER:
        raise DataError(
            f"a sample rate of {clip.sample_rate} Hz cannot be brought to {sample_rate} Hz; save the file at a "
            "common rate, such as 44100 or 48000 Hz"
        )
    import torch
    from torchaudio.functional import resample as sinc_resample

    samples = sinc_resample(torch.from_numpy(clip.samples), clip.sample_rate, sample_rate)
    return Clip(samples=samples.numpy(), sample_rate=sample_rate)


def stereo(clip: Clip) -> Clip:
    """A clip with two channels: mono is doubled, more channels are folded down."""
    channels = clip.samples.shape[0]
    if channels == 2:
        return clip
    samples = np.repeat(clip.samples, 2, axis=0) if channels == 1 else fold_down(clip.samples)
    return Clip(samples=np.ascontiguousarray(samples), sample_rate=clip.sample_rate)


def loudness(clip: Clip) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4); -inf for silence. Short clips are repeated to one second."""
    samples = clip.samples
    if samples.shape[1] < clip.sample_rate:
        samples = np.tile(samples, -(-clip.sample_rate // max(1, samples.shape[1])))
    meter = Meter(clip.sample_rate, samples.shape[0])
    meter.add(samples)
    return meter.loudness()


class Meter:
    """Integrated loudness and peak of a sound that comes in blocks: `loudness` in constant memory."""

    def __init__(self, sample_rate: int, channels: int) -> None:
        import pyloudnorm

        self.rate, self.samples, self.peak = sample_rate, 0, 0.0
        stages = pyloudnorm.Meter(sample_rate)._filters.values()
        self.filters = np.array([[*(stage.passband_gain * stage.b), *stage.a] for stage in stages])
        self.state = np.zeros((len(self.filters), channels, 2))
        self.energies: list[float] = []
        """Energy of each complete quarter of a gating block (400 ms), summed over channels."""
        self.open = 0.0

    def add(self, samples: Float[np.ndarray, "channel sample"]) -> None:
        from scipy.signal import sosfilt

        if not samples.size:
            return
        self.peak = max(self.peak, float(np.abs(samples).max(initial=0.0)))
        k_weighted_samples, self.state = sosfilt(self.filters, samples.astype(np.float64), zi=self.state)
        energy = (k_weighted_samples**2).sum(0)
        while energy.size:
            n_samples = self._end_of_quarter(len(self.energies)) - self.samples
            self.open += float(energy[:n_samples].sum())
            self.samples += min(n_samples, energy.size)
            if n_samples <= energy.size:
                self.energies.append(self.open)
                self.open = 0.0
            energy = energy[n_samples:]

    def _end_of_quarter(self, number: int) -> int:
        return int(0.1 * (number + 1) * self.rate + 1e-6)

    def loudness(self) -> float:
        """Integrated loudness, in LUFS, of all blocks so far; -inf for silence and for less than a gating block."""
        count = round((self.samples / self.rate - 0.4) / 0.1) + 1  # as pyloudnorm: the last may be cut short
        quarters = [*self.energies, self.open][: count + 3]
        powers = np.convolve(quarters, np.ones(4), "valid") if len(quarters) >= 4 else np.zeros(0)
        powers = powers / (0.4 * self.rate)

        def level(powers: Float[np.ndarray, " block"]) -> float:
            return -0.691 + 10 * float(np.log10(powers.mean())) if powers.size else -np.inf

        with np.errstate(divide="ignore"):
            audible_powers = powers[-0.691 + 10 * np.log10(powers) >= SILENCE_LUFS]
            loud = audible_powers[-0.691 + 10 * np.log10(audible_powers) > level(audible_powers) - 10]
        return level(loud)


def gain(lufs: float, peak: float, target_lufs: float, peak_limit: float = PEAK_LIMIT) -> float:
    """The factor by which `normalise` and then `limit` scale a sound of this loudness (LUFS) and peak."""
    factor = 10 ** ((target_lufs - lufs) / 20) if np.isfinite(lufs) and lufs >= SILENCE_LUFS else 1.0
    return float(min(factor, peak_limit / peak) if peak > 0 else factor)


def normalise(clip: Clip, target_lufs: float) -> Clip:
    """A clip at a loudness in LUFS. Silence stays silence; samples may exceed ±1."""
    level = loudness(clip)
    if not np.isfinite(level) or level < SILENCE_LUFS:
        return clip
    gain = np.float32(10 ** ((target_lufs - level) / 20))
    return Clip(samples=clip.samples * gain, sample_rate=clip.sample_rate)


def limit(clip: Clip, peak_limit: float = PEAK_LIMIT) -> Clip:
    """Scale a clip down, never up, so that no sample exceeds `peak_limit`."""
    peak = float(np.abs(clip.samples).max(initial=0.0))
    if peak <= peak_limit:
        return clip
    return Clip(samples=clip.samples * np.float32(peak_limit / peak), sample_rate=clip.sample_rate)


def pcm_sha256(samples: Float[np.ndarray, "channel sample"], sample_rate: int) -> str:
    """The identity of a sound: the hash of its rate and 16-bit PCM, whatever container holds it."""
    pcm = _pcm(samples)
    return hashlib.sha256(f"{sample_rate}|{pcm.shape}|".encode() + pcm.tobytes()).hexdigest()


def file_sha256(path: Path) -> str:
    """`pcm_sha256` of a file, without reading all of it at once: channel by channel, as the hash wants it."""
    with soundfile.SoundFile(os.fsencode(path)) as file:
        shape, rate = (file.channels, file.frames), file.samplerate
    digest = hashlib.sha256(f"{rate}|{shape}|".encode())
    for channel in range(shape[0]):
        for clip in blocks(path):
            digest.update(_pcm(clip.samples[channel]).tobytes())
    return digest.hexdigest()


def _pcm(samples: Float[np.ndarray, "*channel sample"]) -> Int[np.ndarray, "*channel sample"]:
    """Samples as 16-bit integers."""
    return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
