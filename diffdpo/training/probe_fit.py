"""Fitting a latent probe: an axis from noised latents of a model's own songs, judged on prompts it has not seen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo import flow
from diffdpo.checks import check_range
from diffdpo.errors import DataError
from diffdpo.models.latent_probe import LatentProbe
from diffdpo.preferences.bradley_terry import group_folds
from diffdpo.randomness import draw_noise, draw_uniform, generator

PROBE_FOLDS = 5
"""One part in five of the prompt groups is held out."""
CHECK_TIMES = (0.0, 0.2, 0.4, 0.6, 0.8)
FEWEST_SONGS = 20


@dataclass(frozen=True)
class ProbeFit:
    """How a latent probe is fitted."""

    width: int = 32
    """Channels of the two convolutions."""
    hidden: int = 64
    """Units between pooled features and the value."""
    steps: int = 600
    batch: int = 16
    lr: float = 0.002
    weight_decay: float = 0.05
    max_frames: int = 512
    """Longest stretch of a song in a step, drawn anew each time."""

    def __post_init__(self) -> None:
        check_range(self, "width", "hidden", "steps", "batch", low=1, prefix="fit.")
        check_range(self, "max_frames", low=2, prefix="fit.")
        check_range(self, "lr", above=0, prefix="fit.")
        check_range(self, "weight_decay", low=0, prefix="fit.")


@dataclass(frozen=True, eq=False)
class ProbeData:
    """Songs with their values on an axis."""

    ids: Sequence[str]
    latents: Sequence[Float[Tensor, "_ channel"]]
    values: Float[Tensor, " song"]
    """In standard deviations of all songs."""
    groups: Sequence[str]


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """A probe and how it does on songs of groups that were held out."""

    probe: LatentProbe
    correlations: dict[str, float]
    """By time t."""
    group_correlations: dict[str, float]
    """The same among songs of one prompt group: both sides less the means of the group."""
    held_out_songs: int


def fit_probe(
    data: ProbeData, cfg: ProbeFit, *, seed: int, on_step: Callable[[], None] | None = None
) -> FittedProbe:
    """A probe fitted to four fifths of the prompt groups, by the squared error at uniform t. DataError for too few
    songs or groups."""
    if len(data.ids) < FEWEST_SONGS or len(set(data.groups)) < PROBE_FOLDS:
        raise DataError(
            f"{len(data.ids)} scored songs of {len(set(data.groups))} prompt groups: a probe needs "
            f"{FEWEST_SONGS} songs of {PROBE_FOLDS} groups; sample and score more"
        )
    held_out = torch.from_numpy(group_folds(np.array(data.groups), PROBE_FOLDS, seed) == 0)
    places = (~held_out).nonzero().flatten()
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(seed)  # the initial weights
    probe = LatentProbe(data.latents[0].shape[1], cfg.width, cfg.hidden)
    torch.random.set_rng_state(torch_state)
    optimizer = torch.optim.AdamW(probe.parameters(), cfg.lr, weight_decay=cfg.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, cfg.lr, total_steps=cfg.steps + 1)
    for step in range(cfg.steps):
        choice = torch.randint(len(places), (cfg.batch,), generator=generator(seed, step, "probe-batch"))
        x, t, mask = _noised_batch(data, places[choice], cfg.max_frames, seed, step)
        loss = (probe(x, t, mask) - data.values[places[choice]]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step()
    probe.eval().requires_grad_(False)
    correlations, group_correlations = held_out_correlations(probe, data, held_out, seed)
    return FittedProbe(probe, correlations, group_correlations, int(held_out.sum()))


def _noised_batch(
    data: ProbeData, places: Int[Tensor, " song"], max_frames: int, seed: int, step: int
) -> tuple[flow.Latents, Float[Tensor, " song"], Bool[Tensor, "song frame"]]:
    """Stretches of songs at random t, with the mask of their frames."""
    keys = [f"{step}#{slot}" for slot in range(len(places))]
    starts = draw_uniform(seed, keys, "probe-start")
    songs = []
    for place, share in zip(places.tolist(), starts.tolist(), strict=True):
        song = data.latents[place]
        begin = int(share * max(1, len(song) - max_frames + 1))
        songs.append(song[begin : begin + max_frames])
    frames = torch.tensor([len(song) for song in songs])
    length = int(frames.max())
    song_batch = torch.nn.utils.rnn.pad_sequence(songs, batch_first=True).float()
    noise = draw_noise(seed, keys, length, song_batch.shape[2], "probe-noise")
    t = draw_uniform(seed, keys, "probe-time")
    return flow.interpolate(song_batch, noise, t), t, flow.mask_from_frames(frames, length)


@torch.no_grad()
def held_out_correlations(
    probe: LatentProbe, data: ProbeData, held_out: Bool[Tensor, " song"], seed: int
) -> tuple[dict[str, float], dict[str, float]]:
    """The correlation of prediction and value over the songs of a mask, at each of CHECK_TIMES, and that within
    prompt groups; 0 where either is constant."""
    places = held_out.nonzero().flatten().tolist()
    values, groups = data.values[held_out], [data.groups[place] for place in places]
    correlations, group_correlations = {}, {}
    for time in CHECK_TIMES:
        predictions = []
        for place in places:
            song = data.latents[place].float()[None]
            noise = draw_noise(seed, [data.ids[place]], song.shape[1], song.shape[2], f"probe-check-{time}")
            t = torch.tensor([time])
            mask = torch.ones(song.shape[:2], dtype=torch.bool)
            predictions.append(probe(flow.interpolate(song, noise, t), t, mask))
        prediction, key = torch.cat(predictions), f"{time:g}"
        correlations[key] = _correlation(prediction, values)
        group_correlations[key] = _correlation(
            _subtract_means(prediction, groups), _subtract_means(values, groups)
        )
    return correlations, group_correlations


def _subtract_means(values: Float[Tensor, " song"], groups: Sequence[str]) -> Float[Tensor, " song"]:
    """Values less the mean of their group."""
    names = sorted(set(groups))
    number = torch.tensor([names.index(group) for group in groups])
    totals = torch.zeros(len(names)).index_add(0, number, values.float())
    return values - (totals / torch.bincount(number, minlength=len(names)))[number]


def _correlation(a: Float[Tensor, " song"], b: Float[Tensor, " song"]) -> float:
    first, second = (values.cpu().numpy().astype(np.float64) for values in (a, b))
    first, second = first - first.mean(), second - second.mean()
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / size if size > 1e-12 else 0.0
