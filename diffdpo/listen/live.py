"""A listening test that runs: its study, songs, database and clock, and what all its parts ask of them.

The parts (`enrolment`, `presentation`, `responses`) take plain data and return plain data, or raise
`RefusalError` with the status of HTTP. Times are seconds since 1970 of the clock that the study was opened with.
"""

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from diffdpo.errors import DataError
from diffdpo.listen.catalog import Catalog
from diffdpo.listen.consent import Consent, consents
from diffdpo.listen.database import Database, DatabaseRow, to_json, token_hash
from diffdpo.listen.study import Study
from diffdpo.listen.trials import VoteLog

JsonBody = Mapping[str, Any]
LISTENER_STAGES = ("background", "volume", "headphones", "trials")
"""What comes after the consent, in order."""
NO_VOTES = ("skip", "report")


class RefusalError(Exception):
    """A request that is not granted: status of HTTP, reason, and what the page should know."""

    def __init__(self, status: int, reason: str, **details: Any) -> None:
        super().__init__(reason)
        self.status, self.details = status, {"detail": reason, **details}


@dataclass
class LiveStudy:
    """A listening test that runs."""

    study: Study
    catalog: Catalog
    out: Path
    """The folder of the study, with its database."""
    database: Database
    clock: Callable[[], float]
    consents: dict[str, Consent] = field(init=False)
    votes: VoteLog = field(init=False)
    opinions: Int[np.ndarray, " item"] = field(init=False)
    """How often each song, or each page of MUSHRA, was rated."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while a trial is chosen or a vote is counted."""

    def __post_init__(self) -> None:
        self.consents = consents(self.study.consent)
        self._check_songs()
        with self.database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('name', ?)", (self.study.name,))
            for consent in self.consents.values():
                connection.execute(
                    "INSERT INTO consents VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET license = excluded.license",
                    (consent.key, consent.language, consent.text, self.study.consent.license),
                )
            connection.executemany(
                "INSERT OR REPLACE INTO songs VALUES (?, ?)",
                [(song.key, to_json(song.row())) for song in self.catalog.songs],
            )
        self.count_votes()

    def _check_songs(self) -> None:
        """DataError if a song is another one than that which listeners heard under its name."""
        for row in self.database.rows("SELECT key, body FROM songs"):
            place = self.catalog.index.get(row["key"])
            if place is not None and self.catalog.songs[place].sha256 != json.loads(row["body"])["sha256"]:
                raise DataError(
                    f"{self.out}: {row['key']} sounds different from when this study began; choose another out=…, "
                    "or bring the old songs back"
                )

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this study."""
        absent = set()
        if not self.study.trials.headphones:
            absent.add("headphones")
        if not self.study.consent.ask_background:
            absent.add("background")
        return tuple(stage for stage in LISTENER_STAGES if stage not in absent)

    def count_votes(self) -> None:
        """Read from the database what the choice of the next trial depends on."""
        with self.lock:
            self.votes = VoteLog(len(self.catalog.songs))
            items = self.catalog.pages if self.study.mode == "mushra" else self.catalog.songs
            self.opinions = np.zeros(len(items), np.int64)
            for row in self.database.rows(
                "SELECT trials.kind, trials.body AS plan, answers.body AS answer FROM answers "
                "JOIN trials ON trials.id = answers.trial WHERE trials.kind = 'real' ORDER BY answers.created_at"
            ):
                self.count_vote(row["kind"], json.loads(row["plan"]), json.loads(row["answer"])["choice"])

    def count_vote(self, kind: str, plan: JsonBody, choice: str) -> None:
        """Count an answer to a trial; only those to real trials matter."""
        songs = self.songs_of(plan)
        if kind != "real" or not songs or choice in NO_VOTES:
            return
        with self.lock:
            if self.study.mode == "pair":
                self.votes.add(songs[0], songs[1], choice)
            elif self.study.mode == "rating":
                self.opinions[songs[0]] += 1
            else:
                pages = [k for k, page in enumerate(self.catalog.pages) if page.reference == songs[0]]
                self.opinions[pages] += 1

    def songs_of(self, plan: JsonBody) -> tuple[int, ...]:
        """Indices of the songs of a trial; empty where one is no longer in the study."""
        keys = [stimulus["key"] for stimulus in plan["stimuli"]]
        index = self.catalog.index
        return tuple(index[key] for key in keys) if all(key in index for key in keys) else ()

    def rater(self, token: str | None) -> DatabaseRow | None:
        """The listener whose token this is."""
        if not token:
            return None
        return self.database.row("SELECT * FROM raters WHERE token_hash = ?", (token_hash(token),))

    def stage(self, rater: DatabaseRow) -> str:
        """Where a listener is; those who agreed to another text than today's are asked again."""
        keys = {consent.key for consent in self.consents.values()}
        return str(rater["stage"]) if rater["consent"] in keys else "consent"

    def require(self, token: str | None, stage: str = "") -> DatabaseRow:
        """The listener. RefusalError for an unknown token, or one who is at another stage."""
        rater = self.rater(token)
        if rater is None:
            raise RefusalError(401, "please begin with the consent")
        if stage and self.stage(rater) != stage:
            raise RefusalError(409, f"not at this point of the study: {self.stage(rater)} comes first")
        return rater
