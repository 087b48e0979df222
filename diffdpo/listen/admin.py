"""What the person who runs a study sees: progress, listeners, agreement, bias, and a live ranking."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from diffdpo.data.votes import OpinionRow, VoteRow
from diffdpo.listen.live import LiveStudy
from diffdpo.listen.live_ranking import answer_agreement, mean_opinions, ranked_songs, ranked_systems
from diffdpo.listen.results import result_rows

OPPOSITE = {"a": "b", "b": "a"}


def read_progress(live: LiveStudy) -> dict[str, Any]:
    """All that the admin page shows, as plain data."""
    votes, opinions = result_rows(live.database)
    overall = [vote for vote in votes if not vote.axis]
    return {
        "study": live.study.name,
        "mode": live.study.mode,
        "trials": live.study.trials.count,
        "songs": len(live.catalog.songs),
        "pairs": len(live.catalog.pairs) or len(live.catalog.pages),
        **_answer_counts(live),
        "votes": len(overall),
        "opinions": len(opinions),
        "answers": dict(Counter(vote.answer for vote in overall if not vote.gold)),
        "side": side_share(overall),
        "agreement": answer_agreement(overall),
        "systems": ranked_systems(overall) if overall else mean_opinions(opinions),
        "ranking": ranked_songs(overall),
        "gold": gold_share(overall),
        "repeats": consistent_repeats(overall),
        "raters": _raters(live, overall, opinions),
    }


def _answer_counts(live: LiveStudy) -> dict[str, int]:
    """Skipped trials, reports and deletions."""
    choices = Counter(
        json.loads(row["body"])["choice"] for row in live.database.rows("SELECT body FROM answers")
    )
    tombstone = live.database.row("SELECT count(*) AS number FROM tombstones")
    return {
        "skipped": choices["skip"],
        "reports": choices["report"],
        "deleted": tombstone["number"] if tombstone else 0,
    }


def side_share(votes: Iterable[VoteRow]) -> list[int]:
    """Of the decided answers to real pairs those for the song on the left, and all."""
    choices = [vote.answer for vote in votes if not vote.gold and vote.answer in OPPOSITE]
    return [choices.count("a"), len(choices)]


def gold_share(votes: Iterable[VoteRow]) -> list[int]:
    """Right answers to control pairs, and all; a song against itself is right as a tie, or as both bad."""
    golds = [(vote.gold, "tie" if vote.answer == "both_bad" else vote.answer) for vote in votes if vote.gold]
    return [sum(gold == answer for gold, answer in golds), len(golds)]


def consistent_repeats(votes: Sequence[VoteRow]) -> list[int]:
    """Repeats that were answered as at first, with sides exchanged, and all."""
    answers = {vote.vote_id: vote.answer for vote in votes}
    repeats = [(vote.answer, answers[vote.repeat_of]) for vote in votes if vote.repeat_of in answers]
    return [sum(OPPOSITE.get(old, old) == new for new, old in repeats), len(repeats)]


def _raters(
    live: LiveStudy, votes: Sequence[VoteRow], opinions: Sequence[OpinionRow]
) -> list[dict[str, Any]]:
    """A row for each listener, the most recent first."""
    by_rater: dict[str, list[VoteRow]] = defaultdict(list)
    for vote in votes:
        by_rater[vote.rater].append(vote)
    n_pages = Counter(rater for rater, _ in {(opinion.rater, opinion.trial) for opinion in opinions})
    rows = []
    for row in live.database.rows("SELECT * FROM raters ORDER BY last_seen DESC"):
        rater_votes = by_rater[row["id"]]
        heard_s = [vote.heard_a_s + vote.heard_b_s for vote in rater_votes]
        rows.append(
            {
                "rater": row["id"],
                "stage": row["stage"],
                "answers": len(rater_votes) + n_pages[row["id"]],
                "gold": gold_share(rater_votes),
                "repeats": consistent_repeats(rater_votes),
                "side": side_share(rater_votes),
                "heard_s": median(heard_s) if heard_s else 0.0,
                "headphones": json.loads(row["headphones"]),
                "last_seen": row["last_seen"],
            }
        )
    return rows
