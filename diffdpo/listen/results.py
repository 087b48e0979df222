"""Results of a listening test: the tables of votes and opinions, from its database."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffdpo.data import tables
from diffdpo.data.schema import TableSpec
from diffdpo.data.votes import OPINIONS, VOTES, OpinionRow, VoteRow
from diffdpo.errors import DataError
from diffdpo.listen.database import DATABASE, Database, DatabaseRow

ANSWERS_QUERY = """
SELECT answers.trial, trials.rater, trials.kind, trials.body AS plan, trials.heard, answers.body AS answer,
       answers.consent, answers.created_at, raters.background, consents.license
FROM answers
JOIN trials ON trials.id = answers.trial
JOIN raters ON raters.id = trials.rater
JOIN consents ON consents.key = answers.consent
WHERE trials.kind != 'training'
ORDER BY answers.created_at, answers.trial
"""
"""All answers but those of training."""

TrialBody = Mapping[str, Any]


def read_catalog_rows(database: Database) -> dict[str, dict[str, Any]]:
    """Every song that was ever in the study, by key."""
    return {row["key"]: json.loads(row["body"]) for row in database.rows("SELECT key, body FROM songs")}


def read_study_name(database: Database) -> str:
    row = database.row("SELECT value FROM meta WHERE key = 'name'")
    return row["value"] if row else ""


def result_rows(database: Database) -> tuple[list[VoteRow], list[OpinionRow]]:
    """All votes and opinions; answers of training, skipped trials and reports are neither."""
    songs, source = read_catalog_rows(database), read_study_name(database)
    votes: list[VoteRow] = []
    opinions: list[OpinionRow] = []
    for row in database.rows(ANSWERS_QUERY):
        plan, answer = json.loads(row["plan"]), json.loads(row["answer"])
        if answer["choice"] in ("skip", "report"):
            continue
        if plan["mode"] == "pair":
            votes += _vote_rows(row, plan, answer, songs, source)
        else:
            opinions += _opinion_rows(row, plan, answer, songs, source)
    return votes, opinions


def _common_columns(row: DatabaseRow, answer: TrialBody, source: str) -> dict[str, Any]:
    """The columns that votes and opinions have alike."""
    return {
        "source": source,
        "rater": row["rater"],
        "rater_group": json.loads(row["background"]),
        "consent": row["consent"],
        "license": row["license"],
        "comment": answer["comment"],
        "created_at": row["created_at"],
    }


def _prompt_columns(song: TrialBody) -> dict[str, Any]:
    return {name: song[name] for name in ("prompt_id", "prompt", "group")}


def _side(song: TrialBody, side: str, plan: TrialBody) -> dict[str, Any]:
    """The columns of a vote that describe one song."""
    return {
        f"samples_{side}": song["samples"],
        f"song_{side}": song["song"],
        f"sha256_{side}": song["sha256"],
        f"system_{side}": song["system"],
        f"begin_{side}_s": plan["begin_s"],
        f"end_{side}_s": plan["begin_s"] + plan["seconds"],
    }


def _song_spans(answer: TrialBody, position: int, plan: TrialBody) -> tuple[tuple[float, float], ...]:
    """Bad moments in seconds of the song; the browser counts from the beginning of the excerpt."""
    spans = answer["spans"][position] if answer["spans"] else ()
    return tuple((start + plan["begin_s"], stop + plan["begin_s"]) for start, stop in spans)


def _vote_rows(
    row: DatabaseRow, plan: TrialBody, answer: TrialBody, songs: Mapping[str, TrialBody], source: str
) -> Iterator[VoteRow]:
    """The vote overall, and one for each axis."""
    first, second = (songs[stimulus["key"]] for stimulus in plan["stimuli"])
    heard_a_s, heard_b_s = json.loads(row["heard"])
    columns = {
        **_common_columns(row, answer, source),
        **_prompt_columns(first),
        "lyrics": first["lyrics"],
        **_side(first, "a", plan),
        **_side(second, "b", plan),
        "heard_a_s": heard_a_s,
        "heard_b_s": heard_b_s,
        "gold": plan["gold"],
    }
    repeat_of = plan["repeat_of"]
    yield VoteRow(
        vote_id=row["trial"],
        answer=answer["choice"],
        strength=answer["strength"],
        spans_a=_song_spans(answer, 0, plan),
        spans_b=_song_spans(answer, 1, plan),
        repeat_of=repeat_of,
        **columns,
    )
    for axis, choice in sorted(answer["axes"].items()):
        yield VoteRow(
            vote_id=f"{row['trial']}/{axis}",
            axis=axis,
            answer=choice,
            repeat_of=f"{repeat_of}/{axis}" if repeat_of else "",
            **columns,
        )


def _opinion_rows(
    row: DatabaseRow, plan: TrialBody, answer: TrialBody, songs: Mapping[str, TrialBody], source: str
) -> Iterator[OpinionRow]:
    """An opinion for each scale and axis of a rating, or for each song of a page."""
    heard_s = json.loads(row["heard"])
    shown_stimuli = [
        (k, stimulus) for k, stimulus in enumerate(plan["stimuli"]) if stimulus["role"] != "open"
    ]
    for place, (position, stimulus) in enumerate(shown_stimuli):
        song = songs[stimulus["key"]]
        columns = {
            **_common_columns(row, answer, source),
            **_prompt_columns(song),
            "samples": song["samples"],
            "song": song["song"],
            "sha256": song["sha256"],
            "system": song["system"],
            "heard_s": heard_s[position],
            "spans": _song_spans(answer, place, plan),
            "control": stimulus["role"] or ("repeat" if row["kind"] == "repeat" else ""),
            "trial": row["trial"],
        }
        name = f"{row['trial']}/{place}"
        if answer["values"]:
            yield OpinionRow(opinion_id=name, scale="mushra", value=answer["values"][place], **columns)
        if answer["thumb"]:
            yield OpinionRow(
                opinion_id=f"{name}/thumb", scale="thumb", value=float(answer["thumb"]), **columns
            )
        if answer["stars"]:
            yield OpinionRow(
                opinion_id=f"{name}/stars", scale="stars", value=float(answer["stars"]), **columns
            )
        for axis, stars in sorted(answer["axes"].items()):
            yield OpinionRow(
                opinion_id=f"{name}/{axis}", scale="stars", value=float(stars), axis=axis, **columns
            )


def check_database(out: Path) -> None:
    """DataError where the database of a study is gone or empty and its tables, which would be replaced, are not."""
    path = out / DATABASE
    if path.is_file() and path.stat().st_size:
        return
    for folder, count in ((VOTES.folder, _count(out, VOTES)), (OPINIONS.folder, _count(out, OPINIONS))):
        if count:
            raise DataError(
                f"{path}: gone or empty, but {folder} holds answers, which a new study would replace; bring "
                "back a copy of the database, or choose another out=…"
            )


def _count(out: Path, spec: TableSpec[Any]) -> int:
    return len(tables.read_columns(out, spec))


def write_results(database: Database, out: Path) -> tuple[int, int]:
    """Write the tables of votes and opinions of a study into its folder; the number of rows of each."""
    votes, opinions = result_rows(database)
    if votes != tables.read_rows(out, VOTES):
        tables.replace(out, VOTES, votes)
    if opinions != tables.read_rows(out, OPINIONS):
        tables.replace(out, OPINIONS, opinions)
    return len(votes), len(opinions)


def export_results(out: Path) -> tuple[int, int]:
    """Bring the tables of a listening test up to date, while it runs or after; the number of votes and opinions.

    (0, 0) for a folder that is not that of a listening test, whose tables stay as they are.
    """
    if not (out / DATABASE).is_file():
        return 0, 0
    check_database(out)
    database = Database(out / DATABASE, for_reading=True)
    try:
        return write_results(database, out)
    finally:
        database.close()


def refresh_studies(folders: Iterable[str]) -> None:
    """Bring the tables of those folders up to date that are listening tests."""
    for name in folders:
        export_results(Path(name))
