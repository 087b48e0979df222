"""From scored songs to pairs and ratings, in memory: what `diffdpo mine` does between reading and writing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from diffdpo.mining.advantages import advantages
from diffdpo.mining.base import Rule
from diffdpo.mining.labels import pick_strongest, soften
from diffdpo.mining.scale import group_by_prompt
from diffdpo.mining.spans import SpanConfig, WindowScores, find_spans
from diffdpo.mining.values import Candidates, MinedPairs, Pair


@dataclass(frozen=True)
class MiningResult:
    """What was mined from one set of candidates."""

    pairs: tuple[Pair, ...]
    ratings: Mapping[str, float]
    """The advantage of each song over the others of its prompt, by sample id; absent where it has none."""
    reasons: Mapping[str, str]
    """For every prompt without a pair the reason."""


def mine_candidates(
    candidates: Candidates,
    rule: Rule | None,
    weights: Mapping[str, float] | None = None,
    utilities: Float[np.ndarray, "candidate axis"] | None = None,
    songs: Mapping[str, str] | None = None,
) -> MiningResult:
    """The pairs a rule finds among songs of equal prompts, and the rating of every song.

    Without a rule there are ratings only, and without axes no ratings. `weights` are those of the axes in ratings;
    axes not named weigh 1. `songs` are by prompt the ids of a data set's songs, for `real_versus_sample`.
    `utilities` are compared in place of the scores: see `diffdpo.mining.utilities`.
    """
    prompts = group_by_prompt(candidates, utilities, songs)
    result = rule(prompts, candidates.axes) if rule else MinedPairs((), {})
    ratings = advantages(prompts, candidates.axes, weights or {}) if candidates.axes else {}
    return MiningResult(pairs=result.pairs, ratings=ratings, reasons=result.reasons)


def finish_pairs(
    pairs: Sequence[Pair], weights: Mapping[str, float], *, limit: int = 0, temperature: float = 0.0
) -> list[tuple[int, Pair]]:
    """The strongest pairs with their soft labels, each with its place among the pairs it was chosen from.

    `limit` 0 keeps all; temperature 0 leaves all soft labels at 1. See `pick_strongest` and `soften`.
    """
    return [
        (place, soften(pairs[place], temperature, weights)) for place in pick_strongest(pairs, limit, weights)
    ]


def with_spans(
    pair: Pair, windows: Mapping[str, WindowScores], weights: Mapping[str, float], config: SpanConfig
) -> Pair:
    """The pair with the stretches in which its winner leads, by the scores of songs' windows (by sample id)."""
    winner, loser = (windows.get(name, {}) for name in (pair.winner, pair.loser))
    return replace(pair, spans=find_spans(pair, winner, loser, weights, config))
