"""The posterior covariance of utilities, without a matrix over all songs.

Votes connect songs into components, often one for each prompt; given the raters, songs of two components are
independent. The covariance is the inverse of each component's block and a part of low rank that the raters share
(Schur's complement).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False, kw_only=True)
class Curvature:
    """Second derivatives of minus a log-posterior."""

    weight: Float[np.ndarray, " vote"]
    """Of each vote, by the difference of its two utilities."""
    precision: Float[np.ndarray, " song"]
    """Of the prior of utilities."""
    cross: Float[np.ndarray, "song effect"]
    """Between utilities and everything else: the effects of raters, and ties."""
    corner: Float[np.ndarray, "effect effect"]
    """Among the effects."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RankingPosterior:
    """The covariance of utilities: inverse blocks of components, plus factor · core · factorᵀ."""

    component: Int[np.ndarray, " song"]
    """The component of each song."""
    place: Int[np.ndarray, " song"]
    """Where the song is in the block of its component."""
    blocks: tuple[Float[np.ndarray, "member member"], ...]
    factor: Float[np.ndarray, "song effect"]
    core: Float[np.ndarray, "effect effect"]
    """The covariance of the effects."""

    @property
    def rater_deviations(self) -> Float[np.ndarray, " effect"]:
        """Standard deviations of the effects."""
        return np.sqrt(np.maximum(self.core.diagonal(), 0))

    def covariance(self, first: Int[np.ndarray, " n"], second: Int[np.ndarray, " n"]) -> np.ndarray:
        """Covariance of the utilities of each two songs."""
        inside = np.array(
            [
                self.blocks[self.component[i]][self.place[i], self.place[j]]
                if self.component[i] == self.component[j]
                else 0.0
                for i, j in zip(first, second, strict=True)
            ]
        )
        return inside + np.einsum("nq,nq->n", self.factor[first] @ self.core, self.factor[second])

    def deviation(self, first: Int[np.ndarray, " n"], second: Int[np.ndarray, " n"]) -> np.ndarray:
        """Standard deviation of the difference of the utilities of each two songs."""
        variance = self.covariance(first, first) + self.covariance(second, second)
        return np.sqrt(np.maximum(variance - 2 * self.covariance(first, second), 0))

    def among(self, songs: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
        """The covariance matrix of some songs."""
        matrix = self.factor[songs] @ self.core @ self.factor[songs].T
        for number in np.unique(self.component[songs]):
            inside = np.flatnonzero(self.component[songs] == number)
            place = self.place[songs[inside]]
            matrix[np.ix_(inside, inside)] += self.blocks[number][np.ix_(place, place)]
        return matrix

    def centre(
        self, utility: Float[np.ndarray, " song"], labels: Int[np.ndarray, " song"] | None = None
    ) -> tuple[Float[np.ndarray, " song"], Float[np.ndarray, " song"]]:
        """Utility minus the mean of the songs with the same label, and the standard deviation of that difference.

        Labels are the components by default. Songs with a negative label have NaN.
        """
        labels = self.component if labels is None else labels
        values, deviations = np.full(len(utility), np.nan), np.full(len(utility), np.nan)
        for label in np.unique(labels[labels >= 0]):
            songs = np.flatnonzero(labels == label)
            matrix = self.among(songs)
            variance = matrix.diagonal() - 2 * matrix.mean(1) + matrix.mean()
            values[songs] = utility[songs] - utility[songs].mean()
            deviations[songs] = np.sqrt(np.maximum(variance, 0))
        return values, deviations


def song_components(
    songs: int, first: Int[np.ndarray, " vote"], second: Int[np.ndarray, " vote"]
) -> Int[np.ndarray, " song"]:
    """A number for each song, the same for songs that votes connect."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first)), (first, second)), (songs, songs))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def invert_curvature(
    curvature: Curvature, first: Int[np.ndarray, " vote"], second: Int[np.ndarray, " vote"]
) -> RankingPosterior:
    """The covariance at a mode whose votes are between these songs."""
    component = song_components(len(curvature.precision), first, second)
    place = np.zeros(len(component), np.int64)
    factor, blocks = np.zeros_like(curvature.cross), []
    order = np.argsort(component[first], kind="stable")
    ends = np.searchsorted(component[first][order], np.arange(component.max(initial=-1) + 2))
    members = np.argsort(component, kind="stable")
    member_ends = np.searchsorted(component[members], np.arange(component.max(initial=-1) + 2))
    for number in range(len(ends) - 1):
        songs = members[member_ends[number] : member_ends[number + 1]]
        votes = order[ends[number] : ends[number + 1]]
        place[songs] = np.arange(len(songs))
        block = np.diag(curvature.precision[songs])
        i, j, weight = place[first[votes]], place[second[votes]], curvature.weight[votes]
        for rows, columns, sign in ((i, i, 1), (j, j, 1), (i, j, -1), (j, i, -1)):
            np.add.at(block, (rows, columns), sign * weight)
        blocks.append(np.linalg.inv(block))
        factor[songs] = blocks[-1] @ curvature.cross[songs]
    core = np.linalg.pinv(curvature.corner - curvature.cross.T @ factor, hermitian=True)
    return RankingPosterior(component=component, place=place, blocks=tuple(blocks), factor=factor, core=core)
