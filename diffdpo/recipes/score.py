"""The verb `score`: songs to scores. Values of the same audio and version of a scorer are not computed again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from diffdpo import audio
from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.data import tables
from diffdpo.data.samples import open_samples
from diffdpo.data.scores import (
    FULL_SONG,
    SCORES,
    WINDOWS,
    Grid,
    WindowRow,
    newest_grid,
    newest_versions,
    prompt_key,
    window_rows,
)
from diffdpo.errors import DataError, UserError
from diffdpo.faults import song_fault
from diffdpo.parts import build_scorers
from diffdpo.progress import bar, log
from diffdpo.run_dir import DistEnv, check_inputs, dist_env, open_folder
from diffdpo.runs import finish
from diffdpo.scorers import DEFAULT_SCORERS
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.canonical import VERSION
from diffdpo.scorers.engine import (
    AxisValues,
    ScoreKey,
    compute_scores,
    fingerprints,
    score_keys,
    to_score_rows,
    window_scorers,
)
from diffdpo.threads import worker_count
from diffdpo.types import Clip, Prompt


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

    def __post_init__(self) -> None:
        check_range(self, "window_s", "hop_s", low=0)

    def check_parts(self) -> None:
        """ConfigError for a part or an argument that does not exist, before anything is loaded."""
        build_scorers(self.scorers)


@dataclass(frozen=True)
class AudioFile:
    """A file of generated audio, with the prompts that it was generated for, by their keys."""

    sha256: str
    path: Path
    prompts: dict[str, Prompt] = field(default_factory=dict)


def run(cfg: ScoreRun) -> Path:
    """Compute the scores that the tables do not hold yet."""
    check_inputs(samples=cfg.samples)
    scorers = build_scorers(cfg.scorers)
    dist, out = dist_env(), Path(cfg.out)
    grid = Grid(cfg.window_s, cfg.hop_s or cfg.window_s / 2) if cfg.window_s else None
    with open_folder(out, dist):
        score_files(read_audio_files(cfg.samples), scorers, out, dist, grid)
    return out


def score_files(
    audio_files: Sequence[AudioFile],
    scorers: Mapping[str, Scorer],
    out: Path,
    dist: DistEnv,
    grid: Grid | None = None,
) -> None:
    """Compute the scores of some files that the tables in `out`, which is held, do not hold yet."""
    versions = fingerprints(scorers)
    if grid and dist.main:
        _report_windowless(scorers, grid)
    cached_keys = _cached(out, grid)
    work = [
        (audio_file, keys)
        for audio_file in audio_files
        if (
            keys := _missing_keys(
                score_keys(scorers, versions, audio_file.prompts, grid), audio_file, cached_keys
            )
        )
    ]
    part = dist.shard(work)
    with bar("score", len(part), "song", visible=dist.main) as progress:
        for begin in range(0, len(part), worker_count()):
            for audio_file, clip, values in _score_files(part[begin:][: worker_count()], scorers, grid):
                _report_undefined(audio_file, values)
                if grid:
                    windows = _window_rows(audio_file, values, grid, grid.starts(clip.seconds))
                    tables.append(out, WINDOWS, windows, rank=dist.rank)
                tables.append(out, SCORES, to_score_rows(audio_file.sha256, values), rank=dist.rank)
                progress.advance()
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


def _score_files(
    batch: Sequence[tuple[AudioFile, Sequence[ScoreKey]]], scorers: Mapping[str, Scorer], grid: Grid | None
) -> Iterator[tuple[AudioFile, Clip, dict[ScoreKey, AxisValues]]]:
    """The sound of each audio file and its values for its keys; a warning for each that cannot be scored.

    A scorer that cannot work at all, without its weights or licence, is a UserError and no song's fault.
    """
    clips: list[Clip] = []
    sound_batch: list[tuple[AudioFile, Sequence[ScoreKey]]] = []
    for audio_file, keys in batch:
        try:
            clips.append(read_sound(audio_file))
            sound_batch.append((audio_file, keys))
        except Exception as error:  # whatever a file brings about
            _report_fault(audio_file, error)
    try:
        yield from _score_clips(sound_batch, clips, scorers, grid)
    except UserError:
        raise
    except Exception as batch_error:  # of one song: each alone shows which
        song_fault(batch_error)
        for song, clip in zip(sound_batch, clips, strict=True):
            try:
                yield from _score_clips([song], [clip], scorers, grid)
            except UserError:
                raise
            except Exception as error:
                _report_fault(song[0], error)


def read_sound(audio_file: AudioFile) -> Clip:
    """The sound of a file; DataError unless it is the one that was sampled."""
    clip = audio.read(audio_file.path, with_fold=False)
    if audio.pcm_sha256(clip.samples, clip.sample_rate) != audio_file.sha256:
        raise DataError(f"{audio_file.path}: its sound is not the one in the table; sample it again")
    return clip


def _report_fault(audio_file: AudioFile, error: Exception) -> None:
    reason = song_fault(error)
    place = "" if str(audio_file.path) in reason else f"{audio_file.path}: "
    log(f"warning: no scores: {place}{reason}")


def _score_clips(
    batch: Sequence[tuple[AudioFile, Sequence[ScoreKey]]],
    clips: Sequence[Clip],
    scorers: Mapping[str, Scorer],
    grid: Grid | None,
) -> list[tuple[AudioFile, Clip, dict[ScoreKey, AxisValues]]]:
    """Audio files with their sounds and their values."""
    audio_files, keys = [song for song, _ in batch], [song_keys for _, song_keys in batch]
    prompts = {key: prompt for audio_file in audio_files for key, prompt in audio_file.prompts.items()}
    values = compute_scores(clips, keys, scorers, prompts=prompts, grid=grid)
    return list(zip(audio_files, clips, values, strict=True))


def read_audio_files(folders: Sequence[str]) -> list[AudioFile]:
    """The audio files of some samples folders; files of the same content count as one."""
    audio_files: dict[str, AudioFile] = {}
    for folder in folders:
        samples = open_samples(folder)
        rows = samples.rows()
        silent = [row.sample_id for row in rows if not row.sha256]
        if silent:
            raise DataError(f"{folder}: {silent[0]} has no audio; sample again with audio=true")
        prompts = {prompt.id: (prompt_key(prompt), prompt) for prompt in samples.prompts()}
        for row in rows:
            sha256, path = row.sha256, samples.audio(row.sample_id)
            key, prompt = prompts[row.prompt_id]
            audio_files.setdefault(sha256, AudioFile(sha256, path)).prompts[key] = prompt
    if not audio_files:
        raise DataError("nothing to score: name folders that `diffdpo sample` wrote, samples=[…]")
    return list(audio_files.values())


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
