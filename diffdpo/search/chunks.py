"""Songs that grow window by window, side by side in slots, where the promising are continued in several ways.

A slot is a song number: its noise is that of the plain song of this number, for every window, whatever is
continued in it. So a population of which nothing is given up is a set of plain songs, and a result depends on
which prefix was copied how often, not on the order of the copies.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from diffdpo.errors import ConfigError
from diffdpo.sampling.longform import SongDraft, begin_draft, extend_drafts
from diffdpo.sampling.sample_jobs import EmbeddedJob, song_request
from diffdpo.sampling.sampler import planned_nfe
from diffdpo.search.task import Draft, FrameSpan, SearchSong, SearchTask, Tensors, steering_value

T = TypeVar("T")
SlotRewards = Mapping[int, float]
"""The reward of a prefix, by slot."""


@dataclass(frozen=True)
class Branch:
    """What is continued in a slot."""

    slot: int
    parent: int
    """The slot of the prefix that is continued."""
    child: int = 0
    """Number of the continuation among those of the same prefix; 0 stays in the slot of its prefix."""


def settle_copies(parents: Sequence[int], slots: Sequence[int]) -> list[Branch]:
    """Slots for copies of prefixes: of each prefix one stays where it is, the others take the slots that are free.

    `parents` names a prefix once for each copy. The free slots are taken in rising order.
    """
    free = iter([slot for slot in slots if slot not in set(parents)])
    counts: dict[int, int] = {}
    branches = []
    for parent in parents:
        child = counts.get(parent, 0)
        counts[parent] = child + 1
        branches.append(Branch(parent if child == 0 else next(free), parent, child))
    return sorted(branches, key=lambda branch: branch.slot)


def best_slots(rewards: SlotRewards, count: int) -> list[int]:
    """The slots of the largest rewards, the best first; of equals the lower slot first."""
    return sorted(rewards, key=lambda slot: (-rewards[slot], slot))[:count]


def prune(rewards: SlotRewards, survivors: int, slots: Sequence[int]) -> list[Branch]:
    """Keep the best and fill all slots with copies of them, the best first."""
    best = best_slots(rewards, survivors)
    return settle_copies([best[place % len(best)] for place in range(len(slots))], slots)


def branch_beams(rewards: SlotRewards, beams: int, width: int, slots: Sequence[int]) -> list[Branch]:
    """Keep the best as beams, and continue each in `width` ways."""
    best = best_slots(rewards, beams)
    return settle_copies([slot for slot in best for _ in range(width)], slots)


def grow(
    population: Mapping[int, T],
    turns: int,
    *,
    extend: Callable[[Mapping[int, T], int], Mapping[int, T]],
    select: Callable[[Mapping[int, T], int], Sequence[Branch]],
    branch: Callable[[T, Branch, int], T],
) -> Mapping[int, T]:
    """Extend all of a population, select what is continued in which slot, and so on; the leaves after the last
    turn.

    Nothing is selected after the last turn: leaves are complete.
    """
    for turn in range(turns):
        population = extend(population, turn)
        if turn < turns - 1:
            branches = select(population, turn)
            population = {entry.slot: branch(population[entry.parent], entry, turn) for entry in branches}
    return population


@dataclass(frozen=True, eq=False, kw_only=True)
class Prefix:
    """The beginning of a song, in a slot."""

    draft: SongDraft
    job: EmbeddedJob
    text: str | None
    """The text that its next window is made from."""
    noise: str
    """Key of its noise: a sample id."""
    lineage: tuple[int, ...] = ()
    """The slots in which its windows were made."""
    rewards: tuple[float, ...] = ()
    """The rewards of its windows but the last."""
    texts: tuple[str | None, ...] = field(default=())
    """The texts that its windows were made from."""

    @property
    def reward(self) -> float:
        """The mean over its windows."""
        return sum(self.rewards) / len(self.rewards)


def begin_prefix(task: SearchTask, job: EmbeddedJob, text: str | None, noise: str = "") -> Prefix:
    """A song of a job of which nothing exists but what an edit gives."""
    noise = noise or job.job.sample_id
    request = replace(song_request(task.model, job), sample_id=noise)
    draft = begin_draft(task.model.spec, request, task.longform)
    return Prefix(draft=draft, job=job, text=text, noise=noise)


def branch_prefix(task: SearchTask, prefix: Prefix, entry: Branch) -> Prefix:
    """A prefix that goes on in a slot: with that slot's noise, under the condition of the prefix."""
    if entry.child == 0:
        return prefix
    name = task.sample_id(entry.slot)
    job = replace(prefix.job, job=replace(prefix.job.job, sample_id=name))
    draft = prefix.draft.branch(replace(prefix.draft.request, sample_id=name))
    return replace(prefix, draft=draft, job=job, noise=name)


