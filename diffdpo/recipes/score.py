"""The verb `score`: songs to scores. Values of the same audio and version of a scorer are not computed again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.data import tables
from diffdpo.data.samples import SampleRow, open_samples
from diffdpo.data.scores import (
    FULL_SONG,
    SCORES,
    WINDOWS,
    Grid,
    ScoreRow,
    WindowRow,
    newest_grid,
    newest_versions,
    prompt_key,
    window_rows,
)
from diffdpo.errors import DataError
from diffdpo.executors.base import Executor
from diffdpo.executors.local import LocalExecutor
from diffdpo.parts import build_executor, build_scorers
from diffdpo.progress import bar, log
from diffdpo.recipes.score_worker import AudioFile, FileKeys, FileScores, ScoringFactory
from diffdpo.registry import Choice
from diffdpo.run_dir import DistEnv, check_alone_on, check_inputs, dist_env, open_folder
from diffdpo.runs import finish
from diffdpo.scorers import DEFAULT_SCORERS
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.canonical import VERSION
from diffdpo.scorers.engine import (
    AxisValues,
    ScoreKey,
    fingerprints,
    score_keys,
    to_score_rows,
    window_scorers,
)
from diffdpo.threads import worker_count


@dataclass
class ScoreRun:
    """Songs to scores."""

    samples: list[str] = field(default=MISSING, metadata=PATH)
    """Folders that `sample` wrote."""
    out: str = field(default=MISSING, metadata=PATH)
    """Folder of the scores table, which many runs may share: scores are stored by the hash of the audio."""
    scorers: list[Any] = field(default_factory=lambda: list(DEFAULT_SCORERS))
    """Names, or {name: …, args: {…}} for those with arguments."""
    window_s: float = 0.0
    """Length of windows that are scored besides the song, to find where one song is better than another; 0: none.
    Judges, scorers of adherence and scorers that need longer windows score no windows."""
    hop_s: float = 0.0
    """Seconds between the starts of two windows; 0: half a window."""
    per_prompt: int = 0
    """Score only the first songs of each prompt; 0: all."""
    batch: int = 0
    """Songs that are read and scored together; 0: one for each thread. Large networks want several."""
    executor: Choice = field(default_factory=lambda: Choice("local"))
    """Where songs are scored: local, in this process, or ray, on the actors of a Ray cluster."""

    def __post_init__(self) -> None:
        check_range(self, "window_s", "hop_s", "per_prompt", "batch", low=0)

    def check_parts(self) -> None:
        """ConfigError for a part or an argument that does not exist, before anything is loaded."""
        build_scorers(self.scorers)
        build_executor(self.executor)


def run(cfg: ScoreRun) -> Path:
    """Compute the scores that the tables do not hold yet."""
    check_inputs(samples=cfg.samples)
    scorers, executor = build_scorers(cfg.scorers), build_executor(cfg.executor)
    dist, out = dist_env(), Path(cfg.out)
    check_alone_on(cfg.executor, dist)
    grid = Grid(cfg.window_s, cfg.hop_s or cfg.window_s / 2) if cfg.window_s else None
    with open_folder(out, dist):
        files = read_audio_files(cfg.samples, cfg.per_prompt)
        score_files(files, scorers, out, dist, Scoring(grid, executor, cfg.batch))
    return out


@dataclass(frozen=True)
class Scoring:
    """How files are scored: windows, and who scores them in which batches."""

    grid: Grid | None = None
    executor: Executor = field(default_factory=LocalExecutor)
    batch: int = 0


def score_files(
    audio_files: Sequence[AudioFile],
    scorers: Mapping[str, Scorer],
    out: Path,
    dist: DistEnv,
    scoring: Scoring = Scoring(),
) -> None:
    """Compute the scores of some files that the tables in `out`, which is held, do not hold yet."""
    versions, grid = fingerprints(scorers), scoring.grid
    if grid and dist.main:
        _report_windowless(scorers, grid)
    cached_keys = _cached(out, grid)
    work = [
        FileKeys(audio_file, keys)
        for audio_file in sorted(audio_files, key=lambda audio_file: audio_file.seconds)
        if (
            keys := _missing_keys(
                score_keys(scorers, versions, audio_file.prompts, grid), audio_file, cached_keys
            )
        )
    ]
    part, size = dist.shard(work), scoring.batch or worker_count()
    batches = [part[begin : begin + size] for begin in range(0, len(part), size)]
    with bar("score", len(part), "song", visible=dist.main) as progress:
        for _, batch_scores in scoring.executor(batches, ScoringFactory(scorers, grid, versions)):
            _append_scores(out, batch_scores, grid, dist.rank)
            progress.advance(len(batch_scores))
    dist.barrier()
    if dist.main:
        tables.compact(out, SCORES)
        tables.compact(out, WINDOWS)
        grid = grid or newest_grid(out)
        if part and not _cached(out, None):
            raise DataError(f"{out}: no song could be scored; the warnings say why")
        finish(
            out,
            sounds=len(audio_files),
            scorers=newest_versions(out) | versions,
            grid=asdict(grid) if grid else None,
            licenses={name: list(scorer.licenses) for name, scorer in scorers.items()},
            world=dist.count,
        )
    dist.barrier()


def _append_scores(out: Path, batch_scores: Sequence[FileScores], grid: Grid | None, rank: int) -> None:
    """Write the values of some files; a warning for each that has none."""
    rows: list[ScoreRow] = []
    windows: list[WindowRow] = []
    for scores in batch_scores:
        if scores.fault:
            log(f"warning: no scores: {scores.fault}")
            continue
        _report_undefined(scores.audio_file, scores.values)
        rows += to_score_rows(scores.audio_file.sha256, scores.values)
        if grid:
            windows += _window_rows(scores.audio_file, scores.values, grid, grid.starts(scores.seconds))
    tables.append(out, WINDOWS, windows, rank=rank)
    tables.append(out, SCORES, rows, rank=rank)


def read_audio_files(folders: Sequence[str], per_prompt: int = 0) -> list[AudioFile]:
    """The audio files of some samples folders, of each prompt the first ones; 0: all.

    Files of the same content count as one.
    """
    audio_files: dict[str, AudioFile] = {}
    for folder in folders:
        samples = open_samples(folder)
        rows = first_songs(samples.rows(), per_prompt) if per_prompt else samples.rows()
        silent = [row.sample_id for row in rows if not row.sha256]
        if silent:
            raise DataError(f"{folder}: {silent[0]} has no audio; sample again with audio=true")
        prompts = {prompt.id: (prompt_key(prompt), prompt) for prompt in samples.prompts()}
        for row in rows:
            sha256, path = row.sha256, samples.audio(row.sample_id)
            key, prompt = prompts[row.prompt_id]
            audio_files.setdefault(sha256, AudioFile(sha256, path, seconds=row.duration_s)).prompts[key] = (
                prompt
            )
    if not audio_files:
        raise DataError("nothing to score: name folders that `diffdpo sample` wrote, samples=[…]")
    return list(audio_files.values())


def first_songs(rows: Sequence[SampleRow], per_prompt: int) -> list[SampleRow]:
    """The first songs of each prompt, in the order of their ids."""
    songs: dict[str, list[SampleRow]] = {}
    for row in sorted(rows, key=lambda row: row.sample_id):
        songs.setdefault(row.prompt_id, []).append(row)
    return [row for prompt in songs.values() for row in prompt[:per_prompt]]


def _cached(out: Path, grid: Grid | None) -> set[tuple[str, ...]]:
    """The keys of all values in the tables; of the windows' table only if windows are to be scored."""
    columns = ("sha256", "preprocessing", *ScoreKey._fields)
    keys = tables.read_distinct(out, SCORES, columns)
    return keys | tables.read_distinct(out, WINDOWS, columns) if grid else keys


