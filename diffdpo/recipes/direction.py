"""`diffdpo direction fit`: a direction in a network's activations from two contrasted sets of songs or prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from omegaconf import MISSING
from torch import Tensor

import diffdpo
from diffdpo import flow
from diffdpo.checks import check_number, check_range, check_seed
from diffdpo.config_paths import PATH
from diffdpo.data import tables
from diffdpo.data.latents import check_width, read_latents
from diffdpo.data.prompts import read_prompts
from diffdpo.data.samples import open_samples, sample_id, sample_plan
from diffdpo.data.song_embeddings import SongEmbeddings
from diffdpo.data.songs import SONGS, song_embeddings, song_latents
from diffdpo.errors import ConfigError, DataError, ensure
from diffdpo.inputs import digest
from diffdpo.models.adapter_config import block_names
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_model, check_model, model_digest
from diffdpo.progress import bar
from diffdpo.randomness import draw_noise
from diffdpo.registry import Choice
from diffdpo.run_dir import device
from diffdpo.sampling.activations import PooledActivations, check_site, hook_blocks
from diffdpo.sampling.conditions import encode_conditions
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.directions import Direction, Provenance, network_kind, save_direction
from diffdpo.sampling.probes import (
    Features,
    Probes,
    feature_scale,
    fit_probes,
    half_mask,
    mean_difference,
    soft_weights,
)
from diffdpo.sampling.request import Request, plan_candidate, prompt_request
from diffdpo.sampling.sampler import batch_requests, sample_batch
from diffdpo.sampling.variants import AdaptedNetwork, network_evaluate
from diffdpo.types import Row


@dataclass
class DirectionRun:
    """A direction from the songs of `negative` to those of `positive`."""

    positive: str = field(default=MISSING, metadata=PATH)
    """Folder of `sample` or of `prepare`, or a prompts.jsonl whose songs are sampled first."""
    negative: str = field(default=MISSING, metadata=PATH)
    """The songs, or prompts, that lack what those of `positive` have, and are like them in all else."""
    out: str = field(default=MISSING, metadata=PATH)
    """The .safetensors file to be written."""
    model: Choice = field(default_factory=lambda: Choice("tiny"))
    blocks: list[int] = field(default_factory=list)
    """Numbers of the blocks, from 0; empty: all."""
    times: list[float] = field(default_factory=lambda: [0.8, 0.6, 0.4])
    """Times t at which the songs are noised and activations are read."""
    site: str = ""
    """Part of each block whose input is read and steered; empty: what the block puts out. The projection behind the
    heads of attention takes in their outputs: self_attn.o_proj (DiffRhythm), self_attn.to_out.0 (ACE-Step),
    self_attn.to_out (Stable Audio 3), attn1.to_out.0 (Stable Audio Open)."""
    heads: int = 1
    """Equal parts of the channels, each with a probe and a weight of its own; at such a projection the network's
    number of heads."""
    scale: Literal["natural", "unit"] = "natural"
    """natural: the difference of the means; unit: brought to norm 1 in each block."""
    max_songs: int = 0
    """Songs of each class, the first ones; 0: all."""
    max_frames: int = 0
    """The beginning of each song in frames; 0: as long as the model takes."""
    per_prompt: int = 1
    """Songs for each prompt of a prompts.jsonl."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How those are sampled; `batch` is that of reading activations too."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, "heads", "per_prompt", low=1)
        check_range(self, "max_songs", "max_frames", low=0)
        check_seed(self, "seed")
        ensure(bool(self.times), "times: at least one is needed")
        for t in self.times:
            check_number(t, "times", above=0, high=1)
        ensure(
            not self.sampling.has_interventions,
            "sampling: songs are the model's own; leave knobs, steering and reward_guidance out",
        )

    def check_parts(self) -> None:
        """ConfigError for a part, an argument or a name of a file that cannot be, before anything is loaded."""
        check_model(self.model)
        if not self.out.endswith(".safetensors"):
            raise ConfigError(f"{self.out}: the file must end in .safetensors")


@dataclass(frozen=True, eq=False)
class ContrastSong:
    """A song of one of the two sets, with the condition that its activations are read under."""

    request: Request
    group: str
    latents: Float[Tensor, "frame channel"]


