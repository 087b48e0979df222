"""The scores tables: raw values, by the hash of the sound and the identity of the scorer.

Scores of whole songs are one row each. Scores of windows have a separate table, one row for all windows of a song
on an axis, so that reading scores of songs stays quick however many windows there are.
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
FULL_SONG = "whole"
"""The window of a score of a whole song; the window of other scores is the name of a grid."""

NO_PROMPT = ""
"""The prompt of a score of the sound alone."""


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
    prompt: str = NO_PROMPT
    """Key of the prompt the sound was compared with; empty for scores of the sound alone."""
    axis: str
    """Name of the axis, such as `harmony.key`."""
    window: str = FULL_SONG
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
    prompt: str = NO_PROMPT
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
    """Windows of a song: one every `hop_s` seconds from its beginning, and a last one at its end."""

    window_s: float
    hop_s: float

    @property
    def name(self) -> str:
        """Length and distance of the windows in seconds, such as '5/2.5'."""
        return f"{self.window_s:g}/{self.hop_s:g}"

    def starts(self, seconds: float) -> list[float]:
        """Starts of the windows in seconds, to the millisecond; none for a song over 1 µs shorter than a window."""
        room = seconds - self.window_s
        if room < -1e-6:
            return []
        starts = [round(i * self.hop_s, 3) for i in range(math.floor(room / self.hop_s + 1e-6) + 1)]
        last = math.floor(room * 1000) / 1000
        return starts if last <= starts[-1] else [*starts, last]


def newest_versions(folder: Path) -> dict[str, str]:
    """The newest fingerprint of each scorer that scored a folder; {} before `diffdpo score` has finished.

    DataError for a finished folder of another command.
    """
    if not is_finished(folder):
        return {}
    versions = read_json(folder / MANIFEST).get("scorers")
    if not isinstance(versions, dict):
        raise DataError(
            f"{folder}: no folder of `diffdpo score`; of a run of round or demo it is its folder scores"
        )
    return dict(versions)


def newest_grid(folder: Path) -> Grid | None:
    """The grid of the last `diffdpo score` with windows in a folder; None without one."""
    fields = read_json(folder / MANIFEST).get("grid") if is_finished(folder) else None
    return Grid(**fields) if fields else None


def prompt_key(prompt: Prompt) -> str:
    """Identity of the style of a prompt: its words, and the bytes of its recording."""
    style_audio = prompt.style_audio
    if isinstance(style_audio, str):
        try:
            recording_bytes = Path(style_audio).read_bytes()
        except OSError as error:
            raise DataError(
                f"{style_audio}: cannot be read ({error.strerror}); put the recording back"
            ) from None
    else:
        recording_bytes = style_audio.samples.tobytes() if style_audio else b""
    digests = hashlib.sha256((prompt.text or "").encode()).digest() + hashlib.sha256(recording_bytes).digest()
    return hashlib.sha256(digests).hexdigest()[:16]


def is_newest(table: pa.Table, versions: Mapping[str, str], window: str) -> Bool[np.ndarray, " row"]:
    """A mask of the rows of a scores table that are by the newest scorers, on one grid."""
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
    """The scores of windows by hash of the sound, for the newest scorers and the newest grid."""
    versions, grid = newest_versions(folder), newest_grid(folder)
    if grid is None:
        raise DataError(f"{folder}: no scores of windows here; run `diffdpo score` with window_s=5 first")
    table = tables.read_columns(folder, WINDOWS)
    codes, hashes = tables.encode(table["sha256"])
    selection = pc.is_in(hashes, value_set=pa.array(list(sounds), pa.string())).to_numpy(zero_copy_only=False)
    table = table.filter(pa.array(selection[codes] & is_newest(table, versions, grid.name)))
    windows: dict[str, dict[tuple[float, float], dict[str, float]]] = {}
    for row in tables.to_rows(table, WINDOWS):
        sound_windows = windows.setdefault(row.sha256, {})
        for start, value in zip(row.starts_s, row.values, strict=True):
            sound_windows.setdefault((start, start + grid.window_s), {})[row.axis] = value
    return dict(windows)


def window_rows(
    key: Mapping[str, str], grid: Grid, starts: Sequence[float], values: Mapping[str, Sequence[float]]
) -> list[WindowRow]:
    """Rows of a scorer's values on each axis; `key` holds sha256, preprocessing, scorer and fingerprint."""
    return [
        WindowRow(**key, axis=axis, window=grid.name, starts_s=tuple(starts), values=tuple(axis_values))
        for axis, axis_values in values.items()
    ]


def score_rows(
    sha256: str,
    preprocessing: str,
    scorer: str,
    fingerprint: str,
    values: Iterable[tuple[str, float]],
    prompt: str = NO_PROMPT,
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
