"""The verb `monitor`: whether a reward model still fits its listeners, by their votes in the order of time."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING

from diffdpo.checks import check_range
from diffdpo.config_paths import PATH
from diffdpo.data.song_scores import read_scores
from diffdpo.data.vote_arrays import VoteSongs
from diffdpo.data.vote_scores import OrderedVotes, ScoredSongs, order_votes
from diffdpo.errors import ConfigError, DataError
from diffdpo.preferences.bradley_terry import calibrate_temperature
from diffdpo.preferences.promotion import Promotion, compare_models
from diffdpo.preferences.taste_drift import (
    Alarm,
    DriftConfig,
    DriftLevel,
    DriftMonitor,
    VoteStream,
    next_level,
)
from diffdpo.progress import log
from diffdpo.recipes.vote_pages import PageTable, html_page, markdown_page
from diffdpo.recipes.votes import read_folders_of_votes
from diffdpo.run_dir import check_inputs, open_run
from diffdpo.runs import atomic_write, finish, write_json

ALARMS, MONITOR, MONITOR_PAGE, MONITOR_SITE = "alarms.jsonl", "monitor.json", "monitor.md", "monitor.html"
ADVICE: dict[DriftLevel, str] = {
    "none": "Nothing changed that these votes show.",
    "calibrate": "Collect votes on fresh songs and calibrate the reward model.",
    "retrain": "Retrain the reward model on the votes since the alarm: a new temperature does not mend it.",
    "realign": "The retrained reward model is better on held-out votes: use it, and align the song model anew.",
}


COMPONENTS = 16
"""Numbers that describe a song, at the most: with more, the tests of short windows see less."""


@dataclass
class MonitorRun:
    """Votes in the order of time, and the scores of a reward model, to alarms and what to do about them."""

    votes: list[str] = field(default=MISSING, metadata=PATH)
    """Folders with votes, old and new."""
    scores: str = field(default=MISSING, metadata=PATH)
    """Folder of `score` with the reward model's scores of all songs."""
    out: str = field(default=MISSING, metadata=PATH)
    reward: str = "reward.preference"
    """Axis of the reward model in the scores."""
    axis: str = ""
    """Axis of the votes; empty: the preference overall."""
    temperature: float = 0.0
    """Of differences of the reward; 0: the most likely one on the reference votes."""
    features: list[str] = field(default_factory=list)
    """Axes that describe songs, of which a change is looked for. Empty: all others in the scores."""
    candidate: str = field(default="", metadata=PATH)
    """Folder with the scores of a retrained reward model: whether it may take the place of the present one."""
    candidate_reward: str = ""
    """Axis of the retrained model; empty: as `reward`."""
    held_out: int = 250
    """Last votes on which a candidate is is_last; it must not have been trained on them."""
    drift: DriftConfig = field(default_factory=DriftConfig)
    """When listeners count as changed."""

    def __post_init__(self) -> None:
        check_range(self, "temperature", low=0)
        check_range(self, "held_out", low=100)
        if not self.reward:
            raise ValueError("reward must name an axis of the scores")

    def check_parts(self) -> None:
        """ConfigError for settings that contradict each other."""
        if self.candidate_reward and not self.candidate:
            raise ConfigError("candidate_reward: there is no candidate; set candidate to a folder of scores")


