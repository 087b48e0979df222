"""Songs to scores. A recording that was scored before, by the same version of a scorer, is not scored again."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.samples import open_samples
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
    score_rows,
    window_rows,
)
from diffdpo.errors import DataError
from diffdpo.parts import build_scorers
from diffdpo.progress import bar, say
from diffdpo.run_dir import check_inputs, workers
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
    window_scorers,
)
from diffdpo.types import Prompt


@dataclass
class ScoreRun:
    """Songs to scores."""

    samples: list[str] = MISSING
    """Folders that `sample` wrote."""
    out: str = MISSING
    """Folder of the scores table; may be shared by many runs, scores are found again by the sound's hash."""
    scorers: list[Any] = field(default_factory=lambda: list(DEFAULT_SCORERS))
    """Names, or {name: …, args: {…}} for those with arguments."""
    window_s: float = 0.0
    """Score windows of this length too, to find where one song is better than another; 0: whole songs only.
    Judges score no windows, nor do scorers of adherence and those that need longer ones."""
    hop_s: float = 0.0
    """A window begins every so many seconds; 0: half a window."""

    def __post_init__(self) -> None:
        for name in ("window_s", "hop_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of seconds, 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Recording:
    """A file of generated audio, and the prompts it was made for by their keys: several prompts may share one."""

    sha256: str
    path: Path
    prompts: dict[str, Prompt] = field(default_factory=dict)


def check(cfg: ScoreRun) -> None:
    """The parts that are chosen by name, before anything is loaded."""
    build_scorers(cfg.scorers)


def run(cfg: ScoreRun) -> Path:
    """Compute the scores that are not there yet."""
    check_inputs(samples=cfg.samples)
    scorers = build_scorers(cfg.scorers)
    group, out = workers(), Path(cfg.out)
    recordings = _recordings(cfg.samples)
    versions = fingerprints(scorers)
    grid = Grid(cfg.window_s, cfg.hop_s or cfg.window_s / 2) if cfg.window_s else None
    if grid and group.main:
        _report_windowless(scorers, grid)
    cached = _cached(out, grid)
    work = [
        (recording, keys)
        for recording in recordings
        if (keys := _uncached(score_keys(scorers, versions, recording.prompts, grid), recording, cached))
    ]
    part = group.share(work)
    with bar("score", len(part), "song", enabled=group.main) as progress:
        for recording, keys in part:
            clip = audio.read(recording.path)
            (values,) = compute_scores([clip], [keys], scorers, prompts=recording.prompts, grid=grid)
            _report_undefined(recording, values)
            if grid:
                windows = _window_rows(recording, values, grid, grid.starts(clip.seconds))
                tables.append(out, WINDOWS, windows, rank=group.rank)
            tables.append(out, SCORES, _score_rows(recording, values), rank=group.rank)
            progress.advance()
    group.barrier()
    if group.main:
        tables.compact(out, SCORES)
        tables.compact(out, WINDOWS)
        grid = grid or newest_grid(out)
        finish(
            out,
            sounds=len(recordings),
            scorers=newest_versions(out) | versions,
            grid=asdict(grid) if grid else None,
            licenses={name: list(scorer.licenses) for name, scorer in scorers.items()},
            world=group.count,
        )
    group.barrier()
    return out


def _recordings(folders: list[str]) -> list[Recording]:
    """The audio files of some samples folders, each sound once."""
    recordings: dict[str, Recording] = {}
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
            recordings.setdefault(sha256, Recording(sha256, path)).prompts[key] = prompt
    if not recordings:
        raise DataError("nothing to score: name folders that `diffdpo sample` wrote, samples=[…]")
    return list(recordings.values())


def _cached(out: Path, grid: Grid | None) -> set[tuple[str, ...]]:
    """The keys of all values in the tables; those of windows only if windows are to be scored."""
    columns = ("sha256", "preprocessing", *ScoreKey._fields)
    keys = tables.read_distinct(out, SCORES, columns)
    return keys | tables.read_distinct(out, WINDOWS, columns) if grid else keys


def _uncached(keys: Sequence[ScoreKey], recording: Recording, cached: set[tuple[str, ...]]) -> list[ScoreKey]:
    return [key for key in keys if (recording.sha256, VERSION, *key) not in cached]


def _report_windowless(scorers: Mapping[str, Scorer], grid: Grid) -> None:
    """Say which scorers need longer windows; ConfigError if none is left."""
    for name, scorer in scorers.items():
        if scorer.shortest_s > grid.window_s:
            say(f"no windows for {name}: it needs {scorer.shortest_s:g} s, window_s is {grid.window_s:g}")
    window_scorers(scorers, grid.window_s)


def _report_undefined(recording: Recording, values: Mapping[ScoreKey, AxisValues]) -> None:
    for key, by_axis in values.items():
        undefined = [axis for axis, column in by_axis.items() if not np.isfinite(column).all()]
        if undefined and key.window == FULL_SONG:
            say(
                f"warning: {recording.path}: {key.scorer} gave no number for {undefined[0]}; "
                "the song will not be mined on it"
            )


def _score_rows(recording: Recording, values: Mapping[ScoreKey, AxisValues]) -> list[ScoreRow]:
    """Rows of the values of a whole song."""
    rows: list[ScoreRow] = []
    for key, by_axis in values.items():
        if key.window == FULL_SONG:
            column = [(axis, value) for axis, (value,) in by_axis.items()]
            rows += score_rows(recording.sha256, VERSION, key.scorer, key.fingerprint, column, key.prompt)
    return rows


def _window_rows(
    recording: Recording, values: Mapping[ScoreKey, AxisValues], grid: Grid, starts: Sequence[float]
) -> list[WindowRow]:
    """Rows of the values of a song's windows, which begin at `starts`, in seconds."""
    rows: list[WindowRow] = []
    for key, by_axis in values.items():
        if key.window != FULL_SONG:
            identity = {
                "sha256": recording.sha256,
                "preprocessing": VERSION,
                "scorer": key.scorer,
                "fingerprint": key.fingerprint,
            }
            rows += window_rows(identity, grid, starts, by_axis)
    return rows
