"""A listening test on sine songs, with a clock that tests turn themselves."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from anyio.from_thread import BlockingPortal
from starlette.testclient import TestClient

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES, SampleRow, sample_id
from diffdpo.listen.app import build_app
from diffdpo.listen.live import LiveStudy
from diffdpo.listen.study import TrialConfig
from diffdpo.recipes.listen import ListenRun, bind_address, open_study
from diffdpo.types import Clip

RATE = 8000
ADMIN = "a-token-of-the-admin-for-tests"
ORIGIN = "http://testserver"
EVENT_LOOPS: list[BlockingPortal] = []
"""One for the requests of all tests, where a fixture runs it: else every request starts a loop and threads."""


def sine(hertz: float, seconds: float, level: float = 0.2) -> Clip:
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return Clip(samples=np.stack([wave, wave]).astype(np.float32), sample_rate=RATE)


def write_songs(
    folder: Path,
    *,
    prompts: int = 4,
    per_prompt: int = 2,
    seconds: float = 3.0,
    hertz: float = 400.0,
    level: float = 0.2,
    texts: Sequence[str] = (),
) -> Path:
    """A samples folder; the song k of prompt i has the frequency hertz + 100 k + 10 i, and each its own level."""
    lines, rows = [], []
    for i in range(prompts):
        prompt = f"p{i:02d}"
        text = texts[i] if i < len(texts) else f"song number {i}"
        lines.append(json.dumps({"id": prompt, "text": text, "duration_s": seconds, "group": prompt}))
        for k in range(per_prompt):
            name = sample_id(prompt, k)
            clip = sine(hertz + 100 * k + 10 * i, seconds, level / (1 + k))
            audio.write(folder / "audio" / f"{name}.flac", clip)
            sha256 = audio.pcm_sha256(clip.samples, clip.sample_rate)
            rows.append(
                SampleRow(sample_id=name, prompt_id=prompt, group=prompt, duration_s=seconds, sha256=sha256)
            )
    tables.append(folder, SAMPLES, rows)
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@dataclass
class HandClock:
    """Seconds that pass only when a test says so."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Listener:
    """A browser of one listener, and what its page would do."""

    client: TestClient
    clock: HandClock
    language: str = "en"
    trial: dict[str, Any] = field(default_factory=dict)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        return self.client.post(
            f"/api/{path}", json={} if body is None else body, headers={"Origin": ORIGIN, **headers}
        )

    def get(self, path: str) -> Any:
        return self.client.get(f"/api/{path}")

    def agree(self) -> Any:
        consent = self.get("state").json()["consents"][self.language]
        return self.post("consent", {"language": self.language, "version": consent["version"], "agree": True})

    def enter(self) -> None:
        """From the consent to the first trial."""
        assert self.agree().status_code == 200
        while (stage := self.get("state").json()["stage"]) != "trials":
            answer = self.post(f"stage/{stage}", {"skip": True})
            assert answer.status_code == 200, answer.text

    def next(self) -> dict[str, Any]:
        answer = self.post("trial")
        assert answer.status_code == 200, answer.text
        self.trial = answer.json()
        return self.trial

    def listen(self, seconds: float = 6.0) -> list[float]:
        """Play every song of the trial, reporting every two seconds."""
        heard: list[float] = []
        for position in range(len(self.trial["sounds"])):
            self.report("play", position)
            for _ in range(round(seconds / 2)):
                self.clock.pass_time(2.0)
                heard = self.report("tick", position)
            heard = self.report("pause", position)
        return heard

    def report(self, event: str, position: int) -> list[float]:
        answer = self.post("playback", {"trial": self.trial["trial"], "event": event, "position": position})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["heard"])

    def answer(self, **values: Any) -> Any:
        return self.post("answer", {"trial": self.trial["trial"], **values})

    def vote(self, answer: str = "a", **values: Any) -> Any:
        """Hear the next trial and answer it."""
        self.next()
        self.listen()
        reply = self.answer(answer=answer, **values)
        assert reply.status_code == 200, reply.text
        return reply.json()


@dataclass
class StudyHouse:
    """A study without a server: its folder, its clock, and browsers for it."""

    live: LiveStudy
    clock: HandClock
    app: Any

    def listener(self, language: str = "en") -> Listener:
        client = TestClient(self.app)
        client.portal = next(iter(EVENT_LOOPS), None)
        return Listener(client, self.clock, language)

    @property
    def out(self) -> Path:
        return self.live.out

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.live.database.rows(query)]


def open_house(folder: Path, **values: Any) -> StudyHouse:
    """A study in `folder` on songs in `folder / songs`, which are made unless they are there."""
    songs = folder / "songs"
    if not songs.exists():
        write_songs(songs)
    clock = values.pop("clock", None) or HandClock()
    trials = {"count": 8, "training": 1, "headphones": 0, **values.pop("trials", {})}
    cfg = ListenRun(
        out=str(folder / "study"),
        samples=values.pop("samples", [str(songs)]),
        pairs=values.pop("pairs", "within"),
        trials=TrialConfig(**trials),
        **values,
    )
    live = open_study(cfg, clock)
    return StudyHouse(live, clock, build_app(live, ADMIN))


@dataclass
class Site:
    """A study behind a real server in a thread of this process."""

    house: StudyHouse
    address: str


@contextmanager
def open_site(house: StudyHouse) -> Iterator[Site]:
    """Serve a study on a free port until the block ends."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(house.app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    )
    with bind_address("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield Site(house, f"http://127.0.0.1:{listener.getsockname()[1]}/")
        finally:
            server.should_exit = True
            thread.join(20)
