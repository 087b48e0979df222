"""Particles: songs that are sampled together, of which the promising are copied while they are still noisy.

Feynman-Kac steering: between solver steps the estimate of each song, x - t v, is decoded and scored, rewards
become weights, and where these have become uneven heavy particles are copied over light ones. As the number of
particles grows, their law goes to p(song) exp(strength x reward). That holds for solver steps that are stochastic,
since copies of a particle must part, and exact, since the weights presuppose the model's own law.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.checks import check_range
from diffdpo.errors import ConfigError
from diffdpo.flow import Latents
from diffdpo.models.base import take
from diffdpo.randomness import draw_uniform
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import begin_draft, window_request
from diffdpo.sampling.request import Request
from diffdpo.sampling.sample_jobs import EmbeddedJob, song_request
from diffdpo.sampling.sampler import follow, start
from diffdpo.sampling.solver import exact_solvers
from diffdpo.sampling.trajectory import Hook, ResampledLatents, RowTimes, State, Velocity
from diffdpo.search.task import (
    Draft,
    SearchSong,
    SearchTask,
    Tensors,
    search_groups,
    song_groups,
    steering_value,
)
from diffdpo.search.weights import (
    LOG_WEIGHT,
    PRODUCT,
    Potential,
    RowValues,
    begin_weights,
    effective_size,
    resample_particles,
    weigh_particles,
)

EstimateScore = Callable[[Latents, State], RowValues]
"""Rewards of the estimates of the songs of all rows."""


@dataclass(frozen=True)
class Particles:
    """Groups of particles, one after another, each steered by the rewards of its estimates; the best song wins.

    The first groups of a longer search are the groups of a shorter one. All songs of a group are complete songs
    under the law of the model, tilted by the reward.
    """

    particles: int = 4
    """Songs of a group. A group is one run: with 4, half of the tilt is reached and more than half of the variance
    is lost; many particles cost as many songs."""
    strength: float = 4.0
    """Factor of the reward, which counts in standard deviations, in exp(strength x reward); 0 is the model's
    law."""
    potential: Potential = "diff"
    """What an estimate's reward r makes of a weight: diff (r less the one before), max (the largest yet), add (all
    yet), rt (r alone). The last step sets the product right for each."""
    share: float = 0.5
    """Copies are made when the effective number of particles is below this share of their number."""
    start: float = 0.7
    """Estimates are scored from this t on: above, they say nothing."""
    resamplings: int = 4
    """Most steps at which estimates are scored, evenly over those below `start`; each decodes all particles."""

    def __post_init__(self) -> None:
        check_range(self, "particles", low=1)
        check_range(self, "resamplings", "strength", low=0)
        check_range(self, "share", low=0, high=1)
        check_range(self, "start", above=0, high=1)

    def check(self, sampling: SamplingConfig, budget: float) -> None:
        """ConfigError for a solver or a budget that particles cannot have."""
        solver = sampling.build_solver()
        if not (solver.stochastic and solver.exact):
            reason = (
                "changes the law of the songs" if solver.stochastic else "lets copies of a particle be alike"
            )
            raise ConfigError(
                f"search.method=particles: the solver {sampling.solver.name!r} {reason}; "
                f"set sampling.solver to {', '.join(exact_solvers())}"
            )
        if budget < self.particles:
            raise ConfigError(
                f"search.method=particles: a group of {self.particles} is more than search.budget={budget:g} "
                "songs; raise it, or set search.method.args.particles"
            )

    def __call__(self, task: SearchTask) -> list[SearchSong]:
        self.check(task.sampling, task.budget)
        return search_groups(self, task)

    def groups(self, task: SearchTask) -> list[range]:
        """See GroupedMethod."""
        return song_groups(task, self.particles)

    def search_group(self, task: SearchTask, numbers: range) -> list[SearchSong]:
        """See GroupedMethod."""
        if task.windows > 1:
            raise ConfigError(
                f"prompt {task.prompt.id!r}: a song of {task.windows} windows is steered at their borders; "
                "set search.method=chunk_particles"
            )
        first, group = numbers[0], numbers[0] // self.particles
        jobs = [task.embed(number) for number in numbers]
        result = task.memo(
            f"particles-{self.particles}-{group}", lambda: steer_group(task, self, jobs, first)
        )
        task.spend(self.particles * task.song_nfe)
        starts = result["row"].tolist()
        share = {"group": group, "unique_starts": len(set(starts)), "effective": result["effective"].tolist()}
        drafts = [
            Draft(
                job=replace(jobs[start], job=job.job),
                latents=latents,
                nfe=task.song_nfe,
                details={**share, "start": first + start, "log_weight": log_weight},
            )
            for job, start, latents, log_weight in zip(
                jobs, starts, result["latents"], result["log_weight"].tolist(), strict=True
            )
        ]
        return task.keep(drafts)


def score_steps(times: Float[Tensor, " point"], start: float, count: int) -> list[int]:
    """At most `count` solver steps, evenly over those that begin at `start` or below; never the last one."""
    steps = [step for step, t in enumerate(times[:-2].tolist()) if t <= start]
    count = min(count, len(steps))
    return [steps[int((place + 0.5) * len(steps) / count)] for place in range(count)]


def steer(
    rule: Particles,
    steps: Collection[int],
    score: EstimateScore,
    uniform: Callable[[int], Float[Tensor, " run"]],
) -> Hook:
    """A hook that weighs and resamples particles after some solver steps.

    The state needs `weights.begin_weights`, and the estimates of the songs (`sampler.start(estimate=True)`).
    `uniform` has a number in [0, 1) for each run, by step.
    """

    def hook(step: int, x: Latents, t: RowTimes, state: State) -> tuple[ResampledLatents, State]:
        if step not in steps:
            return x, state
        state = weigh_particles(state, score(state["song"], state), rule.potential, rule.strength)
        return resample_particles(x, state, uniform(step), rule.share)

    return hook


def steer_group(task: SearchTask, rule: Particles, jobs: Sequence[EmbeddedJob], first: int) -> Tensors:
    """The songs of one group before they are scored: latents, the particle each began as, and log weights.

    The log weight of a complete song is its `log_weight` here plus the strength times its reward. `effective` are
    the effective sizes at the steps that were scored.
    """
    requests = [job_request(task, job) for job in jobs]
    path = start(
        task.model, requests, task.sampling, seed=task.seed, estimate=True, interventions=task.interventions
    )
    path = replace(
        path,
        velocity=in_batches(path.velocity, task.sampling.batch),
        state=path.state | begin_weights(len(jobs)),
    )
    steps = score_steps(path.times[:, 0], rule.start, rule.resamplings) if rule.strength else []
    key, sizes = task.sample_id(first), []

    def score(estimates: Latents, state: State) -> RowValues:
        songs = paste_given(requests, estimates, state)
        return torch.tensor([steering_value(r) for r in task.score(songs)], dtype=torch.float64)

    def uniform(step: int) -> Float[Tensor, " run"]:
        return draw_uniform(task.seed, [key], f"resample-{step}")

    rule_hook = steer(rule, steps, score, uniform)

    def hook(step: int, x: Latents, t: RowTimes, state: State) -> tuple[ResampledLatents, State]:
        x, state = rule_hook(step, x, t, state)
        if step in steps:
            sizes.append(float(effective_size(state[LOG_WEIGHT][None])))
        return x, state

    with torch.no_grad():
        x, state = follow(path, task.sampling, hook=hook)
    return {
        "latents": torch.stack(paste_given(requests, x, state)),
        "row": state["row"],
        "log_weight": state[LOG_WEIGHT] - state[PRODUCT],
        "effective": torch.tensor(sizes),
    }


def job_request(task: SearchTask, job: EmbeddedJob) -> Request:
    """The request for a song of one window."""
    draft = begin_draft(task.model.spec, song_request(task.model, job), task.longform)
    return window_request(draft, draft.open_windows[0], task.longform.clamp_context)


def paste_given(
    requests: Sequence[Request], songs: Latents, state: State
) -> list[Float[Tensor, "frame channel"]]:
    """The song of each row on the CPU, cut to its length, with given frames in their places."""
    results = []
    for row, song in zip(state["row"].tolist(), songs.float().cpu(), strict=True):
        request = requests[row]
        latents = song[: request.row.frames]
        results.append(request.context.paste(latents) if request.context else latents)
    return results


def in_batches(velocity: Velocity, size: int) -> Velocity:
    """A velocity of any number of rows, of at most `size` at once: more particles than a batch need no more
    memory."""

    def evaluate(x: Latents, t: RowTimes, state: State) -> tuple[Latents, State]:
        if len(x) <= size:
            return velocity(x, t, state)
        parts: list[tuple[Any, State]] = []
        for first in range(0, len(x), size):
            rows = torch.arange(first, min(first + size, len(x)))
            parts.append(velocity(x[rows.to(x.device)], t[rows], take(state, rows)))
        names = parts[0][1]
        return (
            torch.cat([v for v, _ in parts]),
            {name: torch.cat([part[name] for _, part in parts]) for name in names},
        )

    return evaluate