def run(cfg: MonitorRun) -> Path:
    """Test the votes in the order of time, and write the alarms, a report and a page."""
    check_inputs(scores=cfg.scores, candidate=cfg.candidate)
    votes, _ = read_folders_of_votes(cfg.votes)
    votes = [vote for vote in votes if vote.row.axis == cfg.axis]
    songs, song_values = VoteSongs(), ScoredSongs(read_scores(Path(cfg.scores)))
    timeline = order_votes(votes, songs, song_values, cfg.reward)
    count, minimum = len(timeline.rows), cfg.drift.reference + cfg.drift.min_fresh
    if count < minimum:
        raise DataError(
            f"{', '.join(cfg.votes)}: {count} of {len(votes)} votes are on two songs with scores on "
            f"{cfg.reward!r}, {minimum} are needed; collect more, score the songs, or lower drift.reference"
        )
    stream, temperature, features = make_stream(cfg, timeline, song_values)
    with open_run(cfg, free=("votes", "candidate", "candidate_reward")) as out:
        reference, fresh = (
            stream.part(0, cfg.drift.reference),
            stream.part(cfg.drift.reference, len(stream.margins)),
        )
        monitor = DriftMonitor.of(reference, cfg.drift)
        windows = monitor.windows(fresh)
        alarms = monitor.alarms(fresh, windows)
        promotion = judge_candidate(cfg, timeline, stream)
        level = next_level(
            monitor, fresh, alarms, is_promoted=promotion is not None and promotion.is_promoted
        )
        report = {
            "level": level,
            "advice": ADVICE[level],
            "votes": count,
            "reference": {"votes": cfg.drift.reference, "loss": float(reference.losses.mean())},
            "fresh_loss": float(fresh.losses.mean()),
            "temperature": temperature,
            "features": features,
            "threshold": monitor.alarm.threshold,
            "alarms": [alarm_row(alarm, timeline) for alarm in alarms],
            "windows": [asdict(window) for window in windows],
            "promotion": None if promotion is None else asdict(promotion),
            "notes": _notes(timeline, len(votes), cfg, len(fresh.margins)),
        }
        _write(out, report)
        finish(out, level=level, votes=count, alarms=len(alarms))
        log(f"{len(alarms)} alarms in {len(fresh.margins)} fresh votes. {ADVICE[level]} {out / MONITOR_PAGE}")
    return out


def make_stream(
    cfg: MonitorRun, votes: OrderedVotes, song_values: ScoredSongs
) -> tuple[VoteStream, float, list[str]]:
    """The votes with margins of the reward, the temperature, and the axes that describe the songs.

    Axes without a value of some song, or without spread among the reference votes, describe nothing. The rest are
    in standard deviations of the reference; of more than COMPONENTS axes the principal components are taken.
    """
    first, second = ([pair[side] for pair in votes.sides] for side in (0, 1))
    rewards = [song_values.table(songs, [cfg.reward])[:, 0] for songs in (first, second)]
    margins, n = rewards[0] - rewards[1], cfg.drift.reference
    temperature = cfg.temperature or calibrate_temperature(margins[:n], votes.targets[:n])
    names = cfg.features or [axis for axis in song_values.axes if axis != cfg.reward]
    values_a, values_b = (song_values.table(songs, names) for songs in (first, second))
    spread = np.concatenate([values_a[:n], values_b[:n]]).std(0)
    usable = np.isfinite(values_a).all(0) & np.isfinite(values_b).all(0) & (spread > 1e-9)
    values_a, values_b = values_a[:, usable] / spread[usable], values_b[:, usable] / spread[usable]
    if values_a.shape[1] > COMPONENTS:
        past = np.concatenate([values_a[:n], values_b[:n]])
        base = np.linalg.svd(past - past.mean(0), full_matrices=False)[2][:COMPONENTS].T
        values_a, values_b = values_a @ base, values_b @ base
    stream = VoteStream(
        margins=margins / temperature,
        targets=votes.targets,
        differences=values_a - values_b,
        embeddings=(values_a + values_b) / 2,
    )
    return stream, temperature, [name for name, use in zip(names, usable, strict=True) if use]


def judge_candidate(cfg: MonitorRun, votes: OrderedVotes, stream: VoteStream) -> Promotion | None:
    """The comparison of a retrained model with the present one on the last votes; None without a candidate.

    Both have a temperature that is most likely on the votes before these.
    """
    if not cfg.candidate:
        return None
    song_values = ScoredSongs(read_scores(Path(cfg.candidate)))
    axis = cfg.candidate_reward or cfg.reward
    first, second = (song_values.table([pair[side] for pair in votes.sides], [axis])[:, 0] for side in (0, 1))
    margins = first - second
    usable = np.isfinite(margins)
    start = len(margins) - cfg.held_out
    is_past = usable & (np.arange(len(margins)) < start)
    is_last = usable & ~is_past & (np.arange(len(margins)) >= start)
    if not is_last.any() or not is_past.any():
        raise DataError(f"{cfg.candidate}: no scores on {axis!r} of the songs that were voted on; score them")
    logits = [
        values[is_last] / calibrate_temperature(values[is_past], stream.targets[is_past])
        for values in (stream.margins, margins)
    ]
    raters = [rater for rater, use in zip(votes.raters, is_last, strict=True) if use]
    return compare_models(logits[0], logits[1], stream.targets[is_last], raters)


