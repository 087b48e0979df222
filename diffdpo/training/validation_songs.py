"""The songs of validation: fixed prompts and seeds, with and without what was trained, heard and scored.

Songs lie in the run directory in the layout of `sample`, `validation/base` and `validation/step_000100`, so that
`score` and `evaluate` read them. Scores are of these files, and equal those of the verb.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.edits import Edit
from diffdpo.data.samples import PROMPTS, SAMPLES, SampleRow, Samples, write_prompts
from diffdpo.errors import DataError
from diffdpo.models.base import SongModel
from diffdpo.runs import finish, is_finished
from diffdpo.sampling.longform import LongformConfig, compose, count_steps
from diffdpo.sampling.sample_files import SampleDigests, sample_row, write_sample
from diffdpo.sampling.sample_jobs import EmbeddedJob, song_request
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.engine import score_clips
from diffdpo.training.references import AdapterOff
from diffdpo.training.run import Training
from diffdpo.training.strategy import strategy_of
from diffdpo.training.validation_config import ValidationConfig
from diffdpo.types import Prompt

BASE = "base"
"""Folder of the songs without what was trained."""
ScoresById = Mapping[str, Mapping[str, float]]
"""Values by sample id and axis."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ValidationSongs:
    """What is sampled at every validation, embedded before the encoders are freed."""

    jobs: Sequence[EmbeddedJob]
    prompts: Mapping[str, Prompt]
    edits: Mapping[str, Edit]
    inputs: Mapping[str, str]
    """By prompt id the digest of what its songs are made from."""
    scorers: Mapping[str, Scorer]
    model: Mapping[str, Any]
    """Name and arguments of the model, for the samples table."""


def songs_folder(out: Path, step: int | None) -> Path:
    """The folder of the songs of a step; of those without what was trained for None."""
    return out / "validation" / (BASE if step is None else f"step_{step:06d}")


def sample_step(
    training: Training, songs: ValidationSongs, cfg: ValidationConfig, step: int, on_step: Callable[[], None]
) -> tuple[Path | None, Path]:
    """Sample what is not there yet; the folders of the songs without and with what was trained.

    Before the first step both are one, unless an adapter starts from somewhere else. Without adapters the songs of
    the start are those of step 0; None if they are gone.
    """
    base, folder = songs_folder(training.folder, None), songs_folder(training.folder, step)
    lora = training.cfg.lora
    has_base = is_finished(base)
    training.accelerator.wait_for_everyone()
    if not has_base and (lora is not None or step == 0):
        with _without_adapter(training):
            _sample(training, songs, cfg, base, None, on_step)
        has_base = True
    if step == 0 and (lora is None or lora.peft.get("init_lora_weights", True) is not False):
        return base, base
    _sample(training, songs, cfg, folder, step, on_step)
    return base if has_base else None, folder


def _without_adapter(training: Training) -> AbstractContextManager[Any]:
    """The network without its adapters inside the `with`; as it is where there are none."""
    if training.cfg.lora is None:
        return nullcontext()
    return AdapterOff(training.accelerator.unwrap_model).of(training.policy)


def _sample(
    training: Training,
    songs: ValidationSongs,
    cfg: ValidationConfig,
    folder: Path,
    step: int | None,
    on_step: Callable[[], None],
) -> None:
    """Sample all songs into a folder, which is complete with its manifest. Processes share the songs; with sharded
    weights (ZeRO-3, FSDP2) all of them sample every song, and the first writes."""
    accelerator = training.accelerator
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    accelerator.wait_for_everyone()
    is_sharded = strategy_of(accelerator).shards_weights
    jobs = songs.jobs if is_sharded else songs.jobs[accelerator.process_index :: accelerator.num_processes]
    model: Any = _WithoutPrepare(training.model) if is_sharded else training.model
    rows: list[SampleRow] = []
    for start in range(0, len(jobs), cfg.sampling.batch):
        batch = jobs[start : start + cfg.sampling.batch]
        with torch.no_grad(), accelerator.autocast():
            requests = [song_request(model, job) for job in batch]
            latents = compose(model, requests, cfg.sampling, LongformConfig(), seed=cfg.seed, on_step=on_step)
        if not is_sharded or accelerator.is_main_process:
            rows += [
                _write(training, songs, cfg, Samples(folder), job, song, step)
                for job, song in zip(batch, latents, strict=True)
            ]
    rows = gather_object(rows)
    if accelerator.is_main_process:
        rows.sort(key=lambda row: row.sample_id)
        tables.append(folder, SAMPLES, rows)
        write_prompts(folder / PROMPTS, songs.prompts.values(), songs.edits)
        failures = [row for row in rows if row.error]
        finish(folder, samples=len(rows) - len(failures), failed=len(failures), step=step)
    accelerator.wait_for_everyone()


