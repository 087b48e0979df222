"""The search for the songs of one prompt, and what it found: winners, gain, divergence, cost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffdpo.evaluation.best_of_n import best_of_n_kl, best_of_n_weights
from diffdpo.search.reward import rank
from diffdpo.search.task import SearchMethod, SearchSong, SearchTask

POWERS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The songs of one prompt, the best first."""

    prompt_id: str
    songs: tuple[SearchSong, ...]
    nfe: int
    """Network evaluations of the whole search."""
    song_nfe: int
    """Network evaluations of a plain song."""

    @property
    def winner(self) -> SearchSong:
        """The best song."""
        return self.songs[0]

    @property
    def cost(self) -> float:
        """Cost in songs' worth of network evaluations."""
        return self.nfe / self.song_nfe


def search_prompt(task: SearchTask, method: SearchMethod) -> SearchResult:
    """Search for the songs of one prompt."""
    songs = method(task)
    order = rank([song.reward for song in songs])
    return SearchResult(
        prompt_id=task.prompt.id,
        songs=tuple(songs[place] for place in order),
        nfe=task.nfe,
        song_nfe=task.song_nfe,
    )


@dataclass(frozen=True)
class ChoiceGain:
    """What the choice of the best of n exchangeable songs gains on average over a plain song, and at which
    divergence."""

    n: int
    gain: float
    kl: float
    """An upper bound, in nats: log n - (n - 1) / n."""


def choice_gains(rewards: Sequence[Sequence[float]]) -> list[ChoiceGain]:
    """The gain of the best of 1, 2, 4, … songs, by exact order statistics over the songs of each prompt.

    `rewards` are those of plain songs, by prompt. The mean over prompts, up to the smallest number of songs.
    """
    columns = [np.asarray([r for r in row if np.isfinite(r)], np.float64) for row in rewards]
    columns = [column for column in columns if len(column)]
    largest = min(map(len, columns), default=0)
    return [
        ChoiceGain(
            n,
            float(np.mean([best_of_n_weights(column, n) @ column - column.mean() for column in columns])),
            best_of_n_kl(n),
        )
        for n in sorted({*(n for n in POWERS if n <= largest), *([largest] if largest else [])})
    ]
