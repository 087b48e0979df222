"""Where songs of a search are kept: in memory, or in a folder in the layout of `sample` and `score`.

In a folder every song has its latents, its sound and a row in the samples table, its values are in a scores table,
and a row of the search table says how it came about and what it cost. So each search can be mined, nothing is
computed twice, and a search that was stopped continues.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.latents import read_latents
from diffdpo.data.samples import SAMPLES, SampleRow, Samples
from diffdpo.data.schema import TableSpec
from diffdpo.data.scores import FULL_SONG, GATES, SCORES, prompt_key
from diffdpo.faults import song_fault
from diffdpo.flow import SongLatents
from diffdpo.models.base import SongModel
from diffdpo.names import file_stem
from diffdpo.progress import log
from diffdpo.runs import atomic_write
from diffdpo.sampling.render import LOUDNESS_LUFS, SongAudio
from diffdpo.sampling.sample_files import SampleDigests, write_sample
from diffdpo.sampling.sample_jobs import EmbeddedJob
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.canonical import VERSION
from diffdpo.scorers.engine import (
    ScoreKey,
    compute_scores,
    fingerprints,
    score_clips,
    score_keys,
    to_score_rows,
)
from diffdpo.search.reward import Reward, RewardConfig, rank, reward_of
from diffdpo.search.task import Draft, FrameSpan, SearchSong, Tensors
from diffdpo.types import Clip, Prompt


@dataclass(frozen=True, kw_only=True)
class SearchRow:
    """How one song of a search came about."""

    sample_id: str
    prompt_id: str
    number: int
    """Number of the song among those of its prompt."""
    method: str
    """Name of the search method."""
    reward: float
    """Weighted mean of the axes in standard deviations."""
    violation: float
    """What constraints are violated by, in standard deviations; 0 for a song that keeps all."""
    nfe: int
    """Network evaluations that were made for this song."""
    rank: int = 0
    """1 for the best of its prompt; 0 before the search of the prompt is complete."""
    details: str = "{}"
    """JSON: what a method says of the song, such as the text of a mutated prompt."""


SEARCH = TableSpec("search", SearchRow, key=("sample_id",))

SampleRowOf = Callable[[EmbeddedJob, SampleDigests], SampleRow]
"""The row of the samples table for a song."""


def render_clip(
    model: SongModel, job: EmbeddedJob, latents: SongLatents, span: FrameSpan | None = None
) -> Clip:
    """The sound of latents, or of a span of their frames, at -16 LUFS: as in a song's file but for rounding."""
    sound = SongAudio(model, latents, seconds=job.job.prompt.duration_s)
    samples = np.concatenate(list(sound.chunks(*(span or (0, len(latents))))), axis=1)
    clip = Clip(samples=samples, sample_rate=model.spec.sample_rate)
    return audio.limit(audio.normalise(clip, LOUDNESS_LUFS))


@dataclass(eq=False, kw_only=True)
class MemoryStore:
    """Songs and intermediate results in memory."""

    model: SongModel
    scorers: Mapping[str, Scorer]
    reward: RewardConfig
    songs: dict[str, SearchSong] = field(default_factory=dict)
    results: dict[str, Tensors] = field(default_factory=dict)

    def get(self, sample_id: str) -> SearchSong | None:
        """See SongStore."""
        return self.songs.get(sample_id)

    def add(self, drafts: Sequence[Draft]) -> list[SearchSong]:
        """See SongStore."""
        songs = []
        for draft in drafts:
            (reward,) = self.score(draft.job, [draft.latents])
            song = search_song(draft, reward)
            self.songs[song.sample_id] = song
            songs.append(song)
        return songs

    def score(
        self, job: EmbeddedJob, songs: Sequence[SongLatents], span: FrameSpan | None = None
    ) -> list[Reward]:
        """See SongStore."""
        return score_latents(self.model, self.scorers, self.reward, job, songs, span)

    def memo(self, key: str, compute: Callable[[], Tensors]) -> Tensors:
        """See SongStore."""
        if key not in self.results:
            self.results[key] = compute()
        return self.results[key]


def search_song(draft: Draft, reward: Reward) -> SearchSong:
    """A draft with its reward."""
    name = draft.job.job.sample_id
    return SearchSong(
        sample_id=name,
        number=int(name.rpartition(".")[2]),
        latents=draft.latents,
        reward=reward,
        nfe=draft.nfe,
        details=draft.details,
    )


def score_latents(
    model: SongModel,
    scorers: Mapping[str, Scorer],
    cfg: RewardConfig,
    job: EmbeddedJob,
    songs: Sequence[SongLatents],
    span: FrameSpan | None = None,
) -> list[Reward]:
    """The rewards of latents for the prompt of a job, one sound in memory at a time."""
    rewards = []
    for latents in songs:
        (scores,) = score_clips([render_clip(model, job, latents, span)], scorers, prompts=[job.job.prompt])
        rewards.append(reward_of(cfg, scores.values, scores.gates))
    return rewards


