"""Votes as numbers: pairs of rows of features, and the same on components of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from diffdpo.preferences.bradley_terry import PairColumn


@dataclass(frozen=True, kw_only=True, eq=False)
class VoteDesign:
    """Votes as numbers: pairs of rows of features. A vote on songs of several windows is several pairs."""

    rows: Float[np.ndarray, "row feature"]
    first: Int[np.ndarray, " pair"]
    """Row of the song on the left."""
    second: Int[np.ndarray, " pair"]
    targets: PairColumn
    """1 where the first won, 0.5 for a tie."""
    ties: Bool[np.ndarray, " pair"]
    counts: PairColumn
    """How much a pair counts: 1 over the number of pairs of its vote."""
    groups: Shaped[np.ndarray, " pair"]
    """The prompt group."""
    raters: Shaped[np.ndarray, " pair"]
    vote: Int[np.ndarray, " pair"]
    """The number of the vote."""

    def take(self, places: Shaped[np.ndarray, " _"]) -> "VoteDesign":
        """Some of the pairs, by a mask or by places."""
        names = ("first", "second", "targets", "ties", "counts", "groups", "raters", "vote")
        return replace(self, **{name: getattr(self, name)[places] for name in names})


@dataclass(frozen=True, eq=False)
class ComponentVotes:
    """Votes on rows of components."""

    rows: Float[np.ndarray, "row component"]
    votes: VoteDesign
    slopes: PairColumn
    """What the margin of each pair is multiplied by: how much its listener agrees with the others."""
    nu: float


class MergedVotes(NamedTuple):
    """Votes on each pair of rows together: the loss is linear in the target, so their mean is as good as all."""

    differences: Float[np.ndarray, "pair component"]
    targets: PairColumn
    counts: PairColumn


def merge_votes(data: ComponentVotes, counts: PairColumn) -> MergedVotes:
    """Votes that count, merged by pair of rows and by slope, with sides exchanged where that joins two pairs."""
    votes = data.votes
    usable = counts > 0
    first, second = votes.first[usable], votes.second[usable]
    low, high = np.minimum(first, second), np.maximum(first, second)
    targets = np.where(first <= second, votes.targets[usable], 1 - votes.targets[usable])
    key = np.stack([low, high, data.slopes[usable]], axis=1)
    pairs, place = np.unique(key, axis=0, return_inverse=True)
    place = place.reshape(-1)
    total = np.bincount(place, weights=counts[usable])
    mean = np.bincount(place, weights=counts[usable] * targets) / total
    rows = data.rows
    differences = (rows[pairs[:, 0].astype(int)] - rows[pairs[:, 1].astype(int)]) * pairs[:, 2:]
    return MergedVotes(differences, mean, total)


def design_of(
    songs: Sequence[Float[np.ndarray, "_ _"]],
    first: Sequence[int],
    second: Sequence[int],
    targets: Sequence[float],
    *,
    ties: Sequence[bool],
    groups: Sequence[str],
    raters: Sequence[str],
) -> VoteDesign:
    """Votes on songs, each with one or several rows of features; windows of the two are paired in their order."""
    starts = np.cumsum([0, *(len(song) for song in songs)])
    pairs = [
        (starts[a] + i % len(songs[a]), starts[b] + i % len(songs[b]), vote)
        for vote, (a, b) in enumerate(zip(first, second, strict=True))
        for i in range(max(len(songs[a]), len(songs[b])))
    ]
    table = np.array(pairs, dtype=int).reshape(-1, 3)
    vote = table[:, 2]
    return VoteDesign(
        rows=np.concatenate(list(songs)),
        first=table[:, 0],
        second=table[:, 1],
        targets=np.asarray(targets, np.float64)[vote],
        ties=np.asarray(ties, bool)[vote],
        counts=1 / np.bincount(vote, minlength=len(targets))[vote],
        groups=np.asarray(groups)[vote],
        raters=np.asarray(raters)[vote],
        vote=vote,
    )
