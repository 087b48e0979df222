"""Trials as they are presented: chosen, measured, stored, and served sound by sound."""

import json
import secrets
import sqlite3
from dataclasses import asdict
from typing import Any

import numpy as np

from diffdpo.listen.database import DatabaseRow, new_token, to_json
from diffdpo.listen.excerpts import ExcerptSpan, common_span, matched_gains
from diffdpo.listen.live import NO_VOTES, LiveStudy, RefusalError
from diffdpo.listen.playback import excerpt_flac, excerpt_level
from diffdpo.listen.trials import PastTrial, TrialKind, TrialPlan, plan_trial, trial_kinds
from diffdpo.text_files import printable

REST_S = 600.0
"""A silence after which a listener has is_rested without being told to."""


def next_trial(live: LiveStudy, token: str | None) -> dict[str, Any]:
    """The trial that the listener is at: the open one again, a new one, a break, or the end."""
    rater, now = live.require(token, "trials"), live.clock()
    with live.lock:
        row = open_trial(live, rater)
        if row is not None and live.songs_of(json.loads(row["body"])):
            return _payload(live, row, rater)
        if row is not None:  # a song of it is no longer in the study
            with live.database.transaction(durable=False) as connection:
                connection.execute("DELETE FROM trials WHERE id = ?", (row["id"],))
        history = _history(live, rater)
        rng = np.random.default_rng([rater["seed"], len(history)])
        kinds = _kinds(live, rater)
        if len(history) >= len(kinds):
            return {"state": "done", "trials": len(kinds)}
        if break_body := _break_body(live, rater, now):
            return break_body
        plan = plan_trial(
            kinds[len(history)], live.study, live.catalog, history, live.votes, rng, live.opinions
        )
    if plan is None:
        return {"state": "done", "trials": len(history)}
    _present(live, rater, len(history), plan)
    row = open_trial(live, rater)
    return _payload(live, row, rater) if row else next_trial(live, token)


def _kinds(live: LiveStudy, rater: DatabaseRow) -> tuple[TrialKind, ...]:
    items = {
        "pair": len(live.catalog.pairs),
        "rating": len(live.catalog.songs),
        "mushra": len(live.catalog.pages),
    }[live.study.mode]
    rng = np.random.default_rng(rater["seed"])
    return trial_kinds(live.study.trials, live.study.mode, items, rng)


def open_trial(live: LiveStudy, rater: DatabaseRow) -> DatabaseRow | None:
    return live.database.row(
        "SELECT trials.* FROM trials LEFT JOIN answers ON answers.trial = trials.id "
        "WHERE trials.rater = ? AND answers.trial IS NULL ORDER BY trials.number LIMIT 1",
        (rater["id"],),
    )


def _history(live: LiveStudy, rater: DatabaseRow) -> list[PastTrial]:
    rows = live.database.rows(
        "SELECT trials.*, answers.body AS answer FROM trials JOIN answers ON answers.trial = trials.id "
        "WHERE trials.rater = ? ORDER BY trials.number",
        (rater["id"],),
    )
    history = []
    for row in rows:
        plan, answer = json.loads(row["body"]), json.loads(row["answer"])
        history.append(
            PastTrial(
                trial_id=row["id"],
                kind=row["kind"],
                songs=live.songs_of(plan),
                is_vote=answer["choice"] not in NO_VOTES,
                repeat_of=plan["repeat_of"],
            )
        )
    return history


def _break_body(live: LiveStudy, rater: DatabaseRow, now: float) -> dict[str, Any]:
    """The break of a listener, where one is due; empty otherwise. A long silence counts as one."""
    trials = live.study.trials
    began = rater["active_since"]
    is_rested = began is None or now - (rater["last_seen"] or now) >= max(REST_S, trials.break_s)
    values: tuple[float | None, float | None] = (
        now if is_rested else began,
        None if is_rested else rater["break_until"],
    )
    is_due = not is_rested and trials.break_after_min and now - began >= 60 * trials.break_after_min
    if is_due and values[1] is None:
        values = (began, now + trials.break_s)
    with live.database.transaction(durable=False) as connection:
        connection.execute(
            "UPDATE raters SET active_since = ?, break_until = ?, last_seen = ? WHERE id = ?",
            (*values, now, rater["id"]),
        )
    return {"state": "break", "seconds": max(0.0, (values[1] or now) - now)} if is_due else {}


