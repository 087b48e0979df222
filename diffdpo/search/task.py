"""What a search method sees: one prompt, a way to make songs, a way to score them, and a budget.

A method is a frozen dataclass with its arguments as fields. It is called with a SearchTask and returns the complete
songs that it made, all of which the task has scored and kept. It may score drafts (the beginning of a song, the
estimate of one that is still noisy), and it keeps what is costly to compute under a key, so that a search that was
stopped continues where it stood. Everything is a function of the prompt and the seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffdpo.data.samples import sample_id
from diffdpo.flow import SongLatents
from diffdpo.models.base import SongModel
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig, compose, order_windows, window_groups
from diffdpo.sampling.sample_jobs import EmbeddedJob, SampleJob, embed_job, song_request
from diffdpo.sampling.sampler import planned_nfe
from diffdpo.sampling.variants import NO_INTERVENTIONS, Interventions
from diffdpo.search.reward import Reward
from diffdpo.types import Plan, Prompt

FrameSpan = tuple[int, int]
"""The first frame of a part of a song, and the one behind its last."""
LEAST_VALUE = -100.0
"""What a song counts for steering that violates beyond all measure, in standard deviations."""
Tensors = dict[str, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Draft:
    """A complete song that a method made, before it is scored."""

    job: EmbeddedJob
    latents: SongLatents
    nfe: int
    """Network evaluations that were made for this song alone."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """How it came about, in JSON: the text of a mutated prompt, the parent of a branch, …"""


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchSong:
    """A complete song of a search, with its reward and its cost."""

    sample_id: str
    number: int
    latents: SongLatents
    reward: Reward
    nfe: int
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class SongStore(Protocol):
    """Where the songs and the intermediate results of a search are kept: in memory, or in a folder."""

    def get(self, sample_id: str) -> SearchSong | None:
        """A song that is there already, of this run or an earlier one."""

    def add(self, drafts: Sequence[Draft]) -> list[SearchSong]:
        """Decode, score and keep songs."""

    def score(
        self, job: EmbeddedJob, songs: Sequence[SongLatents], span: FrameSpan | None = None
    ) -> list[Reward]:
        """The rewards of latents that are not kept, or of a span of them, by the prompt of the job."""

    def memo(self, key: str, compute: Callable[[], Tensors]) -> Tensors:
        """Tensors under a key: those of an earlier run, or computed and kept."""


@dataclass(eq=False, kw_only=True)
class SearchTask:
    """The search for the songs of one prompt."""

    model: SongModel
    job: SampleJob
    """The prompt's song of number 0."""
    sampling: SamplingConfig
    longform: LongformConfig
    seed: int
    budget: float
    """In songs' worth of network evaluations."""
    embeddings: EmbeddingStore
    store: SongStore
    inputs: str = ""
    """Digest of what the prompt's songs are made from: results of another prompt or model are not taken over."""
    interventions: Interventions = NO_INTERVENTIONS
    """What knobs and steering of `sampling` name, loaded."""
    processes: int = 1
    """Processes that share the songs of the prompt, where the method has groups."""
    nfe: int = 0
    """Network evaluations that were made for this prompt, or would have been without an earlier run's results."""
    on_spend: Callable[[int], None] | None = None
    """Called with the number of evaluations whenever some are counted."""

    @property
    def prompt(self) -> Prompt:
        """The prompt by which songs are scored, whatever they are made from."""
        return self.job.prompt

    @cached_property
    def song_nfe(self) -> int:
        """Network evaluations of one plain song of the prompt, all its windows counted."""
        return planned_nfe(self.sampling) * self.windows

    @cached_property
    def windows(self) -> int:
        """Windows in which a plain song of the prompt is made."""
        mask = self.job.to_generate
        return max(1, len(order_windows(window_groups(mask, self.longform.chunks(self.model.spec)), mask)))

    @property
    def nfe_left(self) -> int:
        """Network evaluations that the budget still allows."""
        return int(self.budget * self.song_nfe) - self.nfe

    def spend(self, nfe: int) -> None:
        """Count network evaluations, also those whose results an earlier run left."""
        self.nfe += nfe
        if self.on_spend is not None:
            self.on_spend(nfe)

    def sample_id(self, number: int) -> str:
        """The id of a song of this prompt, which is also the key of its noise."""
        return sample_id(self.prompt.id, number)

    def embed(self, number: int, prompt: Prompt | None = None, plan: Plan | None = None) -> EmbeddedJob:
        """The job of one song, made from the prompt or from a mutation of it, and scored by the prompt.

        A model that plans makes a plan for the song, unless one is given.
        """
        job = replace(self.job, sample_id=self.sample_id(number))
        return embed_job(self.embeddings, job, self.seed, self.sampling.axes, prompt, plan)

    def sample(self, jobs: Sequence[EmbeddedJob]) -> list[SongLatents]:
        """Plain songs of some jobs, as `diffdpo sample` makes them, without gradients."""
        songs: list[SongLatents] = []
        size = self.sampling.batch
        for first in range(0, len(jobs), size):
            requests = [song_request(self.model, job) for job in jobs[first : first + size]]
            with torch.no_grad():
                songs += compose(
                    self.model, requests, self.sampling, self.longform, seed=self.seed,
                    interventions=self.interventions,
                )  # fmt: skip
        return songs

    def songs(
        self,
        numbers: Sequence[int],
        prompts: Mapping[int, Prompt] | None = None,
        details: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> list[SearchSong]:
        """Plain songs by number, scored and kept; `prompts` are mutations by number. The budget is charged."""
        songs = {number: self.store.get(self.sample_id(number)) for number in numbers}
        absent = [number for number in numbers if songs[number] is None]
        jobs = [self.embed(number, (prompts or {}).get(number)) for number in absent]
        drafts = [
            Draft(job=job, latents=latents, nfe=self.song_nfe, details=(details or {}).get(number, {}))
            for number, job, latents in zip(absent, jobs, self.sample(jobs), strict=True)
        ]
        songs |= dict(zip(absent, self.store.add(drafts), strict=True))
        self.spend(self.song_nfe * len(numbers))
        return [song for number in numbers if (song := songs[number]) is not None]

    def keep(self, drafts: Sequence[Draft]) -> list[SearchSong]:
        """Score and keep complete songs that a method made by itself; those that are there are not made anew.

        The budget is not charged: `spend` is called where evaluations are made.
        """
        songs = [self.store.get(draft.job.job.sample_id) for draft in drafts]
        absent = [draft for draft, song in zip(drafts, songs, strict=True) if song is None]
        additions = iter(self.store.add(absent))
        return [next(additions) if song is None else song for song in songs]

    def score(self, songs: Sequence[SongLatents], span: FrameSpan | None = None) -> list[Reward]:
        """The rewards of latents that are no complete songs, or are not to be kept, by the prompt.

        With a span only these frames are decoded and scored.
        """
        return self.store.score(self.embed(0), songs, span)

    def memo(self, key: str, compute: Callable[[], Tensors]) -> Tensors:
        """Tensors under a key of this prompt, kept between runs."""
        return self.store.memo(".".join(filter(None, (self.prompt.id, self.inputs, key))), compute)


def steering_value(reward: Reward) -> float:
    """A reward as one finite number, for methods that weigh songs: the value less what is violated."""
    value = reward.value - reward.violation
    return max(value, LEAST_VALUE) if math.isfinite(value) else LEAST_VALUE


def check_method(method: "SearchMethod", sampling: SamplingConfig, budget: float) -> None:
    """ConfigError for settings that a method cannot work with, by its `check(sampling, budget)` if it has one."""
    check = getattr(method, "check", None)
    if check is not None:
        check(sampling, budget)


@runtime_checkable
class SearchMethod(Protocol):
    """A frozen dataclass of arguments; its call makes, scores and keeps songs of one prompt within the budget.

    It may have `free_arguments`, names of arguments that may grow when a finished search goes on, since what was
    made stays; `joint`, true where another budget is another search, since no search contains one of a smaller
    budget; and `check(sampling, budget)`, which raises a ConfigError for settings that it cannot work with.
    """

    def __call__(self, task: SearchTask) -> list[SearchSong]:
        """All complete songs, in the order in which they were made."""
        ...


@runtime_checkable
class GroupedMethod(Protocol):
    """A search method whose songs come in groups, none of which depends on another: processes can share them."""

    def groups(self, task: SearchTask) -> list[range]:
        """The song numbers of each group; none where a group depends on those before it."""
        ...

    def search_group(self, task: SearchTask, numbers: range) -> list[SearchSong]:
        """The complete songs of one group."""
        ...


def search_groups(method: GroupedMethod, task: SearchTask) -> list[SearchSong]:
    """The complete songs of all groups, one after another."""
    return [song for numbers in method.groups(task) for song in method.search_group(task, numbers)]


def song_groups(task: SearchTask, size: int) -> list[range]:
    """As many groups of `size` songs as the budget allows."""
    return [range(first, first + size) for first in range(0, int(task.budget) // size * size, size)]