def _missing_keys(
    keys: Sequence[ScoreKey], audio_file: AudioFile, cached_keys: set[tuple[str, ...]]
) -> list[ScoreKey]:
    return [key for key in keys if (audio_file.sha256, VERSION, *key) not in cached_keys]


def _report_windowless(scorers: Mapping[str, Scorer], grid: Grid) -> None:
    """Log which scorers need longer windows; ConfigError if no scorer is left."""
    for name, scorer in scorers.items():
        if scorer.shortest_s > grid.window_s:
            log(f"no windows for {name}: it needs {scorer.shortest_s:g} s, window_s is {grid.window_s:g}")
    window_scorers(scorers, grid.window_s)


def _report_undefined(audio_file: AudioFile, values: Mapping[ScoreKey, AxisValues]) -> None:
    for key, by_axis in values.items():
        undefined_axes = [axis for axis, column in by_axis.items() if not np.isfinite(column).all()]
        if undefined_axes and key.window == FULL_SONG:
            log(
                f"warning: {audio_file.path}: {key.scorer} gave no number for {undefined_axes[0]}; "
                "the song will not be mined on it"
            )


def _window_rows(
    audio_file: AudioFile, values: Mapping[ScoreKey, AxisValues], grid: Grid, starts: Sequence[float]
) -> list[WindowRow]:
    """Rows of the windows' table, from the values of one song; `starts` of the windows are in seconds."""
    rows: list[WindowRow] = []
    for key, by_axis in values.items():
        if key.window != FULL_SONG:
            identity = {
                "sha256": audio_file.sha256,
                "preprocessing": VERSION,
                "scorer": key.scorer,
                "fingerprint": key.fingerprint,
            }
            rows += window_rows(identity, grid, starts, by_axis)
    return rows
