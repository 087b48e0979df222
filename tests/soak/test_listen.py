"""The server of a listening test is killed twenty times under fifty listeners, who vote twenty times a second:
every vote that it acknowledged is there in the end, once, and under its own listener."""

import random
import signal
from pathlib import Path

from support.listening import write_songs
from support.raters import ServerProcess, check_votes, simulated_raters, study_words, vote_and_kill

KILLS, RATERS, VOTES_PER_S = 20, 50, 20.0


def test_twenty_kills_lose_no_acknowledged_vote(tmp_path: Path) -> None:
    write_songs(tmp_path / "songs", prompts=40, per_prompt=4, seconds=1)
    words, raters, rng = study_words(tmp_path), simulated_raters(RATERS), random.Random(0)
    for _ in range(KILLS):
        vote_and_kill(ServerProcess(words), raters, rng.uniform(1, 10), VOTES_PER_S, kill=True)
    server = ServerProcess(words)
    try:
        vote_and_kill(server, raters, 5, VOTES_PER_S, kill=False)
    finally:
        server.end(signal.SIGTERM)
    count = check_votes(tmp_path / "study", raters, kills=KILLS)
    assert count > 20 * KILLS
