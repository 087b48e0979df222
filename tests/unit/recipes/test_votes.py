"""The verb `votes`: from listeners' votes to a ranking, pages, and tables that training reads."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.launch import verb
from support.songs import write_samples

from diffdpo.data import tables
from diffdpo.data.datasets.examples import DataConfig, build_examples
from diffdpo.data.datasets.generated import Source
from diffdpo.data.pairs import PAIRS
from diffdpo.data.prompts import in_share
from diffdpo.data.ratings import RATINGS, read_ratings
from diffdpo.data.votes import OPINIONS, VOTES, OpinionRow, VoteRow

pytestmark = pytest.mark.slow

UTILITY = {f"p{prompt:02d}.{number:03d}": 1.2 * (1.5 - number) for prompt in range(4) for number in range(4)}
"""In every prompt the songs are in the order of their numbers, 1.2 logits apart."""
SOURCE = Source(
    embed=lambda p: {}, embed_plan=lambda p: {}, frames_per_second=15.0, seed=0, report=print, channels=8
)


@pytest.fixture
def samples(tmp_path):
    return write_samples(tmp_path / "samples", prompts=4, per_prompt=4)


def simulate(count=600, raters=10, hostile=(), taste=None, seed=0):
    """Votes of raters on two songs of a prompt; those in `hostile` say the reverse. Rater r<5 speaks Greek."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        rater = number % raters
        prompt, (a, b) = rng.integers(4), rng.choice(4, 2, replace=False)
        song_a, song_b = f"p{prompt:02d}.{a:03d}", f"p{prompt:02d}.{b:03d}"
        utility = taste(rater) if taste else UTILITY
        margin = (utility[song_a] - utility[song_b]) * (-1 if rater in hostile else 1)
        answer = "a" if rng.random() < 1 / (1 + np.exp(-margin)) else "b"
        rows.append(
            VoteRow(
                vote_id=f"v{number}",
                source="study",
                rater=f"r{rater}",
                prompt_id=f"p{prompt:02d}",
                samples_a="../samples",
                samples_b="../samples",
                song_a=song_a,
                song_b=song_b,
                answer=answer,
                rater_group={"language": "el" if rater < raters / 2 else "de"},
            )
        )
    return rows


def write_votes(tmp_path, rows, name="votes"):
    tables.replace(tmp_path / name, VOTES, rows)
    return tmp_path / name


def aggregate(tmp_path, *words, votes="votes", code=0):
    return verb("votes", f"votes={tmp_path / votes}", f"out={tmp_path / 'out'}", *words, code=code)


def read(tmp_path, name):
    return json.loads((tmp_path / "out" / name).read_text())


def test_votes_become_a_ranking_and_tables_that_training_reads(tmp_path, samples):
    marked = {"spans_b": ((1.0, 2.0), (1.5, 3.0))}
    rows = [replace(row, **marked) if row.song_b == "p01.003" else row for row in simulate(hostile=(3,))]
    write_votes(tmp_path, rows)
    aggregate(tmp_path)
    songs = {row["song"]: row for row in read(tmp_path, "ranking.json")["songs"]}
    for song, utility in UTILITY.items():
        assert songs[song]["rank"] == 1 + int(song[-1]), song
        assert songs[song]["low"] - 0.3 < utility < songs[song]["high"] + 0.3
    assert len({row["set"] for row in songs.values()}) == 4
    raters = {row["rater"]: row["reliability_high"] for row in read(tmp_path, "raters.json")}
    assert [name for name, high in raters.items() if high < 0] == ["r3"]
    pairs = tables.read_rows(tmp_path / "out", PAIRS)
    assert len(pairs) == 4 * 6
    for pair in pairs:
        difference = UTILITY[pair.winner] - UTILITY[pair.loser]
        assert difference > 0
        assert pair.soft_label == pytest.approx(1 / (1 + np.exp(-difference)), abs=0.2)
        assert pair.spans == (((1.0, 3.0),) if pair.loser == "p01.003" else ())
    ratings = read_ratings(tmp_path / "out")
    assert {row.sample_id: row.rating > 0 for row in ratings} == {song: u > 0 for song, u in UTILITY.items()}
    assert {row.source for row in ratings} == {"people/votes"}
    for cfg, kind in (
        (DataConfig(pairs=str(tmp_path / "out")), "pair"),
        (DataConfig(ratings=str(tmp_path / "out")), "rated"),
    ):
        examples = build_examples(cfg, kind, "objective", SOURCE)
        assert len(examples) == {"pair": 24, "rated": 16}[kind]
        examples.collate([examples.example(0, 0)], [0])


