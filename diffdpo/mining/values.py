"""The values of mining: songs with their scores, and preferences. Frozen; the module imports numpy only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One generated song with its scores. Bigger is better on every axis."""

    prompt_id: str
    group: str
    """The prompt's group: prompts of one group never fall on both sides of a split."""
    sample_id: str
    scores: Mapping[str, float]
    """Value on each axis."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Generated songs with their scores as columns: a million songs are one matrix and three lists."""

    prompt_ids: Sequence[str]
    groups: Sequence[str]
    sample_ids: Sequence[str]
    axes: tuple[str, ...]
    scores: Float[np.ndarray, "candidate axis"]
    """Bigger is better on every axis; NaN for a song without a score there."""

    def __post_init__(self) -> None:
        if len(set(self.sample_ids)) < len(self.sample_ids):
            raise ValueError("two candidates have the same sample id")

    def __len__(self) -> int:
        return len(self.sample_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptCandidates:
    """The candidates of one prompt that have a finite score on every axis, ordered by sample id."""

    prompt_id: str
    group: str
    sample_ids: tuple[str, ...]
    scores: Float[np.ndarray, "candidate axis"]
    """The scores, or what a utility makes of them."""
    z: Float[np.ndarray, "candidate axis"]
    """The scores in standard deviations from their mean over these candidates; 0 on an axis of ties. With a utility
    the utilities, from their mean, in standard deviations of the scores."""
    count: int
    """Candidates of the prompt, with those that lack a score."""
    song: str = ""
    """Id of the data set's song whose caption the prompt is; empty for a prompt of no song."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A preference: of two songs for one prompt, the winner is the better one."""

    prompt_id: str
    group: str
    winner: str
    loser: str
    rule: str
    margins: Mapping[str, float]
    """Winner minus loser on every axis, in standard deviations within the prompt."""
    soft_label: float = 1.0
    """Probability that the winner really is the better one."""
    axis: str = ""
    """The axis the pair was chosen on; empty when several decided together."""
    spans: tuple[tuple[float, float], ...] = ()
    """Stretches (start, stop) in seconds that the preference is about; none for the whole song."""
    is_real: bool = False
    """Whether the winner is a song of a data set; else both are generated."""
    winner_start: int = 0
    """First frame of the winner's crop, which is as long as the loser; for songs of a data set."""


@dataclass(frozen=True)
class MinedPairs:
    """The pairs of a rule, and for every prompt without one the reason."""

    pairs: tuple[Pair, ...]
    reasons: Mapping[str, str]


def to_candidates(songs: Iterable[Candidate], axes: Sequence[str]) -> Candidates:
    """Songs as columns, with these axes."""
    rows = list(songs)
    scores = [[song.scores.get(axis, np.nan) for axis in axes] for song in rows]
    return Candidates(
        prompt_ids=[song.prompt_id for song in rows],
        groups=[song.group for song in rows],
        sample_ids=[song.sample_id for song in rows],
        axes=tuple(axes),
        scores=np.array(scores, np.float64).reshape(len(rows), len(axes)),
    )
