"""Training tables of votes and opinions: pairs with soft labels and spans, and ratings of single songs."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from diffdpo.data.pairs import PairRow
from diffdpo.data.ratings import PEOPLE_SOURCE, RatingRow
from diffdpo.data.samples import SampleRow, relative_folder
from diffdpo.data.vote_arrays import VoteSet, VoteSongKey, VoteSongs
from diffdpo.data.votes import OpinionRow
from diffdpo.preferences.ranking import Ranking

LabelKind = Literal["preference", "order", "hard"]
VOTE_SOURCE, OPINION_SOURCE = f"{PEOPLE_SOURCE}/votes", f"{PEOPLE_SOURCE}/opinions"
RULE = "votes"
OVERALL = "preference"
"""The name of the margin of votes on the preference overall."""
BAD_RATING = -1.0
"""The highest rating of a song that listeners found bad."""


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """How a ranking becomes pairs."""

    closure: bool
    """Whether any two songs of a prompt that votes connect are a pair, or only those that were compared."""
    label: LabelKind
    min_probability: float
    axis: str = ""
    bad: frozenset[VoteSongKey] = frozenset()
    """Songs that never win."""


def label_probabilities(
    ranking: Ranking, first: Int[np.ndarray, " pair"], second: Int[np.ndarray, " pair"], kind: LabelKind
) -> Float[np.ndarray, " pair"]:
    """The probability of each pair that the first is the better, of this kind.

    `preference`: that a reliable listener prefers it; `order`: that its utility is the higher, which grows with the
    number of votes however small the difference is; `hard`: 1 or 0.
    """
    from scipy.special import ndtr

    if kind == "preference":
        return ranking.preference(first, second)
    value, deviation = ranking.difference(first, second)
    if kind == "order":
        return np.asarray(ndtr(value / np.maximum(deviation, 1e-12)), np.float64)
    return (value > 0).astype(np.float64)


def preference_rows(
    votes: VoteSet, ranking: Ranking, songs: VoteSongs, out: Path, settings: PairSettings
) -> list[PairRow]:
    """Pairs of songs of one prompt in one samples folder, the better one first, for a table in `out`.

    Spans are the moments that listeners marked as bad in the loser.
    """
    places = _candidate_pairs(votes, ranking, songs, settings.closure)
    if not len(places):
        return []
    probability = label_probabilities(ranking, places[:, 0], places[:, 1], settings.label)
    margin = ranking.difference(places[:, 0], places[:, 1])[0]
    swap = probability < 0.5
    places[swap] = places[swap][:, ::-1]
    certainty, size = np.maximum(probability, 1 - probability), np.where(swap, -margin, margin)
    moments = votes.bad_moments()
    rows = []
    for (winner, loser), chance, difference in zip(places.tolist(), certainty, size, strict=True):
        best, worst = votes.songs[winner], votes.songs[loser]
        if chance < settings.min_probability or chance == 0.5 or best in settings.bad:
            continue
        sample = songs.sample(best)
        rows.append(
            PairRow(
                prompt_id=sample.prompt_id,
                group=sample.group,
                samples=relative_folder(Path(best.folder), out),
                winner=best.name,
                loser=worst.name,
                rule=RULE,
                margins={settings.axis or OVERALL: float(difference)},
                soft_label=float(chance),
                axis=settings.axis,
                spans=moments.get(worst, ()),
            )
        )
    return rows


def _candidate_pairs(
    votes: VoteSet, ranking: Ranking, songs: VoteSongs, closure: bool
) -> Int[np.ndarray, "pair 2"]:
    """Places of two songs each that may be a pair: samples of one prompt, connected by votes."""
    prompts = {
        place: (key.folder, songs.sample(key).prompt_id)
        for place, key in enumerate(votes.songs)
        if key.is_sample
    }
    if closure:
        members: dict[tuple[str, str, int], list[int]] = defaultdict(list)
        for place, prompt in prompts.items():
            members[(*prompt, int(ranking.component[place]))].append(place)
        pairs = {(a, b) for group in members.values() for i, a in enumerate(group) for b in group[i + 1 :]}
    else:
        first, second = votes.arrays.first[votes.is_song], votes.arrays.second[votes.is_song]
        pairs = {(min(a, b), max(a, b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)}
    rows = [(a, b) for a, b in sorted(pairs) if a in prompts and prompts[a] == prompts.get(b)]
    return np.array(rows, np.int64).reshape(-1, 2)


def vote_ratings(
    votes: VoteSet, ranking: Ranking, songs: VoteSongs, out: Path, bad: Collection[VoteSongKey]
) -> list[RatingRow]:
    """Ratings by votes: the utility less the mean of the prompt's songs that votes connect.

    A song that listeners found bad is rated -1 at most, however much better it is than the rest of its prompt.
    """
    labels: dict[tuple[str, str, int], int] = {}
    label = np.full(len(votes.songs), -1)
    for place, key in enumerate(votes.songs):
        if key.is_sample:
            prompt = key.folder, songs.sample(key).prompt_id, int(ranking.component[place])
            label[place] = labels.setdefault(prompt, len(labels))
    values, _ = ranking.contrast(label)
    listeners = votes.listeners()
    rows = []
    for place, key in enumerate(votes.songs):
        if label[place] < 0 or (label == label[place]).sum() < 2:
            continue
        rating = min(float(values[place]), BAD_RATING) if key in bad else float(values[place])
        rows.append(
            _rating(songs.sample(key), Path(key.folder), out, rating, VOTE_SOURCE, int(listeners[place]))
        )
    return rows


def opinion_ratings(
    opinions: Sequence[tuple[Path, OpinionRow]], songs: VoteSongs, out: Path
) -> list[RatingRow]:
    """Ratings by opinions, the mean over raters: thumbs ±1, stars (stars - 3) / 2, MUSHRA (value - 50) / 50.

    Of several opinions of a rater on a song the last counts. References and anchors are left out, and so are songs
    in no samples folder.
    """
    last: dict[tuple[VoteSongKey, str, str], OpinionRow] = {}
    for number, (folder, row) in enumerate(sorted(opinions, key=lambda entry: entry[1].created_at)):
        key = songs.key(folder, row.samples, row.song, row.source)
        if not row.control and key.is_sample:
            last[key, row.scale, row.rater or f"#{number}"] = row
    by_song: dict[VoteSongKey, list[OpinionRow]] = defaultdict(list)
    for (key, _, _), row in last.items():
        by_song[key].append(row)
    rows = []
    for key, entries in sorted(by_song.items()):
        rating = float(np.mean([opinion_rating(row.scale, row.value) for row in entries]))
        sample = songs.sample(key)
        raters = _count_raters(entries)
        rows.append(_rating(sample, Path(key.folder), out, rating, OPINION_SOURCE, raters))
    return [row for row in rows if abs(row.rating) > 1e-9]


def opinion_rating(scale: str, value: float) -> float:
    """An opinion as a rating: above zero is liked."""
    if scale == "thumb":
        return value
    return (value - 3) / 2 if scale == "stars" else (value - 50) / 50


def _count_raters(opinions: Iterable[OpinionRow]) -> int:
    names = [row.rater for row in opinions]
    return len({name for name in names if name}) + names.count("")


def _rating(sample: SampleRow, folder: Path, out: Path, rating: float, source: str, raters: int) -> RatingRow:
    return RatingRow(
        prompt_id=sample.prompt_id,
        group=sample.group,
        samples=relative_folder(folder, out),
        sample_id=sample.sample_id,
        rating=rating,
        source=source,
        raters=raters,
    )
