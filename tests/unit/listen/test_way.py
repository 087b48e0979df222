"""The whole way of a listener over HTTP, without a browser and without waiting."""

import json
import shutil
from pathlib import Path

import pytest
from support.launch import verb
from support.listening import ADMIN, HandClock, StudyHouse, open_house, write_songs

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.pairs import PAIRS
from diffdpo.data.samples import SAMPLES
from diffdpo.data.votes import VOTES, read_opinions_table, read_votes
from diffdpo.errors import DataError
from diffdpo.listen.database import DATABASE, Database
from diffdpo.listen.playback import excerpt_flac, excerpt_level
from diffdpo.listen.results import check_database, export_results, refresh_studies
from diffdpo.listen.study import ConsentConfig, MushraConfig
from diffdpo.recipes.votes import read_folders_of_votes

pytestmark = pytest.mark.slow


@pytest.fixture
def house(tmp_path: Path) -> StudyHouse:
    return open_house(tmp_path)


def test_from_consent_to_an_exported_vote(house: StudyHouse) -> None:
    person = house.listener()
    assert person.get("state").json()["stage"] == "consent"
    assert person.post("trial").status_code == 401
    person.agree()
    assert person.post("trial").status_code == 409  # first background and volume
    about = {"language": "Basque", "background": "amateur"}
    assert person.post("stage/background", about).json() == {"stage": "volume"}
    assert person.post("stage/volume").json() == {"stage": "trials"}

    practice = person.next()
    assert practice["training"]
    assert practice["of"] == 1
    person.listen()
    assert person.answer(answer="a").json()["feedback"]["answer"] in ("a", "b", "tie")

    first = person.next()
    assert not first["training"]
    assert (first["number"], first["of"]) == (1, 4)
    refusal = person.answer(answer="a")
    assert refusal.status_code == 409
    assert refusal.json()["heard"] == [0, 0]
    assert person.listen() == [6, 6]
    answer = {"answer": "a", "strength": 2, "comment": "good <b>drums</b>", "spans": [[[0.5, 1.0]], []]}
    assert person.answer(**answer).status_code == 200

    assert export_results(house.out) == (1, 0)
    (vote,) = read_votes(house.out)
    assert (vote.answer, vote.strength, vote.comment) == ("a", 2, "good <b>drums</b>")
    assert vote.spans_a == ((vote.begin_a_s + 0.5, vote.begin_a_s + 1.0),)
    assert vote.spans_b == ()
    assert vote.rater_group == about
    assert vote.consent.endswith("/en")
    assert vote.song_a != vote.song_b
    assert (vote.prompt_id, vote.samples_a) == (vote.song_a[:3], "../songs")


def test_a_listener_takes_their_data_and_leaves_no_row(house: StudyHouse) -> None:
    person = house.listener()
    person.agree()
    person.post("stage/background", {"language": "Basque"})
    person.post("stage/volume")
    person.vote()
    person.vote("b", comment="good drums")
    assert export_results(house.out) == (1, 0)

    mine = person.get("mine").json()
    assert mine["background"] == {"language": "Basque"}
    assert mine["trials"][1]["answer"]["comment"] == "good drums"
    assert mine["consent"]["license"] == "CC-BY-4.0"
    assert person.post("delete", {}).status_code == 422
    assert person.post("delete", {"confirm": True}).json()["deleted"] is True
    assert person.get("mine").status_code == 401
    for table in ("raters", "trials", "stimuli", "answers"):
        assert house.rows(f"SELECT * FROM {table}") == []
    ((_, deleted_at),) = house.rows("SELECT * FROM tombstones")
    assert deleted_at == house.clock.now
    traces = ("Basque", "drums", mine["listener"], mine["trials"][1]["id"])
    for _ in range(2):  # while the study runs, and after
        files = [path for path in house.out.rglob("*") if path.is_file()]
        assert files
        for path in files:
            content = path.read_bytes()
            assert not [trace for trace in traces if trace.encode() in content], path
        house.live.database.close()


def test_deleting_one_leaves_the_votes_of_another(house: StudyHouse) -> None:
    people = house.listener(), house.listener()
    for person in people:
        person.enter()
        person.vote()
        person.vote("b")
    assert export_results(house.out) == (2, 0)
    pseudonym = people[1].get("mine").json()["listener"]
    people[0].post("delete", {"confirm": True})
    (vote,) = read_votes(house.out)  # the table that was there is written again
    assert vote.rater == pseudonym
    assert len(house.live.votes.answers) == 1
    people[1].vote("tie")


