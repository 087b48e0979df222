"""Validation inside a training: losses on held-out examples, songs and their scores, at a step.

Nothing of it reaches the training: weights, random numbers and the mode of the network are afterwards as they were
before. What is measured are the weights that would be exported, the moving average where there is one.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from diffdpo import audio
from diffdpo.data.datasets.stream import Examples
from diffdpo.data.samples import Samples
from diffdpo.devices import unchanged_randomness
from diffdpo.progress import log
from diffdpo.training.run import Training, averaged_weights
from diffdpo.training.validation_audio import log_audio
from diffdpo.training.validation_config import ValidationConfig
from diffdpo.training.validation_losses import Pass, measure_losses
from diffdpo.training.validation_rule import PREFIX
from diffdpo.training.validation_songs import (
    ScoresById,
    ValidationSongs,
    check_some_song,
    count_song_steps,
    sample_step,
    score_folder,
    score_metrics,
)
from diffdpo.types import ObjectiveState


@dataclass(kw_only=True, eq=False)
class Validation:
    """What is validated, and what is remembered between two validations: numbers, on the CPU."""

    cfg: ValidationConfig
    examples: Examples | None = None
    """Held-out examples, none of which is trained on."""
    songs: ValidationSongs | None = None
    reference_errors: dict[Pass, Tensor] = field(default_factory=dict)
    base_scores: ScoresById | None = None


def validate(
    training: Training,
    validation: Validation,
    step: int,
    objective_state: ObjectiveState,
    note: Callable[[str], None],
) -> dict[str, float]:
    """The metrics of a step, the same on all processes. `note` gets a line on the progress."""
    start_s = time.monotonic()
    metrics: dict[str, float] = {}
    with _evaluation(training):
        if validation.examples is not None:
            note("validation: losses")
            metrics |= measure_losses(
                training, validation.examples, validation.cfg, objective_state, validation.reference_errors
            )
        if validation.songs is not None:
            metrics |= _song_metrics(training, validation, validation.songs, step, note)
    metrics["seconds"] = time.monotonic() - start_s
    return {f"{PREFIX}{name}": value for name, value in metrics.items()}


def _song_metrics(
    training: Training,
    validation: Validation,
    songs: ValidationSongs,
    step: int,
    note: Callable[[str], None],
) -> dict[str, float]:
    """Sample, log and score the songs of a step."""
    cfg, accelerator = validation.cfg, training.accelerator
    total, count = max(1, count_song_steps(training, songs, cfg)), 0

    def on_step() -> None:
        nonlocal count
        count += 1
        note(f"validation: songs {(count - 1) % total + 1}/{total}")

    if cfg.audio:
        training.model.place("codec", str(accelerator.device))
    try:
        base, folder = sample_step(training, songs, cfg, step, on_step)
    finally:
        if cfg.audio:
            training.model.place("codec", "cpu")
    check_some_song(folder)
    if cfg.audio and accelerator.is_main_process:
        _log_songs(training, songs, cfg, {"": folder, "/base": base if base != folder else None}, step)
    if not songs.scorers:
        return {}
    note("validation: scores")
    if base is not None and validation.base_scores is None:
        validation.base_scores = score_folder(training, songs, base)
    scores = validation.base_scores if folder == base else None
    return score_metrics(scores or score_folder(training, songs, folder), validation.base_scores)


def _log_songs(
    training: Training,
    songs: ValidationSongs,
    cfg: ValidationConfig,
    folders: Mapping[str, Path | None],
    step: int,
) -> None:
    """Give the audio of the first songs to the trackers."""
    names = sorted(job.job.sample_id for job in songs.jobs)[: cfg.tracker_songs]
    if not names or not training.cfg.trackers:
        return
    paths = {
        f"{PREFIX}{name}{suffix}": Samples(folder).audio(name)
        for suffix, folder in folders.items()
        for name in names
        if folder is not None
    }
    clips = {tag: audio.read(path) for tag, path in paths.items() if path.is_file()}
    log_audio(training.accelerator.trackers, clips, step)


@contextmanager
def _evaluation(training: Training) -> Iterator[None]:
    """The network in evaluation, with the weights that are exported; afterwards all is as before."""
    bare = training.accelerator.unwrap_model(training.policy)
    modes = {module: module.training for module in bare.modules()}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - scorers may draw from it
    try:
        with unchanged_randomness(training.accelerator.device), averaged_weights(training):
            bare.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def report_validation(step: int, metrics: Mapping[str, float], *, visible: bool) -> None:
    """Print the metrics of a validation in one line."""
    names = ("loss", "accuracy", "winner_error_ratio")
    values = {name.removeprefix(PREFIX): value for name, value in metrics.items()}
    headline = {name: value for name, value in values.items() if name in names or name.startswith("gain/")}
    text = ", ".join(f"{name} {value:.4g}" for name, value in headline.items())
    log(f"validation at step {step}: {text or 'songs'} ({values['seconds']:.0f} s)", visible=visible)