def test_pages_hold_all_tables_and_no_script_of_a_listener(tmp_path, samples):
    evil = "<script>alert(1)</script>|x"
    rows = [replace(row, rater=evil if row.rater == "r1" else row.rater) for row in simulate(200)]
    write_votes(
        tmp_path, [replace(row, rater_group={"language": row.rater_group["language"] + evil}) for row in rows]
    )
    aggregate(tmp_path)
    for name in ("ranking.md", "ranking.html"):
        text = (tmp_path / "out" / name).read_text()
        assert "<script" not in text
        for word in ("Ranking", "Raters", "Krippendorff", "p00.000", "language"):
            assert word in text
    assert "|x" not in (tmp_path / "out" / "ranking.md").read_text().replace("\\|x", "")


def test_held_out_prompts_are_those_that_training_would_hold_out(tmp_path, samples):
    write_votes(tmp_path, simulate())
    aggregate(tmp_path, "held_out=0.5")
    for folder, side in ((tmp_path / "out", False), (tmp_path / "out" / "held_out", True)):
        for spec in (PAIRS, RATINGS):
            rows = tables.read_rows(folder, spec)
            assert rows
            assert {in_share(row.group or row.prompt_id, 0.5, "validation") for row in rows} == {side}
        build_examples(DataConfig(pairs=str(folder)), "pair", "dpo", SOURCE)


def test_songs_without_a_samples_folder_are_ranked_and_that_is_said(tmp_path, samples):
    rows = [
        replace(row, samples_a="", samples_b="", system_a=f"s{row.song_a[-1]}", system_b=f"s{row.song_b[-1]}")
        for row in simulate()
    ]
    write_votes(tmp_path, rows)
    text = aggregate(tmp_path)
    assert "16 of 16 songs are in no samples folder, such as 'p00.000'" in text
    assert len(read(tmp_path, "ranking.json")["songs"]) == 16
    assert not tables.read_rows(tmp_path / "out", PAIRS)
    verb("votes", f"votes={tmp_path / 'votes'}", f"out={tmp_path / 'systems'}", "unit=system")
    systems = json.loads((tmp_path / "systems" / "ranking.json").read_text())["songs"]
    assert [row["song"] for row in sorted(systems, key=lambda row: row["rank"])] == ["s0", "s1", "s2", "s3"]


def test_both_bad_is_a_tie_and_a_song_found_bad_never_wins(tmp_path, samples):
    rows = [replace(row, answer="both_bad") if row.prompt_id == "p02" else row for row in simulate()]
    write_votes(tmp_path, rows)
    aggregate(tmp_path)
    songs = read(tmp_path, "ranking.json")["songs"]
    assert {row["prompt_id"] for row in songs if row["bad"]} == {"p02"}
    assert {pair.prompt_id for pair in tables.read_rows(tmp_path / "out", PAIRS)} == {"p00", "p01", "p03"}
    assert {row.rating <= -1 for row in read_ratings(tmp_path / "out") if row.prompt_id == "p02"} == {True}