def test_a_closed_tab_resumes_where_it_was(house: StudyHouse) -> None:
    person = house.listener()
    person.enter()
    person.vote()
    trial = person.next()
    person.report("play", 0)
    house.clock.pass_time(2)
    person.report("pause", 0)
    again = person.next()
    assert (again["trial"], again["sounds"]) == (trial["trial"], trial["sounds"])
    assert again["heard"] == [2, 0]


def test_a_study_without_its_database_is_not_replaced_by_a_new_one(tmp_path: Path) -> None:
    house = open_house(tmp_path)
    person = house.listener()
    person.enter()
    for _ in range(5):
        person.next()
        person.listen()
        person.answer(answer="a")
    export_results(house.out)
    rows = read_votes(house.out)
    house.live.database.close()
    for damage in (b"", None):
        (house.out / DATABASE).unlink()
        if damage is not None:
            (house.out / DATABASE).write_bytes(damage)
            with pytest.raises(DataError, match="gone or empty"):
                export_results(house.out)
        with pytest.raises(DataError, match=r"gone or empty.*bring back a copy"):
            check_database(house.out)
    assert read_votes(house.out) == rows


def test_answers_that_no_server_wrote_into_the_tables_are_read(tmp_path: Path) -> None:
    house = open_house(tmp_path)
    person = house.listener()
    person.enter()
    while not house.live.votes.answers:
        person.vote()
    votes, _ = read_folders_of_votes([f"{house.out}"])  # as after a kill: the server never ended
    assert len(votes) >= 1
    place = house.out / VOTES.folder
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    refresh_studies([f"{house.out}"])
    assert before == {
        path: path.stat().st_mtime_ns for path in place.iterdir()
    }  # nothing new, nothing written


def test_the_same_study_continues_after_a_restart(tmp_path: Path) -> None:
    house = open_house(tmp_path)
    person = house.listener()
    person.enter()
    person.vote()
    trial = person.next()
    house.live.database.close()
    later = open_house(tmp_path, clock=house.clock)
    guest = later.listener()
    guest.client.cookies = person.client.cookies
    assert guest.next()["trial"] == trial["trial"]
    guest.listen()
    assert guest.answer(answer="b").status_code == 200
    assert len(later.live.votes.answers) == 1


def test_an_answer_that_comes_twice_counts_once(house: StudyHouse) -> None:
    person = house.listener()
    person.enter()
    person.vote()
    person.vote("a")
    reply = person.answer(answer="b")
    assert reply.json() == {"accepted": True, "repeated": True}
    assert export_results(house.out) == (1, 0)
    assert read_votes(house.out)[0].answer == "a"


def test_two_listeners_hear_different_orders_and_sides(tmp_path: Path) -> None:
    write_songs(tmp_path / "songs", prompts=8)
    house = open_house(tmp_path, trials={"count": 10, "training": 0})
    people = house.listener(), house.listener()
    for person in people:
        person.enter()
    for _ in range(3):
        trials = [person.next() for person in people]
        assert trials[0]["trial"] != trials[1]["trial"]
        assert not set(trials[0]["sounds"]) & set(trials[1]["sounds"])
        for person in people:
            person.listen()
            person.answer(answer="a")
    assert export_results(house.out)[0] == 6
    assert len({vote.rater for vote in read_votes(house.out)}) == 2


def test_the_end_comes_when_everything_is_heard(house: StudyHouse) -> None:
    person = house.listener()
    person.enter()
    for _ in range(5):
        person.vote("tie")
    assert person.next() == {"state": "done", "trials": 5}
    votes = read_votes(house.out) if export_results(house.out) else []
    assert len({frozenset((vote.song_a, vote.song_b)) for vote in votes}) == 4


def test_skipping_and_reporting_need_no_listening_and_are_no_votes(house: StudyHouse) -> None:
    person = house.listener()
    person.enter()
    person.vote()
    person.next()
    assert person.answer(skip=True).status_code == 200
    person.next()
    assert person.answer(report="this is hateful").status_code == 200
    assert export_results(house.out) == (0, 0)
    progress = (
        house.listener()
        .client.get("/api/admin/progress", headers={"Authorization": f"Bearer {ADMIN}"})
        .json()
    )
    assert (progress["skipped"], progress["reports"], progress["votes"]) == (1, 1, 0)


