"""What listeners report of a trial: what they play, and what they answer."""

import json
from dataclasses import asdict
from typing import Any

from diffdpo.listen.answers import parse_answer
from diffdpo.listen.database import DatabaseRow, to_json
from diffdpo.listen.listening import PlaybackState
from diffdpo.listen.live import JsonBody, LiveStudy, RefusalError
from diffdpo.text_files import printable


def report_playback(live: LiveStudy, token: str | None, body: JsonBody) -> dict[str, Any]:
    """Credit what was played since the last report of the open trial; the seconds heard of each song."""
    rater = live.require(token, "trials")
    with live.database.transaction(durable=False) as connection:
        row = _trial(live, rater, body)
        if row["answer"]:
            raise RefusalError(409, "this trial has been answered")
        try:
            position = body.get("position")
            if not isinstance(position, int) or isinstance(position, bool):
                raise ValueError("position must be a whole number")
            state = _playback_state(row).advance(str(body.get("event")), position, live.clock())
        except ValueError as error:
            raise RefusalError(422, str(error)) from None
        connection.execute(*_update(row, state))
    return {"heard": state.heard_s}


def accept_answer(live: LiveStudy, token: str | None, body: JsonBody) -> dict[str, Any]:
    """Store an answer. It is on the disk when this returns.

    RefusalError with 409 before every song was heard for long enough, unless the trial is skipped or reported.
    The same answer again, as after a lost connection, changes nothing.
    """
    rater, now = live.require(token, "trials"), live.clock()
    with live.database.transaction() as connection:
        row = _trial(live, rater, body)
        plan = json.loads(row["body"])
        if row["answer"]:
            return {"accepted": True, "repeated": True, **_feedback(row, plan, json.loads(row["answer"]))}
        try:
            answer = parse_answer(body, live.study, len(plan["stimuli"]), plan["seconds"])
        except ValueError as error:
            raise RefusalError(422, str(error)) from None
        state = _playback_state(row).stop_at(now)
        needed_s = min(live.study.trials.min_heard_s, plan["seconds"])
        if answer.is_vote and not state.is_enough(needed_s):
            raise RefusalError(
                409,
                f"please listen to each for {needed_s:g} seconds first",
                heard=state.heard_s,
                needed=needed_s,
            )
        connection.execute(*_update(row, state))
        connection.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?)",
            (row["id"], rater["consent"], to_json(asdict(answer)), now),
        )
        connection.execute("UPDATE raters SET last_seen = ? WHERE id = ?", (now, rater["id"]))
    live.count_vote(row["kind"], plan, answer.choice)
    return {"accepted": True, **_feedback(row, plan, asdict(answer))}


def _trial(live: LiveStudy, rater: DatabaseRow, body: JsonBody) -> DatabaseRow:
    """The listener's trial that a request names."""
    row = live.database.row(
        "SELECT trials.*, answers.body AS answer FROM trials LEFT JOIN answers ON answers.trial = trials.id "
        "WHERE trials.id = ? AND trials.rater = ?",
        (printable(str(body.get("trial"))), rater["id"]),
    )
    if row is None:
        raise RefusalError(404, "no such trial")
    return row


def _playback_state(row: DatabaseRow) -> PlaybackState:
    return PlaybackState(tuple(json.loads(row["heard"])), row["playing"], row["since"])


def _update(row: DatabaseRow, state: PlaybackState) -> tuple[str, tuple[Any, ...]]:
    """Statement and values that store what was heard."""
    values = (to_json(state.heard_s), state.active, state.report_time, row["id"])
    return "UPDATE trials SET heard = ?, playing = ?, since = ? WHERE id = ?", values


def _feedback(row: DatabaseRow, plan: JsonBody, answer: JsonBody) -> dict[str, Any]:
    """After a training trial: the right answer, and what was wrong with the other song."""
    if row["kind"] != "training":
        return {}
    damages = [stimulus["damage"] for stimulus in plan["stimuli"]]
    roles = [stimulus["role"] for stimulus in plan["stimuli"]]
    return {
        "feedback": {
            "right": answer["choice"] == plan["gold"] if plan["gold"] else None,
            "answer": plan["gold"],
            "damages": damages,
            "roles": roles,
        }
    }
