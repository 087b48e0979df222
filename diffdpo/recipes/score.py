"""Songs to scores. A sound that was scored before, by the same version of a scorer, is not scored again."""

from pathlib import Path

import numpy as np

from diffdpo import audio
from diffdpo.config import ScoreRun, build_scorers
from diffdpo.data import tables
from diffdpo.data.samples import open_samples
from diffdpo.data.scores import GATES, KEY, TABLE, known_versions, score_rows
from diffdpo.errors import DataError
from diffdpo.progress import bar, say
from diffdpo.recipes.common import workers
from diffdpo.runs import finish
from diffdpo.scorers.base import Scorer, fingerprint
from diffdpo.scorers.canonical import VERSION, canonical
from diffdpo.scorers.gates import failures, gates

GATES_VERSION = "1"


def run(cfg: ScoreRun) -> Path:
    scorers = build_scorers(cfg.scorers)
    group, out = workers(), Path(cfg.out)
    sounds = _sounds(cfg.samples)
    known = {(row["sha256"], row["scorer"], row["fingerprint"]) for row in tables.read(out / TABLE, KEY)}
    versions = {name: fingerprint(scorer) for name, scorer in scorers.items()} | {GATES: GATES_VERSION}
    todo = {
        sha: [name for name, version in versions.items() if (sha, name, version) not in known]
        for sha in sounds
    }
    mine = group.share([(sha, names) for sha, names in todo.items() if names])
    with bar("score", len(mine), "song", enabled=group.main) as progress:
        for sha, names in mine:
            tables.append(out / TABLE, _score(sounds[sha], sha, names, scorers, versions), rank=group.rank)
            progress.advance()
    group.barrier()
    if group.main:
        tables.compact(out / TABLE, KEY)
        finish(
            out,
            sounds=len(sounds),
            scorers=known_versions(out) | versions,
            licenses={name: list(scorer.licenses) for name, scorer in scorers.items()},
            world=group.count,
        )
    group.barrier()
    return out


def _sounds(folders: list[str]) -> dict[str, Path]:
    """The audio files of some samples folders by the hash of their sound."""
    sounds: dict[str, Path] = {}
    for folder in folders:
        samples = open_samples(folder)
        rows = samples.rows()
        silent = [row["sample_id"] for row in rows if not row["sha256"]]
        if silent:
            raise DataError(f"{folder}: {silent[0]} has no audio; sample again with audio=true")
        sounds |= {row["sha256"]: samples.audio(row["sample_id"]) for row in rows}
    if not sounds:
        raise DataError("nothing to score: name folders that `diffdpo sample` wrote, samples=[…]")
    return sounds


def _score(
    path: Path, sha: str, names: list[str], scorers: dict[str, Scorer], versions: dict[str, str]
) -> list[tables.Row]:
    """All missing scores of one sound. A value that is not a number is reported and kept as it is."""
    clip = audio.read(path)
    faults = gates(clip)
    heard = canonical(clip) if not failures(faults, {"non_finite_ratio": (0.0, 0.0)}) else clip
    rows: list[tables.Row] = []
    for name in names:
        if name == GATES:
            values = list(faults.items())
        else:
            scorer = scorers[name]
            values = list(zip(scorer.axes, scorer([heard])[0].tolist(), strict=True))
        bad = [axis for axis, value in values if not np.isfinite(value)]
        if bad:
            say(f"warning: {path}: {name} gave no number for {bad[0]}; the song will not be mined on it")
        rows += score_rows(sha, VERSION, name, versions[name], values)
    return rows
