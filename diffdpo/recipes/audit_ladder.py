"""Worse songs for an audit: the candidates' own model with fewer steps or less guidance, and damaged latents."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffdpo.checks import check_range
from diffdpo.config import build_config
from diffdpo.data import tables
from diffdpo.data.latents import read_latents, write_latents
from diffdpo.data.samples import PROMPTS, SAMPLES, SampleRow, Samples, sample_id, write_prompts
from diffdpo.errors import ConfigError, DataError
from diffdpo.evaluation.perturbations import degraded_latents
from diffdpo.models.base import SongModel
from diffdpo.parts import build_model
from diffdpo.progress import bar
from diffdpo.randomness import seed_for
from diffdpo.recipes import sample
from diffdpo.recipes.sample import SampleRun
from diffdpo.registry import Choice
from diffdpo.run_dir import DistEnv, open_folder
from diffdpo.runs import CONFIG, finish
from diffdpo.sampling.render import SongAudio, write_song

LADDER = "worse"
"""The folder of the worse songs in the run directory."""


@dataclass(frozen=True)
class LadderConfig:
    """Worse settings of the candidates' own model; each makes songs for the same prompts from the same noise."""

    steps: int = 0
    """Solver steps, fewer than the candidates have; 0: no such songs."""
    guidance: float = 0.0
    """Guidance scale, lower than the candidates'; 0: no such songs."""
    damage: float = 0.0
    """Noise in the candidates' own latents, as a ratio to their deviation, decoded; 0: no such songs."""
    per_prompt: int = 3
    """Songs of each prompt."""

    def __post_init__(self) -> None:
        check_range(self, "steps", "guidance", "damage", low=0, prefix="ladder.")
        check_range(self, "per_prompt", low=1, prefix="ladder.")


def make_ladder(cfg: LadderConfig, samples: Samples, out: Path, dist: DistEnv) -> dict[str, Path]:
    """The folders of worse songs by the name of their setting, made where they are not yet."""
    folders: dict[str, Path] = {}
    if cfg.steps or cfg.guidance:
        candidates = sampling_of(samples)
        for name, stage in _worse_settings(cfg, candidates).items():
            folders[name] = out / LADDER / name.replace(" ", "-")
            stage = replace(
                stage,
                out=str(folders[name]),
                prompts=str(samples.folder / PROMPTS),
                per_prompt=min(cfg.per_prompt, candidates.per_prompt),
                shard=0,
                shards=1,
                audio=True,
            )
            sample.run(stage, free=("prompts",))
    if cfg.damage:
        name = f"damage {cfg.damage:g}"
        folders[name] = out / LADDER / name.replace(" ", "-")
        with open_folder(folders[name], dist):
            _damage(cfg, samples, Samples(folders[name]), dist)
    return folders


def sampling_of(samples: Samples) -> SampleRun:
    """The configuration that a folder of songs was made with. DataError where it is not there."""
    path = samples.folder / CONFIG
    if not path.is_file():
        raise DataError(
            f"{path}: missing, so that ladder.steps and ladder.guidance do not know the model; name folders of "
            "worse songs instead, worse={NAME: FOLDER}"
        )
    return build_config(SampleRun, str(path), [], "sample")


def _worse_settings(cfg: LadderConfig, candidates: SampleRun) -> dict[str, SampleRun]:
    """The configurations of sampling by name. ConfigError for settings that are no worse than the candidates'."""
    settings, sampling = {}, candidates.sampling
    if cfg.steps:
        if cfg.steps >= sampling.steps:
            raise ConfigError(
                f"ladder.steps={cfg.steps}: the candidates have {sampling.steps}; name fewer, or 0 for none"
            )
        name = f"{cfg.steps} steps" if cfg.steps > 1 else "1 step"
        settings[name] = replace(candidates, sampling=replace(sampling, steps=cfg.steps))
    if cfg.guidance:
        if cfg.guidance >= sampling.guidance_scale:
            raise ConfigError(
                f"ladder.guidance={cfg.guidance:g}: the candidates have {sampling.guidance_scale:g}; name less, or "
                "0 for none"
            )
        settings[f"guidance {cfg.guidance:g}"] = replace(
            candidates, sampling=replace(sampling, guidance_scale=cfg.guidance)
        )
    return settings


def _damage(cfg: LadderConfig, samples: Samples, target: Samples, dist: DistEnv) -> None:
    """Damage the latents of the candidates, decode them, and write them as songs of a samples folder."""
    rows = _first_songs(samples, cfg.per_prompt)
    complete = {row.sample_id: row for row in target.rows() if target.audio(row.sample_id).is_file()}
    todo = [row for row in rows if not _is_same(complete.get(row.sample_id), row, cfg.damage)]
    if dist.main:
        write_prompts(target.folder / PROMPTS, samples.prompts(), {})
    model = build_model(_model_of(samples, todo[0])) if todo else None
    part = dist.shard(todo)
    with bar("damage", len(part), "song", visible=dist.main) as progress:
        for row in part:
            if model is not None:
                tables.append(
                    target.folder, SAMPLES, [_damage_song(model, samples, target, row, cfg.damage)],
                    rank=dist.rank,
                )  # fmt: skip
            progress.advance()
    dist.barrier()
    if dist.main:
        kept_ids = {row.sample_id for row in rows}
        tables.replace(
            target.folder, SAMPLES, [row for row in target.all_rows() if row.sample_id in kept_ids]
        )
        finish(target.folder, samples=len(rows), damage=cfg.damage)
    dist.barrier()


def _damage_song(
    model: SongModel, samples: Samples, target: Samples, row: SampleRow, ratio: float
) -> SampleRow:
    path = samples.latents(row.sample_id)
    if not path.is_file():
        raise DataError(f"{path}: missing; set ladder.damage=0, or sample the candidates again")
    rng = np.random.default_rng(seed_for(row.seed, row.sample_id, "damage"))
    latents = degraded_latents(read_latents(path), rng, ratio)
    sha256 = write_song(
        SongAudio(model, latents, seconds=row.duration_s or None), target.audio(row.sample_id)
    )
    write_latents(target.latents(row.sample_id), latents)
    return replace(row, sha256=sha256, sampling=_damage_json(ratio), inputs=row.sha256)


def _damage_json(ratio: float) -> str:
    return json.dumps({"damage": ratio})


def _is_same(sample: SampleRow | None, row: SampleRow, ratio: float) -> bool:
    """Whether a damaged song is of this candidate and this damage."""
    return sample is not None and (sample.inputs, sample.sampling) == (row.sha256, _damage_json(ratio))


def _first_songs(samples: Samples, count: int) -> list[SampleRow]:
    """The first songs of each prompt."""
    first_ids = {sample_id(prompt.id, number) for prompt in samples.prompts() for number in range(count)}
    return [row for row in samples.rows() if row.sample_id in first_ids]


def _model_of(samples: Samples, row: SampleRow) -> Choice:
    """The model that made a song."""
    fields: dict[str, Any] = json.loads(row.model)
    if "name" not in fields:
        raise DataError(f"{samples.folder}: does not say which model made its songs; set ladder.damage=0")
    return Choice(fields.pop("name"), fields)
