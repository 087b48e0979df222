"""What votes say of songs, raters, their agreement, and of groups of listeners apart, as plain values for JSON."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool

from diffdpo.data.vote_arrays import OUTCOME_OF, FolderVote, VoteSet, VoteSongs
from diffdpo.preferences.agreement import count_matches, krippendorff_alpha, side_preference, wilson_share
from diffdpo.preferences.ranking import FIRST, SECOND, Ranking, RankingModel, fit_ranking
from diffdpo.statistics import adjust_p_values

MIN_BAD_VOTES = 2
MIRROR = {"a": "b", "b": "a"}
"""The answer that means the same with sides exchanged."""


def quantile(level: float) -> float:
    """How many standard deviations the half of a normal interval has."""
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2))


def song_report(
    votes: VoteSet, ranking: Ranking, songs: VoteSongs, *, level: float, bad_share: float
) -> list[dict[str, Any]]:
    """A row for each song in the order of `votes.songs`: utility relative to the mean of its set, with interval."""
    value, deviation = ranking.relative()
    counts, listeners, shares = votes.song_counts(votes.is_song), votes.listeners(), votes.bad_shares()
    half = quantile(level) * deviation
    rows = []
    for place, key in enumerate(votes.songs):
        sample = songs.sample(key) if key.is_sample else None
        rows.append(
            {
                "song": key.name,
                "samples": key.folder if key.is_sample else "",
                "source": "" if key.is_sample else key.folder,
                "prompt_id": sample.prompt_id if sample else "",
                "set": int(ranking.component[place]),
                "rank": 1
                + int(((ranking.component == ranking.component[place]) & (value > value[place])).sum()),
                "utility": float(value[place]),
                "low": float(value[place] - half[place]),
                "high": float(value[place] + half[place]),
                "votes": int(counts[place]),
                "raters": int(listeners[place]),
                "bad_share": float(shares[place]),
                "bad": bool(
                    shares[place] >= bad_share and round(shares[place] * counts[place]) >= MIN_BAD_VOTES
                ),
            }
        )
    return rows


def rater_report(
    votes: VoteSet, ranking: Ranking, rows: Sequence[FolderVote], level: float
) -> list[dict[str, Any]]:
    """A row for each rater: reliability and side bias with intervals, control pairs and repeated answers."""
    half = quantile(level)
    counts = np.bincount(votes.arrays.rater[votes.is_song], minlength=len(votes.raters))
    by_rater: dict[str, list[FolderVote]] = defaultdict(list)
    for row in rows:
        by_rater[row.rater].append(row)
    report = []
    for place, name in enumerate(votes.raters):
        reliability, spread = ranking.reliability[place], half * ranking.reliability_deviation[place]
        bias, width = ranking.bias[place], half * ranking.bias_deviation[place]
        report.append(
            {
                "rater": name,
                "votes": int(counts[place]),
                "reliability": float(reliability),
                "reliability_low": float(reliability - spread),
                "reliability_high": float(reliability + spread),
                "side_bias": float(bias),
                "side_bias_low": float(bias - width),
                "side_bias_high": float(bias + width),
                "control": asdict(control_share(by_rater[name])),
                "repeats": asdict(repeat_share(by_rater[name])),
            }
        )
    return report


def control_share(rows: Sequence[FolderVote]) -> Any:
    """The share of control pairs that were answered right."""
    control = [vote.row for vote in rows if vote.row.gold]
    return wilson_share(sum(OUTCOME_OF[r.answer] == OUTCOME_OF[r.gold] for r in control), len(control))


def repeat_share(rows: Sequence[FolderVote]) -> Any:
    """The share of repeated pairs, with their sides exchanged, that were answered as before."""
    answers = {(vote.folder, vote.row.source, vote.row.vote_id): vote.row.answer for vote in rows}
    pairs = [
        (answers[key], MIRROR.get(vote.row.answer, vote.row.answer))
        for vote in rows
        if vote.row.repeat_of and (key := (vote.folder, vote.row.source, vote.row.repeat_of)) in answers
    ]
    return count_matches([OUTCOME_OF[a] for a, _ in pairs], [OUTCOME_OF[b] for _, b in pairs])


def agreement_report(votes: VoteSet, rows: Sequence[FolderVote]) -> dict[str, Any]:
    """Krippendorff's alpha, the test of a preference for a side, control pairs and repeats, over all raters."""
    is_song = votes.is_song
    first, second = votes.arrays.first[is_song], votes.arrays.second[is_song]
    outcome = votes.arrays.outcome[is_song]
    unit = np.minimum(first, second) * len(votes.songs) + np.maximum(first, second)
    on_pair = np.where(first < second, outcome, -outcome)
    return {
        "votes": int(is_song.sum()),
        "raters": len(votes.raters),
        "alpha_nominal": krippendorff_alpha(unit, on_pair, "nominal"),
        "alpha_ordinal": krippendorff_alpha(unit, on_pair, "ordinal"),
        "side": asdict(side_preference(int((outcome == FIRST).sum()), int((outcome == SECOND).sum()))),
        "control": asdict(control_share(rows)),
        "repeats": asdict(repeat_share(rows)),
    }