def alarm_row(alarm: Alarm, votes: OrderedVotes) -> dict[str, Any]:
    """An alarm with the time of its vote."""
    seconds = votes.rows[alarm.vote].row.created_at
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""
    return {**asdict(alarm), "vote_id": votes.rows[alarm.vote].row.vote_id, "time": moment}


def _notes(votes: OrderedVotes, total: int, cfg: MonitorRun, fresh: int) -> list[str]:
    notes = []
    if len(votes.rows) < total:
        notes.append(
            f"{total - len(votes.rows)} of {total} votes are left out: control pairs, repetitions, and songs "
            f"without a score on {cfg.reward!r}."
        )
    if any(not vote.row.created_at for vote in votes.rows):
        notes.append("Votes without a time come first, in the order of their tables.")
    if fresh > cfg.drift.horizon:
        notes.append(
            f"{fresh} fresh votes are more than the horizon of {cfg.drift.horizon}: false alarms are likelier than "
            f"{cfg.drift.false_alarms:g}."
        )
    return notes


def _write(out: Path, report: dict[str, Any]) -> None:
    """The report as JSON, the log of alarms as JSON lines, and the pages."""
    write_json(out / MONITOR, report)
    atomic_write(out / ALARMS, "".join(f"{json.dumps(alarm)}\n" for alarm in report["alarms"]))
    tables = [_summary(report), _alarm_table(report["alarms"]), _window_table(report["windows"])]
    atomic_write(out / MONITOR_PAGE, markdown_page(tables, "Drift of listeners"))
    atomic_write(out / MONITOR_SITE, html_page(tables, "Drift of listeners"))


def _summary(report: dict[str, Any]) -> PageTable:
    rows = [
        ("level", report["level"]),
        ("votes", str(report["votes"])),
        ("loss on the reference", f"{report['reference']['loss']:.3f}"),
        ("loss on fresh votes", f"{report['fresh_loss']:.3f}"),
    ]
    promotion = report["promotion"]
    if promotion:
        gain = f"{promotion['gain']:+.3f} ({promotion['low']:+.3f} to {promotion['high']:+.3f})"
        rows.append(("candidate", f"gain {gain} on {promotion['votes']} votes"))
        rows.append(("", f"alone right {promotion['better']}, alone wrong {promotion['worse']}, "
                         f"p = {promotion['p_value']:.3f}"))  # fmt: skip
        rows.append(("promoted", "yes" if promotion["is_promoted"] else "no"))
    return PageTable("What to do", (report["advice"], *report["notes"]), ("", ""), tuple(rows))


def _alarm_table(alarms: Sequence[dict[str, Any]]) -> PageTable:
    rows = tuple(
        (str(a["vote"]), a["time"], a["test"], f"{a['value']:.2g}", f"{a['limit']:.2g}") for a in alarms
    )
    return PageTable("Alarms", (), ("vote", "time", "test", "value", "limit"), rows)


def _window_table(windows: Sequence[dict[str, Any]]) -> PageTable:
    rows = tuple(
        (
            f"{w['start']} to {w['stop'] - 1}", f"{w['loss']:.3f}", f"{w['agreement']:.0%}",
            f"{w['ratio_p']:.2g}", "" if np.isnan(w["embedding_p"]) else f"{w['embedding_p']:.2g}",
        )
        for w in windows
    )  # fmt: skip
    head = ("votes", "loss", "foreseen", "p, likelihood ratio", "p, embeddings")
    return PageTable("Windows", (), head, rows)
