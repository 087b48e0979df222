"""The verb `monitor`: from votes in the order of time to alarms, levels, and the promotion of a reward model."""

import json

import numpy as np
import pytest
from support.launch import verb

from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES, SampleRow
from diffdpo.data.scores import SCORES, score_rows
from diffdpo.data.votes import VOTES, VoteRow
from diffdpo.runs import finish

pytestmark = pytest.mark.slow

SONGS, FEATURES = 240, 3
DRIFT = "drift={reference: 400, window: 200, horizon: 1200}"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Songs with three features, the reward on the first alone, a candidate on the second; votes turn to it."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    features = rng.standard_normal((SONGS, FEATURES))
    rows = [SampleRow(sample_id=f"s{i}", prompt_id="p", sha256=f"h{i}") for i in range(SONGS)]
    tables.append(folder / "samples", SAMPLES, rows)
    (folder / "samples" / "prompts.jsonl").write_text('{"id": "p", "text": "rock", "duration_s": 1}\n')
    for name, place in (("scores", 0), ("candidate", 1)):
        values = [
            [
                ("reward.preference", 2 * features[i, place]),
                *((f"f{k}", features[i, k]) for k in range(FEATURES)),
            ]
            for i in range(SONGS)
        ]
        scored = [row for i in range(SONGS) for row in score_rows(f"h{i}", "", "reward", "1", values[i])]
        tables.append(folder / name, SCORES, scored)
        finish(folder / name, scorers={"reward": "1"})
    votes = []
    for number in range(1600):
        a, b = rng.choice(SONGS, 2, replace=False)
        axis = 0 if number < 900 else 1
        wins = rng.random() < 1 / (1 + np.exp(-1.5 * (features[a, axis] - features[b, axis])))
        votes.append(
            VoteRow(
                vote_id=f"v{number}",
                source="study",
                rater=f"r{number % 20}",
                samples_a="../samples",
                samples_b="../samples",
                song_a=f"s{a}",
                song_b=f"s{b}",
                answer="a" if wins else "b",
                created_at=1.7e9 + number,
            )
        )
    for name, part in (("votes", votes), ("calm", votes[:900])):
        tables.append(folder / name, VOTES, [part[i] for i in rng.permutation(len(part))])
    return folder


def monitor(world, out, *words, votes="votes", code=0):
    return verb(
        "monitor", f"votes={world / votes}", f"scores={world / 'scores'}", f"out={out}", DRIFT, *words, code=code
    )  # fmt: skip


def read(out):
    return json.loads((out / "monitor.json").read_text())


def test_a_taste_that_turns_is_found_logged_and_asks_for_a_new_model(world, tmp_path):
    text = monitor(world, tmp_path / "out")
    report = read(tmp_path / "out")
    assert report["level"] == "retrain"
    assert "Retrain the reward model" in text
    alarms = [json.loads(line) for line in (tmp_path / "out" / "alarms.jsonl").read_text().splitlines()]
    assert alarms == report["alarms"]
    assert {alarm["test"] for alarm in alarms} == {"loss", "likelihood ratio"}
    first = alarms[0]
    assert 900 <= first["vote"] < 1300
    assert first["vote_id"] == f"v{first['vote']}"
    assert first["time"].startswith("2023-11-1")
    assert report["features"] == ["f0", "f1", "f2"]
    assert len(report["windows"]) == 6
    for name in ("monitor.md", "monitor.html"):
        page = (tmp_path / "out" / name).read_text()
        assert all(word in page for word in ("Drift of listeners", "likelihood ratio", "retrain"))


def test_a_candidate_that_is_better_on_held_out_votes_is_promoted(world, tmp_path):
    monitor(world, tmp_path / "out", f"candidate={world / 'candidate'}")
    report = read(tmp_path / "out")
    assert report["promotion"]["is_promoted"]
    assert report["promotion"]["votes"] == 250
    assert report["promotion"]["low"] > 0
    assert report["level"] == "realign"
    monitor(world, tmp_path / "same", f"candidate={world / 'scores'}")
    report = read(tmp_path / "same")
    assert not report["promotion"]["is_promoted"]
    assert report["level"] == "retrain"


def test_votes_without_a_change_raise_no_alarm(world, tmp_path):
    monitor(world, tmp_path / "out", votes="calm")
    report = read(tmp_path / "out")
    assert report["level"] == "none"
    assert report["alarms"] == []
    assert (tmp_path / "out" / "alarms.jsonl").read_text() == ""
    assert report["fresh_loss"] == pytest.approx(report["reference"]["loss"], abs=0.1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["reward=reward.prefer"], "no scores on axis 'reward.prefer'. Did you mean 'reward.preference'?"),
        (["features=[f9]"], "no scores on axis 'f9'"),
        (
            ["drift.reference=1550"],
            "1600 of 1600 votes are on two songs with scores on 'reward.preference', 1650 are needed",
        ),
        (["axis=lyrics"], "0 of 0 votes are on two songs"),
        (["candidate=nowhere"], "nowhere: no such folder"),
        (["candidate_reward=x"], "there is no candidate"),
        (["drift.window=3"], "window must be at least 50"),
    ],
)
def test_what_cannot_be_monitored_is_one_line(world, tmp_path, words, says):
    assert says in monitor(world, tmp_path / "out", *words, code=2)
