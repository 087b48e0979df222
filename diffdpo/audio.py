"""Audio files and levels. Samples are float32 [channel, sample], the sample rate always beside them."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pyloudnorm
import soundfile
import torch
import torchaudio
from jaxtyping import Float

from diffdpo.errors import DataError
from diffdpo.runs import atomic_write
from diffdpo.types import Clip

SILENCE_LUFS = -70.0


def read(path: str | os.PathLike[str], *, start_s: float = 0.0, seconds: float | None = None) -> Clip:
    """Decode a file (WAV, FLAC, Ogg, Opus, MP3), or `seconds` of it from `start_s` on.

    Raises DataError, naming the file, when it is missing, damaged, empty or holds values that are not numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such audio file")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            file.seek(min(int(start_s * rate), file.frames))
            samples = file.read(-1 if seconds is None else int(seconds * rate), "float32", always_2d=True).T
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(
            f"{path}: cannot decode ({_first_line(error)}); replace or remove the file"
        ) from error
    if samples.shape[1] == 0:
        raise DataError(f"{path}: holds no audio (0 samples); replace or remove the file")
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: holds samples that are not numbers; replace or remove the file")
    return Clip(samples=np.ascontiguousarray(samples), sample_rate=rate)


def seconds_of(path: str | os.PathLike[str]) -> float:
    """Length of a file, from its header."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such audio file")
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DataError(
            f"{path}: cannot decode ({_first_line(error)}); replace or remove the file"
        ) from error
    return info.frames / info.samplerate


def write(path: str | os.PathLike[str], clip: Clip) -> None:
    """Write FLAC or WAV by the suffix, 24 bits, never a half file. Samples beyond ±1 are clipped."""
    path = Path(path)
    buffer = io.BytesIO()
    scaled = np.round(np.clip(clip.samples, -1.0, 1.0).astype(np.float64) * (2**23 - 1))
    samples = scaled.astype(np.int32).T << 8  # quantised here, so that FLAC and WAV hold the same numbers
    soundfile.write(buffer, samples, clip.sample_rate, format=path.suffix[1:].upper(), subtype="PCM_24")
    atomic_write(path, buffer.getvalue())


def resample(clip: Clip, sample_rate: int) -> Clip:
    """The same sound at another rate (windowed sinc, torchaudio's defaults)."""
    if clip.sample_rate == sample_rate:
        return clip
    samples = torchaudio.functional.resample(torch.from_numpy(clip.samples), clip.sample_rate, sample_rate)
    return Clip(samples=samples.numpy(), sample_rate=sample_rate)


def stereo(clip: Clip) -> Clip:
    """Two channels: mono is doubled, of more than two the first two are kept."""
    channels = clip.samples.shape[0]
    if channels == 2:
        return clip
    samples = np.repeat(clip.samples, 2, axis=0) if channels == 1 else clip.samples[:2]
    return Clip(samples=np.ascontiguousarray(samples), sample_rate=clip.sample_rate)


def loudness(clip: Clip) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4); -inf for silence. Short clips are repeated to one second."""
    samples = clip.samples
    if samples.shape[1] < clip.sample_rate:
        samples = np.tile(samples, -(-clip.sample_rate // max(1, samples.shape[1])))
    with np.errstate(divide="ignore"):
        return float(pyloudnorm.Meter(clip.sample_rate).integrated_loudness(samples.T.astype(np.float64)))


def normalise(clip: Clip, target_lufs: float) -> Clip:
    """Bring a clip to a loudness. Silence stays silence. The result may exceed ±1."""
    level = loudness(clip)
    if not np.isfinite(level) or level < SILENCE_LUFS:
        return clip
    gain = np.float32(10 ** ((target_lufs - level) / 20))
    return Clip(samples=clip.samples * gain, sample_rate=clip.sample_rate)


def limit(clip: Clip, ceiling: float = 0.98) -> Clip:
    """Scale down, never up, so that no sample exceeds the ceiling."""
    peak = float(np.abs(clip.samples).max(initial=0.0))
    if peak <= ceiling:
        return clip
    return Clip(samples=clip.samples * np.float32(ceiling / peak), sample_rate=clip.sample_rate)


def pcm_sha256(samples: Float[np.ndarray, "channel sample"], sample_rate: int) -> str:
    """The identity of a sound: the hash of its rate and 16-bit PCM, whatever container holds it."""
    pcm = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2")
    return hashlib.sha256(f"{sample_rate}|{pcm.shape}|".encode() + pcm.tobytes()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
