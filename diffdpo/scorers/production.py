"""Production: does it sound like a finished recording?"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from diffdpo.scorers.features import ClipFeatures, clip_run_ratio, range_score, score_each, stft
from diffdpo.types import Clip

PRODUCTION_STFT = 2048


@dataclass(frozen=True)
class Production:
    """Balance of a master: the geometric mean of seven parts, each 1 where real masters lie, less beyond.

    loudness range    spread of 400 ms levels, 5th to 95th percentile (after EBU Tech 3342): 2 to 8 dB
    crest factor      11 to 17 dB; over-compression lowers it, lone clicks raise it
    clipping          at most one sample in 10,000 lies in a run at its channel's peak, wherever that is
    bandwidth         15 kHz and more, the noise floor taken off
    brilliance        8 kHz and above hold -35 to -20 dB of the power, the noise floor taken off
    noise floor       between 4 kHz and the top at most -36 dB
    stereo            correlation of the channels 0.3 to 0.95; mono is 1 and loses a little, opposite phase
                      much

    production.balance lies in [0, 1]; songs mostly above 0.7, silence 0. The ranges hold the middle half of
    64 freely licensed game songs and somewhat more, but only the quieter half of their noise floors.

    How it can be gamed: static, well-equalised sound of any content passes; a noise gate hides the noise
    floor, flickering hiss above 15 kHz buys bandwidth. Lo-fi and solo recordings score low without being
    bad, and so does everything from a model whose sample rate is below 30 kHz. A gate and a tie-break, not a
    goal.
    """

    version: ClassVar[str] = "2"
    axes: ClassVar[tuple[str, ...]] = ("production.balance",)
    traits: ClassVar[Mapping[str, str]] = {"production.balance": "production"}
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 1.0
    weights_hash: ClassVar[str] = ""

    def __call__(self, clips: Sequence[Clip]) -> Float[np.ndarray, "clip axis"]:
        return score_each(clips, self.score_features, len(self.axes))

    def score_features(self, features: ClipFeatures) -> tuple[float]:
        clip = features.clip
        if not clip.samples.any():
            return (0.0,)
        mean, floor = spectra(clip)
        music = np.maximum(mean - 1.3 * floor, 0)  # or hiss would pass for treble
        hertz = np.fft.rfftfreq(PRODUCTION_STFT, 1 / clip.sample_rate)
        parts = (
            range_score(loudness_range(clip), 2.0, 8.0, soft_low=1.2, soft_high=5.0),
            range_score(crest_factor(clip), 11.0, 17.0, soft_low=2.0, soft_high=3.0),
            range_score(clip_run_ratio(clip.samples), 0.0, 1e-4, soft_low=1.0, soft_high=1e-3),
            range_score(bandwidth(music, hertz), 15_000.0, math.inf, soft_low=4_000.0, soft_high=1.0),
            range_score(share_db(music[hertz >= 8_000], mean), -35.0, -20.0, soft_low=8.0, soft_high=5.0),
            range_score(
                share_db(floor[hertz >= 4_000], mean), -math.inf, -36.0, soft_low=1.0, soft_high=10.0
            ),
            range_score(correlation(clip), 0.3, 0.95, soft_low=0.3, soft_high=0.07),
        )
        # one bad part cannot be outweighed by good ones
        return (float(np.prod(parts) ** (1 / len(parts))),)


def loudness_range(clip: Clip) -> float:
    """dB between the 5th and 95th percentile of the levels of 400 ms, those 20 dB below the mean left out."""
    power = (clip.samples.astype(np.float64) ** 2).mean(0)
    width, hop = min(len(power), int(0.4 * clip.sample_rate)), max(1, int(0.1 * clip.sample_rate))
    total = np.concatenate([[0.0], np.cumsum(power)])
    starts = np.arange(0, len(power) - width + 1, hop)
    blocks = (total[starts + width] - total[starts]) / width
    loud = blocks[blocks >= 0.01 * blocks.mean()]
    low, high = np.percentile(10 * np.log10(np.maximum(loud, 1e-12)), [5, 95])
    return float(high - low)


def crest_factor(clip: Clip) -> float:
    """Peak over root mean square, in dB: 3 for a sine, 12 to 16 for songs, less for what was clipped."""
    samples = clip.samples.astype(np.float64)
    return float(20 * np.log10(np.abs(samples).max() / np.sqrt((samples**2).mean())))


def spectra(clip: Clip) -> tuple[Float[np.ndarray, " bin"], Float[np.ndarray, " bin"]]:
    """Mean power spectrum of a clip, and the spectrum of the stationary noise under the music.

    The noise is the power that remains in the quietest tenth of the frames (minimum statistics: Martin 2001) and
    is not a peak among its neighbours. For white noise the 10th percentile of the power is 0.105 of its
    mean.
    """
    from scipy.ndimage import median_filter

    samples = clip.samples.astype(np.float32)
    samples = np.pad(samples, ((0, 0), (0, max(0, PRODUCTION_STFT - samples.shape[1]))))
    power = (np.abs(stft(samples, PRODUCTION_STFT, PRODUCTION_STFT // 2)) ** 2).mean(0)
    mean = power.mean(1, dtype=np.float64)
    tenth = power.shape[1] // 10
    quiet = np.partition(power, tenth, axis=1)[:, tenth] / -math.log(0.9)
    return mean, median_filter(quiet.astype(np.float64), 61, mode="nearest")


def bandwidth(power: Float[np.ndarray, " bin"], hertz: Float[np.ndarray, " bin"]) -> float:
    """Upper edge, in Hz, of the highest third-octave band less than 70 dB below the strongest."""
    edges = 100 * 2 ** (np.arange(math.floor(3 * math.log2(hertz[-1] / 100)) + 1) / 3)
    cuts = np.searchsorted(hertz, edges)
    bands = np.array([power[a : max(b, a + 1)].mean() for a, b in itertools.pairwise(cuts)])
    return float(edges[1:][bands >= 1e-7 * bands.max()][-1]) if bands.any() else 0.0


def share_db(part: Float[np.ndarray, " bin"], spectrum: Float[np.ndarray, " all_bins"]) -> float:
    """Power of a part of the spectrum as a share of all, in dB, no lower than -80."""
    return float(10 * np.log10(max(part.sum() / max(spectrum.sum(), 1e-30), 1e-8)))


def correlation(clip: Clip) -> float:
    """Correlation of left and right: 1 for mono, 0 for unrelated channels, -1 for opposite phase."""
    if clip.samples.shape[0] == 1:
        return 1.0
    left, right = clip.samples.astype(np.float64)
    left, right = left - left.mean(), right - right.mean()
    return float(left @ right / max(math.sqrt((left @ left) * (right @ right)), 1e-30))
