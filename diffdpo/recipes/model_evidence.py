"""Evidence on two models that needs the models or their sound: drift, held-out winners' error, diversity.

What cannot be had, say because the weights of a samples folder were moved, is left out with a line that says why.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from diffdpo.config import merge, to_object
from diffdpo.data.latents import read_latents
from diffdpo.data.samples import SampleRow, Samples, sample_plan
from diffdpo.errors import DataError, UserError
from diffdpo.evaluation.diversity import DiversityChange, diversity_changes
from diffdpo.evaluation.drift import (
    WINNER_TIMES,
    NoiseGrid,
    VelocityField,
    VelocityGrid,
    mean_divergence,
    noised_velocities,
    song_divergences,
    song_errors,
)
from diffdpo.evaluation.effects import AxisEffect, PairedSample
from diffdpo.evaluation.song_embeddings import complete_rows, embed_songs
from diffdpo.flow import Latents
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_model
from diffdpo.progress import log
from diffdpo.randomness import draw_noise
from diffdpo.registry import Choice
from diffdpo.run_dir import device
from diffdpo.sampling.conditions import encode_conditions
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import Request, prompt_rows
from diffdpo.sampling.sampler import conditioned_velocity
from diffdpo.sampling.velocity import initial_state
from diffdpo.statistics import MIN_CLUSTERS, Interval
from diffdpo.types import Prompt


@dataclass(frozen=True)
class ModelEvidence:
    """What two models and the sound of their songs say; None for what was not measured."""

    drift: Interval | None = None
    """KL divergence of the aligned model from the base, in nats a song, with an interval over prompts."""
    winner_error: float | None = None
    """The aligned model's velocity error of the base's better songs, in the base's error of them."""
    diversity: Mapping[str, DiversityChange] | None = None
    """Vendi scores and distances of two songs of a prompt, by name."""


@dataclass(frozen=True, eq=False)
class NoisedSongs:
    """Songs of a samples folder, at whose latents with noise velocities are compared."""

    samples: Samples
    rows: Sequence[SampleRow]
    latents: Latents
    """Zero behind the end of each song."""
    noise: Latents
    times: Sequence[float]
    sampling: SamplingConfig


def add_noise_to_songs(
    samples: Samples, rows: Sequence[SampleRow], times: Sequence[float], sampling: SamplingConfig
) -> NoisedSongs:
    """The latents of some songs, and noise that is the same at every call, by the songs' names."""
    songs = [read_latents(samples.latents(row.sample_id)) for row in rows]
    latents = torch.nn.utils.rnn.pad_sequence(songs, batch_first=True)
    _, length, channels = latents.shape
    noise = draw_noise(0, [row.sample_id for row in rows], length, channels, "drift")
    return NoisedSongs(samples, rows, latents, noise, times, sampling)


def measure_evidence(
    baseline: Samples,
    aligned: Samples,
    pairs: Sequence[PairedSample],
    axis_effects: Sequence[AxisEffect],
    count: int,
    *,
    diversity: bool,
) -> ModelEvidence:
    """The evidence of models, on songs of `count` prompts (0: none of it), and of sound if `diversity` is wanted.

    Of fewer prompts than a verdict needs nothing is measured: nothing would depend on it.
    """
    if len({pair.group for pair in pairs}) < MIN_CLUSTERS:
        return ModelEvidence()
    models = measure_models(baseline, aligned, pairs, axis_effects, count) if count else ModelEvidence()
    return replace(models, diversity=song_diversity(baseline, aligned, pairs) if diversity else None)


def measure_models(
    baseline: Samples,
    aligned: Samples,
    pairs: Sequence[PairedSample],
    axis_effects: Sequence[AxisEffect],
    count: int,
) -> ModelEvidence:
    """Drift and winners' error on one song of each of `count` prompts, spread over all of them.

    Velocities are without guidance, as in training. Drift is measured at the aligned model's songs. Winners are the
    base's: of its songs of a prompt the best on the mined axes, if it has several. Nobody was trained on either.
    """
    try:
        return _measure(baseline, aligned, pairs, axis_effects, count)
    except UserError as error:
        log(f"drift and held-out winners are not measured: {error}")
        return ModelEvidence()


