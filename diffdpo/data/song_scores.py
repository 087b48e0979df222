"""Scores of whole songs as a few large arrays, joined to the songs of a samples folder."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int

from diffdpo.data import tables
from diffdpo.data.samples import SampleRow, Samples
from diffdpo.data.scores import FULL_SONG, NO_PROMPT, SCORES, is_newest, newest_versions, prompt_key
from diffdpo.errors import DataError
from diffdpo.types import Prompt


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of whole songs by the newest version of every scorer, gates included: one row a value."""

    sounds: pa.Array
    """The distinct hashes of sounds."""
    prompts: tuple[str, ...]
    """The distinct keys of prompts, with NO_PROMPT for scores of sounds alone."""
    axes: tuple[str, ...]
    sound: Int[np.ndarray, " row"]
    """Index into `sounds`."""
    prompt: Int[np.ndarray, " row"]
    """Index into `prompts`."""
    axis: Int[np.ndarray, " row"]
    """Index into `axes`."""
    value: Float[np.ndarray, " row"]


@dataclass(frozen=True, kw_only=True)
class SongScores:
    """The songs of a folder that have scores, each with its value on every axis."""

    sample_ids: list[str]
    prompt_ids: list[str]
    groups: list[str]
    axes: tuple[str, ...]
    values: Float[np.ndarray, "song axis"]
    """NaN where there is no score, or where the scorer gave no number."""
    has_score: Bool[np.ndarray, "song axis"]
    """Whether there is a score."""

    def by_song(self) -> dict[str, dict[str, float]]:
        """The values of each song by axis, on the axes on which the song has a score."""
        rows = zip(self.sample_ids, self.values.tolist(), self.has_score.tolist(), strict=True)
        return {
            song: {axis: value for axis, value, has in zip(self.axes, values, flags, strict=True) if has}
            for song, values, flags in rows
        }


def read_scores(folder: Path) -> Scores:
    """All scores of whole songs in a folder, by the newest version of every scorer. Windows are not read."""
    versions = newest_versions(folder)
    if not versions:
        raise DataError(f"{folder}: no finished scores here; run `diffdpo score` first")
    names = ("sha256", "scorer", "fingerprint", "prompt", "axis", "window", "value")
    table = tables.read_columns(folder, SCORES, names)
    newest = is_newest(table, versions, FULL_SONG)
    rows = slice(None) if newest.all() else newest
    sound, sounds = tables.encode(table["sha256"])
    prompt, prompts = tables.encode(table["prompt"])
    axis, axes = tables.encode(table["axis"])
    axis = axis[rows]
    present = np.flatnonzero(np.bincount(axis, minlength=len(axes)))
    return Scores(
        sounds=sounds,
        prompts=tuple(prompts.to_pylist()),
        axes=tuple(axes.take(pa.array(present)).to_pylist()),
        sound=sound[rows],
        prompt=prompt[rows],
        axis=np.searchsorted(present, axis),
        value=table["value"].to_numpy()[rows],
    )


def join_scores(scores: Scores, samples: Samples, prompts: Iterable[Prompt]) -> SongScores:
    """The songs of a folder with the scores of their sound alone, and of their sound for their prompt.

    `prompts` are the prompts of the songs. Songs without any score are left out. A score for the prompt replaces a
    score of the sound alone on the same axis.
    """
    songs = samples.columns(("sample_id", "prompt_id", "group", "sha256"))
    sound = _places_of(songs["sha256"], scores.sounds)
    values = np.full((len(sound), len(scores.axes)), np.nan)
    has_score = np.zeros(values.shape, bool)
    is_promptless = np.array([key == NO_PROMPT for key in scores.prompts], bool)[scores.prompt]
    rows = np.flatnonzero(is_promptless)
    _fill(values, has_score, sound, scores, rows, scores.sound[rows])
    if not is_promptless.all():
        rows = np.flatnonzero(~is_promptless)
        prompt = _prompt_places(songs["prompt_id"], prompts, scores.prompts)
        keys, places = np.unique(
            _numbers(scores.sound[rows], scores.prompt[rows], scores), return_inverse=True
        )
        _fill(values, has_score, _places_in(keys, _numbers(sound, prompt, scores)), scores, rows, places)
    rows = np.flatnonzero(has_score.any(1))
    songs = songs.take(pa.array(rows))
    sample_ids, prompt_ids, groups = (
        songs[name].cast(pa.string()).to_pylist() for name in ("sample_id", "prompt_id", "group")
    )
    return SongScores(
        sample_ids=sample_ids,
        prompt_ids=prompt_ids,
        groups=groups,
        axes=scores.axes,
        values=values[rows],
        has_score=has_score[rows],
    )


