"""What `mine` reads: the songs of samples folders as candidates, their scores, and the songs of a data set."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from diffdpo.data.real_winners import RealWinners
from diffdpo.data.samples import SampleRow, Samples, open_samples
from diffdpo.data.scores import read_windows
from diffdpo.data.song_scores import Scores, SongScores, join_scores
from diffdpo.data.vote_songs import VoteSong
from diffdpo.extractors.base import Crops, Extractor
from diffdpo.inputs import digest
from diffdpo.mining import Candidates, Pair, Utility, novelty
from diffdpo.mining.novelty import NOVELTY
from diffdpo.progress import log
from diffdpo.recipes.reward_features import song_parts
from diffdpo.scorers.gates import LIMITS
from diffdpo.types import Prompt


@dataclass(frozen=True, kw_only=True)
class CandidateSource:
    """What candidates are read from, besides the samples folders."""

    scores: Scores | None
    """None for songs that are mined without scores."""
    scores_folder: Path
    axes: Sequence[str]
    """Axes with scores."""
    utility: Utility
    with_windows: bool
    """Whether scores of windows count, from which spans are found."""
    with_gates: bool
    winners: RealWinners | None = None
    """The songs of a data set that answers lose to."""
    embedders: Mapping[str, Extractor] = field(default_factory=dict)
    """By what a song's novelty is measured: an axis each, named novelty.NAME."""
    embeddings_folder: Path = Path()
    """Where embeddings are kept."""

    @property
    def all_axes(self) -> list[str]:
        """The axes that are mined: those with scores, then those of novelty."""
        return [*self.axes, *(NOVELTY + name for name in self.embedders)]


@dataclass(frozen=True, kw_only=True)
class FolderSongs:
    """The songs of a samples folder as candidates, and what identifies all that mining reads of the folder."""

    folder: Path
    prompts: Mapping[str, Prompt]
    candidates: Candidates
    utilities: Float[np.ndarray, "candidate axis"]
    """What rules and ratings compare in place of the scores."""
    digest: str
    answers: Mapping[str, SampleRow] = field(default_factory=dict)
    """The rows of the songs by id, where songs of a data set win."""
    real_songs: Mapping[str, str] = field(default_factory=dict)
    """By prompt the song of the data set that wins."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """For prompts without such a song the reason."""


def read_songs_of(folder: Path, source: CandidateSource) -> FolderSongs:
    """The candidates of one folder."""
    samples = open_samples(folder)
    prompts = samples.prompts()
    hashes = song_hashes(folder)
    if source.scores is None:
        candidates = unscored_candidates(samples)
        identity: list[object] = [vars(candidates)]
    else:
        songs = join_scores(source.scores, samples, prompts)
        candidates = to_mine(songs, source.axes, with_gates=source.with_gates)
        if n_without := len(hashes) - len(songs.sample_ids):
            log(f"{folder}: {n_without} of {len(hashes)} songs have no scores; `diffdpo score` scores them")
        windows = read_windows(source.scores_folder, set(hashes.values())) if source.with_windows else {}
        sounds = [hashes[name] for name in candidates.sample_ids]
        grids = sorted((name, sorted(grid.items())) for name, grid in windows.items())
        identity = [vars(candidates), sounds, grids]
    utilities = source.utility(candidates, {prompt.id: prompt.text or "" for prompt in prompts})
    if utilities is not candidates.scores:
        identity.append(utilities)
    if source.embedders:
        columns = novelty_columns(candidates, samples, hashes, source)
        identity.append(columns)
        utilities = np.hstack([utilities, columns])
        scores = np.hstack([candidates.scores, columns])
        candidates = replace(candidates, axes=tuple(source.all_axes), scores=scores)
    plain = FolderSongs(
        folder=folder,
        prompts={prompt.id: prompt for prompt in prompts},
        candidates=candidates,
        utilities=utilities,
        digest=digest(identity),
    )
    return plain if source.winners is None else _with_winners(plain, samples, source.winners, identity)


def _with_winners(
    songs: FolderSongs, samples: Samples, winners: RealWinners, identity: Sequence[object]
) -> FolderSongs:
    """The candidates as answers, with the songs of the data set that win over them."""
    answers = {row.sample_id: row for row in samples.rows()}
    by_prompt: dict[str, list[SampleRow]] = {}
    for name in songs.candidates.sample_ids:
        by_prompt.setdefault(answers[name].prompt_id, []).append(answers[name])
    real_songs, reasons = winners.match(songs.prompts.values(), by_prompt)
    facts = sorted((row.sample_id, row.frames, row.seed, row.inputs) for row in answers.values())
    return replace(
        songs,
        digest=digest([*identity, facts, winners.digest]),
        answers=answers,
        real_songs=real_songs,
        reasons=reasons,
    )


def read_folders(folders: Sequence[str], source: CandidateSource) -> Iterator[FolderSongs]:
    """The candidates of each folder, one folder in memory at a time."""
    for folder in map(Path, folders):
        yield read_songs_of(folder, source)


def place_winner(pair: Pair, songs: FolderSongs, winners: RealWinners | None) -> Pair:
    """The pair with the place of its winner's crop, if the winner is a song of a data set."""
    if winners is None or not pair.is_real:
        return pair
    start = winners.start(pair.winner, songs.answers[pair.loser], songs.prompts[pair.prompt_id])
    return replace(pair, winner_start=start)