def fit_direction(cfg: DirectionRun) -> str:
    """Write a direction; a line for each block, and what the monitor would wait for."""
    model = build_model(cfg.model)
    torch.nn.Module.to(model.network, device())
    count = len(block_names(model.network))
    if not count:
        raise ConfigError(f"{network_kind(model.network)}: names no _repeated_blocks and cannot be steered")
    check_site(model.network, cfg.site, "site")
    blocks = sorted(set(cfg.blocks)) or list(range(count))
    _check_prompts(cfg)
    sets = [list(_songs(cfg, model, side)) for side in ("positive", "negative")]
    songs = [song for part in sets for song in part]
    features = read_features(model, songs, blocks, cfg)
    if features.shape[-1] % cfg.heads:
        raise ConfigError(f"heads={cfg.heads} do not divide the {features.shape[-1]} channels of a block")
    labels = torch.arange(len(songs)) < len(sets[0])
    half = half_mask([song.group for song in songs], labels.tolist(), cfg.seed)
    provenance = Provenance(
        network=network_kind(model.network),
        blocks=tuple(blocks),
        times=tuple(cfg.times),
        site=cfg.site,
        model=model_digest(cfg.model),
        fingerprint=model.fingerprint,
        counts=(len(sets[0]), len(sets[1])),
        data=(_data_digest(sets[0]), _data_digest(sets[1])),
        seed=cfg.seed,
        version=diffdpo.__version__,
    )
    direction = replace(build_direction(features, labels, half, cfg), provenance=provenance)
    save_direction(Path(cfg.out), direction)
    return "\n".join([*_lines(direction), cfg.out])


def build_direction(features: Features, labels: Tensor, half: Tensor, cfg: DirectionRun) -> Direction:
    """The direction of the songs of one half, with its probes tested on the other, and the monitor's the other way
    round."""
    scale = feature_scale(features[half], cfg.times)
    standard = (features - scale.center) / scale.scale

    def fit(train: Tensor, test: Tensor) -> Probes:
        rows, row_labels = [], []
        for mask in (train, test):
            rows.append(standard[mask].flatten(0, 1))
            row_labels.append(labels[mask].repeat_interleave(len(cfg.times)))
        return fit_probes(rows[0], row_labels[0], rows[1], row_labels[1], cfg.heads)

    probes = fit(half, ~half)
    return Direction(
        vectors=mean_difference(features[half], labels[half], unit=cfg.scale == "unit"),
        weights=soft_weights(probes.accuracy),
        accuracy=probes.accuracy,
        monitor=fit(~half, half),
        scale=scale,
    )


@torch.no_grad()
def read_features(
    model: SongModel, songs: Sequence[ContrastSong], blocks: Sequence[int], cfg: DirectionRun
) -> Features:
    """The mean over the frames of each song of what each block puts out in the prompt's branch, at each time."""
    features: dict[str, list[Tensor]] = {}
    by_id = {song.request.sample_id: song for song in songs}
    batches = batch_requests([song.request for song in songs], cfg.sampling.batch)
    place, guidance = device(), replace(cfg.sampling, guidance_scale=1.0).build_guidance()
    with bar("activations", len(songs) * len(cfg.times), "song") as progress:
        for batch in batches:
            conditions = encode_conditions(model, batch, guidance, place)
            evaluate = network_evaluate(
                model, conditions, AdaptedNetwork(model.network), cfg.sampling.precision
            )
            names = [request.sample_id for request in batch]
            latents = torch.nn.utils.rnn.pad_sequence(
                [by_id[name].latents for name in names], batch_first=True
            )
            keys = [
                name.partition("/")[2] for name in names
            ]  # songs of one id in both sets share their noise
            noise = draw_noise(cfg.seed, keys, conditions.length, model.spec.channels, "direction")
            length = model.spec.max_frames if model.spec.window == "fixed" else conditions.length
            for t in cfg.times:
                times = torch.full((len(batch),), t, dtype=torch.float64)
                x = flow.interpolate(latents, noise, times.float()).to(place)
                reader = PooledActivations(blocks, conditions.frames[conditions.cond], length)
                with hook_blocks([model.network], reader.actions(), "blocks", cfg.site):
                    evaluate(x, times, conditions.cond)
                for name, rows in zip(names, reader.features(len(batch)), strict=True):
                    features.setdefault(name, []).append(rows)
                progress.advance(len(batch))
    return torch.stack([torch.stack(features[song.request.sample_id]) for song in songs])