def extend_prefixes(task: SearchTask, population: Mapping[int, Prefix], key: str) -> dict[int, Prefix]:
    """The next window of every prefix, kept under a key; the budget is charged."""
    drafts = [prefix.draft for prefix in population.values()]

    def sample() -> Tensors:
        size = task.sampling.batch
        for first in range(0, len(drafts), size):
            extend_drafts(
                task.model, drafts[first : first + size], task.sampling, task.longform, seed=task.seed,
                interventions=task.interventions,
            )  # fmt: skip
        return {"latents": torch.stack([draft.latents[span[0] : span[1]] for draft in drafts])}

    span = _next_span(drafts[0])
    windows = task.memo(key, sample)["latents"]
    for draft, latents in zip(drafts, windows, strict=True):
        if draft.open_windows and _next_span(draft) == span:  # from an earlier run
            draft.put_window(latents)
    task.spend(planned_nfe(task.sampling) * len(drafts))
    return {
        slot: replace(prefix, lineage=(*prefix.lineage, slot), texts=(*prefix.texts, prefix.text))
        for slot, prefix in population.items()
    }


def score_prefixes(
    task: SearchTask, population: Mapping[int, Prefix], span: FrameSpan, key: str
) -> dict[int, Prefix]:
    """The population with the rewards of a span that was generated last, kept under a key."""

    def score() -> Tensors:
        songs = [prefix.draft.latents[: span[1]] for prefix in population.values()]
        values = [steering_value(reward) for reward in task.score(songs, span)]
        return {"rewards": torch.tensor(values, dtype=torch.float64)}

    values = task.memo(key, score)["rewards"].tolist()
    return {
        slot: replace(prefix, rewards=(*prefix.rewards, value))
        for (slot, prefix), value in zip(population.items(), values, strict=True)
    }


def grow_prefixes(
    task: SearchTask,
    population: Mapping[int, Prefix],
    *,
    key: str,
    score_s: float,
    select: Callable[[SlotRewards, Mapping[int, Prefix], int], Sequence[Branch]],
    branch: Callable[[Prefix, Branch, int], Prefix],
) -> Mapping[int, Prefix]:
    """The complete songs of a population; after each window but the last its end is scored, and `select` decides by
    the mean rewards of the prefixes which of them are continued where.

    Windows and rewards are kept under keys that begin with `key`.
    """
    windows = list(next(iter(population.values())).draft.open_windows)
    rate = task.model.spec.frames_per_second

    def extend(prefixes: Mapping[int, Prefix], turn: int) -> Mapping[int, Prefix]:
        prefixes = extend_prefixes(task, prefixes, f"{key}-{turn}")
        if turn == len(windows) - 1:
            return prefixes
        window = windows[turn]
        span = score_span((window.start, window.stop), score_s, rate)
        return score_prefixes(task, prefixes, span, f"{key}-{turn}-rewards")

    def choose(prefixes: Mapping[int, Prefix], turn: int) -> Sequence[Branch]:
        return select({slot: prefix.reward for slot, prefix in prefixes.items()}, prefixes, turn)

    return grow(population, len(windows), extend=extend, select=choose, branch=branch)


def finish_prefixes(
    task: SearchTask, population: Mapping[int, Prefix], details: Mapping[int, Mapping[str, Any]]
) -> list[SearchSong]:
    """The complete songs of a population, scored and kept."""
    drafts = [
        Draft(
            job=prefix.job,
            latents=prefix.draft.latents,
            nfe=task.song_nfe,
            details={
                "lineage": list(prefix.lineage),
                "prefix_rewards": list(prefix.rewards),
                **details.get(slot, {}),
            },
        )
        for slot, prefix in population.items()
    ]
    return task.keep(drafts)


def score_span(window: FrameSpan, seconds: float, frames_per_second: float) -> FrameSpan:
    """The frames of a window that are scored: its last `seconds`; from the song's beginning on for 0."""
    first, stop = window
    return (0, stop) if not seconds else (max(first, stop - max(1, round(seconds * frames_per_second))), stop)


def check_chain(task: SearchTask, method: str) -> None:
    """ConfigError for long songs whose windows are made together."""
    if task.longform.method != "continue" and task.windows > 1:
        raise ConfigError(
            f"prompt {task.prompt.id!r}: search.method={method} needs windows one after another; "
            "set longform.method=continue"
        )


def _next_span(draft: SongDraft) -> FrameSpan:
    window = draft.open_windows[0]
    return window.start, window.stop
