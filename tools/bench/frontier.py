"""One point of the frontier: what a way of making songs gains on witnesses, at which divergence from the base.

A way is a set of songs with weights within their prompt: all songs of a model alike, or the candidates of the base
with their probabilities to be the best of N.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from diffdpo.evaluation.band import BAND_WITNESSES, in_band_shares, real_bands
from diffdpo.evaluation.best_of_n import (
    best_of_n_weights,
    equivalent_n,
    gain_curve,
    prompt_places,
    selection_scores,
)
from diffdpo.evaluation.composites import CompositeScale, WitnessValues
from diffdpo.evaluation.distances import frechet_distance, kernel_distances, median_bandwidth
from diffdpo.evaluation.real_songs import RealSongs
from diffdpo.statistics import Interval, MeanEstimate, estimate_mean
from tools.bench.measure import round_values

SONGS_OF_A_PROMPT = 2
"""Songs of a prompt in a set whose distance to real songs is measured: sets of one size can be compared."""
DISTANCE_DRAWS = 8
"""Sets drawn by the weights, whose distances are averaged."""
RESAMPLES = 499


@dataclass(frozen=True, eq=False)
class SongSet:
    """Songs with their scores, and the weight of each within its prompt."""

    prompts: tuple[str, ...]
    scores: WitnessValues
    weights: Float[np.ndarray, " song"]
    """They sum to one within each prompt."""

    @property
    def places(self) -> dict[str, Any]:
        """The places of each prompt's songs."""
        return prompt_places(self.prompts)

    def prompt_means(self, values: Float[np.ndarray, " song"]) -> Float[np.ndarray, " prompt"]:
        """The weighted mean of each prompt, prompts in the order of their names."""
        return np.array([self.weights[rows] @ values[rows] for rows in self.places.values()])

    def prompt_variances(self, values: Float[np.ndarray, " song"]) -> Float[np.ndarray, " prompt"]:
        """The variance within each prompt, unbiased; NaN for a prompt with one song that has weight."""
        variances = []
        for rows in self.places.values():
            weights, column = self.weights[rows], values[rows]
            freedom = 1 - (weights**2).sum()
            square = weights @ (column - weights @ column) ** 2
            variances.append(square / freedom if freedom > 1e-9 else np.nan)
        return np.array(variances)


def even_songs(prompts: Sequence[str], scores: WitnessValues) -> SongSet:
    """Songs of equal weight within their prompt."""
    counts = {name: len(rows) for name, rows in prompt_places(prompts).items()}
    return SongSet(tuple(prompts), scores, np.array([1 / counts[name] for name in prompts]))


def best_songs(songs: SongSet, n: int) -> SongSet:
    """The same songs with their probabilities to be the best of n of their prompt, by the axes of selection."""
    selection = selection_scores(songs.scores, songs.prompts)
    weights = np.zeros(len(songs.prompts))
    for rows in songs.places.values():
        weights[rows] = best_of_n_weights(selection[rows], n)
    return SongSet(songs.prompts, songs.scores, weights)


def measure_songs(songs: SongSet, base: SongSet, scale: CompositeScale, real: RealSongs) -> dict[str, Any]:
    """Composites, in-band share, spread and distance of songs, compared with the base's on the same prompts.

    Composites are in standard deviations of the base's evaluation songs, intervals over prompts.
    """
    bands = real_bands({axis: real.column(axis) for axis in BAND_WITNESSES})
    names = sorted(songs.places)
    columns = scale.values(songs.scores)
    base_columns = scale.values(base.scores)
    gains = {
        name: estimate_mean(songs.prompt_means(columns[name]) - base.prompt_means(base_columns[name]), names)
        for name in columns
    }
    shares = [side.prompt_means(in_band_shares(side.scores, bands)) for side in (songs, base)]
    return {
        "composites": {name: _numbers(gain) for name, gain in gains.items()},
        "in_band": {
            "share": float(f"{shares[0].mean():.4g}"),
            "base": float(f"{shares[1].mean():.4g}"),
            "change": _numbers(estimate_mean(shares[0] - shares[1], names)),
        },
        "distance": distance_to_real(songs, scale, real),
        "spread": spread_ratios(songs, base),
    }


def best_of_n_equivalent(songs: SongSet, base: SongSet, candidates: SongSet, scale: CompositeScale) -> str:
    """The N at which best-of-N of the candidates gains as much W.all as songs have over the base's, in words.

    All three are of the same prompts.
    """
    columns = [scale.values(side.scores)["W.all"] for side in (songs, base, candidates)]
    change = songs.prompt_means(columns[0]) - base.prompt_means(columns[1])
    selection = selection_scores(candidates.scores, candidates.prompts)
    curve = gain_curve(selection, columns[2], candidates.prompts)
    return equivalent_n(curve, change, list(songs.places)).text()


def spread_ratios(songs: SongSet, base: SongSet) -> dict[str, float | None]:
    """The spread of each witness within the prompt, in that of the base; None where songs of one prompt are one."""
    ratios: dict[str, float | None] = {}
    for axis in BAND_WITNESSES:
        before, after = (side.prompt_variances(side.scores[axis]).mean() for side in (base, songs))
        ratio = float(np.sqrt(after / before)) if before > 0 else np.nan
        ratios[axis] = float(f"{ratio:.4g}") if np.isfinite(ratio) else None
    return ratios


def distance_to_real(songs: SongSet, scale: CompositeScale, real: RealSongs) -> dict[str, Any]:
    """Fréchet and kernel distance of the nine witnesses' vectors to real windows of all styles.

    Each witness is in standard deviations of the real windows. The interval, of the kernel distance, is a
    percentile bootstrap over prompts and real songs, which is too narrow over few of them.
    """
    windows = real.matrix(BAND_WITNESSES)
    mean, deviation = windows.mean(0), windows.std(0, ddof=1)
    windows = (windows - mean) / deviation
    vectors = (np.stack([songs.scores[axis] for axis in BAND_WITNESSES], axis=1) - mean) / deviation
    rng, bandwidth = np.random.default_rng(0), median_bandwidth(windows)
    draws = [_draw_rows(songs, rng) for _ in range(DISTANCE_DRAWS)]
    names = [songs.prompts[row] for row in draws[0]]
    kernel = kernel_distances(
        windows, real.song, vectors[draws[0]], names, bandwidth, resamples=RESAMPLES
    )  # fmt: skip
    interval = Interval.of(kernel[np.isfinite(kernel)])
    return round_values(
        {
            "frechet": float(np.mean([frechet_distance(windows, vectors[rows]) for rows in draws])),
            "kernel": interval.value,
            "low": interval.low,
            "high": interval.high,
        }
    )


def _draw_rows(songs: SongSet, rng: np.random.Generator) -> list[int]:
    """Two songs of each prompt by their weights, without replacement as far as so many have weight."""
    rows: list[int] = []
    for places in songs.places.values():
        weights = songs.weights[places]
        count = min(SONGS_OF_A_PROMPT, int((weights > 0).sum()))
        rows += rng.choice(places, count, replace=False, p=weights / weights.sum()).tolist()
    return rows


def _numbers(estimate: MeanEstimate) -> dict[str, float]:
    interval = estimate.interval()
    return round_values({"mean": interval.value, "low": interval.low, "high": interval.high})


def as_value(numbers: Mapping[str, float], digits: int = 2) -> str:
    """A mean with its interval in a cell of a table."""
    return f"{numbers['mean']:+.{digits}f} ({numbers['low']:+.{digits}f} {numbers['high']:+.{digits}f})"
