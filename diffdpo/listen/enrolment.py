"""Listeners come, say who they are if they like, check their sound, and leave with their data."""

import json
import secrets
from typing import Any

from diffdpo.data.tables import list_parts
from diffdpo.data.votes import OPINIONS, VOTES
from diffdpo.listen.answers import parse_background
from diffdpo.listen.database import DatabaseRow, new_token, to_json, token_hash
from diffdpo.listen.headphones import headphone_targets, is_passed
from diffdpo.listen.live import JsonBody, LiveStudy, RefusalError
from diffdpo.listen.playback import headphone_flac
from diffdpo.listen.results import write_results


def read_state(live: LiveStudy, token: str | None) -> dict[str, Any]:
    """What the page needs at its start: the study, and where the listener is."""
    rater, trials = live.rater(token), live.study.trials
    return {
        "stage": live.stage(rater) if rater else "consent",
        "language": rater["consent"].rpartition("/")[2] if rater else "",
        "consents": {
            language: {"text": consent.text, "version": consent.version}
            for language, consent in live.consents.items()
        },
        "mode": live.study.mode,
        "headphones": trials.headphones,
    }


def enrol(live: LiveStudy, token: str | None, body: JsonBody) -> tuple[str, dict[str, Any]]:
    """Note the consent of a listener, who may be new; the token, and the state. RefusalError without consent."""
    consent = live.consents.get(str(body.get("language")))
    if consent is None or body.get("version") != consent.version:
        raise RefusalError(409, "the text of the consent has changed; please load the page again")
    if body.get("agree") is not True:
        raise RefusalError(422, "without consent nothing is stored, and there is no test")
    rater, now = live.rater(token), live.clock()
    with live.database.transaction() as connection:
        if rater is not None:
            connection.execute("UPDATE raters SET consent = ? WHERE id = ?", (consent.key, rater["id"]))
        else:
            token = new_token()
            pseudonym, seed = secrets.token_hex(8), secrets.randbits(62)
            connection.execute(
                "INSERT INTO raters (id, token_hash, seed, stage, consent, created_at, last_seen) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (pseudonym, token_hash(token), seed, live.stages[0], consent.key, now, now),
            )
    return token or "", read_state(live, token)


def finish_stage(live: LiveStudy, token: str | None, stage: str, body: JsonBody) -> dict[str, Any]:
    """Finish a stage before the trials: background, volume, or headphones; the next stage."""
    rater = live.require(token, stage)
    values: dict[str, Any] = {}
    result: dict[str, Any] = {}
    if stage == "background":
        try:
            values["background"] = to_json(parse_background(body))
        except ValueError as error:
            raise RefusalError(422, str(error)) from None
    elif stage == "headphones":
        result = _headphone_result(live, rater, body)
        values["headphones"] = to_json(result)
    values["stage"] = live.stages[live.stages.index(stage) + 1]
    names = ", ".join(f"{name} = ?" for name in values)
    with live.database.transaction() as connection:
        connection.execute(f"UPDATE raters SET {names} WHERE id = ?", (*values.values(), rater["id"]))
    return {"stage": values["stage"], **result}


def _headphone_result(live: LiveStudy, rater: DatabaseRow, body: JsonBody) -> dict[str, Any]:
    if body.get("skip"):
        return {"skipped": True}
    count, answers = live.study.trials.headphones, body.get("answers")
    if not isinstance(answers, list) or len(answers) != count:
        raise RefusalError(422, f"answers must be {count} numbers")
    targets = headphone_targets(rater["seed"], count)
    n_right = sum(answer == target for answer, target in zip(answers, targets, strict=True))
    return {"right": n_right, "of": count, "passed": is_passed(n_right, count)}


def headphone_item(live: LiveStudy, token: str | None, number: int) -> bytes:
    """The sound of one item of the headphone check."""
    rater = live.require(token, "headphones")
    targets = headphone_targets(rater["seed"], live.study.trials.headphones)
    if not 0 <= number < len(targets):
        raise RefusalError(404, "no such sound")
    return headphone_flac(targets[number], rater["seed"] + number)


def read_own_data(live: LiveStudy, token: str | None) -> dict[str, Any]:
    """Everything that is stored of a listener, but for what would tell which system a song came from."""
    rater = live.require(token)
    consent = live.database.row("SELECT * FROM consents WHERE key = ?", (rater["consent"],))
    rows = live.database.rows(
        "SELECT trials.*, answers.body AS answer, answers.created_at AS answered_at, answers.consent AS consent "
        "FROM trials LEFT JOIN answers ON answers.trial = trials.id WHERE trials.rater = ? ORDER BY trials.number",
        (rater["id"],),
    )
    return {
        "study": live.study.name,
        "listener": rater["id"],
        "began_at": rater["created_at"],
        "last_seen_at": rater["last_seen"],
        "consent": dict(consent) if consent else {},
        "background": json.loads(rater["background"]),
        "headphones": json.loads(rater["headphones"]),
        "trials": [
            {
                "id": row["id"],
                "training": row["kind"] == "training",
                "presented_at": row["created_at"],
                "heard_s": json.loads(row["heard"]),
                "answered_at": row["answered_at"],
                "consent": row["consent"],
                "answer": json.loads(row["answer"]) if row["answer"] else None,
            }
            for row in rows
        ],
    }


def delete_own_data(live: LiveStudy, token: str | None, body: JsonBody) -> dict[str, Any]:
    """Delete every row of a listener, in the database and in tables that were exported."""
    rater = live.require(token)
    if body.get("confirm") is not True:
        raise RefusalError(422, "deleting needs confirm: true")
    with live.lock:
        tombstone = live.database.delete_rater(rater["id"], live.clock())
        live.count_votes()
        if any(list_parts(live.out / spec.folder) for spec in (VOTES, OPINIONS)):
            write_results(live.database, live.out)
    return {"deleted": True, "receipt": tombstone}
