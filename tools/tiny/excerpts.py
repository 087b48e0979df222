"""Excerpts of real songs for the tools of the tiny model: stereo at 44.1 kHz, all at one loudness."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffdpo import audio
from diffdpo.types import Clip

SECONDS, LOUDNESS, RATE = 10.0, -16.0, 44100
PLACES = (0.15, 0.3, 0.5, 0.65, 0.8)
"""Starts of the excerpts of a song, as shares of its length."""


def read_clip(path: Path, start_s: float = 0.0, seconds: float | None = None, rate: int = RATE) -> Clip:
    """A song, or `seconds` of it from `start_s` on: stereo, resampled to `rate`, at LOUDNESS in LUFS."""
    clip = audio.read(path, start_s=start_s, seconds=seconds)
    return audio.normalise(audio.stereo(audio.resample(clip, rate)), LOUDNESS)


def excerpts(manifest: Path, splits: Sequence[str]) -> Iterator[tuple[str, Clip]]:
    """Excerpts of ten seconds at five places of each song of these splits, each with the song's id."""
    for row in map(json.loads, manifest.read_text().splitlines()):
        if row["split"] in splits:
            path = manifest.parent / row["audio"]
            length = audio.seconds_of(path)
            for place in PLACES:
                start_s = min(place * length, max(0.0, length - SECONDS))
                yield row["id"], read_clip(path, start_s, SECONDS)
