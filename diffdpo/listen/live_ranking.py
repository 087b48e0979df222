"""Rankings with intervals while a study runs, from the votes and opinions so far."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from diffdpo.data.votes import OpinionRow, VoteRow
from diffdpo.preferences.agreement import krippendorff_alpha
from diffdpo.preferences.ranking import FIRST, SECOND, TIE, RankingModel, VoteArrays, fit_ranking

LEVEL_Z = 1.96
"""Standard deviations of an interval of 95 %."""
MAX_RANKED_SONGS = 20
"""Songs of a ranking that are shown."""
ANSWER_OUTCOMES = {"a": FIRST, "b": SECOND}


def _is_preference(vote: VoteRow) -> bool:
    """Whether a vote says something about its songs: no control pair, no repeat, on the whole of the songs."""
    return not (vote.gold or vote.axis or vote.repeat_of)


def _rank(votes: Iterable[VoteRow], sides: Callable[[VoteRow], tuple[str, str]]) -> list[dict[str, Any]]:
    """What is compared, the best first: utility in logits against the mean, with its interval."""
    rows = [(vote, sides(vote)) for vote in votes if _is_preference(vote)]
    rows = [(vote, pair) for vote, pair in rows if pair[0] != pair[1]]
    if not rows:
        return []
    names = sorted({name for _, pair in rows for name in pair})
    raters = sorted({vote.rater for vote, _ in rows})
    arrays = VoteArrays.of(
        np.array([names.index(pair[0]) for _, pair in rows]),
        np.array([names.index(pair[1]) for _, pair in rows]),
        np.array([raters.index(vote.rater) for vote, _ in rows]),
        np.array([ANSWER_OUTCOMES.get(vote.answer, TIE) for vote, _ in rows]),
        songs=len(names),
        raters=len(raters),
    )
    utility, deviation = fit_ranking(arrays, RankingModel()).relative()
    order = np.argsort(-utility, kind="stable")
    return [_place(names[k], float(utility[k]), LEVEL_Z * float(deviation[k])) for k in order]


def _place(name: str, value: float, half: float) -> dict[str, Any]:
    return {"name": name, "value": value, "interval": [value - half, value + half]}


def ranked_systems(votes: Sequence[VoteRow]) -> list[dict[str, Any]]:
    """The systems; nothing where there is one only."""
    return _rank(votes, lambda vote: (vote.system_a, vote.system_b))


def ranked_songs(votes: Sequence[VoteRow]) -> list[dict[str, Any]]:
    """The best songs, each against the others of its prompt."""

    def sides(vote: VoteRow) -> tuple[str, str]:
        return f"{vote.system_a}/{vote.song_a}", f"{vote.system_b}/{vote.song_b}"

    return _rank(votes, sides)[:MAX_RANKED_SONGS]


def mean_opinions(opinions: Iterable[OpinionRow]) -> list[dict[str, Any]]:
    """Mean opinion of every system and control, over listeners, by scale; the highest first."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for opinion in opinions:
        if not opinion.axis and opinion.control != "repeat":
            values[f"{opinion.control or opinion.system}, {opinion.scale}"][opinion.rater].append(
                opinion.value
            )
    places = []
    for name, by_rater in values.items():
        means = np.array([np.mean(own_values) for own_values in by_rater.values()])
        half = LEVEL_Z * float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0
        places.append(_place(name, float(means.mean()), half))
    return sorted(places, key=lambda place: -float(place["value"]))


def answer_agreement(votes: Iterable[VoteRow]) -> float | None:
    """Krippendorff's alpha of the answers to pairs that several listeners heard; None without any."""
    pairs: dict[tuple[str, str], int] = {}
    units, outcomes = [], []
    for vote in filter(_is_preference, votes):
        first, second = f"{vote.system_a}/{vote.song_a}", f"{vote.system_b}/{vote.song_b}"
        outcome = ANSWER_OUTCOMES.get(vote.answer, TIE)
        units.append(pairs.setdefault((min(first, second), max(first, second)), len(pairs)))
        outcomes.append(outcome if first < second else -outcome)
    if not units:
        return None
    alpha = krippendorff_alpha(np.array(units), np.array(outcomes), "nominal")
    return None if math.isnan(alpha) else alpha
