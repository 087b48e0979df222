"""The verb `adapt`: a listener's ratings move one number of the sampler between rounds of songs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING, OmegaConf

from diffdpo.checks import check_number, check_range, check_seed
from diffdpo.config import merge, to_object
from diffdpo.config_paths import INPUT_FILE, PATH
from diffdpo.data.feedback import MAX_FAULTS, SongIndex, read_opinions
from diffdpo.data.prompts import read_prompts
from diffdpo.data.samples import open_samples, write_prompts
from diffdpo.data.votes import OPINION_SCALES, OPINIONS, read_opinions_table
from diffdpo.errors import ConfigError, ensure
from diffdpo.listen.results import refresh_studies
from diffdpo.preferences.knob_policy import KnobPolicy, KnobPosterior, knob_posterior
from diffdpo.progress import log
from diffdpo.recipes import sample
from diffdpo.recipes.sample import SampleRun
from diffdpo.run_dir import dist_env, open_run
from diffdpo.runs import METRICS, Metrics, finish
from diffdpo.text_files import read_jsonl

RATINGS_FILE = "ratings.jsonl"
POLL_S = 1.0
"""Seconds between two looks at the ratings while the command waits."""


@dataclass
class AdaptRun:
    """Rounds of songs for one listener, each at a value of a knob that the ratings so far suggest."""

    out: str = field(default=MISSING, metadata=PATH)
    prompts: str = field(default=MISSING, metadata=INPUT_FILE)
    """Every round has a song of each."""
    ratings: str = field(default="", metadata=PATH)
    """Where ratings arrive while rounds go on: CSV or JSON lines as `import-ratings` takes, the newest last, or the
    folder of a `listen` study. Empty: ratings.jsonl in `out`."""
    knob: str = "sampling.guidance_scale"
    """The number that moves: a key of `sample`, such as sampling.knobs.0.weight."""
    low: float = 1.0
    high: float = 8.0
    start: float | None = None
    """The first round's value; by default the middle."""
    policy: KnobPolicy = field(default_factory=KnobPolicy)
    rounds: int = 10
    wait_s: float = 0.0
    """Seconds to wait for ratings of the newest songs; 0: end, and go on when the same command is given again."""
    sample: SampleRun = field(default_factory=lambda: SampleRun(out="", prompts=""))
    """How songs are sampled. The command sets out, prompts and the seed."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "rounds", low=1)
        check_range(self, "wait_s", low=0)
        check_range(self, "low", "high")
        check_seed(self, "seed")
        ensure(self.low < self.high, f"low={self.low:g} must be below high={self.high:g}")
        if self.start is not None:
            check_number(self.start, "start", low=self.low, high=self.high)
        for name in ("out", "prompts"):
            ensure(
                not getattr(self.sample, name), f"sample.{name} is set by the command itself; leave it out"
            )

    def check_parts(self) -> None:
        """ConfigError for a part that does not exist, and for a knob that takes no number."""
        self.sample.check_parts()
        for value in (self.low, self.high):
            turn_knob(self.sample, self.knob, value).check_parts()


def turn_knob(stage: SampleRun, knob: str, value: float) -> SampleRun:
    """The configuration of `sample` with a value at a dotted key. ConfigError for a key that it does not have."""
    tree = OmegaConf.create(asdict(stage))
    if not isinstance(OmegaConf.select(tree, knob, default=None), int | float):
        raise ConfigError(f"knob={knob}: no number of `sample` has this key, such as sampling.guidance_scale")
    OmegaConf.update(tree, knob, value)
    values: Any = OmegaConf.to_container(tree)
    return to_object(SampleRun, merge(SampleRun, values, f"knob={knob}"), f"knob={knob}")


def run(cfg: AdaptRun) -> Path:
    """Make rounds for as long as the newest songs have ratings, at most `rounds`."""
    dist = dist_env()
    if dist.count > 1:
        raise ConfigError("adapt follows one listener; run it as one process, without accelerate launch")
    with open_run(cfg, free=("rounds", "wait_s", "sample.sampling.batch"), dist=dist) as out:
        values = _values(out)
        metrics = Metrics(out, keep_until=len(values))
        if values:
            _sample(cfg, out, len(values), values[-1])  # complete what a stop left
        while (posterior := _wait(cfg, out, values)) is not None and len(values) < cfg.rounds:
            value = _next_value(cfg, posterior, len(values) + 1)
            metrics.write({"step": len(values) + 1, "value": value, **_summary(posterior)})
            values.append(value)
            _sample(cfg, out, len(values), value)
        if posterior is None:
            path = _ratings_path(cfg, out)
            log(f"rate the songs of {_folder(out, len(values))} in {path}, then give the same command again")
        else:
            low, high = posterior.interval()
            log(f"{cfg.knob}: best {posterior.best:.3g} ({low:.3g} to {high:.3g}) after {len(values)} rounds")
            finish(out, rounds=len(values), knob=cfg.knob, **_summary(posterior))
    return out


def _values(out: Path) -> list[float]:
    """The value of each round so far."""
    path = out / METRICS
    return [float(row["value"]) for _, row in read_jsonl(path)] if path.is_file() else []


def _folder(out: Path, number: int) -> Path:
    return out / f"round-{number:03d}"


def _ratings_path(cfg: AdaptRun, out: Path) -> Path:
    return Path(cfg.ratings) if cfg.ratings else out / RATINGS_FILE


def _summary(posterior: KnobPosterior) -> dict[str, float]:
    low, high = posterior.interval()
    return {"best": posterior.best, "best_low": low, "best_high": high}


def _next_value(cfg: AdaptRun, posterior: KnobPosterior, number: int) -> float:
    """The value of a round: the configured one at first, then what the policy draws."""
    if number == 1:
        return (cfg.low + cfg.high) / 2 if cfg.start is None else cfg.start
    return posterior.choose(np.random.default_rng([cfg.seed, number]))


def _sample(cfg: AdaptRun, out: Path, number: int, value: float) -> None:
    """The songs of a round, whose ids end with its number."""
    folder = _folder(out, number)
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [replace(prompt, id=f"{prompt.id}-r{number:03d}") for prompt in read_prompts(cfg.prompts)]
    path = out / f"prompts-{number:03d}.jsonl"
    write_prompts(path, prompts, {})
    stage = turn_knob(cfg.sample, cfg.knob, value)
    sample.run(replace(stage, out=str(folder), prompts=str(path), seed=cfg.seed + number))
    log(f"round {number}: {cfg.knob}={value:.3g}, songs in {folder}")


def _wait(cfg: AdaptRun, out: Path, values: Sequence[float]) -> KnobPosterior | None:
    """What the ratings say, once a song of the newest round has one; None if none comes in time."""
    end = time.monotonic() + cfg.wait_s
    if values and cfg.wait_s:
        log(f"waiting for ratings in {_ratings_path(cfg, out)}, at most {cfg.wait_s:g} s")
    while True:
        rows = _read_ratings(cfg, out, len(values))
        if not values or any(number == len(values) for number, _ in rows):
            return knob_posterior(
                cfg.policy,
                cfg.low,
                cfg.high,
                [values[number - 1] for number, _ in rows],
                [rating for _, rating in rows],
            )
        if time.monotonic() >= end:
            return None
        time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))


def _read_ratings(cfg: AdaptRun, out: Path, rounds: int) -> list[tuple[int, float]]:
    """(round, rating) of every rated song of these rounds, oldest rating first; a song's last rating counts."""
    path = _ratings_path(cfg, out)
    folders = {str(_folder(out, number)): number for number in range(1, rounds + 1)}
    if not folders or not path.exists():
        return []
    ratings: dict[tuple[str, str], float] = {}
    for song, rating in (
        _table_ratings(path, folders) if path.is_dir() else _file_ratings(path, list(folders))
    ):
        ratings.pop(song, None)
        ratings[song] = rating
    return [(folders[folder], rating) for (folder, _), rating in ratings.items()]


def _file_ratings(path: Path, folders: Sequence[str]) -> list[tuple[tuple[str, str], float]]:
    faults: list[str] = []
    ratings = [(row.song, row.rating) for row in read_opinions(path, SongIndex(folders), faults=faults)]
    for fault in faults[:MAX_FAULTS]:
        log(f"left out: {fault}")
    return ratings


def _table_ratings(path: Path, folders: Mapping[str, int]) -> list[tuple[tuple[str, str], float]]:
    """The opinions of a `listen` study about songs of some folders, each brought to -1 to 1."""
    refresh_studies([str(path)])
    songs = {row.sample_id: folder for folder in folders for row in open_samples(folder).rows()}
    if not (path / OPINIONS.folder).exists():
        return []
    rows = sorted(read_opinions_table(path), key=lambda row: row.created_at)
    ratings = []
    for row in rows:
        if row.song in songs and not row.control:
            low, high = OPINION_SCALES[row.scale]
            ratings.append(((songs[row.song], row.song), 2 * (row.value - low) / (high - low) - 1))
    return ratings
