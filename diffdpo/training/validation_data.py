"""What validation needs of files and models, brought together before the first step, while encoders are there."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffdpo.data.datasets.examples import DataConfig, build_examples
from diffdpo.data.datasets.generated import Source
from diffdpo.data.datasets.pairs import Pairs
from diffdpo.data.datasets.parts import ALL_PROMPTS, Part
from diffdpo.data.datasets.stream import Examples
from diffdpo.data.prompts import read_edits, read_prompts
from diffdpo.data.refresh import prompt_inputs
from diffdpo.errors import ConfigError, DataError
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.sampling.longform import LongformConfig
from diffdpo.sampling.sample_jobs import check_jobs, embed_jobs, sample_jobs
from diffdpo.scorers.base import Scorer
from diffdpo.training.validation_config import ValidationConfig
from diffdpo.training.validation_losses import validation_times
from diffdpo.training.validation_songs import ValidationSongs
from diffdpo.types import BatchKind

_KEY = "train.validation"


def training_part(cfg: ValidationConfig | None) -> Part:
    """The part of the prompts that is trained on."""
    return Part("train", cfg.fraction) if cfg is not None and cfg.fraction else ALL_PROMPTS


def check_validation(cfg: ValidationConfig | None, data: DataConfig, kind: BatchKind, objective: str) -> None:
    """ConfigError for held-out examples that this data or this objective cannot have."""
    if cfg is None:
        return
    is_prepared = kind == "song" and bool(data.songs)
    if cfg.pairs and kind != "pair":
        raise ConfigError(
            f"{_KEY}.pairs: objective {objective!r} trains on no pairs; "
            + (f"set {_KEY}.split=valid" if is_prepared else f"hold prompts out with {_KEY}.fraction")
        )
    if cfg.fraction and is_prepared:
        raise ConfigError(f"{_KEY}.fraction: prepared songs have splits of their own; set {_KEY}.split=valid")
    if cfg.split and not is_prepared:
        raise ConfigError(f"{_KEY}.split is for data.songs; hold prompts out with {_KEY}.fraction")
    if cfg.split and cfg.split == data.split:
        raise ConfigError(f"{_KEY}.split={cfg.split} is what is trained on; choose another split")


def check_times(cfg: ValidationConfig, model: SongModel) -> None:
    """ConfigError for times that a few-step network does not know."""
    times = model.spec.times
    for t in validation_times(cfg, model.spec):
        if times is not None and t not in times:
            choices = ", ".join(f"{t:g}" for t in times if t > 0)
            raise ConfigError(f"{_KEY}.times: this model knows the times {choices} only, got {t:g}")


def build_held_out(
    cfg: ValidationConfig,
    data: DataConfig,
    kind: BatchKind,
    objective: str,
    source: Source,
    examples: Examples,
) -> Examples | None:
    """The examples that losses are measured on; None if only songs are sampled."""
    if cfg.fraction:
        return build_examples(data, kind, objective, source, Part("validation", cfg.fraction))
    if cfg.split or cfg.pairs:
        changes: dict[str, Any] = {"split": cfg.split} if cfg.split else {"pairs": cfg.pairs, "split": ""}
        held_out = build_examples(replace(data, **changes), kind, objective, source)
        _check_apart(cfg.pairs, held_out, examples)
        return held_out
    return None


def _check_apart(pairs: str, held_out: Examples, examples: Examples) -> None:
    """DataError for pairs of prompts that are trained on as well."""
    if not (isinstance(held_out, Pairs) and isinstance(examples, Pairs)):
        return
    if overlap := sorted(held_out.groups & examples.groups):
        raise DataError(
            f"{pairs}: the prompt group {overlap[0]!r} is trained on as well; mine validation pairs from others"
        )


def build_songs(
    cfg: ValidationConfig,
    store: EmbeddingStore,
    scorers: Mapping[str, Scorer],
    choice: Mapping[str, Any],
    model_digest: str,
) -> ValidationSongs | None:
    """The songs of the prompts, embedded; None without prompts. `choice` is the name and arguments of the model.

    DataError for a prompt that cannot be sung by the model.
    """
    if not cfg.prompts:
        return None
    prompts, edits = read_prompts(cfg.prompts), read_edits(cfg.prompts)
    songs = [(prompt, number) for prompt in prompts for number in range(cfg.per_prompt)]
    jobs, faults = sample_jobs(store.model.spec, songs, edits)
    check_jobs(store.model, jobs, LongformConfig())
    embedded_jobs, failures = embed_jobs(store, jobs, cfg.seed)
    reasons = {**{job.sample_id: reason for job, reason in faults}, **failures}
    for name, reason in sorted(reasons.items()):
        raise DataError(f"{cfg.prompts}: {name}: {reason}")
    return ValidationSongs(
        jobs=embedded_jobs,
        prompts={prompt.id: prompt for prompt in prompts},
        edits=edits,
        inputs=prompt_inputs(prompts, edits, model_digest),
        scorers=scorers,
        model=choice,
    )
