"""Tests of a window of fresh votes against a reference: has what listeners prefer, or what they hear, changed?

The likelihood ratio sees a change of taste: votes of the window are explained better by weights of their own. The
maximum mean discrepancy (MMD) sees a change of songs or prompts. Tests of the distribution of margins alone, such
as PSI and Kolmogorov-Smirnov, are blind to taste: the margin depends on the songs, not on who hears them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffdpo.preferences.bradley_terry import fit_weights, log_loss

REFIT_L2 = 1e-3
"""Penalty of the refits: so small that it matters only where votes are separable."""
BARTLETT_DRAWS = 40
FREQUENCIES = 128
VoteFeatures = Float[np.ndarray, "vote feature"]
VoteTargets = Float[np.ndarray, " vote"]


def likelihood_ratio(
    reference: VoteFeatures,
    targets: VoteTargets,
    window: Float[np.ndarray, "fresh feature"],
    window_targets: Float[np.ndarray, " fresh"],
) -> float:
    """Twice the gain in log-likelihood when reference and window have weights of their own.

    Rows are what may explain a vote: the margin of the reward model, and differences of features. Without a change
    it follows chi-square with as many degrees of freedom as there are columns, times the factor of
    `bartlett_factor`.
    """
    rows, votes = np.concatenate([reference, window]), np.concatenate([targets, window_targets])
    return 2 * (_loss(rows, votes) - _loss(reference, targets) - _loss(window, window_targets))


def _loss(rows: VoteFeatures, targets: VoteTargets) -> float:
    weights = fit_weights(rows, l2=REFIT_L2, targets=targets)
    return float(log_loss(rows @ weights, targets).sum())


def bartlett_factor(
    reference: VoteFeatures,
    targets: VoteTargets,
    window: int,
    rng: np.random.Generator,
    draws: int = BARTLETT_DRAWS,
) -> float:
    """The mean of the likelihood ratio without a change, as a multiple of its degrees of freedom; 1 or more.

    Short windows and many columns make it larger than chi-square says. Windows are drawn from the reference, and
    votes from the model fitted to it.
    """
    weights = fit_weights(reference, l2=REFIT_L2, targets=targets)
    values = []
    for _ in range(draws):
        places = rng.integers(len(reference), size=len(reference) + window)
        rows = reference[places]
        chance = 1 / (1 + np.exp(-np.clip(rows @ weights, -30, 30)))
        votes = (rng.random(len(rows)) < chance).astype(np.float64)
        n = len(reference)
        values.append(likelihood_ratio(rows[:n], votes[:n], rows[n:], votes[n:]))
    return max(1.0, float(np.mean(values)) / reference.shape[1])


def chi_square_p_value(ratio: float, columns: int, factor: float) -> float:
    """The p-value of a likelihood ratio."""
    from scipy.special import chdtrc

    return float(chdtrc(columns, max(ratio, 0.0) / factor))


@dataclass(frozen=True, eq=False)
class MeanDiscrepancy:
    """The maximum mean discrepancy by random Fourier features of a Gaussian kernel (Rahimi and Recht 2007).

    The kernel's width is the median distance between rows of the reference.
    """

    waves: Float[np.ndarray, "feature wave"]
    mean: Float[np.ndarray, " value"]
    """Of the values of the reference."""
    spectrum: Float[np.ndarray, " value"]
    """Eigenvalues of their covariance."""
    count: int

    @staticmethod
    def of(reference: VoteFeatures, rng: np.random.Generator) -> "MeanDiscrepancy":
        """The test against a reference of embeddings."""
        pairs = rng.integers(len(reference), size=(2000, 2))
        distances = np.linalg.norm(reference[pairs[:, 0]] - reference[pairs[:, 1]], axis=1)
        width = float(np.median(distances[distances > 0])) if (distances > 0).any() else 1.0
        waves = rng.standard_normal((reference.shape[1], FREQUENCIES)) / width
        values = _values(reference, waves)
        spectrum = np.linalg.eigvalsh(np.cov(values, rowvar=False))
        return MeanDiscrepancy(waves, values.mean(0), spectrum, len(reference))

    def p_value(self, window: VoteFeatures) -> float:
        """The p-value of the hypothesis that a window has the distribution of the reference.

        The statistic is a weighted sum of chi-squares; a gamma distribution with its first three cumulants takes
        its place (Hall, Buckley and Eagleson).
        """
        from scipy.special import gammaincc

        values = _values(window, self.waves)
        difference = values.mean(0) - self.mean
        weights = np.maximum(self.spectrum, 0) * (1 / len(values) + 1 / self.count)
        first, second, third = (float((weights**power).sum()) for power in (1, 2, 3))
        if first < 1e-12:  # a reference without any spread
            return float(np.abs(difference).max() < 1e-9)
        freedom = second**3 / third**2
        position = (float(difference @ difference) - first) / np.sqrt(2 * second) * np.sqrt(
            2 * freedom
        ) + freedom
        return float(gammaincc(freedom / 2, max(position, 0.0) / 2))


def _values(rows: VoteFeatures, waves: Float[np.ndarray, "feature wave"]) -> Float[np.ndarray, "vote value"]:
    phase = rows @ waves
    return np.concatenate([np.cos(phase), np.sin(phase)], 1) / np.sqrt(waves.shape[1])


def population_stability(
    reference: VoteTargets, window: Float[np.ndarray, " fresh"], bins: int = 10
) -> float:
    """The population stability index (PSI) of a window, over bins with equal shares of the reference.

    Above 0.2 it is often taken as a change. Of margins it is blind to a change of taste.
    """
    edges = np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1])
    shares = [
        np.maximum(np.bincount(np.searchsorted(edges, values), minlength=bins) / len(values), 1e-4)
        for values in (reference, window)
    ]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