def test_control_pairs_and_repeats_measure_listeners_only(tmp_path, samples):
    rows = simulate(120)
    control = [
        replace(row, vote_id=f"c{row.vote_id}", gold="a", answer="b" if row.rater == "r2" else "a", song_a="clean",
                song_b="noisy", samples_a="", samples_b="")
        for row in rows[:40]
    ]  # fmt: skip
    repeats = [
        replace(row, vote_id=f"x{row.vote_id}", repeat_of=row.vote_id, song_a=row.song_b, song_b=row.song_a,
                answer={"a": "b", "b": "a"}[row.answer] if int(row.vote_id[1:]) % 4 else row.answer)
        for row in rows[:40]
    ]  # fmt: skip
    write_votes(tmp_path, [*rows, *control, *repeats])
    aggregate(tmp_path)
    agreement = read(tmp_path, "agreement.json")
    assert agreement["votes"] == 120
    assert (agreement["control"]["successes"], agreement["control"]["count"]) == (36, 40)
    assert (agreement["repeats"]["successes"], agreement["repeats"]["count"]) == (30, 40)
    assert not {"clean", "noisy"} & {row["song"] for row in read(tmp_path, "ranking.json")["songs"]}
    raters = {row["rater"]: row["reliability"] for row in read(tmp_path, "raters.json")}
    assert min(raters, key=raters.get) == "r2"


def test_groups_that_differ_are_shown_with_the_songs_they_differ_in(tmp_path, samples):
    turned = {**UTILITY, **{f"p00.{n:03d}": -UTILITY[f"p00.{n:03d}"] for n in range(4)}}
    write_votes(tmp_path, simulate(1600, 12, taste=lambda rater: UTILITY if rater < 6 else turned))
    aggregate(tmp_path)
    (group,) = read(tmp_path, "groups.json")
    (comparison,) = group["comparisons"]
    assert (group["key"], sorted(comparison["groups"])) == ("language", ["de", "el"])
    songs = {row["song"]: row for row in comparison["songs"]}
    differing = {song for song, row in songs.items() if row["p_holm"] < 0.05}
    assert {"p00.000", "p00.003"} <= differing <= {f"p00.00{n}" for n in range(4)}
    assert songs["p00.000"]["el"] > 1 > -1 > songs["p00.000"]["de"]
    assert comparison["differences"] == len(differing)


def test_opinions_become_ratings_beside_those_of_votes(tmp_path, samples):
    values = [
        ("p00.000", "stars", 5.0),
        ("p00.001", "stars", 1.0),
        ("p00.001", "thumb", -1.0),
        ("p00.002", "stars", 3.0),
    ]
    rows = [
        OpinionRow(
            opinion_id=f"o{n}",
            source="study",
            rater="ann",
            samples="../samples",
            song=song,
            scale=scale,
            value=value,
        )
        for n, (song, scale, value) in enumerate(values)
    ]
    anchor = replace(rows[0], opinion_id="anchor", control="anchor-low", value=1.0)
    tables.replace(tmp_path / "votes", OPINIONS, [*rows, anchor])
    aggregate(tmp_path)
    ratings = {row.sample_id: row.rating for row in read_ratings(tmp_path / "out", "people")}
    assert ratings == {"p00.000": 1.0, "p00.001": -1.0}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["axis=musicality"], "no votes on axis 'musicality'; there are '' (overall)"),
        (["sources=[studi]"], "no votes of 'studi'. Did you mean 'study'?"),
        (["min_votes=1000"], "no rater has min_votes=1000 votes"),
        (["min_reliability=9"], "every rater's reliability is below min_reliability=9"),
        (["unit=system"], "no vote is on two different systems"),
        (["strength_weights=[1,2]"], "strength_weights needs 4 numbers, got 2"),
    ],
)
def test_what_cannot_be_aggregated_is_one_line(tmp_path, samples, words, says):
    write_votes(tmp_path, simulate(60))
    assert says in aggregate(tmp_path, *words, code=2)


def test_a_folder_without_votes_is_one_line(tmp_path):
    (tmp_path / "votes").mkdir()
    assert "holds no votes; run `diffdpo listen`" in aggregate(tmp_path, code=2)


def test_unreliable_raters_can_be_left_out(tmp_path, samples):
    write_votes(tmp_path, simulate(hostile=(3,)))
    aggregate(tmp_path, "min_reliability=0")
    assert "r3" not in {row["rater"] for row in read(tmp_path, "raters.json")}
