"""The loop from Python, on values in memory: load a model, sample songs, score them, mine pairs, train."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffdpo.config import as_choice
from diffdpo.errors import ConfigError
from diffdpo.mining.values import Pair
from diffdpo.models.base import SongModel
from diffdpo.registry import Choice
from diffdpo.types import Clip, Prompt, Row

__all__ = ["Song", "load_model", "mine", "sample", "score", "train"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Song:
    """A generated song, with its prompt and the condition that it was generated under."""

    id: str
    prompt: Prompt
    latents: Float[Tensor, "frame channel"]
    clip: Clip | None
    """Its sound at -16 LUFS; None for a model without a codec."""
    row: Row
    """The condition that the song was generated under, for training."""


def load_model(name: str = "tiny", **args: Any) -> SongModel:
    """A song model by name: `load_model("tiny")`, `load_model("diffrhythm", checkpoint="v1.2-base")`.

    ConfigError for a name or an argument that does not exist.
    """
    from diffdpo.parts import build_model

    return build_model(Choice(name, args))


def sample(
    model: SongModel,
    prompts: Prompt | str | Iterable[Prompt | str],
    *,
    per_prompt: int = 1,
    seconds: float = 10.0,
    seed: int = 0,
    **settings: Any,
) -> list[Song]:
    """Songs for prompts, `per_prompt` for each, ordered by prompt.

    A text is a prompt of `seconds`. A song of a model that plans follows a plan of its own, which is in its `row`.
    `settings` are fields of SamplingConfig: steps, guidance_scale, solver, knobs, …. A song does not depend on the
    other songs of its batch.
    """
    import torch

    from diffdpo.knob_parts import check_knobs, load_interventions
    from diffdpo.models.embeddings import EmbeddingStore
    from diffdpo.sampling.request import Request, plan_candidate, prompt_request
    from diffdpo.sampling.sampler import batch_requests, sample_batch

    cfg, store = sampling_config(settings), EmbeddingStore(model)
    check_knobs(cfg)
    requests: dict[str, tuple[Prompt, Request]] = {}
    for p in as_prompts(prompts, seconds):
        for k in range(per_prompt):
            name, frames = f"{p.id}.{k:03d}", model.spec.frames(p.duration_s)
            _, plan = plan_candidate(store, p, name, frames, seed)
            requests[name] = p, prompt_request(p, name, frames, store.embed, plan, axes=cfg.axes)
    latents: dict[str, Tensor] = {}
    with torch.no_grad(), load_interventions(model, cfg) as interventions:
        for batch in batch_requests([request for _, request in requests.values()], cfg.batch):
            songs = sample_batch(model, batch, cfg, seed=seed, interventions=interventions)
            latents |= {request.sample_id: song for request, song in zip(batch, songs, strict=True)}
    return [
        Song(
            id=name,
            prompt=prompt,
            latents=latents[name],
            clip=_sound(model, latents[name]),
            row=request.row,
        )
        for name, (prompt, request) in requests.items()
    ]


def sampling_config(settings: Mapping[str, Any]) -> Any:
    """A SamplingConfig; solver and guidance may be given by their bare names, knobs and steering as
    mappings."""
    from diffdpo.config import as_entries
    from diffdpo.sampling.config import SamplingConfig
    from diffdpo.sampling.knobs import Knob
    from diffdpo.sampling.steering_config import SteeringConfig

    parts: dict[str, Any] = {
        key: as_choice(settings[key], key) for key in ("solver", "guidance") if key in settings
    }
    for key, schema in (("knobs", Knob), ("steering", SteeringConfig)):
        if key in settings:
            parts[key] = as_entries(schema, settings[key], key)
    try:
        return SamplingConfig(**{**settings, **parts})
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None


def as_prompts(prompts: Prompt | str | Iterable[Prompt | str], seconds: float) -> list[Prompt]:
    """Prompts, of texts with this length. ConfigError for two of the same id."""
    entries = [prompts] if isinstance(prompts, Prompt | str) else list(prompts)
    by_id = {p.id: p for p in (_as_prompt(entry, i, seconds) for i, entry in enumerate(entries))}
    if len(by_id) < len(entries):
        raise ConfigError("prompts: two of them have the same id; ids name songs and must differ")
    return list(by_id.values())


def _as_prompt(entry: Prompt | str, number: int, seconds: float) -> Prompt:
    return entry if isinstance(entry, Prompt) else Prompt(id=f"song-{number}", text=entry, duration_s=seconds)


def _sound(model: SongModel, latents: Float[Tensor, "frame channel"]) -> Clip | None:
    from diffdpo import audio
    from diffdpo.errors import DataError
    from diffdpo.sampling.render import LOUDNESS_LUFS

    try:
        clip = model.decode(latents)
    except DataError:
        return None
    return audio.limit(audio.normalise(clip, LOUDNESS_LUFS))


def score(
    songs: Sequence[Song | Clip],
    scorers: Sequence[Any] | None = None,
    *,
    prompts: Sequence[Prompt] | None = None,
) -> list[dict[str, float]]:
    """The value of each song on every axis; bigger is better.

    `scorers` are names, or {"name": …, "args": {…}}; by default those that need no download. Songs bring their
    prompts with them, clips take those of `prompts`.
    """
    from diffdpo.parts import build_scorers
    from diffdpo.scorers import DEFAULT_SCORERS
    from diffdpo.scorers.engine import score_clips

    scorers_by_name = build_scorers(list(DEFAULT_SCORERS) if scorers is None else scorers)
    if prompts is None and all(isinstance(song, Song) for song in songs):
        prompts = [song.prompt for song in songs if isinstance(song, Song)]
    if prompts is not None and len(prompts) != len(songs):
        raise ConfigError(f"score: {len(songs)} songs need as many prompts, got {len(prompts)}")
    clips = [_clip(song) if isinstance(song, Song) else song for song in songs]
    return [dict(scores.values) for scores in score_clips(clips, scorers_by_name, prompts=prompts)]


def mine(
    songs: Sequence[Song],
    scores: Sequence[Mapping[str, float]],
    rule: str = "best_versus_worst",
    *,
    axes: Sequence[str] = (),
    utility: str | Choice = "linear",
    **args: Any,
) -> list[Pair]:
    """Preference pairs among songs of the same prompt; `args` are fields of the rule.

    `axes` are by default all that have scores and are shown to be valid, but for those of judges. Songs that are
    silent, clipped or not finite are in no pair. `utility` is what more of an axis is worth: "saturating", or a
    `Choice` with arguments.
    """
    from diffdpo.config import as_choice
    from diffdpo.mining import Candidate, mine_candidates, to_candidates, uses_real_songs
    from diffdpo.parts import build_rule, build_utility
    from diffdpo.scorers.axes import mined_axes
    from diffdpo.scorers.gates import gates, passes

    if len(scores) != len(songs):
        raise ConfigError(f"mine: {len(songs)} songs need as many rows of scores, got {len(scores)}")
    mining_rule = build_rule(Choice(rule, args))
    if uses_real_songs(mining_rule):
        raise ConfigError(
            f"mine: rule {rule!r} needs a folder of prepared songs; use `diffdpo mine`, or make the pairs "
            "yourself: Pair(winner=…, loser=…, is_real=True)"
        )
    candidates = [
        Candidate(prompt_id=song.prompt.id, group=song.prompt.group, sample_id=song.id, scores=row)
        for song, row in zip(songs, scores, strict=True)
        if song.clip is None or passes(gates(song.clip))
    ]
    selection = mined_axes(axes, {axis for row in scores for axis in row})
    part = build_utility(as_choice(utility, "utility"), selection)
    columns = to_candidates(candidates, selection)
    utilities = part(columns, {song.prompt.id: song.prompt.text or "" for song in songs})
    return list(mine_candidates(columns, mining_rule, utilities=utilities).pairs)


def _clip(song: Song) -> Clip:
    if song.clip is None:
        raise ConfigError(f"score: {song.id} has no sound; load a model with a codec")
    return song.clip


def train(
    model: SongModel,
    songs: Sequence[Song],
    pairs: Sequence[Pair],
    *,
    out: str | Path,
    objective: str = "dpo",
    objective_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Train a model on pairs; the folder of the exported adapter or network, for `load_model(adapter=…)`.

    `settings` are fields of TrainConfig: steps, learning_rate, lora, …. `validation` is a mapping of the fields of
    ValidationConfig: a `fraction` of the prompts is held out, songs of `prompts` are sampled.
    """
    from diffdpo.data.datasets.memory import PairsInMemory
    from diffdpo.data.latents import check_width
    from diffdpo.inputs import digest
    from diffdpo.parts import build_objective
    from diffdpo.run_dir import dist_env, open_folder
    from diffdpo.training.config import LoraConfig, TrainConfig, free_keys
    from diffdpo.training.session import optimize
    from diffdpo.training.validation_data import training_part

    try:
        if isinstance(lora := settings.get("lora"), Mapping):
            settings["lora"] = LoraConfig(**lora)
        if isinstance(validation := settings.get("validation"), Mapping):
            settings["validation"] = _validation_config(validation)
        cfg = TrainConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
    loss = build_objective(Choice(objective, dict(objective_args or {})))
    if loss.batch_kind != "pair":
        raise ConfigError(f"objective {objective!r} trains on {loss.batch_kind}s, not on pairs")
    for song in songs:
        check_width(f"song {song.id!r}", song.latents.shape, model.spec.channels)
    examples = PairsInMemory(
        training_part(cfg.validation).select(pairs, "pairs"),
        {song.id: song.latents for song in songs},
        {song.id: song.row for song in songs},
        model.spec.frames_per_second,
    )
    settings_digest = digest(
        {name: value for name, value in asdict(cfg).items() if name not in free_keys(cfg)}
    )
    inputs = {"data": examples.digest, "settings": digest([objective, loss, seed, settings_digest])}
    with open_folder(Path(out), dist_env(), inputs):
        return optimize(
            model, examples, loss, cfg, out=Path(out), seed=seed, objective_name=objective,
            validation=_validation(cfg.validation, model, replace(examples, pairs=pairs)),
        )  # fmt: skip


def _validation_config(fields: Mapping[str, Any]) -> Any:
    from diffdpo.training.validation_config import ValidationConfig

    sampling = fields.get("sampling")
    settings = {**fields, "sampling": sampling_config(sampling)} if isinstance(sampling, Mapping) else fields
    return ValidationConfig(**settings)


def _validation(cfg: Any, model: SongModel, examples: Any) -> Any:
    """What is validated: a share of the prompts of the pairs, and songs."""
    from diffdpo.data.datasets.parts import Part
    from diffdpo.models.embeddings import EmbeddingStore
    from diffdpo.parts import build_scorers
    from diffdpo.training.validation import Validation
    from diffdpo.training.validation_data import build_songs, check_times

    if cfg is None:
        return None
    if cfg.pairs or cfg.split:
        raise ConfigError(
            "validation: pairs in memory have a fraction that is held out; leave pairs and split out"
        )
    check_times(cfg, model)
    part = Part("validation", cfg.fraction)
    held_out = replace(examples, pairs=part.select(examples.pairs, "pairs")) if cfg.fraction else None
    songs = build_songs(cfg, EmbeddingStore(model), build_scorers(cfg.scorers), {}, "")
    return Validation(cfg=cfg, examples=held_out, songs=songs)
