"""The scores tables: raw values, found again by the hash of the sound and the identity of the scorer.

Scores of whole songs are one row each. Scores of windows have a table of their own, one row for all windows of a
song on an axis, so that reading the former stays quick however many there are of the latter.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from diffdpo.data import tables
from diffdpo.data.schema import TableSpec
from diffdpo.errors import DataError
from diffdpo.mining.spans import WindowScores
from diffdpo.runs import MANIFEST, is_finished, read_json
from diffdpo.types import Prompt

GATES = "gates"
WHOLE = "whole"
"""The window of a score that is about the whole song; elsewhere it is the name of a grid."""

ANY = ""
"""The prompt of a score that is about the sound alone."""


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """The score of one sound on one axis."""

    sha256: str
    """Hash of the sound (canonical PCM)."""
    preprocessing: str = ""
    """Version of what was done to the sound before it was scored."""
    scorer: str
    """Name of the scorer, or `gates`."""
    fingerprint: str
    """Identity of the scorer: its version, its arguments and its weights."""
    prompt: str = ANY
    """Key of the prompt the sound was compared with; empty for scores of the sound alone."""
    axis: str
    """Name of the axis, such as `harmony.key`."""
    window: str = WHOLE
    """`whole`: the score is about the whole song."""
    value: float
    """Raw, bigger is better; NaN if the scorer gave no number."""


@dataclass(frozen=True, kw_only=True)
class WindowRow:
    """The scores of all windows of one sound on one axis."""

    sha256: str
    """Hash of the sound (canonical PCM)."""
    preprocessing: str = ""
    """Version of what was done to the sound before it was scored."""
    scorer: str
    """Name of the scorer."""
    fingerprint: str
    """Identity of the scorer: its version, its arguments and its weights."""
    prompt: str = ANY
    """Empty: windows are scored by their sound alone."""
    axis: str
    """Name of the axis, such as `harmony.key`."""
    window: str
    """Name of the grid: length and distance of the windows in seconds, such as `5/2.5`."""
    starts_s: tuple[float, ...]
    """Where each window begins, in seconds."""
    values: tuple[float, ...]
    """The score of each window."""


def _upgrade(table: pa.Table, version: int) -> pa.Table:
    """Version 0 had `starts` for `starts_s`."""
    return table.rename_columns(["starts_s" if name == "starts" else name for name in table.column_names])


SCORE_KEY = ("sha256", "preprocessing", "scorer", "fingerprint", "prompt", "axis", "window")
SCORES = TableSpec("scores", ScoreRow, key=SCORE_KEY)
WINDOWS = TableSpec("windows", WindowRow, key=SCORE_KEY, upgrade=_upgrade)


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


def newest_versions(folder: Path) -> dict[str, str]:
    """The scorers that a finished `score` used here, each with its newest fingerprint."""
    return dict(read_json(folder / MANIFEST)["scorers"]) if is_finished(folder) else {}


def newest_grid(folder: Path) -> Grid | None:
    """The windows that the last `score` with windows used here."""
    fields = read_json(folder / MANIFEST).get("grid") if is_finished(folder) else None
    return Grid(**fields) if fields else None


def prompt_key(prompt: Prompt) -> str:
    """Identity of the style that a prompt asks for: its words, and the bytes of its recording."""
    sound = prompt.style_audio
    recording = (
        Path(sound).read_bytes() if isinstance(sound, str) else sound.samples.tobytes() if sound else b""
    )
    digests = hashlib.sha256((prompt.text or "").encode()).digest() + hashlib.sha256(recording).digest()
    return hashlib.sha256(digests).hexdigest()[:16]


def is_newest(table: pa.Table, versions: Mapping[str, str], window: str) -> Bool[np.ndarray, " row"]:
    """Which rows of a scores table are of the newest scorers, on one grid."""
    scorer, scorers = tables.encode(table["scorer"])
    fingerprint, fingerprints = tables.encode(table["fingerprint"])
    grid, grids = tables.encode(table["window"])
    newest = np.array(
        [
            [versions.get(name) == version for version in fingerprints.to_pylist()]
            for name in scorers.to_pylist()
        ],
        dtype=bool,
    ).reshape(len(scorers), len(fingerprints))
    same_grid = np.array([name == window for name in grids.to_pylist()], dtype=bool)
    return newest[scorer, fingerprint] & same_grid[grid]


def read_windows(folder: Path, sounds: Collection[str]) -> dict[str, WindowScores]:
    """The scores of the windows of these sounds, by the newest scorers on the newest grid."""
    versions, grid = newest_versions(folder), newest_grid(folder)
    if grid is None:
        raise DataError(f"{folder}: no scores of windows here; run `diffdpo score` with window_s=5 first")
    table = tables.read_columns(folder, WINDOWS)
    codes, hashes = tables.encode(table["sha256"])
    selection = pc.is_in(hashes, value_set=pa.array(list(sounds), pa.string())).to_numpy(zero_copy_only=False)
    table = table.filter(pa.array(selection[codes] & is_newest(table, versions, grid.name)))
    windows: dict[str, dict[tuple[float, float], dict[str, float]]] = {}
    for row in tables.to_rows(table, WINDOWS):
        of_sound = windows.setdefault(row.sha256, {})
        for start, value in zip(row.starts_s, row.values, strict=True):
            of_sound.setdefault((start, start + grid.window_s), {})[row.axis] = value
    return dict(windows)


def window_rows(
    key: Mapping[str, str], grid: Grid, starts: Sequence[float], values: Mapping[str, Sequence[float]]
) -> list[WindowRow]:
    """Rows of a scorer's values on each axis; `key` holds sha256, preprocessing, scorer and fingerprint."""
    return [
        WindowRow(**key, axis=axis, window=grid.name, starts_s=tuple(starts), values=tuple(of_axis))
        for axis, of_axis in values.items()
    ]


def score_rows(
    sha256: str,
    preprocessing: str,
    scorer: str,
    fingerprint: str,
    values: Iterable[tuple[str, float]],
    prompt: str = ANY,
) -> list[ScoreRow]:
    """Rows of a scorer's values of a whole song, on each axis."""
    return [
        ScoreRow(
            sha256=sha256,
            preprocessing=preprocessing,
            scorer=scorer,
            fingerprint=fingerprint,
            prompt=prompt,
            axis=axis,
            value=float(value),
        )
        for axis, value in values
    ]