class _WithoutPrepare:
    """A model without `prepare`, which would use weights outside of the network's forward pass: sharded weights are
    gathered inside it alone."""

    def __init__(self, model: SongModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        if name == "prepare":
            raise AttributeError(name)
        return getattr(self._model, name)


def _write(
    training: Training,
    songs: ValidationSongs,
    cfg: ValidationConfig,
    samples: Samples,
    job: EmbeddedJob,
    latents: Float[Tensor, "frame channel"],
    step: int | None,
) -> SampleRow:
    """Write one song; its row. Weights that went astray give latents that are not numbers: a row with the error."""
    model = json.dumps(
        songs.model if step is None else {**songs.model, "trained_steps": step}, sort_keys=True
    )
    digests, error = SampleDigests(), ""
    if torch.isfinite(latents).all():
        digests = write_sample(training.model, samples, job, latents, audio=cfg.audio)
    else:
        error = "the sampled latents are not numbers"
    return sample_row(
        job.job, cfg.sampling, LongformConfig(), seed=cfg.seed, model=model,
        inputs=songs.inputs[job.job.prompt.id], digests=digests, error=error,
    )  # fmt: skip


def count_song_steps(training: Training, songs: ValidationSongs, cfg: ValidationConfig) -> int:
    """Solver steps of this process for all songs once."""
    jobs = songs.jobs[training.accelerator.process_index :: training.accelerator.num_processes]
    size = cfg.sampling.batch
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    masks = [[job.job.to_generate for job in batch] for batch in batches]
    spec = training.model.spec
    return sum(count_steps(spec, batch, cfg.sampling, LongformConfig()) for batch in masks)


def score_folder(training: Training, songs: ValidationSongs, folder: Path) -> ScoresById:
    """The scores of the songs in a folder, the same on all processes, which share the songs."""
    samples = Samples(folder)
    rows = sorted(samples.rows(), key=lambda row: row.sample_id)
    shard = rows[training.accelerator.process_index :: training.accelerator.num_processes]
    clips = [audio.read(samples.audio(row.sample_id)) for row in shard]
    scores = score_clips(clips, songs.scorers, prompts=[songs.prompts[row.prompt_id] for row in shard])
    values = [(row.sample_id, dict(score.values)) for row, score in zip(shard, scores, strict=True)]
    return dict(sorted(gather_object(values)))


def score_metrics(scores: ScoresById, base: ScoresById | None) -> dict[str, float]:
    """Means over the songs on every axis, and mean differences to the same songs of the base, where both are
    numbers; `song_failures` counts songs without a sound."""
    metrics: dict[str, float] = {}
    for axis in sorted({axis for values in scores.values() for axis in values}):
        metrics[f"score/{axis}"] = _mean([values[axis] for values in scores.values()])
        if base is not None:
            changes = [scores[name][axis] - base[name][axis] for name in scores if name in base]
            metrics[f"gain/{axis}"] = _mean(changes)
    return metrics


def _mean(values: Sequence[float]) -> float:
    """The mean of the values that are finite; NaN without one."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def check_some_song(folder: Path) -> None:
    """DataError if not one song of a folder could be made: the configuration is wrong, not one song."""
    rows = Samples(folder).all_rows()
    if all(row.error for row in rows):
        raise DataError(f"{folder}: no validation song could be made; first: {rows[0].error}")
