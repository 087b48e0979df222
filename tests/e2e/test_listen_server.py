"""`diffdpo listen` as a process: killed while listeners vote, stopped, started again, and started wrongly."""

import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urldefrag

import httpx
import pytest
from support.launch import verb
from support.listening import write_songs
from support.raters import THREADS, ServerProcess, check_votes, simulated_raters, study_words, vote_and_kill

from diffdpo import audio
from diffdpo.data.votes import VOTES, read_votes
from diffdpo.listen.database import DATABASE
from diffdpo.listen.results import export_results

VOTES_PER_S, RATERS = 20.0, 20
"""`make soak` has fifty listeners and twenty kills."""


@pytest.fixture
def servers() -> Iterator[list[ServerProcess]]:
    """Servers that end with the test, however it ends."""
    servers: list[ServerProcess] = []
    yield servers
    for server in servers:
        server.process.kill()
        server.process.wait(30)


@pytest.mark.slow
def test_killed_twice_and_stopped_it_has_every_acknowledged_vote(
    tmp_path: Path, servers: list[ServerProcess]
) -> None:
    write_songs(tmp_path / "songs", prompts=12, per_prompt=3, seconds=1)
    words, raters = study_words(tmp_path), simulated_raters(RATERS)
    for life in range(3):
        servers.append(ServerProcess(words))
        vote_and_kill(servers[-1], raters, 2.5 + life / 4, VOTES_PER_S, kill=life < 2)
    for _ in range(20):  # on a slow machine some have had no turn yet
        if not all(rater.accepted for rater in raters):
            vote_and_kill(servers[-1], raters, 2, VOTES_PER_S, kill=False)
    server = servers[-1]
    assert len({server.admin.partition("#")[2] for server in servers}) == 1
    address, token = urldefrag(server.admin)
    headers = {"Authorization": f"Bearer {token}"}
    progress = httpx.get(address.replace("/admin", "/api/admin/progress"), headers=headers).json()
    assert sum(rater["answers"] > 0 for rater in progress["raters"]) == RATERS
    lost_consents = len(progress["raters"]) - RATERS  # stored, and the server killed before it said so
    assert 0 <= lost_consents <= 2 * THREADS
    count = export_results(tmp_path / "study")[0]  # while it runs, as `diffdpo votes` does
    assert progress["votes"] == count
    assert server.end(signal.SIGINT) == 130
    assert len(read_votes(tmp_path / "study")) == count
    check_votes(tmp_path / "study", raters, kills=2)
    last = [
        f"votes and opinions are in {tmp_path / 'study'}",
        "stopped; the same command goes on from what is finished",
    ]
    assert server.lines[-2:] == last
    log = "\n".join(line for server in servers for line in server.lines)
    assert not [rater for rater in raters if rater.token in log]
    assert not list((tmp_path / "study").glob(f"{DATABASE}-*"))  # its log is part of the database


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("mistakes") / "songs", prompts=2, seconds=1)


def words_of(songs: Path, out: Path, **values: object) -> list[str]:
    settings = {"out": out, "samples": f"[{songs}]", "pairs": "within", **values}
    return [f"{key}={value}" for key, value in settings.items()]


def test_mistakes_are_one_line(songs: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = verb("listen", *words_of(songs, tmp_path / "a", port=port), code=2)
        assert f"port={port}: another program uses it" in line
    (tmp_path / "empty").mkdir()
    audio.write(tmp_path / "tiny" / "x.wav", audio.read(songs / "audio" / "p00.000.flac", seconds=0.2))
    for values, message in (
        ({"pairs": "across"}, "pairs=across: no two different songs to compare; name two folders"),
        ({"samples": f"[{tmp_path / 'empty'}]"}, "holds no songs to listen to"),
        ({"samples": f"[{tmp_path / 'gone'}]"}, "no such folder"),
        ({"samples": "[]"}, "nothing to listen to"),
        ({"samples": f"[{tmp_path / 'tiny'}]", "mode": "rating"}, "an excerpt needs at least 1 s"),
        ({"mode": "mushra"}, "mushra.reference"),
        ({"host": "203.0.113.9"}, "no address of this machine"),
        ({"trials.gold_share": 0.4, "trials.repeat_share": 0.2}, "at most half of the trials"),
        ({"excerpts.seconds": 0.3}, "seconds must be 0 or at least 1"),
        ({"origins": "[example.org]"}, "origins begin with http"),
    ):  # fmt: skip
        out = tmp_path / "b"
        assert message in verb("listen", *words_of(songs, out, port=0, **values), code=2), values


def test_a_missing_library_is_one_line(songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    line = verb("listen", *words_of(songs, tmp_path / "a", port=0), code=2)
    assert 'pip install "diffdpo[people]"' in line


def test_another_study_does_not_continue_this_one(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffdpo.recipes.listen.serve", lambda app, sockets: None)
    out = tmp_path / "study"
    verb("listen", *words_of(songs, out, port=0))
    verb("listen", *words_of(songs, out, port=0, **{"trials.count": 7}))  # may change
    assert "was made with mode='pair'" in verb("listen", *words_of(songs, out, port=0, mode="rating"), code=2)
    assert not list(out.glob(VOTES.folder))
