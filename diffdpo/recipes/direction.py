"""`diffdpo direction fit`: a direction in a network's activations from two contrasted sets of songs or prompts."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from omegaconf import MISSING
from torch import Tensor

import diffdpo
from diffdpo import flow
from diffdpo.checks import check_number, check_range, check_seed
from diffdpo.config_paths import PATH, PATH_LIST
from diffdpo.errors import ConfigError, DataError, ensure
from diffdpo.inputs import digest
from diffdpo.models.adapter_config import block_names
from diffdpo.models.base import SongModel
from diffdpo.parts import build_model, check_model, model_digest
from diffdpo.progress import bar
from diffdpo.randomness import draw_noise
from diffdpo.recipes.contrast_songs import (
    ContrastOptions,
    ContrastSets,
    ContrastSong,
    read_contrast,
    read_halves,
)
from diffdpo.registry import Choice
from diffdpo.run_dir import device
from diffdpo.runs import make_folder
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
from diffdpo.sampling.sampler import batch_requests
from diffdpo.sampling.variants import AdaptedNetwork, network_evaluate
from diffdpo.scorers.axes import check_goal


@dataclass
class DirectionRun:
    """A direction from the songs of `negative` to those of `positive`, or from worse to better songs by an axis."""

    positive: str = field(default="", metadata=PATH)
    """Folder of `sample` or of `prepare`, or a prompts.jsonl whose songs are sampled first, and kept beside
    `out` until it is written, so that a stopped command goes on."""
    negative: str = field(default="", metadata=PATH)
    """The songs, or prompts, that lack what those of `positive` have, and are like them in all else."""
    samples: list[str] = field(default_factory=list, metadata=PATH_LIST)
    """In the place of both: folders of `sample` or `search` with several songs a prompt; the better half of each
    prompt's songs by `axis` against the worse, the middle one of an odd number left out."""
    scores: str = field(default="", metadata=PATH)
    """Folder of `diffdpo score` with the axis of these songs."""
    axis: str = "critic.quality"
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
        if self.samples:
            check_goal(self.axis, "axis")
            if self.positive or self.negative or not self.scores:
                raise ConfigError("samples: goes with scores, and without positive and negative")
        elif not (self.positive and self.negative) or self.scores:
            raise ConfigError(
                "a direction is of positive and negative, or of samples and scores: give either pair"
            )
        if not self.out.endswith(".safetensors"):
            raise ConfigError(f"{self.out}: the file must end in .safetensors")
        if Path(self.out).is_dir():
            raise ConfigError(f"{self.out}: a folder stands where the file would be; choose another out=…")


def fit_direction(cfg: DirectionRun) -> str:
    """Write a direction; a line for each block, and what the monitor would wait for."""
    model = build_model(cfg.model)
    torch.nn.Module.to(model.network, device())
    count = len(block_names(model.network))
    if not count:
        raise ConfigError(f"{network_kind(model.network)}: names no _repeated_blocks and cannot be steered")
    check_site(model.network, cfg.site, "site")
    blocks = sorted(set(cfg.blocks)) or list(range(count))
    make_folder(Path(cfg.out).parent)
    sets = _read_sets(cfg, model)
    songs = [*sets[0], *sets[1]]
    labels = torch.arange(len(songs)) < len(sets[0])
    half = half_mask([song.group for song in songs], labels.tolist(), cfg.seed)
    data = _data_digest(sets[0]), _data_digest(sets[1])
    if data[0] == data[1]:
        raise DataError("the songs of both classes are the same: there is no direction between them")
    features = read_features(model, songs, blocks, cfg)
    provenance = Provenance(
        network=network_kind(model.network),
        blocks=tuple(blocks),
        times=tuple(cfg.times),
        site=cfg.site,
        model=model_digest(cfg.model),
        fingerprint=model.fingerprint,
        counts=(len(sets[0]), len(sets[1])),
        data=data,
        axis=cfg.axis if cfg.samples else "",
        seed=cfg.seed,
        version=diffdpo.__version__,
    )
    direction = replace(build_direction(features, labels, half, cfg), provenance=provenance)
    save_direction(Path(cfg.out), direction)
    shutil.rmtree(_songs_folder(cfg), ignore_errors=True)
    return "\n".join([*_lines(direction), cfg.out])


def _read_sets(cfg: DirectionRun, model: SongModel) -> ContrastSets:
    """The songs of both classes. Those of prompts are kept until the direction is written."""
    made_by = (cfg.sampling, cfg.seed, cfg.per_prompt, cfg.max_songs)
    options = ContrastOptions(
        max_songs=cfg.max_songs,
        max_frames=cfg.max_frames,
        per_prompt=cfg.per_prompt,
        sampling=cfg.sampling,
        seed=cfg.seed,
        songs=_songs_folder(cfg) / digest([model_digest(cfg.model), model.fingerprint, made_by]),
    )
    if cfg.samples:
        return read_halves(model, cfg.samples, cfg.scores, cfg.axis, options)
    return read_contrast(model, cfg.positive, cfg.negative, options)


def _songs_folder(cfg: DirectionRun) -> Path:
    """The folder of songs that are sampled for this direction."""
    return Path(cfg.out).with_suffix(".songs")


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
                part = reader.features(len(batch))
                if part.shape[-1] % cfg.heads:
                    raise ConfigError(
                        f"heads={cfg.heads} do not divide the {part.shape[-1]} channels of a block"
                    )
                for name, rows in zip(names, part, strict=True):
                    features.setdefault(name, []).append(rows)
                progress.advance(len(batch))
    return torch.stack([torch.stack(features[song.request.sample_id]) for song in songs])


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