def test_a_break_is_due_after_listening_for_long(tmp_path: Path) -> None:
    write_songs(tmp_path / "songs", prompts=8)
    house = open_house(tmp_path, trials={"count": 8, "training": 0, "break_after_min": 1.0, "break_s": 60.0})
    person = house.listener()
    person.enter()
    for _ in range(5):  # of 12 seconds each
        person.vote()
    assert person.next() == {"state": "break", "seconds": 60}
    house.clock.pass_time(20)
    assert person.next() == {"state": "break", "seconds": 40}
    assert person.post("break").status_code == 409
    house.clock.pass_time(40)
    assert person.post("break").json()["state"] == "trial"
    person.vote()


def test_who_was_away_for_long_needs_no_break(tmp_path: Path) -> None:
    write_songs(tmp_path / "songs", prompts=8)
    house = open_house(tmp_path, trials={"count": 8, "training": 0, "break_after_min": 1.0})
    person = house.listener()
    person.enter()
    for _ in range(4):
        person.vote()
    house.clock.pass_time(3600)
    assert person.next()["state"] == "trial"


def test_the_headphone_check_is_recorded_passed_or_left_out(tmp_path: Path) -> None:
    house = open_house(tmp_path, trials={"headphones": 6})
    person = house.listener()
    person.agree()
    person.post("stage/background")
    person.post("stage/volume")
    assert person.client.get("/audio/headphones/0").content[:4] == b"fLaC"
    assert person.client.get("/audio/headphones/6").status_code == 404
    assert person.post("stage/headphones", {"answers": [0]}).status_code == 422
    reply = person.post("stage/headphones", {"answers": [0, 0, 0, 0, 0, 3]}).json()
    assert reply["stage"] == "trials"
    assert reply["right"] <= 5
    skipper = house.listener()
    skipper.enter()
    assert skipper.get("mine").json()["headphones"] == {"skipped": True}


def test_another_text_asks_for_consent_again(tmp_path: Path) -> None:
    house = open_house(tmp_path)
    person = house.listener("de")
    person.enter()
    person.vote()
    person.vote()
    house.live.database.close()
    texts = ConsentConfig(texts={"de": "Anderer Text"}, license="CC0-1.0")
    later = open_house(tmp_path, clock=house.clock, consent=texts)
    guest = later.listener("de")
    guest.client.cookies = person.client.cookies  # the same browser
    assert guest.get("state").json()["stage"] == "consent"
    assert guest.post("consent", {"language": "de", "version": "older", "agree": True}).status_code == 409
    assert (
        guest.post("consent", {"language": "de", "version": later.live.consents["de"].version}).status_code
        == 422
    )
    guest.enter()
    assert len(later.rows("SELECT * FROM raters")) == 1
    guest.vote()
    export_results(later.out)
    licenses = {vote.consent: vote.license for vote in read_votes(later.out)}
    assert sorted(licenses.values()) == ["CC-BY-4.0", "CC0-1.0"]


def test_thumbs_and_stars(tmp_path: Path) -> None:
    house = open_house(tmp_path, mode="rating", trials={"axes": ["vocals"], "training": 0})
    person = house.listener()
    person.enter()
    trial = person.next()
    assert len(trial["sounds"]) == 1
    person.listen()
    assert person.answer().status_code == 422
    assert person.answer(stars=6).status_code == 422
    answer = {"thumb": -1, "stars": 2, "axes": {"vocals": 4}, "spans": [[[0, 1]]]}
    assert person.answer(**answer).status_code == 200
    assert export_results(house.out) == (0, 3)
    rows = {row.opinion_id.rpartition("/")[2]: row for row in read_opinions_table(house.out)}
    assert {name: (row.scale, row.value, row.axis) for name, row in rows.items()} == {
        "thumb": ("thumb", -1, ""),
        "stars": ("stars", 2, ""),
        "vocals": ("stars", 4, "vocals"),
    }
    assert {row.heard_s for row in rows.values()} == {6}