@dataclass(eq=False, kw_only=True)
class FolderStore:
    """Songs in a samples folder, their values in a scores folder, intermediate results in files."""

    model: SongModel
    scorers: Mapping[str, Scorer]
    reward: RewardConfig
    samples: Samples
    scores: Path
    method: str
    sample_row: SampleRowOf
    process: int = 0
    """Number of this process: no two write the same part of a table."""

    @cached_property
    def versions(self) -> dict[str, str]:
        """The fingerprint of every scorer, gates included."""
        return fingerprints(self.scorers)

    @cached_property
    def rows(self) -> dict[str, SearchRow]:
        """The songs of this folder that are complete."""
        songs = {row.sample_id for row in self.samples.rows()}
        return {
            row.sample_id: row
            for row in tables.read_rows(self.samples.folder, SEARCH)
            if row.sample_id in songs
        }

    @cached_property
    def sounds(self) -> dict[str, str]:
        """The hash of the sound of each song, by sample id."""
        return {row.sample_id: row.sha256 for row in self.samples.rows()}

    @cached_property
    def values(self) -> dict[tuple[str, ScoreKey], dict[str, float]]:
        """The values by hash of the sound and key, as far as the scores table has them."""
        values: dict[tuple[str, ScoreKey], dict[str, float]] = {}
        for row in tables.read_rows(self.scores, SCORES):
            if row.window == FULL_SONG and row.preprocessing == VERSION:
                key = ScoreKey(row.scorer, row.fingerprint, row.prompt)
                values.setdefault((row.sha256, key), {})[row.axis] = row.value
        return values

    def get(self, sample_id: str) -> SearchSong | None:
        """See SongStore."""
        row, path = self.rows.get(sample_id), self.samples.latents(sample_id)
        if row is None or not (path.is_file() and self.samples.audio(sample_id).is_file()):
            return None
        prompt = self.prompts[row.prompt_id]
        return SearchSong(
            sample_id=sample_id,
            number=row.number,
            latents=read_latents(path),
            reward=self._reward(sample_id, prompt),
            nfe=row.nfe,
            details=json.loads(row.details),
        )

    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        """The prompts of the folder, by id."""
        return {prompt.id: prompt for prompt in self.samples.prompts()}

    def add(self, drafts: Sequence[Draft]) -> list[SearchSong]:
        """See SongStore."""
        songs = []
        for draft in drafts:
            job = draft.job.job
            try:
                digests = write_sample(self.model, self.samples, draft.job, draft.latents, audio=True)
                self.sounds[job.sample_id] = digests.sha256
                song = search_song(draft, self._reward(job.sample_id, job.prompt))
            except Exception as error:  # whatever one song brings about: the others go on
                log(f"{job.sample_id}: cannot win: {song_fault(error)}")
                songs.append(search_song(draft, Reward(math.nan, math.inf)))
                continue
            row = SearchRow(
                sample_id=job.sample_id,
                prompt_id=job.prompt.id,
                number=song.number,
                method=self.method,
                reward=song.reward.value,
                violation=song.reward.violation,
                nfe=draft.nfe,
                details=json.dumps(dict(draft.details), sort_keys=True, ensure_ascii=False),
            )
            append = partial(tables.append, self.samples.folder, rank=self.process)
            append(SEARCH, [row])
            append(SAMPLES, [self.sample_row(draft.job, digests)])
            self.rows[job.sample_id] = row
            songs.append(song)
        return songs

    def score(
        self, job: EmbeddedJob, songs: Sequence[SongLatents], span: FrameSpan | None = None
    ) -> list[Reward]:
        """See SongStore."""
        return score_latents(self.model, self.scorers, self.reward, job, songs, span)

    def memo(self, key: str, compute: Callable[[], Tensors]) -> Tensors:
        """See SongStore."""
        path = self.samples.folder / "states" / f"{file_stem(key)}.safetensors"
        if path.is_file():
            try:
                return load_file(path)
            except SafetensorError:
                log(f"{path}: damaged; it is made anew")
        tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
        atomic_write(path, save(tensors))
        return tensors

    def _reward(self, sample_id: str, prompt: Prompt) -> Reward:
        """The reward of a song in the folder; what the scores table lacks is computed and written."""
        sha256, key = self.sounds[sample_id], prompt_key(prompt)
        keys = score_keys(self.scorers, self.versions, [key])
        absent = [entry for entry in keys if (sha256, entry) not in self.values]
        if absent:
            clip = audio.read(self.samples.audio(sample_id), with_fold=False)
            (values,) = compute_scores([clip], [absent], self.scorers, prompts={key: prompt})
            rows = to_score_rows(sha256, values)
            tables.append(self.scores, SCORES, rows, rank=self.process)
            for entry, by_axis in values.items():
                self.values[sha256, entry] = {axis: value for axis, (value,) in by_axis.items()}
        axes: dict[str, float] = {}
        faults: dict[str, float] = {}
        for entry in keys:
            (faults if entry.scorer == GATES else axes).update(self.values[sha256, entry])
        return reward_of(self.reward, axes, faults)


def ranked_rows(
    rows: Mapping[str, SearchRow], songs: Sequence[SearchSong], prompt_id: str
) -> list[SearchRow]:
    """The rows of one prompt with the ranks of the songs of its search; the others have rank 0."""
    ranks = {
        songs[place].sample_id: number for number, place in enumerate(rank([s.reward for s in songs]), 1)
    }
    return [
        replace(row, rank=ranks.get(row.sample_id, 0)) for row in rows.values() if row.prompt_id == prompt_id
    ]
