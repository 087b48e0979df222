"""Clarity: do tones last, is there quiet between them, do attacks stand out? A production axis to mine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from diffdpo.scorers.features import SAMPLE_RATE, ClipFeatures, mono, score_each, stft
from diffdpo.types import Clip

N_FFT, HOP = 1024, 256
LOWEST_BIN = 5
"""Bins of 21.5 Hz; below are bass and offset, whose peaks are no partials of their own."""
LAG = 4
"""Frames between two looks at a partial: 46 ms."""
PROMINENCE_DB, RANGE_DB = 10.9, 40.0
"""A partial is so far above its neighbourhood of 31 bins, and at most so far below the loudest."""
LEVEL_HOP = 220
"""Samples of a level: 10 ms."""
LEVEL_FLOOR = 1e-8
WINDOW_S = 10.0
CENTER = np.array([0.646, 14.2, 3.04])
SCALE = np.array([0.126, 6.63, 0.762])
"""Mean and deviation of the three facts over 49 windows of real songs through the tiny model's codec."""
HIGHEST, LOWEST = 1.0, -4.0
"""Each fact counts within these deviations from real songs: what is clearer than most of them gains nothing."""


@dataclass(frozen=True)
class Clarity:
    """Whether tones, the quiet between them and attacks are as distinct as in real songs after a codec.

    production.clarity  Mean of three facts in standard deviations of real windows, each cut at +1 and -4. Partials:
                        the share of spectral peaks that were there 46 ms before, too. Quiet: by how many dB the
                        stationary noise between peaks lies below the sound. Attacks: the logarithm of the kurtosis
                        of level changes over 10 ms, high where few changes are large and most are small. Silence
                        gets -4. Songs of more than ten seconds get the mean over their windows.

    Nothing is fitted but the scale of the facts. It falls for noise in latents, for latent frames in random order,
    for smeared latents and for fewer sampling steps; it is deaf to equalisation, clipping and to what is played.

    How it can be gamed: by cuts and clicks, which are attacks (a song's seconds in random order score higher), by a
    drone, by a noise gate. No fact gains more than one deviation beyond real songs.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("production.clarity",)
    traits: ClassVar[Mapping[str, str]] = {"production.clarity": "production"}
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 3.0
    weights_hash: ClassVar[str] = ""

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float]:
        samples = mono(features, at_least_s=self.shortest_s)
        if not samples.any():  # silence, or channels that cancel
            return (LOWEST,)
        count = max(1, round(len(samples) / (WINDOW_S * SAMPLE_RATE)))
        facts = np.array([clarity_facts(part) for part in np.array_split(samples, count) if part.any()])
        return (float(np.clip((facts - CENTER) / SCALE, LOWEST, HIGHEST).mean()),)


def clarity_facts(samples: Float[np.ndarray, " sample"]) -> tuple[float, float, float]:
    """Lasting partials (a share), quiet under them (dB), attacks (log kurtosis) of mono sound at SAMPLE_RATE."""
    magnitudes = np.abs(stft(samples, N_FFT, HOP))[LOWEST_BIN:].astype(np.float64)
    return lasting_share(find_partials(magnitudes)), quiet_db(magnitudes), attack_kurtosis(samples)


def find_partials(magnitudes: Float[np.ndarray, "bin frame"]) -> Bool[np.ndarray, "bin frame"]:
    """Peaks over five bins that stand out from their neighbourhood."""
    from scipy.ndimage import maximum_filter1d, uniform_filter1d

    level = 20 * np.log10(magnitudes + 3e-5)
    is_peak = maximum_filter1d(level, 5, axis=0) == level
    stands_out = level - uniform_filter1d(level, 31, axis=0) > PROMINENCE_DB
    return is_peak & stands_out & (level > level.max() - RANGE_DB)


def lasting_share(partials: Bool[np.ndarray, "bin frame"]) -> float:
    """The share of partials that are within a bin of one LAG frames before; 0 without any."""
    from scipy.ndimage import maximum_filter1d

    vicinity = maximum_filter1d(partials.astype(np.uint8), 3, axis=0)[:, :-LAG] > 0
    late = partials[:, LAG:]
    return float((late & vicinity).sum() / max(1, late.sum()))


def quiet_db(magnitudes: Float[np.ndarray, "bin frame"]) -> float:
    """dB from the stationary noise under the sound up to the sound, at most 90.

    The noise is what remains in the quietest tenth of the frames and is no peak (see `production.spectra`).
    """
    from scipy.ndimage import uniform_filter1d

    power = magnitudes**2
    tenth = power.shape[1] // 10
    quiet = np.partition(power, tenth, axis=1)[:, tenth] / -np.log(0.9)
    noise = np.minimum(quiet, uniform_filter1d(quiet, 61))
    return float(-10 * np.log10(noise.sum() / max(power.mean(1).sum(), 1e-30) + 1e-9))


def attack_kurtosis(samples: Float[np.ndarray, " sample"]) -> float:
    """Logarithm of the kurtosis of level changes over 10 ms: 1.1 for Gaussian changes, more where few are large."""
    power = (
        samples[: len(samples) // LEVEL_HOP * LEVEL_HOP].reshape(-1, LEVEL_HOP).astype(np.float64) ** 2
    ).mean(1)
    changes = np.diff(10 * np.log10(power + LEVEL_FLOOR * power.mean() + 1e-30))
    deviations = changes - changes.mean()
    return float(np.log(max(1.0, (deviations**4).mean() / max((deviations**2).mean() ** 2, 1e-12))))
