"""Songs to scores. A sound that was scored before, by the same version of a scorer, is not scored again."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.samples import open_samples
from diffdpo.data.scores import (
    ANY,
    GATES,
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
from diffdpo.errors import ConfigError, DataError
from diffdpo.parts import build_scorers
from diffdpo.progress import bar, say
from diffdpo.run_dir import check_inputs, workers
from diffdpo.runs import finish
from diffdpo.scorers import DEFAULT_SCORERS
from diffdpo.scorers.base import PromptScorer, Scorer, fingerprint
from diffdpo.scorers.canonical import VERSION, canonical
from diffdpo.scorers.gates import failures, gates
from diffdpo.types import Clip, Prompt


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
    Judges hear no windows, nor do scorers of adherence and those that need longer ones."""
    hop_s: float = 0.0
    """A window begins every so many seconds; 0: half a window."""

    def __post_init__(self) -> None:
        for name in ("window_s", "hop_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of seconds, 0 or more, got {getattr(self, name)}")


GATES_VERSION = "1"


@dataclass(frozen=True)
class Sound:
    """A file, and the prompts it was made for by their keys: the same sound may answer several."""

    path: Path
    prompts: dict[str, Prompt] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What is missing of one sound: the scorers to hear all of it, each for a prompt, and those for its windows."""

    sha256: str
    sound: Sound
    whole: tuple[tuple[str, str], ...]
    """(scorer, key of the prompt, or ANY)."""
    windowed: tuple[str, ...]


def check(cfg: ScoreRun) -> None:
    """The parts that are chosen by name, before anything is loaded."""
    build_scorers(cfg.scorers)


def run(cfg: ScoreRun) -> Path:
    """Compute the scores that are not there yet."""
    check_inputs(samples=cfg.samples)
    scorers = build_scorers(cfg.scorers)
    group, out = workers(), Path(cfg.out)
    sounds = _sounds(cfg.samples)
    versions = {name: fingerprint(scorer) for name, scorer in scorers.items()} | {GATES: GATES_VERSION}
    grid = Grid(cfg.window_s, cfg.hop_s or cfg.window_s / 2) if cfg.window_s else None
    windowed = _for_windows(scorers, cfg.window_s, group.main) if grid else {}
    asking = {name for name, scorer in scorers.items() if isinstance(scorer, PromptScorer)}
    mine = group.share(_jobs(out, sounds, versions, asking, grid, list(windowed)))
    with bar("score", len(mine), "song", enabled=group.main) as progress:
        for job in mine:
            faults, heard = _hear(job.sound.path)
            if grid:
                rows = _score_windows(job, heard, windowed, versions, grid)
                tables.append(out, WINDOWS, rows, rank=group.rank)
            tables.append(out, SCORES, _score(job, faults, heard, scorers, versions), rank=group.rank)
            progress.advance()
    group.barrier()
    if group.main:
        tables.compact(out, SCORES)
        tables.compact(out, WINDOWS)
        grid = grid or newest_grid(out)
        finish(
            out,
            sounds=len(sounds),
            scorers=newest_versions(out) | versions,
            grid=asdict(grid) if grid else None,
            licenses={name: list(scorer.licenses) for name, scorer in scorers.items()},
            world=group.count,
        )
    group.barrier()
    return out


def _jobs(
    out: Path,
    sounds: Mapping[str, Sound],
    versions: Mapping[str, str],
    asking: Collection[str],
    grid: Grid | None,
    windowed: list[str],
) -> list[Job]:
    """The sounds that lack a score. Scorers `asking` for the prompt score a sound once for each of its prompts."""
    cached = tables.read_distinct(out, SCORES, ("sha256", "scorer", "fingerprint", "prompt"))
    windows = ("sha256", "scorer", "fingerprint", "window")
    cached_windows = tables.read_distinct(out, WINDOWS, windows) if grid else set()
    name_of_grid = grid.name if grid else ""
    jobs = [
        Job(
            sha,
            sound,
            tuple(
                (name, key)
                for name, version in versions.items()
                for key in (sound.prompts if name in asking else [ANY])
                if (sha, name, version, key) not in cached
            ),
            tuple(
                name for name in windowed if (sha, name, versions[name], name_of_grid) not in cached_windows
            ),
        )
        for sha, sound in sounds.items()
    ]
    return [job for job in jobs if job.whole or job.windowed]


def _for_windows(scorers: Mapping[str, Scorer], window_s: float, main: bool) -> dict[str, Scorer]:
    """The scorers that can say something of so short a window.

    Left out are judges, from which nothing is mined, and scorers that compare a whole song with its prompt.
    """
    able = {}
    for name, scorer in scorers.items():
        if scorer.shortest_s > window_s:
            say(
                f"no windows for {name}: it needs {scorer.shortest_s:g} s, window_s is {window_s:g}",
                enabled=main,
            )
        elif not scorer.judge_only and not isinstance(scorer, PromptScorer):
            able[name] = scorer
    if not able:
        raise ConfigError(f"no scorer can hear windows of {window_s:g} s; set window_s=5 or more")
    return able


def _sounds(folders: list[str]) -> dict[str, Sound]:
    """The audio files of some samples folders by the hash of their sound."""
    sounds: dict[str, Sound] = {}
    for folder in folders:
        samples = open_samples(folder)
        rows = samples.rows()
        silent = [row.sample_id for row in rows if not row.sha256]
        if silent:
            raise DataError(f"{folder}: {silent[0]} has no audio; sample again with audio=true")
        prompts = {prompt.id: (prompt_key(prompt), prompt) for prompt in samples.prompts()}
        for row in rows:
            sound = sounds.setdefault(row.sha256, Sound(samples.audio(row.sample_id)))
            key, prompt = prompts[row.prompt_id]
            sound.prompts[key] = prompt
    if not sounds:
        raise DataError("nothing to score: name folders that `diffdpo sample` wrote, samples=[…]")
    return sounds


def _hear(path: Path) -> tuple[dict[str, float], Clip]:
    """The gates of a sound, and its canonical clip."""
    clip = audio.read(path)
    faults = gates(clip)
    return faults, canonical(clip) if not failures(faults, {"non_finite_ratio": (0.0, 0.0)}) else clip


def _score(
    job: Job,
    faults: Mapping[str, float],
    heard: Clip,
    scorers: Mapping[str, Scorer],
    versions: Mapping[str, str],
) -> list[ScoreRow]:
    """All missing scores of one sound. A value that is not a number is reported and kept as it is."""
    rows: list[ScoreRow] = []
    for name, key in job.whole:
        if name == GATES:
            values = list(faults.items())
        else:
            values = _values(scorers[name], heard, job.sound.prompts.get(key))
        bad = [axis for axis, value in values if not np.isfinite(value)]
        if bad:
            say(
                f"warning: {job.sound.path}: {name} gave no number for {bad[0]}; the song will not be mined on it"
            )
        rows += score_rows(job.sha256, VERSION, name, versions[name], values, key)
    return rows


def _values(scorer: Scorer, heard: Clip, prompt: Prompt | None) -> list[tuple[str, float]]:
    """A scorer's value of a song on each of its axes."""
    axes = scorer.axes
    if isinstance(scorer, PromptScorer) and prompt is not None:
        return list(zip(axes, scorer([heard], [prompt])[0].tolist(), strict=True))
    return list(zip(axes, scorer([heard])[0].tolist(), strict=True))


def _score_windows(
    job: Job, heard: Clip, scorers: Mapping[str, Scorer], versions: Mapping[str, str], grid: Grid
) -> list[WindowRow]:
    """All missing scores of the windows of one sound, which keep the level they have in the whole song."""
    starts = grid.starts(heard.seconds)
    windows = [_cut(heard, start, grid.window_s) for start in starts]
    rows: list[WindowRow] = []
    for name in job.windowed:
        scorer = scorers[name]
        values = scorer(windows).T.tolist() if windows else [[] for _ in scorer.axes]
        key = {
            "sha256": job.sha256,
            "preprocessing": VERSION,
            "scorer": name,
            "fingerprint": versions[name],
        }
        rows += window_rows(key, grid, starts, dict(zip(scorer.axes, values, strict=True)))
    return rows


def _cut(clip: Clip, start_s: float, seconds: float) -> Clip:
    begin, end = (round(time * clip.sample_rate) for time in (start_s, start_s + seconds))
    return Clip(samples=clip.samples[:, begin:end], sample_rate=clip.sample_rate)