def song_hashes(folder: Path) -> dict[str, str]:
    """The hash of each song of a folder, by id."""
    table = open_samples(folder).columns(("sample_id", "sha256"))
    return dict(zip(*(table[name].cast(pa.string()).to_pylist() for name in table.column_names), strict=True))


def unscored_candidates(samples: Samples) -> Candidates:
    """All songs of a folder as candidates without an axis."""
    columns = samples.columns(("sample_id", "prompt_id", "group"))
    sample_ids, prompt_ids, groups = (
        columns[name].cast(pa.string()).to_pylist() for name in columns.column_names
    )
    return Candidates(
        prompt_ids=prompt_ids,
        groups=groups,
        sample_ids=sample_ids,
        axes=(),
        scores=np.zeros((len(sample_ids), 0)),
    )


def to_mine(songs: SongScores, axes: Sequence[str], *, with_gates: bool) -> Candidates:
    """The songs as candidates on these axes; without those that fail a gate."""
    rows = np.flatnonzero(passes_gates(songs)) if with_gates else np.arange(len(songs.sample_ids))
    columns = [songs.axes.index(axis) for axis in axes]
    places = rows.tolist()
    return Candidates(
        prompt_ids=[songs.prompt_ids[place] for place in places],
        groups=[songs.groups[place] for place in places],
        sample_ids=[songs.sample_ids[place] for place in places],
        axes=tuple(axes),
        scores=songs.values[rows][:, columns],
    )


def novelty_columns(
    candidates: Candidates, samples: Samples, hashes: Mapping[str, str], source: CandidateSource
) -> Float[np.ndarray, "candidate embedder"]:
    """The novelty of every candidate by each embedder; NaN for a silent song and for one without its sound."""
    songs = [VoteSong(hashes[name], samples.audio(name)) for name in candidates.sample_ids]
    parts = song_parts(songs, source.embedders, Crops(), source.embeddings_folder)
    columns = []
    for name in source.embedders:
        vectors = {song: rows[name][0] for song, rows in parts.items() if len(rows[name])}
        absent = np.full(max(map(len, vectors.values()), default=1), np.nan)
        embeddings = np.stack([vectors.get(song, absent) for song in songs])
        columns.append(novelty(embeddings, candidates.prompt_ids))
    return np.stack(columns, axis=1)


def passes_gates(songs: SongScores) -> Bool[np.ndarray, " song"]:
    """True for the songs within the limits of every gate that has a score."""
    passes = np.ones(len(songs.sample_ids), bool)
    for name, (low, high) in LIMITS.items():
        if name in songs.axes:
            place = songs.axes.index(name)
            value = songs.values[:, place]
            passes &= ~songs.has_score[:, place] | ((low <= value) & (value <= high))
    return passes
