"""Simulated listeners against a real server, which may be killed: what it acknowledged is written down."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from diffdpo.data.votes import read_votes
from support.launch import ROOT

START_S = 60.0
THREADS = 4


@dataclass
class ServerProcess:
    """`diffdpo listen` in a process of its own."""

    words: Sequence[str]
    process: subprocess.Popen[str] = field(init=False)
    reader: threading.Thread = field(init=False)
    address: str = ""
    admin: str = ""
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "300", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "diffdpo", "listen", *self.words],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment,
            # where tests run in the background the signal of Ctrl-C is ignored, also by their children
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.strip())
            if match := re.search(r"listeners: (\S+)", line):
                self.address = match[1]
            if match := re.search(r"admin: (\S+)", line):
                self.admin = match[1]
                break
        assert self.admin, self.lines
        self.reader = threading.Thread(target=self._drain, daemon=True)
        self.reader.start()
        self._wait_until_it_answers()

    def _drain(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(line.strip() for line in self.process.stderr)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                httpx.get(f"{self.address}api/state", timeout=5)
                return
            except httpx.HTTPError:
                assert time.monotonic() < deadline, self.lines
                time.sleep(0.05)

    def end(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the last lines; the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.reader.join(30)
        return code


@dataclass
class SimulatedRater:
    """A listener who votes as fast as a server with `min_heard_s=0` lets them."""

    name: int
    accepted: list[str] = field(default_factory=list)
    """Trials whose answers were acknowledged."""
    token: str = ""
    has_entered: bool = False
    """Behind the last stage before the trials; a server that dies on the way leaves a token and no trial."""
    turns: int = 0
    open_trial: str = ""

    def request(self, client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Cookie": f"listener={self.token}"} if self.token else {}
        answer = client.post(f"api/{path}", json=body, headers=headers)
        if path == "consent" and answer.status_code == 200:
            self.token = answer.cookies["listener"]
            client.cookies.clear()  # raters share a connection, not a browser
        return dict(answer.json()) if answer.status_code == 200 else {"status": answer.status_code}

    def enter(self, client: httpx.Client) -> None:
        consent = client.get("api/state").json()["consents"]["en"]
        body = {"language": "en", "version": consent["version"], "agree": True}
        self.request(client, "consent", body)
        for stage in ("background", "volume"):
            self.request(client, f"stage/{stage}", {})
        self.has_entered = True

    def vote(self, client: httpx.Client) -> bool:
        """One trial; whether there was another."""
        trial = self.request(client, "trial", {})
        if trial.get("state") != "trial":
            return False
        self.open_trial = trial["trial"]
        position = len(self.accepted) % 2
        self.request(client, "playback", {"trial": self.open_trial, "event": "play", "position": position})
        reply = self.request(
            client, "answer", {"trial": self.open_trial, "answer": "ab"[position], "comment": f"{self.name}"}
        )
        if reply.get("accepted"):
            self.accepted.append(self.open_trial)
        return True


def run_raters(
    address: str, raters: Sequence[SimulatedRater], seconds: float, per_s: float, threads: int = THREADS
) -> None:
    """Let raters vote in turn, so many votes a second over all of them, for some time or until the server dies."""
    start, stop = time.monotonic(), threading.Event()

    def work(number: int) -> None:
        own = raters[number::threads]
        turn = 0
        with httpx.Client(base_url=address, timeout=10) as client:
            while not stop.is_set() and time.monotonic() - start < seconds:
                due = start + (turn * threads + number) / per_s
                time.sleep(max(0.0, min(due, start + seconds) - time.monotonic()))
                rater = min(own, key=lambda rater: rater.turns)
                rater.turns += 1
                turn += 1
                try:
                    if not rater.has_entered:
                        rater.enter(client)
                    rater.vote(client)
                except httpx.HTTPError:
                    stop.set()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def study_words(folder: Path, **values: Any) -> list[str]:
    """A study on the songs in `folder / songs` for raters who need not listen."""
    settings = {
        "out": folder / "study", "samples": f"[{folder / 'songs'}]", "pairs": "within", "port": 0,
        "trials.min_heard_s": 0, "trials.headphones": 0, "trials.training": 0, "trials.count": 1000,
        "trials.break_after_min": 0, "excerpts.seconds": 1, "excerpts.start": "start",
        "limits.newcomers_per_s": 1000, **values,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in settings.items()]


def simulated_raters(count: int) -> list[SimulatedRater]:
    return [SimulatedRater(number) for number in range(count)]


def vote_and_kill(
    server: ServerProcess, raters: Sequence[SimulatedRater], seconds: float, per_s: float, *, kill: bool
) -> None:
    """Let raters vote for some seconds; then kill the server under them, or let them finish."""
    load = threading.Thread(
        target=run_raters, args=(server.address, raters, seconds + (30 if kill else 0), per_s)
    )
    load.start()
    if kill:
        time.sleep(seconds)
        server.end(signal.SIGKILL)
    load.join()


def check_votes(study: Path, raters: Sequence[SimulatedRater], kills: int) -> int:
    """Every acknowledged vote is there, under its own listener's name; how many there are."""
    votes = {vote.vote_id: vote for vote in read_votes(study)}
    pseudonyms: dict[str, str] = {}
    for rater in raters:
        for trial in rater.accepted:
            assert votes[trial].comment == f"{rater.name}"
            assert pseudonyms.setdefault(votes[trial].rater, rater.token) == rater.token
    count = sum(len(rater.accepted) for rater in raters)
    assert count >= len(raters)
    assert count <= len(votes) <= count + THREADS * kills  # and at most those under way at a kill
    return count