@dataclass(frozen=True)
class AxisSong:
    """A song with its latents and its value on one axis."""

    row: SampleRow
    latents: Path
    value: float


def axis_songs(samples: Samples, scores: Scores, axis: str) -> Iterator[AxisSong]:
    """The songs of a folder with a finite value on an axis and with latents on disk."""
    values = join_scores(scores, samples, samples.prompts()).by_song()
    for row in samples.rows():
        value, latents = values.get(row.sample_id, {}).get(axis, math.nan), samples.latents(row.sample_id)
        if math.isfinite(value) and latents.is_file():
            yield AxisSong(row, latents, value)


def _fill(
    values: Float[np.ndarray, "song axis"],
    has_score: Bool[np.ndarray, "song axis"],
    song_places: Int[np.ndarray, " song"],
    scores: Scores,
    rows: Int[np.ndarray, " some"],
    row_places: Int[np.ndarray, " some"],
) -> None:
    """Write rows of the scores to the songs with equal places; songs without a place (-1) get none."""
    matrix = np.full((int(row_places.max(initial=-1)) + 1, len(scores.axes)), np.nan)
    presence = np.zeros(matrix.shape, bool)
    matrix[row_places, scores.axis[rows]] = scores.value[rows]
    presence[row_places, scores.axis[rows]] = True
    songs = np.flatnonzero((song_places >= 0) & (song_places < len(matrix)))
    new = presence[song_places[songs]]
    values[songs] = np.where(new, matrix[song_places[songs]], values[songs])
    has_score[songs] |= new


def _numbers(
    sound: Int[np.ndarray, " n"], prompt: Int[np.ndarray, " n"], scores: Scores
) -> Int[np.ndarray, " n"]:
    """One number for each combination of a sound and a prompt; -1 where sound or prompt is -1."""
    number = sound.astype(np.int64) * len(scores.prompts) + prompt
    return np.where((sound < 0) | (prompt < 0), -1, number)


def _places_in(keys: Int[np.ndarray, " key"], numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The index of each number among sorted keys; -1 for numbers that are no key."""
    places = np.minimum(np.searchsorted(keys, numbers), len(keys) - 1)
    return np.where(keys[places] == numbers, places, -1)


def _places_of(column: pa.ChunkedArray, values: pa.Array) -> Int[np.ndarray, " row"]:
    """The index of each row's text among `values`; -1 for other texts."""
    codes, texts = tables.encode(column)
    places = pc.fill_null(pc.index_in(texts, value_set=values), -1).to_numpy(zero_copy_only=False)
    return places[codes]


def _prompt_places(
    column: pa.ChunkedArray, prompts: Iterable[Prompt], values: tuple[str, ...]
) -> Int[np.ndarray, " row"]:
    """The index of the key of each song's prompt among `values`; -1 for other keys."""
    codes, ids = tables.encode(column)
    keys = {prompt.id: prompt_key(prompt) for prompt in prompts}
    places = {key: place for place, key in enumerate(values)}
    id_places = [places.get(keys[name], -1) if name in keys else -1 for name in ids.to_pylist()]
    return np.array(id_places, np.int64)[codes]