def end_break(live: LiveStudy, token: str | None) -> dict[str, Any]:
    """Go on after a break; RefusalError before it is over."""
    rater, now = live.require(token, "trials"), live.clock()
    if rater["break_until"] is not None and now < rater["break_until"]:
        raise RefusalError(409, "the break is not over yet", seconds=rater["break_until"] - now)
    with live.database.transaction(durable=False) as connection:
        connection.execute(
            "UPDATE raters SET active_since = ?, break_until = NULL, last_seen = ? WHERE id = ?",
            (now, now, rater["id"]),
        )
    return next_trial(live, token)


def _present(live: LiveStudy, rater: DatabaseRow, number: int, plan: TrialPlan) -> None:
    """Measure the excerpts of a trial and store it, with an address of its own for each sound."""
    songs = [live.catalog.songs[stimulus.song] for stimulus in plan.stimuli]
    key = "|".join(sorted({song.key for song in songs}))
    span = common_span([song.seconds for song in songs], live.study.excerpts, live.study.seed, key)
    levels = [
        excerpt_level(live.out / song.path, span, stimulus.damage, live.catalog.sample_rate)
        for song, stimulus in zip(songs, plan.stimuli, strict=True)
    ]
    gains = matched_gains(levels, live.study.excerpts)
    body = {
        "mode": live.study.mode,
        **asdict(span),
        "gold": plan.gold,
        "repeat_of": plan.repeat_of,
        "stimuli": [
            {"key": song.key, "damage": stimulus.damage, "role": stimulus.role, "gain": gain}
            for song, stimulus, gain in zip(songs, plan.stimuli, gains, strict=True)
        ],
    }
    trial = secrets.token_hex(12)
    try:
        with live.database.transaction(durable=False) as connection:
            connection.execute(
                "INSERT INTO trials (id, rater, number, kind, body, heard, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    trial,
                    rater["id"],
                    number,
                    plan.kind,
                    to_json(body),
                    to_json([0.0] * len(songs)),
                    live.clock(),
                ),
            )
            connection.executemany(
                "INSERT INTO stimuli VALUES (?, ?, ?)",
                [(new_token(), trial, position) for position in range(len(songs))],
            )
    except sqlite3.IntegrityError:  # a second request of the same listener was faster, or they are gone
        return


def _payload(live: LiveStudy, row: DatabaseRow, rater: DatabaseRow) -> dict[str, Any]:
    """An open trial as the page gets it: nothing in it tells songs or systems apart."""
    plan, trials = json.loads(row["body"]), live.study.trials
    kinds = _kinds(live, rater)
    training = kinds.count("training")
    is_training = row["kind"] == "training"
    song = live.catalog.songs[live.songs_of(plan)[0]] if live.songs_of(plan) else None
    tokens = live.database.rows("SELECT token FROM stimuli WHERE trial = ? ORDER BY position", (row["id"],))
    return {
        "state": "trial",
        "trial": row["id"],
        "training": is_training,
        "number": row["number"] + 1 - (0 if is_training else training),
        "of": training if is_training else len(kinds) - training,
        "mode": plan["mode"],
        "prompt": song.prompt if song else "",
        "lyrics": song.lyrics if song else "",
        "seconds": plan["seconds"],
        "sounds": [f"audio/{token['token']}" for token in tokens],
        "axes": list(trials.axes),
        "strength": trials.strength,
        "spans": trials.spans,
        "min_heard_s": min(trials.min_heard_s, plan["seconds"]),
        "heard": json.loads(row["heard"]),
    }


def read_stimulus(live: LiveStudy, token: str | None, stimulus: str) -> bytes:
    """The sound of a stimulus of the listener's open trial; RefusalError for every other."""
    rater = live.require(token)
    row = live.database.row(
        "SELECT stimuli.position, trials.body FROM stimuli JOIN trials ON trials.id = stimuli.trial "
        "LEFT JOIN answers ON answers.trial = trials.id "
        "WHERE stimuli.token = ? AND trials.rater = ? AND answers.trial IS NULL",
        (printable(stimulus), rater["id"]),
    )
    if row is None:
        raise RefusalError(404, "no such sound")
    plan = json.loads(row["body"])
    excerpt = plan["stimuli"][row["position"]]
    if excerpt["key"] not in live.catalog.index:
        raise RefusalError(404, "no such sound")
    song = live.catalog.songs[live.catalog.index[excerpt["key"]]]
    span = ExcerptSpan(begin_s=plan["begin_s"], seconds=plan["seconds"])
    return excerpt_flac(
        live.out / song.path, span, excerpt["damage"], excerpt["gain"], live.catalog.sample_rate
    )
