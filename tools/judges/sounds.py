"""Sounds on which a network is compared with its original: the same on every machine."""

import argparse
from pathlib import Path

import numpy as np

from diffdpo import audio
from diffdpo.scorers.canonical import canonical
from diffdpo.types import Clip

SONG = Path(__file__).parents[2] / "tests" / "data" / "galactic_temple.ogg"


def parse_arguments(description: str) -> argparse.Namespace:
    """The arguments of a converter: the package, whether to compare with it, and where to store its numbers."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--golden", type=Path)
    return parser.parse_args()


def sounds(rate: int) -> dict[str, np.ndarray]:
    """Music, silence, noise and tones by name, as mono float32 samples at this rate."""
    rng = np.random.default_rng(0)
    time = np.arange(5 * rate) / rate
    song = canonical(audio.read(SONG, start_s=40.0, seconds=10.0))
    mono = Clip(samples=song.samples.mean(0, keepdims=True), sample_rate=song.sample_rate)
    music = audio.resample(mono, rate).samples[0]
    chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in (220.0, 277.18, 329.63))
    hiss = 1e-4 * rng.standard_normal(10 * rate)
    waves = {
        "music": music,
        "music_hiss": music[: 10 * rate] + hiss[: len(music)],
        "music_3s": music[: 3 * rate + 17] + hiss[: 3 * rate + 17],
        "music_1s": music[2 * rate : 3 * rate] + hiss[:rate],
        "silence": np.zeros(3 * rate),
        "noise": 0.2 * rng.standard_normal(4 * rate),
        "chord": 0.1 * chord * np.exp(-3 * (time % 0.5)) + hiss[: 5 * rate],
        "half_silent": np.concatenate([np.zeros(3 * rate), music[: 2 * rate]]),
    }
    return {name: wave.astype(np.float32) for name, wave in waves.items()}
