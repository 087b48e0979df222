"""The scores tables: raw values, found again by the hash of the sound and the identity of the scorer.

Scores of whole songs are one row each. Scores of windows have a table of their own, one row for all windows of a
song on an axis, so that reading the former stays quick however many there are of the latter.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffdpo.data import tables
from diffdpo.data.samples import Samples
from diffdpo.errors import DataError
from diffdpo.runs import MANIFEST, finished, read_json
from diffdpo.types import Prompt

TABLE = "scores.parquet"
WINDOWS = "windows.parquet"
KEY = ("sha256", "preprocessing", "scorer", "fingerprint", "prompt", "axis", "window")
GATES = "gates"
WHOLE = "whole"
"""The window of a score that is about the whole song; elsewhere it is the name of a grid."""

ANY = ""
"""The prompt of a score that is about the sound alone."""

Scores = dict[tuple[str, str], dict[str, float]]
"""For each sound (by hash) and prompt (by `prompt_key`, or ANY) its value on every axis."""

Windows = dict[tuple[float, float], dict[str, float]]
"""Of one sound: for each window (start, stop) in seconds its value on every axis."""


@dataclass(frozen=True)
class Grid:
    """Windows of a song: one every `hop_s` from the beginning on, and a last one that ends where the song does."""

    window_s: float
    hop_s: float

    @property
    def name(self) -> str:
        """Such as '5/2.5'."""
        return f"{self.window_s:g}/{self.hop_s:g}"

    def starts(self, seconds: float) -> list[float]:
        """Where the windows begin, to the millisecond; a song shorter than a window by over 1 µs has none."""
        room = seconds - self.window_s
        if room < -1e-6:
            return []
        starts = [round(i * self.hop_s, 3) for i in range(math.floor(room / self.hop_s + 1e-6) + 1)]
        last = math.floor(room * 1000) / 1000
        return starts if last <= starts[-1] else [*starts, last]


def known_versions(folder: Path) -> dict[str, str]:
    """The scorers that a finished `score` used here, each with its newest fingerprint."""
    return dict(read_json(folder / MANIFEST)["scorers"]) if finished(folder) else {}


def read_scores(folder: Path) -> Scores:
    """All values by the newest version of every scorer that has worked here, gates included."""
    versions = known_versions(folder)
    if not versions:
        raise DataError(f"{folder}: no finished scores here; run `diffdpo score` first")
    found: Scores = {}
    for row in tables.read(folder / TABLE, KEY):
        if versions.get(row["scorer"]) == row["fingerprint"] and row["window"] == WHOLE:
            found.setdefault((row["sha256"], row["prompt"]), {})[row["axis"]] = row["value"]
    return found


def prompt_key(prompt: Prompt) -> str:
    """Identity of the style that a prompt asks for: its words, and the bytes of its recording."""
    sound = prompt.style_audio
    heard = Path(sound).read_bytes() if isinstance(sound, str) else sound.samples.tobytes() if sound else b""
    asked = hashlib.sha256((prompt.text or "").encode()).digest() + hashlib.sha256(heard).digest()
    return hashlib.sha256(asked).hexdigest()[:16]


def of_songs(scores: Scores, samples: Samples) -> dict[str, dict[str, float]]:
    """For each song of a folder that has scores its value on every axis: of its sound, and as its prompt's."""
    keys = {prompt.id: prompt_key(prompt) for prompt in samples.prompts()}
    found = {
        row["sample_id"]: scores.get((row["sha256"], ANY), {})
        | scores.get((row["sha256"], keys[row["prompt_id"]]), {})
        for row in samples.rows()
    }
    return {song: values for song, values in found.items() if values}


def known_grid(folder: Path) -> Grid | None:
    """The windows that the last `score` with windows used here."""
    found = read_json(folder / MANIFEST).get("grid") if finished(folder) else None
    return Grid(**found) if found else None


def read_windows(folder: Path, sounds: Collection[str]) -> dict[str, Windows]:
    """The scores of the windows of these sounds, by the newest scorers on the newest grid."""
    versions, grid = known_versions(folder), known_grid(folder)
    if grid is None:
        raise DataError(f"{folder}: no scores of windows here; run `diffdpo score` with window_s=5 first")
    found: dict[str, Windows] = {}
    for row in tables.read(folder / WINDOWS, KEY):
        newest = versions.get(row["scorer"]) == row["fingerprint"] and row["window"] == grid.name
        if newest and row["sha256"] in sounds:
            windows = found.setdefault(row["sha256"], {})
            for start, value in zip(row["starts"], row["values"], strict=True):
                windows.setdefault((start, start + grid.window_s), {})[row["axis"]] = value
    return found


def window_rows(
    key: Mapping[str, str], grid: Grid, starts: Sequence[float], values: Mapping[str, Sequence[float]]
) -> list[tables.Row]:
    """Rows of a scorer's values on each axis; `key` holds sha256, preprocessing, scorer and fingerprint."""
    return [
        {
            **key,
            "prompt": ANY,
            "axis": axis,
            "window": grid.name,
            "starts": list(starts),
            "values": list(of_axis),
        }
        for axis, of_axis in values.items()
    ]


def score_rows(
    sha256: str,
    preprocessing: str,
    scorer: str,
    fingerprint: str,
    values: Iterable[tuple[str, float]],
    prompt: str = ANY,
) -> list[tables.Row]:
    """Rows of a scorer's values of a whole song, on each axis."""
    return [
        {
            "sha256": sha256,
            "preprocessing": preprocessing,
            "scorer": scorer,
            "fingerprint": fingerprint,
            "prompt": prompt,
            "axis": axis,
            "window": WHOLE,
            "value": float(value),
        }
        for axis, value in values
    ]
