"""The verb `audit`: whether axes measure what they claim, on any songs, with real and worse songs beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.data.samples import SampleRow, Samples, open_samples
from diffdpo.errors import ConfigError, DataError, ensure
from diffdpo.evaluation.effects import Role
from diffdpo.evaluation.real_songs import read_table
from diffdpo.evaluation.validity import AxisColumns
from diffdpo.evaluation.validity_report import Audit, AuditSongs, AxisFacts, WorseSongs, audit_axes
from diffdpo.evaluation.validity_tables import audit_markdown, metric_row, summary_lines, validity_table
from diffdpo.evaluation.witness_report import BAND_GROUP
from diffdpo.parts import build_scorers
from diffdpo.progress import log
from diffdpo.recipes.audit_ladder import LadderConfig, make_ladder
from diffdpo.recipes.audit_scores import (
    HALF_SCORES,
    SONG_SCORES,
    files_of,
    read_axes,
    score_halves,
    score_songs,
)
from diffdpo.registry import closest
from diffdpo.run_dir import DistEnv, check_inputs, dist_env, open_run
from diffdpo.runs import METRICS, Metrics, atomic_write, finish, versions, write_json
from diffdpo.scorers import DEFAULT_SCORERS
from diffdpo.scorers.base import PartialJudge, Scorer
from diffdpo.scorers.engine import fingerprints
from diffdpo.scorers.texture import Texture

OFFLINE_SCORERS = (
    *DEFAULT_SCORERS, "order", "clarity", "critic", "notes", "beats", "form", "second_critic", "adherence",
)  # fmt: skip
"""All scorers whose weights ship or come with a package that diffdpo requires."""
TEXTURE = "texture"
REPORT, PAGE = "report.json", "report.md"


@dataclass
class AuditRun:
    """Songs, several a prompt, on which axes are audited."""

    samples: str = field(default=MISSING, metadata=PATH)
    """Folder that `sample` wrote, with several songs a prompt."""
    out: str = field(default=MISSING, metadata=PATH)
    scores: list[str] = field(default_factory=list, metadata=PATH)
    """Folders of scores: what they hold is not computed again."""
    scorers: list[Any] = field(default_factory=lambda: list(OFFLINE_SCORERS))
    """Names, or {name: …, args: {…}}; mined axes and witnesses alike."""
    axes: list[str] = field(default_factory=list)
    """Axes of the report. Empty: all of the scorers."""
    per_prompt: int = 0
    """Songs of each prompt, the first ones; 0: all."""
    ladder: LadderConfig = field(default_factory=LadderConfig)
    """Worse songs that the audit makes itself."""
    worse: dict[str, str] = field(default_factory=dict, metadata=PATH)
    """Folders of worse songs of the same prompts, by the name of their setting."""
    best_of: list[int] = field(default_factory=lambda: [2, 4, 10])
    """The N of best-of-N, as far as prompts have so many songs."""

    def __post_init__(self) -> None:
        check_range(self, "per_prompt", low=0)
        ensure(all(n >= 2 for n in self.best_of), f"best_of: numbers of 2 or more, got {self.best_of}")

    def check_parts(self) -> None:
        """ConfigError for a scorer or an axis that does not exist, before anything is read."""
        _facts(build_scorers(self.scorers), self.axes)


def run(cfg: AuditRun) -> Path:
    """Make the worse songs and the scores that are not there yet, and write the report."""
    check_inputs(samples=[cfg.samples], scores=cfg.scores)
    scorers, dist = build_scorers(cfg.scorers), dist_env()
    facts = _facts(scorers, cfg.axes)
    samples = open_samples(cfg.samples)
    rows = _audited_rows(samples, cfg.per_prompt)
    _check_worse(cfg.worse, samples)
    with open_run(cfg, free=("scores", "axes", "worse", "best_of"), dist=dist) as out:
        folders = make_ladder(cfg.ladder, samples, out, dist) | {k: Path(v) for k, v in cfg.worse.items()}
        _score_all(cfg, scorers, samples, rows, folders, out, dist)
        if dist.main:
            songs = _read_songs(facts, scorers, samples, rows, folders, out)
            _write(out, audit_axes(facts, songs, _numbers(cfg.best_of, rows)))
        dist.barrier()
    return Path(cfg.out)


def _facts(scorers: Mapping[str, Scorer], axes: Sequence[str]) -> list[AxisFacts]:
    """The axes of the report. ConfigError for one that is of no scorer."""
    facts = []
    for scorer in scorers.values():
        judges = scorer.judges if isinstance(scorer, PartialJudge) else scorer.axes
        for axis in scorer.axes:
            role: Role = "mined" if not scorer.judge_only else "judge" if axis in judges else "diagnosis"
            facts.append(AxisFacts(axis=axis, trait=scorer.traits[axis], role=role))
    names = [fact.axis for fact in facts]
    for axis in axes:
        if axis not in names:
            raise ConfigError(
                f"axes: {axis!r} is of none of the scorers.{closest(axis, names)} Known: {', '.join(names)}."
            )
    return [fact for fact in facts if not axes or fact.axis in axes]


def _audited_rows(samples: Samples, per_prompt: int) -> list[SampleRow]:
    """The first songs of every prompt; prompts with one song are left out. DataError if fewer than two are left."""
    by_prompt: dict[str, list[SampleRow]] = {}
    for row in sorted(samples.rows(), key=lambda row: row.sample_id):
        by_prompt.setdefault(row.group or row.prompt_id, []).append(row)
    groups = [group[: per_prompt or None] for group in by_prompt.values()]
    groups = [group for group in groups if len(group) > 1]
    if len(groups) < 2:
        raise DataError(
            f"{samples.folder}: an audit compares songs of one prompt, and {len(groups)} of {len(by_prompt)} "
            "prompts have two songs or more; sample with per_prompt=4 or more"
        )
    return [row for group in groups for row in group]


def _check_worse(worse: Mapping[str, str], samples: Samples) -> None:
    """DataError for a folder of worse songs that is missing or empty, or shares no prompt with the candidates."""
    groups = {_prompt(row) for row in samples.rows()}
    for name, folder in worse.items():
        rows = open_samples(folder).rows()
        if not rows:
            raise DataError(f"worse.{name}: {folder} holds no song; sample it first, or leave it out")
        if not groups & {_prompt(row) for row in rows}:
            raise DataError(
                f"worse.{name}: {folder} shares no prompt with {samples.folder}; sample the same prompts"
            )


def _prompt(row: SampleRow) -> str:
    return row.group or row.prompt_id


def _score_all(
    cfg: AuditRun,
    scorers: Mapping[str, Scorer],
    samples: Samples,
    rows: Sequence[SampleRow],
    folders: Mapping[str, Path],
    out: Path,
    dist: DistEnv,
) -> None:
    """Score songs, worse songs and halves, as far as no folder has their scores."""
    files = files_of(samples.folder, {row.sample_id for row in rows})
    score_songs(files, {**scorers, TEXTURE: Texture()}, cfg.scores, out / SONG_SCORES, dist)
    worse_files = [
        audio_file
        for folder in folders.values()
        for audio_file in files_of(folder, {row.sample_id for row in Samples(folder).rows()})
    ]
    if worse_files:
        score_songs(worse_files, scorers, cfg.scores, out / SONG_SCORES, dist)
    score_halves(files, scorers, [out / name for name in HALF_SCORES], dist)


def _read_songs(
    facts: Sequence[AxisFacts],
    scorers: Mapping[str, Scorer],
    samples: Samples,
    rows: Sequence[SampleRow],
    folders: Mapping[str, Path],
    out: Path,
) -> AuditSongs:
    axes, names = [fact.axis for fact in facts], [row.sample_id for row in rows]
    first, second = (read_axes(out / half, samples, names, axes) for half in HALF_SCORES)
    real, real_songs = _real_songs(scorers, axes)
    return AuditSongs(
        prompts=[_prompt(row) for row in rows],
        values=read_axes(out / SONG_SCORES, samples, names, axes),
        halves=(first, second),
        texture=read_axes(out / SONG_SCORES, samples, names, Texture.axes),
        worse={
            name: _worse_songs(Samples(folder), rows, axes, out / SONG_SCORES)
            for name, folder in folders.items()
        },
        real=real,
        real_songs=real_songs,
    )


def _worse_songs(
    samples: Samples, rows: Sequence[SampleRow], axes: Sequence[str], scores: Path
) -> WorseSongs:
    """Worse songs with the place of the candidate of the same id and seed."""
    worse_rows = samples.rows()
    places = {(row.sample_id, row.seed): place for place, row in enumerate(rows)}
    return WorseSongs(
        values=read_axes(scores, samples, [row.sample_id for row in worse_rows], axes),
        prompts=[_prompt(row) for row in worse_rows],
        counterparts=[places.get((row.sample_id, row.seed)) for row in worse_rows],
    )


def _real_songs(scorers: Mapping[str, Scorer], axes: Sequence[str]) -> tuple[AxisColumns, tuple[str, ...]]:
    """The package's real songs that nothing is fitted to, on the axes whose scorers are those of the table."""
    songs, current = read_table().of_group(BAND_GROUP), fingerprints(scorers)
    comparable = {
        axis
        for name, scorer in scorers.items()
        if songs.versions.get(name) == current[name]
        for axis in scorer.axes
        if axis in songs.axes
    }
    return {axis: songs.column(axis) for axis in axes if axis in comparable}, songs.song


def _numbers(best_of: Sequence[int], rows: Sequence[SampleRow]) -> list[int]:
    """The N of best-of-N that every prompt has songs for, at least the smallest number of songs."""
    counts = np.unique([_prompt(row) for row in rows], return_counts=True)[1]
    smallest = int(counts.min())
    return sorted({n for n in best_of if n <= smallest} or {smallest})


def _write(out: Path, audit: Audit) -> None:
    write_json(out / REPORT, asdict(audit) | {"versions": versions()})
    atomic_write(out / PAGE, audit_markdown(audit))
    metrics = Metrics(out, keep_until=-1)
    for place, axis in enumerate(audit.axes):
        metrics.write({"step": place, **metric_row(axis)})
    finish(
        out,
        songs=audit.n_songs,
        prompts=audit.n_prompts,
        valid=[axis.axis for axis in audit.axes if axis.judgement.valid],
    )
    log(validity_table(audit))
    for line in summary_lines(audit):
        log(line)
    log(f"report: {out / PAGE}, {out / REPORT}, {out / METRICS}")
