"""The whole way of a listener over HTTP, without a browser and without waiting."""

from pathlib import Path

import pytest
from support.listening import StudyHouse, open_house

from diffdpo.data.votes import read_votes
from diffdpo.listen.results import export_results


@pytest.fixture
def house(tmp_path: Path) -> StudyHouse:
    return open_house(tmp_path)


def test_from_consent_to_deletion(house: StudyHouse) -> None:
    person = house.listener()
    assert person.get("state").json()["stage"] == "consent"
    assert person.post("trial").status_code == 401
    person.agree()
    assert person.post("trial").status_code == 409  # first background and volume
    assert person.post("stage/background", {"language": "Basque", "background": "amateur"}).json() == {
        "stage": "volume"
    }
    assert person.post("stage/volume").json() == {"stage": "trials"}

    practice = person.next()
    assert practice["training"] and practice["of"] == 1
    person.listen()
    assert person.answer(answer="a").json()["feedback"]["answer"] in ("a", "b", "tie")

    first = person.next()
    assert not first["training"] and (first["number"], first["of"]) == (1, 5)
    refusal = person.answer(answer="a")
    assert refusal.status_code == 409
    assert refusal.json()["heard"] == [0, 0]
    heard = person.listen()
    assert all(seconds == 6 for seconds in heard)
    assert (
        person.answer(
            answer="a", strength=2, comment="good <b>drums</b>", spans=[[[0.5, 1.0]], []]
        ).status_code
        == 200
    )

    mine = person.get("mine").json()
    assert mine["background"] == {"language": "Basque", "background": "amateur"}
    assert mine["trials"][1]["answer"]["comment"] == "good <b>drums</b>"
    assert mine["consent"]["license"] == "CC-BY-4.0"

    assert export_results(house.out) == (1, 0)
    (vote,) = read_votes(house.out)
    assert (vote.answer, vote.strength, vote.comment) == ("a", 2, "good <b>drums</b>")
    assert vote.spans_a == ((vote.begin_a_s + 0.5, vote.begin_a_s + 1.0),)
    assert vote.spans_b == ()
    assert vote.rater_group == {"language": "Basque", "background": "amateur"}
    assert vote.consent.endswith("/en")
    assert vote.song_a != vote.song_b
    assert (vote.prompt_id, vote.samples_a) == (vote.song_a[:3], "../songs")

    assert person.post("delete", {}).status_code == 422
    assert person.post("delete", {"confirm": True}).json()["deleted"] is True
    assert person.get("mine").status_code == 401
    for table in ("raters", "trials", "stimuli", "answers"):
        assert house.rows(f"SELECT * FROM {table}") == []
    ((_, when),) = house.rows("SELECT * FROM tombstones")
    assert when == house.clock.now
    house.live.database.close()
    traces = ("Basque", "drums", vote.rater, vote.vote_id)
    files = [path for path in house.out.rglob("*") if path.is_file()]
    assert len(files) >= 1
    for path in files:
        content = path.read_bytes()
        assert not [trace for trace in traces if trace.encode() in content], path
