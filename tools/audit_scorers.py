"""Audit scorers: damage real clips in known ways and print by how much every axis moves.

    python tools/audit_scorers.py song.ogg other.flac --seconds 10 > audit.md

A cell is the mean change over the clips, in standard deviations between the undamaged clips. A damage should
lower its own axis. An axis that a loop, noise or gain raises can be gamed. Judges are audited too.
"""

import argparse
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage, signal

from diffdpo import audio
from diffdpo.config import OFFLINE
from diffdpo.errors import UserError
from diffdpo.registry import pick
from diffdpo.scorers import SCORERS
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.canonical import canonical
from diffdpo.types import Clip

Samples = Float[np.ndarray, "channel sample"]
Damage = Callable[[Samples, int, np.random.Generator], Samples]


def detune(x: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """Like a worn tape: pitch drifts by ±50 cents, once up and down in 4 s."""
    t = np.arange(x.shape[1])
    cents = 50 * np.sin(2 * np.pi * t / (4 * rate) + rng.uniform(0, 2 * np.pi))
    where = np.cumsum(2 ** (cents / 1200))
    where *= (x.shape[1] - 1) / where[-1]
    return np.stack([ndimage.map_coordinates(channel, [where], order=3) for channel in x])


def jitter(x: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """Grains of an eighth of a second, each read up to 80 ms too early or too late: pitch stays, pulse
    goes.
    """
    hop = rate // 8
    window = np.hanning(2 * hop + 1)[:-1]
    out = np.zeros_like(x)
    for start in range(0, x.shape[1] - 2 * hop, hop):
        read = int(np.clip(start + rng.uniform(-0.08, 0.08) * rate, 0, x.shape[1] - 2 * hop))
        out[:, start : start + 2 * hop] += (window * x[:, read : read + 2 * hop]).astype(x.dtype)
    return out


def shuffle(x: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """Sections of one second in random order."""
    sections = [x[:, i : i + rate] for i in range(0, x.shape[1], rate)]
    return np.concatenate([sections[i] for i in rng.permutation(len(sections))], axis=1)


def low_pass(x: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """Nothing above 4 kHz, as after a naive codec."""
    return signal.sosfiltfilt(signal.butter(8, 4000, fs=rate, output="sos"), x).astype(x.dtype)


def hard_clip(x: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """12 dB too hot."""
    ceiling = np.abs(x).max() / 4
    return np.clip(x, -ceiling, ceiling)


def add_noise(x: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """White noise, 20 dB below the song."""
    return x + (0.1 * x.std() * rng.standard_normal(x.shape)).astype(x.dtype)


def loop(x: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """The first second again and again."""
    return np.resize(x[:, :rate].T, x.T.shape).T.copy()


def long_loop(x: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """The first two seconds again and again."""
    return np.resize(x[:, : 2 * rate].T, x.T.shape).T.copy()


def silence(x: Samples, rate: int, rng: np.random.Generator) -> Samples:
    return np.zeros_like(x)


def white_noise(x: Samples, rate: int, rng: np.random.Generator) -> Samples:
    return (0.1 * rng.standard_normal(x.shape)).astype(x.dtype)


def quieter(x: Samples, rate: int, rng: np.random.Generator) -> Samples:
    """6 dB less: must change nothing."""
    return x / 2


DAMAGES: dict[str, Damage] = {
    "drifting detune ±50 cents": detune,
    "time jitter ±80 ms": jitter,
    "shuffled seconds": shuffle,
    "low-pass 4 kHz": low_pass,
    "hard clipping 12 dB": hard_clip,
    "noise at 20 dB SNR": add_noise,
    "loop of 1 s": loop,
    "loop of 2 s": long_loop,
    "silence": silence,
    "white noise": white_noise,
    "gain -6 dB": quieter,
}


def scores(scorers: Mapping[str, Scorer], clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
    """All axes of all scorers side by side."""
    prepared = [canonical(clip) for clip in clips]
    return np.concatenate([scorer(prepared) for scorer in scorers.values()], axis=1)


def audit(
    scorers: Mapping[str, Scorer], clips: Sequence[Clip], seed: int = 0
) -> tuple[Float[np.ndarray, "clip axis"], dict[str, Float[np.ndarray, " axis"]]]:
    """The undamaged scores, and the mean change of every damage in standard deviations between clips."""
    original = scores(scorers, clips)
    spread = np.maximum(original.std(0, ddof=1), 1e-9)
    changes = {}
    for name, damage in DAMAGES.items():
        rng = np.random.default_rng(seed)
        damaged = [
            Clip(samples=damage(clip.samples, clip.sample_rate, rng), sample_rate=clip.sample_rate)
            for clip in clips
        ]
        changes[name] = (scores(scorers, damaged) - original).mean(0) / spread
    return original, changes


def table(
    axes: Sequence[str],
    original: Float[np.ndarray, "clip axis"],
    changes: Mapping[str, Float[np.ndarray, " axis"]],
) -> str:
    """Markdown: one row a damage, one column an axis."""
    rows = [["damage", *axes], ["---", *["---:"] * len(axes)]]
    rows.append(["*undamaged: mean*", *[f"{v:.3f}" for v in original.mean(0)]])
    rows.append(["*undamaged: SD*", *[f"{v:.3f}" for v in original.std(0, ddof=1)]])
    rows += [[name, *[f"{v:+.2f}" for v in change]] for name, change in changes.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def excerpt(path: Path, seconds: float) -> Clip:
    """From the middle of the song, where it has got going."""
    start = max(0.0, (audio.seconds_of(path) - seconds) / 2)
    return audio.stereo(audio.read(path, start_s=start, seconds=seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="songs; at least two, for a spread between them")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the excerpt of each")
    parser.add_argument("--scorers", default=",".join(OFFLINE), help="names, comma-separated")
    arguments = parser.parse_args()
    if len(arguments.files) < 2 or not math.isfinite(arguments.seconds) or arguments.seconds <= 0:
        parser.error("needs at least two files and a positive length")
    torch.set_num_threads(1)
    warnings.simplefilter("error", RuntimeWarning)  # a scorer must not divide by zero
    try:
        scorers = {name: pick("scorer", SCORERS, name)() for name in arguments.scorers.split(",")}
        clips = [excerpt(path, arguments.seconds) for path in arguments.files]
        original, changes = audit(scorers, clips)
    except UserError as error:
        parser.error(str(error))
    print(table([axis for scorer in scorers.values() for axis in scorer.axes], original, changes))


if __name__ == "__main__":
    main()
