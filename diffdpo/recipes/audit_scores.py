"""Scores for an audit: those of other folders are taken over, only what no folder has is computed, halves too."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diffdpo.data import tables
from diffdpo.data.samples import Samples
from diffdpo.data.schema import to_rows
from diffdpo.data.scores import GATES, SCORE_KEY, SCORES, newest_versions, score_rows
from diffdpo.data.song_scores import join_scores, read_scores
from diffdpo.errors import DataError
from diffdpo.evaluation.validity import AxisColumns
from diffdpo.progress import bar
from diffdpo.recipes.score import read_audio_files, score_files
from diffdpo.recipes.score_worker import AudioFile, read_sound
from diffdpo.run_dir import DistEnv, open_folder
from diffdpo.runs import finish
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.canonical import VERSION
from diffdpo.scorers.engine import ScoreKey, compute_scores, fingerprints, score_keys
from diffdpo.threads import worker_count
from diffdpo.types import Clip

SONG_SCORES = "scores"
HALF_SCORES = ("scores-first-half", "scores-second-half")
"""Folders of the scores of halves, each under the hash of the song that it is a half of."""


def files_of(folder: Path, sample_ids: Collection[str]) -> list[AudioFile]:
    """The sounds of some songs of a folder."""
    sounds = {row.sha256 for row in Samples(folder).rows() if row.sample_id in sample_ids}
    return [audio_file for audio_file in read_audio_files([str(folder)]) if audio_file.sha256 in sounds]


def take_over(folders: Sequence[str], audio_files: Sequence[AudioFile], out: Path) -> None:
    """Copy the scores of some sounds from other folders. DataError for a folder without finished scores."""
    hashes = pa.array(sorted({audio_file.sha256 for audio_file in audio_files}))
    for folder in folders:
        if not newest_versions(Path(folder)):
            raise DataError(
                f"{folder}: no finished scores here; run `diffdpo score` first, or leave scores=[]"
            )
        present = tables.read_distinct(out, SCORES, SCORE_KEY)
        table = tables.read_columns(Path(folder), SCORES)
        table = table.filter(pc.is_in(table["sha256"].cast(pa.string()), value_set=hashes))
        rows = [
            row for row in to_rows(table, SCORES) if tuple(getattr(row, k) for k in SCORE_KEY) not in present
        ]
        tables.append(out, SCORES, rows)


def score_songs(
    audio_files: Sequence[AudioFile],
    scorers: Mapping[str, Scorer],
    folders: Sequence[str],
    out: Path,
    dist: DistEnv,
) -> None:
    """The scores of whole songs, after those of other folders are taken over."""
    with open_folder(out, dist):
        if dist.main:
            take_over(folders, audio_files, out)
        dist.barrier()
        score_files(audio_files, scorers, out, dist)


def score_halves(
    audio_files: Sequence[AudioFile], scorers: Mapping[str, Scorer], outs: Sequence[Path], dist: DistEnv
) -> None:
    """The scores of the first and of the second half of each song, in a folder each."""
    versions = fingerprints(scorers)
    work: list[tuple[AudioFile, int, list[ScoreKey]]] = []
    for number, out in enumerate(outs):
        columns = ("sha256", "preprocessing", *ScoreKey._fields)
        present = tables.read_distinct(out, SCORES, columns)
        for audio_file in audio_files:
            keys = [
                key
                for key in score_keys(scorers, versions, audio_file.prompts)
                if key.scorer != GATES and (audio_file.sha256, VERSION, *key) not in present
            ]
            if keys:
                work.append((audio_file, number, keys))
    work.sort(key=lambda entry: entry[0].sha256)
    part = dist.shard(work)
    with bar("score halves", len(part), "half", visible=dist.main) as progress:
        for begin in range(0, len(part), worker_count()):
            batch = part[begin:][: worker_count()]
            clips = [half_of(read_sound(audio_file), number) for audio_file, number, _ in batch]
            prompts = {key: prompt for file, _, _ in batch for key, prompt in file.prompts.items()}
            values = compute_scores(clips, [keys for _, _, keys in batch], scorers, prompts=prompts)
            for (audio_file, number, _), by_key in zip(batch, values, strict=True):
                rows = [
                    row
                    for key, by_axis in by_key.items()
                    for row in score_rows(
                        audio_file.sha256, VERSION, key.scorer, key.fingerprint,
                        [(axis, value) for axis, (value,) in by_axis.items()], key.prompt,
                    )
                ]  # fmt: skip
                tables.append(outs[number], SCORES, rows, rank=dist.rank)
                progress.advance()
    dist.barrier()
    if dist.main:
        for out in outs:
            tables.compact(out, SCORES)
            finish(out, sounds=len(audio_files), scorers=newest_versions(out) | versions)
    dist.barrier()


def half_of(clip: Clip, number: int) -> Clip:
    """The first (0) or second (1) half of a clip; a sample in the middle of an odd number is left out."""
    length = clip.samples.shape[1] // 2
    samples = clip.samples[:, :length] if number == 0 else clip.samples[:, clip.samples.shape[1] - length :]
    return Clip(samples=samples, sample_rate=clip.sample_rate)


def read_axes(scores: Path, samples: Samples, sample_ids: Sequence[str], axes: Sequence[str]) -> AxisColumns:
    """The scores of some songs on some axes, in their order; NaN where a song has none."""

    table = join_scores(read_scores(scores), samples, samples.prompts())
    songs = {name: place for place, name in enumerate(table.sample_ids)}
    places = np.array([songs.get(name, -1) for name in sample_ids], int)
    columns = {}
    for axis in axes:
        values = np.full(len(sample_ids), np.nan)
        if axis in table.axes and len(table.sample_ids):
            values[places >= 0] = table.values[places[places >= 0], table.axes.index(axis)]
        columns[axis] = values
    return columns