def _songs(cfg: DirectionRun, model: SongModel, side: str) -> Iterator[ContrastSong]:
    """The songs of one set, cut to the length that the model takes."""
    source: str = getattr(cfg, side)
    path = Path(source)
    if path.is_dir() and (path / SONGS.folder).is_dir():
        songs = _prepared_songs(path)
    elif path.is_dir():
        songs = _sampled_songs(path, EmbeddingStore(model))
    elif path.is_file():
        songs = _new_songs(cfg, model, path)
    else:
        raise DataError(f"{source}: no such folder of songs or file of prompts")
    limit = min(cfg.max_frames or model.spec.max_frames, model.spec.max_frames)
    for number, song in enumerate(songs):
        if cfg.max_songs and number >= cfg.max_songs:
            return
        check_width(f"{source}: {song.request.sample_id}", song.latents.shape, model.spec.channels)
        row, frames = song.request.row, min(limit, len(song.latents))
        row = replace(row, frames=frames, first_frame=0, song_frames=row.total_frames)
        name = f"{side}/{song.request.sample_id}"
        yield ContrastSong(Request(sample_id=name, row=row), song.group, song.latents[:frames])


def _prepared_songs(folder: Path) -> Iterator[ContrastSong]:
    for song in tables.read_rows(folder, SONGS):
        if not song.error:
            latents = read_latents(song_latents(folder, song.id))
            embedding = SongEmbeddings(song_embeddings(folder, song.id)).read(0, 0)
            row = Row(embedding=embedding, frames=len(latents))
            yield ContrastSong(Request(sample_id=song.id, row=row), song.group or song.id, latents)


def _sampled_songs(folder: Path, store: EmbeddingStore) -> Iterator[ContrastSong]:
    samples = open_samples(folder)
    prompts = {prompt.id: prompt for prompt in samples.prompts()}
    for row in samples.rows():
        prompt, latents = prompts[row.prompt_id], read_latents(samples.latents(row.sample_id))
        plan = sample_plan(samples, row)
        embedding = None if plan is None else store.embed_plan(plan)
        request = prompt_request(prompt, row.sample_id, len(latents), store.embed, embedding)
        yield ContrastSong(request, prompt.group, latents)


def _new_songs(cfg: DirectionRun, model: SongModel, path: Path) -> Iterator[ContrastSong]:
    """Songs for prompts, sampled now."""
    store, requests, groups = EmbeddingStore(model), [], {}
    for prompt in read_prompts(path):
        for number in range(cfg.per_prompt):
            name, frames = sample_id(prompt.id, number), model.spec.frames(prompt.duration_s)
            _, plan = plan_candidate(store, prompt, name, frames, cfg.seed)
            requests.append(prompt_request(prompt, name, frames, store.embed, plan))
            groups[name] = prompt.group
    requests = requests[: cfg.max_songs or None]
    with bar("sample", len(requests), "song") as progress:
        for batch in batch_requests(requests, cfg.sampling.batch):
            songs = sample_batch(model, batch, cfg.sampling, seed=cfg.seed)
            progress.advance(len(batch))
            for request, latents in zip(batch, songs, strict=True):
                yield ContrastSong(request, groups[request.sample_id], latents)


def _check_prompts(cfg: DirectionRun) -> None:
    """DataError for too few prompts on either side, before their songs are sampled."""
    groups: list[list[str]] = []
    for source in (cfg.positive, cfg.negative):
        if not Path(source).is_file():
            return
        names = [prompt.group for prompt in read_prompts(source) for _ in range(cfg.per_prompt)]
        groups.append(names[: cfg.max_songs or None])
    half_mask([*groups[0], *groups[1]], [True] * len(groups[0]) + [False] * len(groups[1]), cfg.seed)


def _data_digest(songs: Sequence[ContrastSong]) -> str:
    """Identity of the songs of a set: their latents and groups."""
    return digest([[song.group, song.latents.numpy()] for song in songs])


def _lines(direction: Direction) -> list[str]:
    accuracy, weights = direction.accuracy, direction.weights
    norms = direction.vectors.norm(dim=1).tolist()
    lines = [
        f"block {block}: probes {accuracy[k].max():.0%} right on other songs, weight {weights[k].mean():.2f}, "
        f"norm {norms[k]:.3g}"
        for k, block in enumerate(direction.provenance.blocks)
    ]
    return [*lines, f"the monitor stops above a median probability of {direction.threshold():.2f}"]