def group_report(
    votes: VoteSet, model: RankingModel, keys: Sequence[str], *, min_raters: int, level: float
) -> list[dict[str, Any]]:
    """For each thing that listeners said of themselves, every two groups with enough raters and how they differ.

    Each group is ranked by its own votes. The songs that both heard are compared: utility minus the mean over these
    songs of one set, in the one group and in the other. P-values are Holm's over all songs and groups of the key.
    """
    of_rater = votes.rater_groups()
    names = sorted({key for groups in of_rater.values() for key in groups})
    report = []
    for key in names:
        if keys and key not in keys:
            continue
        members: dict[str, list[int]] = defaultdict(list)
        for place, rater in enumerate(votes.raters):
            if value := of_rater.get(rater, {}).get(key):
                members[value].append(place)
        groups = {value: raters for value, raters in members.items() if len(raters) >= min_raters}
        rankings = {value: _rank_group(votes, model, raters) for value, raters in sorted(groups.items())}
        comparisons = [
            _compare(votes, (left, right), rankings[left], rankings[right], level)
            for left, right in combinations(rankings, 2)
        ]
        _adjust(comparisons)
        report.append(
            {
                "key": key,
                "groups": {value: {"raters": len(groups[value])} for value in rankings},
                "left_out": {value: len(raters) for value, raters in members.items() if value not in groups},
                "comparisons": comparisons,
            }
        )
    return report


def _rank_group(
    votes: VoteSet, model: RankingModel, raters: Sequence[int]
) -> tuple[Ranking, Bool[np.ndarray, " song"]]:
    """The ranking by some raters, and the songs that they heard."""
    mask = np.isin(votes.arrays.rater, raters)
    return fit_ranking(votes.arrays.select(mask), model), votes.song_counts(mask & votes.is_song) > 0


def _compare(
    votes: VoteSet,
    names: tuple[str, str],
    side_a: tuple[Ranking, Bool[np.ndarray, " song"]],
    side_b: tuple[Ranking, Bool[np.ndarray, " song"]],
    level: float,
) -> dict[str, Any]:
    from scipy.special import ndtr
    from scipy.stats import kendalltau

    common = side_a[1] & side_b[1]
    sets = side_a[0].component * (int(side_b[0].component.max()) + 1) + side_b[0].component
    label = np.where(common, np.unique(sets, return_inverse=True)[1], -1)
    sizes = np.bincount(label[common], minlength=label.max(initial=-1) + 1)
    label = np.where(common & (sizes[label] > 1), label, -1)
    (first, spread), (second, width) = (ranking.contrast(label) for ranking, _ in (side_a, side_b))
    songs = np.flatnonzero(label >= 0)
    difference, deviation = first - second, np.hypot(spread, width)
    half = quantile(level)
    rows = [
        {
            "song": votes.songs[song].name,
            names[0]: float(first[song]),
            names[1]: float(second[song]),
            "difference": float(difference[song]),
            "low": float(difference[song] - half * deviation[song]),
            "high": float(difference[song] + half * deviation[song]),
            "p_value": float(2 * ndtr(-abs(difference[song]) / max(deviation[song], 1e-12))),
        }
        for song in songs
    ]
    tau = float(kendalltau(first[songs], second[songs]).statistic) if len(songs) > 1 else float("nan")
    return {"groups": list(names), "tau": tau, "songs": rows}


def _adjust(comparisons: Sequence[Mapping[str, Any]]) -> None:
    """Add Holm's p-values to the rows of all comparisons, and how many are below 0.05."""
    p_values = {
        f"{i}.{j}": row["p_value"]
        for i, entry in enumerate(comparisons)
        for j, row in enumerate(entry["songs"])
    }
    adjusted_values = adjust_p_values(p_values)
    for i, entry in enumerate(comparisons):
        for j, row in enumerate(entry["songs"]):
            row["p_holm"] = adjusted_values[f"{i}.{j}"]
        entry["differences"] = sum(row["p_holm"] < 0.05 for row in entry["songs"])  # type: ignore[index]
