"""Whether axes measure what they claim: correlations within prompts, reliability, convergence by trait.

All is about songs of the same prompt, since that is what mining compares: values are taken as differences from the
mean of their prompt. Intervals are over prompts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffdpo.evaluation.best_of_n import best_of_n_weights, prompt_places
from diffdpo.statistics import MIN_CLUSTERS, Effect, Interval, estimate_mean, paired_effect

AxisColumns = Mapping[str, Float[np.ndarray, " _"]]
"""The values of each axis, song by song; NaN where a song has none."""
UNKNOWN = Interval(math.nan, math.nan, math.nan)
"""Where there is nothing to compute an interval from."""
ROUNDING = 1e-12
"""Share of the variance that is rounding."""


def prompt_residuals(
    values: Float[np.ndarray, "song *column"], prompts: Sequence[str]
) -> Float[np.ndarray, "song *column"]:
    """Values less the mean of their prompt."""
    residuals = np.array(values, dtype=np.float64)
    for places in prompt_places(prompts).values():
        residuals[places] -= residuals[places].mean(0)
    return residuals


def texture_residuals(
    values: Float[np.ndarray, " song"],
    covariates: Float[np.ndarray, "song covariate"],
    prompts: Sequence[str],
) -> Float[np.ndarray, " song"]:
    """What is left of values within prompts once the covariates' best linear prediction is taken off."""
    residuals = prompt_residuals(values, prompts)
    if not covariates.shape[1]:
        return residuals
    design = prompt_residuals(covariates, prompts)
    deviations = design.std(0)
    design = design[:, deviations > 0] / deviations[deviations > 0]
    return residuals - design @ np.linalg.lstsq(design, residuals, rcond=None)[0]


def within_correlation(
    first: Float[np.ndarray, " song"],
    second: Float[np.ndarray, " song"],
    prompts: Sequence[str],
    covariates: Float[np.ndarray, "song covariate"] | None = None,
    *,
    level: float = 0.95,
) -> Interval:
    """The correlation of two axes within prompts, pooled over prompts, with covariates held constant.

    The interval is that of a mean over prompts for the correlation's linearisation (its influence function) on the
    scale of Fisher's z, so that it stays between -1 and 1. Songs without a finite value are left out, and so are
    prompts that have one song then. `UNKNOWN` where an axis does not vary, or with fewer than two prompts, or
    with no more songs than prompts, covariates and two.
    """
    columns = [first, second] if covariates is None else [first, second, *covariates.T]
    usable = _usable_songs(np.stack(columns, axis=1), prompts)
    names = [prompt for prompt, is_usable in zip(prompts, usable, strict=True) if is_usable]
    controls = np.zeros((len(names), 0)) if covariates is None else covariates[usable]
    if len(set(names)) < 2 or len(names) <= len(set(names)) + controls.shape[1] + 2:
        return UNKNOWN
    residuals = [texture_residuals(values[usable], controls, names) for values in (first, second)]
    deviations = [math.sqrt(float((part**2).mean())) for part in residuals]
    scales = [max(1.0, float(np.abs(values[usable]).max())) for values in (first, second)]
    if any(deviation <= ROUNDING * scale for deviation, scale in zip(deviations, scales, strict=True)):
        return UNKNOWN
    u, v = (part / deviation for part, deviation in zip(residuals, deviations, strict=True))
    correlation = float((u * v).mean())
    if abs(correlation) > 1 - 1e-9:
        return Interval(math.copysign(1.0, correlation), *[math.copysign(1.0, correlation)] * 2)
    influence = (u * v - correlation * (u**2 + v**2) / 2) / (1 - correlation**2)
    interval = estimate_mean(math.atanh(correlation) + influence, names).interval(level)
    return Interval(correlation, math.tanh(interval.low), math.tanh(interval.high))


def _usable_songs(columns: Float[np.ndarray, "song column"], prompts: Sequence[str]) -> np.ndarray:
    """A mask of the songs with finite values whose prompt has two of them or more."""
    usable = np.isfinite(columns).all(1)
    for places in prompt_places(prompts).values():
        if usable[places].sum() < 2:
            usable[places] = False
    return usable


def spearman_brown(correlation: Interval) -> Interval:
    """The reliability of a song's score from the correlation of its two halves': 2 r / (1 + r), -1 at the least.

    NaN where there is no correlation, as of scores that are the same for all halves.
    """
    return Interval(*(_double_length(r) for r in (correlation.value, correlation.low, correlation.high)))


def _double_length(correlation: float) -> float:
    return -1.0 if correlation <= -1 / 3 else 2 * correlation / (1 + correlation)  # NaN stays NaN


def half_reliability(
    halves: tuple[Float[np.ndarray, " song"], Float[np.ndarray, " song"]], prompts: Sequence[str]
) -> Interval:
    """The reliability of an axis within prompts, from the scores of the first and the second half of each song.

    It says nothing of axes of form: half a song has another form.
    """
    return spearman_brown(within_correlation(*halves, prompts))


def disattenuate(correlation: float, *reliabilities: float) -> float:
    """A correlation as it were without errors of measurement: divided by the root of the product of reliabilities.

    NaN where a reliability is not positive. Above 1 where reliabilities are too low by chance.
    """
    product = math.prod(reliabilities)
    return correlation / math.sqrt(product) if min(reliabilities) > 0 else math.nan


