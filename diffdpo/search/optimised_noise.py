"""The search method `noise`: the noise of one song, optimised until the song comes near to targets (DITTO).

The optimisation samples with few steps, a surrogate as in DITTO-2 (Novack et al. 2024b); the song is then made
with all steps. An iteration costs four times the evaluations of a surrogate song: a forward pass, another in the
backward pass, which keeps no activations between steps, and the backward pass itself, which counts as two.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.checks import check_range
from diffdpo.errors import ConfigError, DataError
from diffdpo.flow import Latents
from diffdpo.models.base import DecodesWithGradients, SongModel, require
from diffdpo.randomness import draw_noise, generator
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import compose
from diffdpo.sampling.request import Request
from diffdpo.sampling.sample_jobs import EmbeddedJob, song_request
from diffdpo.sampling.sampler import follow, planned_nfe, start
from diffdpo.sampling.variants import NO_INTERVENTIONS, Interventions
from diffdpo.search.differentiable import SoundTensor
from diffdpo.search.noise import NoiseOptimiser, SongLosses, optimise_noise
from diffdpo.search.targets import SongSpec, SoundLoss, WeightedTarget, parse_targets
from diffdpo.search.task import Draft, SearchSong, SearchTask

ITERATION_FACTOR = 4
"""Evaluations of an iteration over those of a surrogate song."""


@dataclass(frozen=True)
class OptimisedNoise:
    """One song of a prompt, whose noise is optimised towards targets; see `targets`.

    Song 0's noise is where it begins; after k iterations the song has the number k. The iterations of a shorter
    search are the first ones of a longer.
    """

    targets: list[dict[str, Any]] = field(default_factory=list)
    """Each {name, weight, arguments}: intensity, melody, structure, style. By default the style of the prompt."""
    iterations: int = 0
    """Steps of Adam; 0: as many as the budget allows."""
    lr: float = 0.05
    """Adam's step; far above 0.1 it diverges."""
    surrogate_steps: int = 4
    """Solver steps while the noise is optimised; 0: those of `sampling.steps`."""
    window_s: float = 0.0
    """Seconds of the song that are decoded and compared in an iteration, drawn anew each time; 0: the whole song.
    For songs of minutes, whose decoding would take most of the time."""
    patience: int = 0
    """Stop after so many iterations without a better loss; 0: never."""
    target_loss: float = 0.0
    """Stop at this loss, see the targets for its units; 0: never."""
    free_arguments: ClassVar[tuple[str, ...]] = ("iterations",)

    def __post_init__(self) -> None:
        check_range(self, "iterations", "surrogate_steps", "window_s", "patience", "target_loss", low=0)
        check_range(self, "lr", above=0)
        parse_targets(self.targets)

    def check(self, sampling: SamplingConfig, budget: float) -> None:
        """ConfigError for a budget that allows no iteration."""
        song = planned_nfe(sampling)
        least = 1 + ITERATION_FACTOR * planned_nfe(surrogate_sampling(sampling, self.surrogate_steps)) / song
        if budget < least:
            raise ConfigError(
                f"search.method=noise: the song and one iteration cost {least:.3g} songs, search.budget={budget:g} "
                "allows none; raise it, or lower surrogate_steps"
            )

    def __call__(self, task: SearchTask) -> list[SearchSong]:
        check_task(task)
        surrogate = surrogate_sampling(task.sampling, self.surrogate_steps)
        iterations = self._affordable(task, surrogate)
        job = task.embed(0)
        number = replace(job.job, sample_id=task.sample_id(iterations))
        if (song := task.store.get(number.sample_id)) is not None:
            task.spend(song.nfe)
            return [song]
        loss = SongLoss.of(task, parse_targets(self.targets or [{"name": "style"}]), self.window_s)
        cfg = NoiseOptimiser(
            iterations=iterations,
            lr=self.lr,
            patience=self.patience,
            target_loss=self.target_loss,
            keep_best=not self.window_s,
        )
        old_nfe = task.nfe
        state = task.memo(f"noise.{iterations}", lambda: optimise_song(task, job, surrogate, cfg, loss))
        steps = len(state["losses"]) - 1  # fewer than `iterations` after an early stop
        nfe = ITERATION_FACTOR * planned_nfe(surrogate) * steps + task.song_nfe
        task.spend(old_nfe + nfe - task.nfe)
        latents = song_of_noise(task, job, state["noise"])
        details = {
            "iterations": steps,
            "surrogate_losses": [round(value, 6) for value in state["losses"].tolist()],
            "losses": {name: round(value, 6) for name, value in loss.parts(latents).items()},
        }
        return task.keep([Draft(job=replace(job, job=number), latents=latents, nfe=nfe, details=details)])

    def _affordable(self, task: SearchTask, surrogate: SamplingConfig) -> int:
        """Iterations within the budget, the song itself set aside."""
        affordable = max(0, (task.nfe_left - task.song_nfe) // (ITERATION_FACTOR * planned_nfe(surrogate)))
        return min(self.iterations, affordable) if self.iterations else affordable


def check_task(task: SearchTask) -> None:
    """DataError for a song that cannot be optimised through its sampler."""
    require(task.model, DecodesWithGradients)
    if task.windows > 1:
        raise DataError(
            f"prompt {task.prompt.id!r}: noise is optimised through one window; ask for less than "
            f"{task.longform.chunks(task.model.spec).size / task.model.spec.frames_per_second:.0f} s"
        )
    if not bool(task.job.to_generate.all()):
        raise DataError(
            f"prompt {task.prompt.id!r}: the noise of an edit cannot be optimised; use another method"
        )


def surrogate_sampling(sampling: SamplingConfig, steps: int) -> SamplingConfig:
    """The sampling of the optimisation: with few steps, every evaluation computed. ConfigError for too few."""
    try:
        return replace(
            sampling, steps=min(steps or sampling.steps, sampling.steps), cache_threshold=0.0, compile=False
        )
    except ValueError as error:
        raise ConfigError(f"surrogate_steps={steps}: {error}") from None


def optimise_song(
    task: SearchTask,
    job: EmbeddedJob,
    sampling: SamplingConfig,
    cfg: NoiseOptimiser,
    loss: "SongLoss",
) -> dict[str, Tensor]:
    """The optimised noise of a song, [frame, channel], and its losses, [iteration]."""
    name, spec = job.job.sample_id, task.model.spec
    noise = draw_noise(task.seed, [name], job.job.frames, spec.channels)
    song = song_request(task.model, job)
    request = Request(sample_id=name, row=song.row, negative=song.negative, axis_rows=song.axis_rows)
    nfe = ITERATION_FACTOR * planned_nfe(sampling)

    def count(iteration: int, losses: SongLosses) -> None:
        if iteration:
            task.spend(nfe)

    def song_losses(songs: Latents, iteration: int) -> SongLosses:
        return torch.stack([loss(song, iteration) for song in songs])

    with frozen_weights(task.model.network):
        sample = noise_sampler(task.model, [request], sampling, task.seed, task.interventions)
        result = optimise_noise(sample, song_losses, noise, cfg, on_iteration=count)
    return {"noise": result.noise[0], "losses": result.losses[:, 0]}


def noise_sampler(
    model: SongModel,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    seed: int,
    interventions: Interventions = NO_INTERVENTIONS,
) -> Callable[[Latents], Latents]:
    """Songs as a differentiable function of their noise, with the activations of one solver step in memory. The
    conditions are encoded once."""
    with torch.no_grad():
        path = start(model, requests, sampling, seed=seed, interventions=interventions)

    def sample(noise: Latents) -> Latents:
        songs, _ = follow(replace(path, x=noise.to(path.x)), sampling, checkpointing=True)
        return songs.float().cpu()

    return sample


@contextmanager
def frozen_weights(network: Any) -> Iterator[None]:
    """Weights without gradients, so that no activations are kept for them."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@dataclass(frozen=True, eq=False, kw_only=True)
class SongLoss:
    """The weighted loss of a song's latents, through their sound or that of a window of it."""

    model: Any
    key: str
    """Of the windows' places."""
    seed: int
    frames: int
    """Frames without headroom."""
    window: int
    """Frames in a window; 0: the whole song."""
    losses: Sequence[tuple[str, float, SoundLoss]]

    @classmethod
    def of(cls, task: SearchTask, targets: Sequence[WeightedTarget], window_s: float) -> "SongLoss":
        """The loss of a task's song."""
        spec = task.model.spec
        frames = min(task.job.frames, max(1, round(task.prompt.duration_s * spec.frames_per_second)))
        seconds = frames / spec.frames_per_second
        song = SongSpec(sample_rate=spec.sample_rate, seconds=seconds, prompt=task.prompt)
        return cls(
            model=task.model,
            key=task.sample_id(0),
            seed=task.seed,
            frames=frames,
            window=min(frames, max(1, round(window_s * spec.frames_per_second))) if window_s else 0,
            losses=[(entry.name, entry.weight, entry.target.build(song)) for entry in targets],
        )

    @cached_property
    def total_weight(self) -> float:
        """Sum of the weights."""
        return sum(weight for _, weight, _ in self.losses)

    def __call__(self, latents: Float[Tensor, "frame channel"], iteration: int) -> Float[Tensor, ""]:
        begin = 0
        if self.window:
            places = self.frames - self.window + 1
            random = generator(self.seed, self.key, f"noise-window-{iteration}")
            begin = int(torch.randint(places, (), generator=random))
        sound = decode_frames(self.model, latents, begin, begin + (self.window or self.frames))
        start_s = begin / self.model.spec.frames_per_second
        values = [weight * loss(sound, start_s) for _, weight, loss in self.losses]
        return torch.stack(values).sum() / self.total_weight

    def parts(self, latents: Float[Tensor, "frame channel"]) -> dict[str, float]:
        """The loss of each target by name, of the whole song."""
        with torch.no_grad():
            sound = decode_frames(self.model, latents, 0, self.frames)
            return {name: float(loss(sound, 0.0)) for name, _, loss in self.losses}


def decode_frames(model: Any, latents: Float[Tensor, "frame channel"], begin: int, end: int) -> SoundTensor:
    """The sound of some frames of a song, decoded with the frames around them that it depends on."""
    context = model.spec.receptive_frames
    low, high = max(0, begin - context), min(len(latents), end + context)
    sound = model.decode_tensor(latents[low:high], low)
    per_frame = sound.shape[1] // (high - low)
    return sound[:, (begin - low) * per_frame : (end - low) * per_frame].cpu()


def song_of_noise(
    task: SearchTask, job: EmbeddedJob, noise: Float[Tensor, "frame channel"]
) -> Float[Tensor, "frame channel"]:
    """The song of some noise with all steps."""
    request = replace(song_request(task.model, job), noise=noise)
    with torch.no_grad():
        (song,) = compose(
            task.model,
            [request],
            task.sampling,
            task.longform,
            seed=task.seed,
            interventions=task.interventions,
        )
    return song
