"""Known perturbations of real songs, and which axes of which scorers claim to respond to them."""

from collections.abc import Callable
from dataclasses import dataclass

import librosa
import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage, signal

from diffdpo.flow import SongLatents
from diffdpo.types import Clip

SongSamples = Float[np.ndarray, "channel sample"]
NOTE_JUDGES = ("note.triad", "note.key", "note.scale")
ALL_FAMILIES = (
    "harmony",
    "rhythm",
    "structure",
    "production",
    "musicnn.typicality",
    *NOTE_JUDGES,
    "beat.coherence",
)


@dataclass(frozen=True)
class Perturbation:
    """A change of a song's sound, and the axes that have to fall with it (a family stands for all of its axes)."""

    do: Callable[[SongSamples, int, np.random.Generator], SongSamples]
    falls: tuple[str, ...] = ()

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        samples = self.do(clip.samples, clip.sample_rate, rng).astype(np.float32)
        return Clip(samples=samples, sample_rate=clip.sample_rate)

    def lowers(self, axis: str) -> bool:
        """Whether the perturbation has to lower this axis."""
        return axis in self.falls or axis.split(".")[0] in self.falls


def _drift(x: SongSamples, rate: int, rng: np.random.Generator) -> SongSamples:
    """A worn tape: pitch drifts by ±50 cents, once up and down in 4 s."""
    t = np.arange(x.shape[1])
    cents = 50 * np.sin(2 * np.pi * t / (4 * rate) + rng.uniform(0, 2 * np.pi))
    positions = np.cumsum(2 ** (cents / 1200))
    positions *= (x.shape[1] - 1) / positions[-1]
    return np.stack([ndimage.map_coordinates(channel, [positions], order=3) for channel in x])


def _double(x: SongSamples, rate: int, rng: np.random.Generator) -> SongSamples:
    """Every voice is doubled by another that is 70 cents sharp."""
    return x + librosa.effects.pitch_shift(x.astype(np.float32), sr=rate, n_steps=0.7)


def _jitter(x: SongSamples, rate: int, rng: np.random.Generator) -> SongSamples:
    """Grains of an eighth of a second, each read up to 80 ms too early or late: pitch stays, pulse goes."""
    hop = rate // 8
    window = np.hanning(2 * hop + 1)[:-1]
    out = np.zeros_like(x)
    for start in range(0, x.shape[1] - 2 * hop, hop):
        read = int(np.clip(start + rng.uniform(-0.08, 0.08) * rate, 0, x.shape[1] - 2 * hop))
        out[:, start : start + 2 * hop] += (window * x[:, read : read + 2 * hop]).astype(x.dtype)
    return out


def _shuffle(x: SongSamples, rate: int, rng: np.random.Generator) -> SongSamples:
    """Sections of one second in random order."""
    sections = [x[:, i : i + rate] for i in range(0, x.shape[1], rate)]
    return np.concatenate([sections[i] for i in rng.permutation(len(sections))], axis=1)


def _low_pass(x: SongSamples, rate: int, rng: np.random.Generator) -> SongSamples:
    """Nothing above 4 kHz, as after a naive codec."""
    return signal.sosfiltfilt(signal.butter(8, 4000, fs=rate, output="sos"), x)


def _clip(x: SongSamples, rate: int, rng: np.random.Generator) -> SongSamples:
    """Hard clipping at a quarter of the peak (12 dB)."""
    limit = np.abs(x).max() / 4
    return np.clip(x, -limit, limit)


def _hiss(x: SongSamples, rate: int, rng: np.random.Generator) -> SongSamples:
    """White noise, 20 dB below the song."""
    return x + 0.1 * x.std() * rng.standard_normal(x.shape)


def _loop(seconds: float) -> Callable[[SongSamples, int, np.random.Generator], SongSamples]:
    """The first seconds of a song, repeated to its length."""
    return lambda x, rate, rng: np.resize(x[:, : int(seconds * rate)].T, x.T.shape).T.copy()


def _slow(x: SongSamples, rate: int, rng: np.random.Generator) -> SongSamples:
    """A tape at two thirds of its speed, cut to the old length: a fifth lower, and slower."""
    return ndimage.zoom(x[:, : 2 * x.shape[1] // 3], (1, 1.5), order=3, grid_mode=True, mode="nearest")


PERTURBATIONS: dict[str, Perturbation] = {
    "drifting detune ±50 cents": Perturbation(_drift, ("harmony.key", "harmony.tuning", *NOTE_JUDGES)),
    "voices doubled 70 cents sharp": Perturbation(_double, ("harmony", *NOTE_JUDGES, "note.clean")),
    "time jitter ±80 ms": Perturbation(_jitter, ("rhythm", "beat", "note.pulse")),
    "shuffled seconds": Perturbation(_shuffle, ("structure",)),
    "low-pass 4 kHz": Perturbation(_low_pass, ("production.balance", "musicnn.typicality")),
    "hard clipping 12 dB": Perturbation(_clip, ("production.balance",)),
    "noise at 20 dB SNR": Perturbation(_hiss, ("production.balance", "musicnn.typicality")),
    "loop of 1 s": Perturbation(_loop(1), ("structure",)),
    "loop of 2 s": Perturbation(_loop(2), ("structure",)),
    "tape at 2/3 of its speed": Perturbation(_slow, ("adherence",)),
    "silence": Perturbation(lambda x, rate, rng: np.zeros_like(x), (*ALL_FAMILIES, "adherence")),
    "white noise": Perturbation(
        lambda x, rate, rng: 0.1 * rng.standard_normal(x.shape), (*ALL_FAMILIES, "adherence")
    ),
    "gain -6 dB": Perturbation(lambda x, rate, rng: x / 2),
}
"""Perturbations by name. The gain at the end has to change no axis."""

WRONG_PROMPT = "another song's prompt"
WRONG_PROMPT_FALLS = ("adherence.style", "musicnn.tags")
"""The axes that have to fall when a song is scored with the prompt of another song."""


def noise_latents(songs: SongLatents, frames: int, rng: np.random.Generator) -> SongLatents:
    """Gaussian noise with the mean and deviation that each channel has in `songs`."""
    draws = torch.from_numpy(rng.standard_normal((frames, songs.shape[1])).astype(np.float32))
    return songs.mean(0) + songs.std(0) * draws


def shuffled_latents(latents: SongLatents, rng: np.random.Generator, run: int = 1) -> SongLatents:
    """Latents with runs of `run` frames in random order."""
    runs = latents.split(run)
    return torch.cat([runs[i] for i in rng.permutation(len(runs))])


def degraded_latents(latents: SongLatents, rng: np.random.Generator, ratio: float = 1.0) -> SongLatents:
    """Latents with noise of `ratio` times the signal's deviation, channel by channel, at the signal's level."""
    noise = noise_latents(latents, len(latents), rng) - latents.mean(0)
    return latents.mean(0) + (latents - latents.mean(0) + ratio * noise) / (1 + ratio**2) ** 0.5