def _measure(
    baseline: Samples,
    aligned: Samples,
    pairs: Sequence[PairedSample],
    axis_effects: Sequence[AxisEffect],
    count: int,
) -> ModelEvidence:
    songs, winners = _choose_songs(pairs, axis_effects, count)
    rows = {row.sample_id: row for row in aligned.rows()}
    base_rows = {row.sample_id: row for row in baseline.rows()}
    drift_rows = [rows[name] for name in songs if not rows[name].edit]
    winner_rows = [base_rows[name] for name in winners if not base_rows[name].edit]
    if not drift_rows:
        raise DataError(f"{aligned.folder}: all of its songs are edits of other songs")
    sampling = _sampling_of(drift_rows[0], str(aligned.folder))
    sampling = replace(sampling, compile=False, cache_threshold=0.0, guidance_scale=1.0)
    grid = NoiseGrid()
    parts = [add_noise_to_songs(aligned, drift_rows, grid.times, sampling)]
    if winner_rows:
        parts.append(add_noise_to_songs(baseline, winner_rows, WINNER_TIMES, sampling))
    prompts = {prompt.id: prompt for prompt in (*baseline.prompts(), *aligned.prompts())}
    models = [_model_choice(base_rows[drift_rows[0].sample_id]), _model_choice(drift_rows[0])]
    reference, policy = (_model_velocities(choice, parts, prompts) for choice in models)
    values = song_divergences(policy[0], reference[0], grid)
    drift = mean_divergence(values, [row.group for row in drift_rows])
    return ModelEvidence(drift, _error_ratio(parts[1], policy[1], reference[1]) if winner_rows else None)


def _error_ratio(songs: NoisedSongs, policy: VelocityGrid, reference: VelocityGrid) -> float:
    frames = torch.tensor([row.frames for row in songs.rows])
    errors = [song_errors(side, songs.latents, songs.noise, frames).mean() for side in (policy, reference)]
    return float(errors[0] / errors[1])