def trait_composite(columns: AxisColumns, axes: Sequence[str]) -> Float[np.ndarray, " song"]:
    """The mean of some axes, each in standard deviations over all songs; NaN where one of them has no value.

    An axis that is the same for all songs adds nothing.
    """
    parts = []
    for axis in axes:
        values = columns[axis]
        deviation = float(np.nanstd(values)) if np.isfinite(values).any() else 0.0
        parts.append((values - np.nanmean(values)) / deviation if deviation > 0 else values * 0.0)
    return np.mean(parts, axis=0)


def ladder_effect(
    candidates: Float[np.ndarray, " song"],
    worse: Float[np.ndarray, " worse_song"],
    prompts: Sequence[str],
    worse_prompts: Sequence[str],
    counterparts: Sequence[int | None],
) -> Effect:
    """How much higher the candidates score than worse songs of the same prompts, in deviations of the candidates.

    `counterparts` has the candidate of the same noise for each worse song, or None: then it is compared with the
    mean of its prompt's candidates. Worse songs whose prompt has no candidates are left out. The interval is over
    prompts; with fewer than two songs it is unbounded.
    """
    deviation = float(np.nanstd(candidates, ddof=1)) if np.isfinite(candidates).sum() > 1 else math.nan
    if not deviation > 0:
        return _no_effect()
    places = prompt_places(prompts)
    means = {
        name: float(np.nanmean(candidates[i])) for name, i in places.items() if _any_finite(candidates[i])
    }
    counterpart_values = np.array(
        [
            candidates[place] if place is not None else means.get(prompt, math.nan)
            for place, prompt in zip(counterparts, worse_prompts, strict=True)
        ]
    )
    usable = np.isfinite(counterpart_values) & np.isfinite(worse)
    if usable.sum() < 2:
        return _no_effect()
    names = [prompt for prompt, is_usable in zip(worse_prompts, usable, strict=True) if is_usable]
    return paired_effect(worse[usable] / deviation, counterpart_values[usable] / deviation, names)


def _no_effect() -> Effect:
    return Effect(math.nan, -math.inf, math.inf, math.nan, math.nan, 0, 0)


def _any_finite(values: Float[np.ndarray, " song"]) -> bool:
    return bool(np.isfinite(values).any())


def transfer_gains(
    selection: Float[np.ndarray, " song"],
    targets: AxisColumns,
    prompts: Sequence[str],
    n: int,
) -> dict[str, Interval]:
    """The gain of the best of n songs of a prompt by `selection` on each target, in deviations of the target.

    Exact order statistics over the stored songs, averaged over prompts. Songs without a finite value of the
    selection are left out, and so are prompts with fewer than n songs; `UNKNOWN` for a target that has songs
    without a value, or that is the same for all.
    """
    usable = np.isfinite(selection)
    groups = {name: places[usable[places]] for name, places in prompt_places(prompts).items()}
    groups = {name: places for name, places in groups.items() if len(places) >= n}
    weights = {name: best_of_n_weights(selection[places], n) for name, places in groups.items()}
    gains = {}
    for axis, values in targets.items():
        chosen_from = np.concatenate([np.zeros(0, int), *groups.values()])
        deviation = float(values[chosen_from].std(ddof=1)) if len(chosen_from) > 1 else math.nan
        if not deviation > 0:
            gains[axis] = UNKNOWN
            continue
        by_prompt = [
            float(weights[name] @ values[places] - values[places].mean()) / deviation
            for name, places in groups.items()
        ]
        gains[axis] = estimate_mean(np.array(by_prompt), list(groups)).interval()
    return gains


@dataclass(frozen=True)
class Judgement:
    """Whether an axis is shown to be valid, and why not."""

    valid: bool
    reasons: tuple[str, ...] = ()
    """What is not shown; empty for a valid axis."""

    @property
    def text(self) -> str:
        """The judgement in words."""
        return "valid" if self.valid else f"not shown: {'; '.join(self.reasons)}"


def judge_axis(
    convergent: Interval | None,
    partial: Interval | None,
    rungs: Mapping[str, Effect],
    n_prompts: int,
) -> Judgement:
    """Whether an axis is valid on these songs: the rule, in the order of its reasons.

    1. Intervals are over 8 prompts or more.
    2. Its correlation within prompts with independent axes of its trait lies above 0 by its whole interval.
    3. So it does with texture held constant.
    4. There are worse songs, and no kind of them scores higher than the candidates by its whole interval.

    `convergent` and `partial` are None without an independent axis of the trait; `rungs` are differences candidates
    less worse songs by kind. What is not computed is not shown.
    """
    reasons = []
    if n_prompts < MIN_CLUSTERS:
        reasons.append(f"{n_prompts} prompts, {MIN_CLUSTERS} are needed")
    if convergent is None:
        reasons.append("nothing independent measures its trait")
    elif not convergent.low > 0:
        reasons.append("it does not agree with its trait")
    elif partial is None or not partial.low > 0:
        reasons.append("with texture held constant it does not agree with its trait")
    usable = {name: effect for name, effect in rungs.items() if effect.count}
    if not usable:
        reasons.append("no worse songs were scored")
    reasons += [f"{name} scores higher" for name, effect in usable.items() if effect.high < 0]
    return Judgement(not reasons, tuple(reasons))