def test_mushra_hides_the_reference_and_its_anchors(tmp_path: Path) -> None:
    write_songs(tmp_path / "originals", per_prompt=1, hertz=2000)
    house = open_house(
        tmp_path,
        mode="mushra",
        mushra=MushraConfig(reference=str(tmp_path / "originals"), anchors_hz=[1000, 1900]),
        trials={"training": 0, "count": 2},
    )
    person = house.listener()
    person.enter()
    trial = person.next()
    assert len(trial["sounds"]) == 6  # the reference, its hidden copy, two anchors, two songs
    person.listen()
    assert person.answer(values=[50] * 4).status_code == 422
    assert person.answer(values=[50, 50, 50, 50, float(101)]).status_code == 422
    assert person.answer(values=[10, 20, 30, 40, 50]).status_code == 200
    assert export_results(house.out) == (0, 5)
    rows = read_opinions_table(house.out)
    assert sorted(row.control for row in rows) == ["", "", "anchor-1000", "anchor-1900", "reference"]
    assert sorted(row.value for row in rows) == [10, 20, 30, 40, 50]
    assert len({row.trial for row in rows}) == 1
    assert {row.system for row in rows if not row.control} == {"songs"}


def test_the_clock_is_that_of_the_study(tmp_path: Path) -> None:
    house = open_house(tmp_path, clock=HandClock(50.0))
    house.listener().agree()
    assert house.rows("SELECT created_at FROM raters") == [(50.0,)]


def test_what_is_served_is_equally_loud_and_long(house: StudyHouse, tmp_path: Path) -> None:
    person = house.listener()
    person.enter()
    person.vote()
    person.next()
    clips = []
    for place, address in enumerate(person.trial["sounds"]):
        path = tmp_path / f"{place}.flac"
        path.write_bytes(person.client.get(f"/{address}").content)
        clips.append(audio.read(path))
    assert clips[0].samples.shape == clips[1].samples.shape  # the songs are 3 s long
    levels = [audio.loudness(clip) for clip in clips]
    assert levels == pytest.approx([-23, -23], abs=0.1)  # the songs are 6 dB apart


def test_a_song_that_is_gone_or_another_is_no_trap(tmp_path: Path) -> None:
    house = open_house(tmp_path, trials={"training": 0})
    person = house.listener()
    person.enter()
    person.next()
    for path in (tmp_path / "songs" / "audio").iterdir():
        path.write_bytes(b"damaged")
    excerpt_level.cache_clear()
    excerpt_flac.cache_clear()
    assert person.client.get(f"/{person.trial['sounds'][0]}").status_code == 503
    person.answer(skip=True)
    assert person.post("trial").status_code == 503
    house.live.database.close()
    shutil.rmtree(tmp_path / "songs")
    write_songs(tmp_path / "songs", hertz=900)
    with pytest.raises(DataError, match="sounds different from when this study began"):
        open_house(tmp_path)


def test_an_open_trial_of_removed_songs_is_replaced(tmp_path: Path) -> None:
    house = open_house(tmp_path, trials={"training": 0})
    person = house.listener()
    person.enter()
    trial = person.next()
    house.live.database.close()
    row = json.loads(house_body(tmp_path))
    gone = {stimulus["key"].partition("/")[2] for stimulus in row["stimuli"]}
    songs = tables.read_rows(tmp_path / "songs", SAMPLES)
    tables.replace(tmp_path / "songs", SAMPLES, [song for song in songs if song.sample_id not in gone])
    later = open_house(tmp_path, clock=house.clock, trials={"training": 0})
    guest = later.listener()
    guest.client.cookies = person.client.cookies
    assert guest.next()["trial"] != trial["trial"]
    guest.listen()
    assert guest.answer(answer="a").status_code == 200


def house_body(folder: Path) -> str:
    """The body of the first trial in the database of a study that is closed."""
    database = Database(folder / "study" / DATABASE, for_reading=True)
    row = database.row("SELECT body FROM trials")
    database.close()
    assert row is not None
    return str(row["body"])


def test_votes_become_a_ranking_and_pairs(tmp_path: Path) -> None:
    house = open_house(tmp_path, trials={"training": 0})
    for _ in range(3):
        person = house.listener()
        person.enter()
        for _ in range(4):
            trial = person.next()
            person.listen(4)
            row = house.live.database.row("SELECT body FROM trials WHERE id = ?", (trial["trial"],))
            assert row is not None
            keys = [stimulus["key"] for stimulus in json.loads(row["body"])["stimuli"]]
            person.answer(answer="ab"[keys.index(min(keys))])  # the first song of a prompt, always
    verb("votes", f"votes=[{house.out}]", f"out={tmp_path / 'ranking'}")
    pairs = tables.read_rows(tmp_path / "ranking", PAIRS)
    assert {(pair.winner, pair.loser) for pair in pairs} == {
        (f"p{i:02d}.000", f"p{i:02d}.001") for i in range(4)
    }
