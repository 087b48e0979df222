"""Latents to FLAC in chunks: a preview while a song is being sampled, and the song at its proper level.

The level of a song is known when it has ended. So there are two files: a preview that grows with the song, at the
level of its first chunk, and the song itself, decoded again at -16 LUFS. Neither needs more memory than a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float
from torch import Tensor

from diffdpo import audio
from diffdpo.disk import disk_errors
from diffdpo.models.base import SongModel
from diffdpo.runs import sync
from diffdpo.types import Clip

LOUDNESS_LUFS = -16.0
CHUNK_S = 20.0
IN_MEMORY_S = 60.0
"""Up to this length a decoded song is kept in memory; a longer one is decoded for its level, then for its file."""


@dataclass(frozen=True)
class SongAudio:
    """The audio of latents, decoded chunk by chunk."""

    model: SongModel
    latents: Float[Tensor, "frame channel"]
    first_frame: int = 0
    """Place of latents[0] in time, in frames; negative where frames were added before a song."""
    seconds: float | None = None
    """Length of the prompt, at which the audio of a model with headroom is cut."""

    def chunks(self, start: int, stop: int) -> Iterator[Float[np.ndarray, "channel sample"]]:
        """Audio of frames start … stop, each chunk decoded with the receptive frames around it."""
        spec = self.model.spec
        size = max(1, spec.frames(CHUNK_S))
        for begin in range(start, stop, size):
            end = min(stop, begin + size)
            low, high = (
                max(0, begin - spec.receptive_frames),
                min(len(self.latents), end + spec.receptive_frames),
            )
            samples = self.model.decode(self.latents[low:high], self.first_frame + low).samples
            samples_per_frame = samples.shape[1] // (high - low)
            chunk = samples[:, (begin - low) * samples_per_frame : (end - low) * samples_per_frame]
            if spec.headroom_s and self.seconds is not None:
                chunk = chunk[:, : max(0, round(self.seconds * spec.sample_rate) - begin * samples_per_frame)]
            yield chunk

    def level(self) -> tuple[float, float]:
        """Loudness in LUFS and peak."""
        chunks = self.chunks(0, len(self.latents))
        first = next(chunks)
        meter = audio.Meter(self.model.spec.sample_rate, channels=len(first))
        for chunk in chain([first], chunks):
            meter.add(chunk)
        return meter.loudness(), meter.peak


def song_gain(sound: SongAudio) -> float:
    """The gain that brings a song to -16 LUFS in its file."""
    return audio.gain(*sound.level(), LOUDNESS_LUFS)


def write_song(sound: SongAudio, path: Path, *, at_gain: float | None = None) -> str:
    """Write a song at -16 LUFS or at `at_gain`, lower if it would clip; returns its `pcm_sha256`, see `audio`.

    The file is complete or absent.
    """
    spec, length = sound.model.spec, len(sound.latents)
    if length > spec.frames(IN_MEMORY_S):
        _write_long(sound, path, _factor(*sound.level(), at_gain))
    else:
        samples = np.concatenate(list(sound.chunks(0, length)), axis=1)
        clip = Clip(samples=samples, sample_rate=spec.sample_rate)
        factor = _factor(audio.loudness(clip), float(np.abs(samples).max()), at_gain)
        audio.write(path, Clip(samples=samples * np.float32(factor), sample_rate=spec.sample_rate))
    return audio.file_sha256(path)


def _factor(lufs: float, peak: float, at_gain: float | None) -> float:
    if at_gain is None:
        return audio.gain(lufs, peak, LOUDNESS_LUFS)
    return min(at_gain, audio.PEAK_LIMIT / max(peak, 1e-9))


def _write_long(sound: SongAudio, path: Path, factor: float) -> None:
    partial_path = path.with_name(f".{path.name}")  # a fixed name: the file of a killed run is overwritten
    try:
        chunks = sound.chunks(0, len(sound.latents))
        first = next(chunks)
        with (
            disk_errors(path),
            audio.writer(partial_path, sound.model.spec.sample_rate, channels=len(first)) as file,
        ):
            for chunk in chain([first], chunks):
                audio.extend(file, chunk * np.float32(factor))
        sync(partial_path)
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


@dataclass
class Preview:
    """A file that grows with a song, at the gain of its first chunk. Parts that are much louder clip."""

    path: Path
    file: soundfile.SoundFile | None = None
    frames: int = 0
    """Frames already written."""
    gain: float = 1.0

    def grow(self, sound: SongAudio, complete_frames: int) -> None:
        """Append the audio of a song's first frames, as far as later frames cannot change it."""
        spec, length = sound.model.spec, len(sound.latents)
        stop = complete_frames if complete_frames == length else complete_frames - spec.receptive_frames
        for chunk in sound.chunks(self.frames, stop):
            if self.file is None:
                meter = audio.Meter(spec.sample_rate, channels=len(chunk))
                meter.add(chunk)
                self.gain = audio.gain(meter.loudness(), meter.peak, LOUDNESS_LUFS)
                self.file = audio.writer(self.path, spec.sample_rate, channels=len(chunk))
            audio.extend(self.file, chunk * np.float32(self.gain))
        self.frames = max(self.frames, stop)

    def remove(self) -> None:
        """Close and delete the file."""
        if self.file is not None:
            self.file.close()
        self.path.unlink(missing_ok=True)