def _choose_songs(
    pairs: Sequence[PairedSample], axis_effects: Sequence[AxisEffect], count: int
) -> tuple[list[str], list[str]]:
    """The first song of each of `count` prompts, and the base's best of those with several songs."""
    groups: dict[str, list[PairedSample]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    names = sorted(groups)
    selection = [names[k * len(names) // min(count, len(names))] for k in range(min(count, len(names)))]
    songs = [groups[name][0].sample_id for name in selection]
    if not any(effect.role == "mined" for effect in axis_effects):
        return songs, []
    winners = [
        max(groups[name], key=lambda pair: _mined_score(pair, axis_effects)).sample_id
        for name in selection
        if len(groups[name]) > 1
    ]
    return songs, winners


def _mined_score(pair: PairedSample, axis_effects: Sequence[AxisEffect]) -> float:
    """Sum of the base's scores on the mined axes, in standard deviations; absent ones count nothing."""
    return math.fsum(
        value / effect.baseline_std
        for effect in axis_effects
        if effect.role == "mined"
        and effect.baseline_std > 0
        and math.isfinite(value := pair.baseline.get(effect.axis, math.nan))
    )


def _sampling_of(row: SampleRow, location: str) -> SamplingConfig:
    """How a song was sampled; DataError for a song of knobs or steering, whose velocity is no model's."""
    values = json.loads(row.sampling)
    sampling = to_object(SamplingConfig, merge(SamplingConfig, values, location), location)
    if sampling.has_interventions:
        raise DataError(
            f"the song {row.sample_id!r} was sampled with knobs, steering or guidance by a probe, and its velocity "
            "is no model's"
        )
    return sampling


def _model_choice(row: SampleRow) -> Choice:
    """The model that a song was sampled from."""
    values: dict[str, Any] = json.loads(row.model)
    if "name" not in values:
        raise DataError(f"the song {row.sample_id!r} does not name its model")
    return Choice(values.pop("name"), values)


def _model_velocities(
    choice: Choice, parts: Sequence[NoisedSongs], prompts: Mapping[str, Prompt]
) -> list[VelocityGrid]:
    """The velocities of one model, loaded and forgotten again, at the songs of each part."""
    model = build_model(choice)
    if model.spec.times is not None:
        raise DataError(f"the model {choice.name!r} knows few times only, so that it has no drift")
    store = EmbeddingStore(model)
    requests = [[_request(store, part.samples, row, prompts) for row in part.rows] for part in parts]
    model.place("encoders", None)
    torch.nn.Module.to(model.network, device())
    return [_velocities(model, rows, part) for rows, part in zip(requests, parts, strict=True)]


def _request(
    store: EmbeddingStore, samples: Samples, row: SampleRow, prompts: Mapping[str, Prompt]
) -> Request:
    if row.frames > store.model.spec.max_frames:
        raise DataError(f"the song {row.sample_id!r} is longer than a window of its model")
    plan = sample_plan(samples, row)
    embedding = None if plan is None else store.embed_plan(plan)
    cond, negative = prompt_rows(prompts[row.prompt_id], row.frames, store.embed, embedding)
    return Request(sample_id=row.sample_id, row=cond, negative=negative)


@torch.no_grad()
def _velocities(model: SongModel, requests: Sequence[Request], part: NoisedSongs) -> VelocityGrid:
    """Velocities in batches of the sampler's size."""
    songs, noise, size = part.latents, part.noise, part.sampling.batch
    batches = [slice(begin, begin + size) for begin in range(0, len(requests), size)]
    return torch.cat(
        [
            noised_velocities(
                _velocity_field(model, requests[batch], part.sampling, songs.shape[1]),
                songs[batch],
                noise[batch],
                part.times,
            )
            for batch in batches
        ],
        dim=1,
    )


def _velocity_field(
    model: SongModel, requests: Sequence[Request], sampling: SamplingConfig, length: int
) -> VelocityField:
    """The velocity of songs padded to `length` frames."""
    guidance, place = sampling.build_guidance(), device()
    conditions = encode_conditions(model, requests, guidance, place)
    velocity = conditioned_velocity(model, conditions, sampling)
    samples = torch.arange(len(requests))

    def evaluate(x: Latents, t: float) -> Latents:
        x_part = x[:, : conditions.length].to(place)
        state = initial_state(samples, x_part, guidance, cached=False)
        v = velocity(x_part, torch.full((len(samples),), t, dtype=torch.float64), state)[0]
        return torch.nn.functional.pad(v, (0, 0, 0, length - conditions.length))

    return evaluate


def song_diversity(
    baseline: Samples, aligned: Samples, pairs: Sequence[PairedSample]
) -> dict[str, DiversityChange]:
    """Vendi scores and distances of two songs of a prompt, on every embedding, over the pairs that have sound.

    Empty where fewer than two pairs do.
    """
    paths = [[side.audio(pair.sample_id) for pair in pairs] for side in (baseline, aligned)]
    places = [k for k, files in enumerate(zip(*paths, strict=True)) if all(path.is_file() for path in files)]
    if len(places) < 2:
        return {}
    sides = [embed_songs([side[place] for place in places]) for side in paths]
    embeddings = {name: (sides[0][name], sides[1][name]) for name in sides[0]}
    rows = complete_rows(embeddings)
    if len(rows) < 2:
        return {}
    complete = {
        name: (base_rows[rows], aligned_rows[rows]) for name, (base_rows, aligned_rows) in embeddings.items()
    }
    return diversity_changes(complete, [pairs[places[row]].group for row in rows])
