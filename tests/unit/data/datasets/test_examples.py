"""Rated songs, groups of songs, the best of them, and pairs that name their axis."""

import math

import pytest
import torch
from support.songs import write_ratings, write_samples

from diffdpo.data import tables
from diffdpo.data.datasets.examples import DataConfig, build_examples
from diffdpo.data.datasets.generated import Source
from diffdpo.data.datasets.stream import batches, index_at
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.data.ratings import read_ratings
from diffdpo.data.samples import relative_folder
from diffdpo.errors import ConfigError, DataError

SEED = 3


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    return write_samples(tmp_path_factory.mktemp("songs") / "samples", prompts=4, per_prompt=5)


@pytest.fixture
def reports():
    return []


def embed(prompt):
    """What a prompt says, as bytes."""
    text = f"{prompt.id}|{prompt.text}|{prompt.duration_s}|{prompt.control('axis') or ''}"
    return {"words": torch.tensor(list(text.encode()), dtype=torch.uint8)}


def words(row):
    """The prompt of a row: its id, text, seconds and axis."""
    return bytes(row.embedding["words"].tolist()).decode().split("|")


def refuse_plans(plan):
    raise AssertionError("no song here has a plan")


@pytest.fixture
def build(reports):
    source = Source(
        embed=embed, embed_plan=refuse_plans, frames_per_second=15.0, seed=SEED, report=reports.append
    )
    return lambda kind, **data: build_examples(DataConfig(**data), kind, "the_objective", source)


def batch(examples, positions):
    return next(batches(examples, iter([list(positions)]), seed=SEED, workers=0))


def names(*ids):
    return [f"p0{i // 10}.00{i % 10}" for i in ids]


def test_a_rated_batch_holds_each_song_with_its_rating_padded_and_counted(tmp_path, songs, build, reports):
    values = dict(zip(names(0, 1, 2, 13), (0.5, -2.0, 0.0, 0.1), strict=True))
    examples = build("rated", ratings=str(write_ratings(tmp_path, songs, values)), rated_margin=0.2)
    seen = batch(examples, [0, 1, 2, 3])
    assert len(examples) == 2  # neither zero nor below the margin
    assert reports == ["1 liked and 1 disliked songs"]
    assert sorted(seen.score[:2, 0].tolist()) == [-2.0, 0.5]
    assert set(seen.ids[:2]) == set(seen.ids[2:])
    assert seen.visits == (0, 0, 1, 1)
    assert seen.latents.shape == (4, 1, seen.frames.max(), 8)
    for song, frames in zip(seen.latents[:, 0], seen.frames[:, 0].tolist(), strict=True):
        assert frames < len(song) or song[-1].any()
        assert not song[frames:].any()
    for (row,), frames in zip(seen.rows, seen.frames[:, 0].tolist(), strict=True):
        assert words(row) == ["p00", "fast metal", "1.0", ""]
        assert (row.frames, row.is_full_song) == (frames, True)


def test_balance_gives_both_kinds_half_of_every_step_and_all_songs_their_turn(tmp_path, songs, build):
    ratings = dict.fromkeys(names(0, 1, 2, 3, 4, 10, 11), 1.0) | dict.fromkeys(names(20, 21), -1.0)
    folder = str(write_ratings(tmp_path, songs, ratings, "people"))
    examples = build("rated", ratings=folder, balance=True)
    seen = [batch(examples, range(start, start + 4)) for start in range(0, 56, 4)]
    assert all((part.score > 0).sum() == 2 for part in seen)
    turns: dict[str, int] = {}
    for part in seen:
        for name, visit in zip(part.ids, part.visits, strict=True):
            assert visit == turns.get(name, 0)
            turns[name] = visit + 1
    assert sorted(turns.values()) == [4] * 7 + [14] * 2
    plain = build("rated", ratings=folder)
    assert len(plain) == 9
    assert {plain.example(i, i).name for i in range(9)} == turns.keys()


def test_balance_needs_both_kinds(tmp_path, songs, build):
    folder = write_ratings(tmp_path, songs, dict.fromkeys(names(0, 1), 1.0))
    with pytest.raises(DataError, match=r"all 2 songs are liked; data\.balance needs both kinds"):
        build("rated", ratings=str(folder), balance=True)


def test_a_group_is_one_example_of_different_songs_with_their_advantages(tmp_path, songs, build, reports):
    advantages = {name: i - 2.0 for i, name in enumerate(names(0, 1, 2, 3, 4))}
    rest = dict.fromkeys(names(10, 11, 12), 1.0) | dict(zip(names(20, 21), (1.0, 2.0), strict=True))
    folder = str(write_ratings(tmp_path, songs, advantages | rest))
    examples = build("group", ratings=folder, group_size=3)
    assert len(examples) == 1
    assert [line.split(" and are")[0] for line in reports] == [
        "1 prompt(s) have fewer than 3 rated songs",
        "1 prompt(s) have songs that are all rated alike",
    ]
    drawn = set()
    for position in range(12):
        seen = batch(examples, [position])
        assert seen.latents.shape == (1, 3, seen.frames.max(), 8)
        members = seen.score[0].tolist()
        assert len(set(members)) == 3
        assert set(members) <= set(advantages.values())
        drawn |= set(members)
        lengths = {value: 14 + int(value + 2) % 5 for value in members}
        assert seen.frames[0].tolist() == [lengths[value] for value in members]
        assert [row.frames for row in seen.rows[0]] == seen.frames[0].tolist()
        assert [words(row)[0] for row in seen.rows[0]] == ["p00"] * 3
        again = batch(build("group", ratings=folder, group_size=3), [position])
        assert torch.equal(seen.latents, again.latents)
    assert drawn == set(advantages.values())


def test_opinions_become_advantages_within_the_prompt(tmp_path, songs, build):
    folder = str(write_ratings(tmp_path, songs, dict(zip(names(0, 1, 2), (1, 1, -1), strict=True)), "people"))
    seen = batch(build("group", ratings=folder, group_size=3), [0])
    expected = [-math.sqrt(2), math.sqrt(0.5), math.sqrt(0.5)]  # of 1, 1, -1: mean 1/3, deviation sqrt(8)/3
    assert sorted(seen.score[0].tolist()) == pytest.approx(expected)


def test_the_best_share_is_taken_over_the_table_at_least_one_and_only_above_zero(
    tmp_path, songs, build, reports
):
    ratings = {name: 2.0 - i for i, name in enumerate(names(0, 1, 10, 11, 20, 21, 22, 23, 24, 30))}
    folder = str(write_ratings(tmp_path, songs, ratings))

    def kept(**data):
        examples = build("song", ratings=folder, **data)
        return [examples.example(i, i).name.split("/")[-2] for i in range(len(examples))]

    assert kept() == kept(top_share=0.001) == names(0)
    assert kept(top_share=0.2) == names(0, 1)
    assert kept(top_share=0.9) == names(0, 1)  # the third has exactly 0
    assert kept(top_share=0.9, top_per_prompt=1) == names(0)
    assert reports[0] == "the best 1 of 10 ratings, down to 2"
    with pytest.raises(DataError, match="no song is rated above zero"):
        build("song", ratings=str(write_ratings(tmp_path / "bad", songs, dict.fromkeys(names(0, 1), -1.0))))


@pytest.mark.parametrize(
    ("kind", "data", "says"),
    [
        ("song", {}, "set data.songs to a prepared folder, or data.ratings"),
        ("song", {"songs": "a", "ratings": "b"}, "both data.songs and data.ratings are set"),
        ("pair", {"ratings": "b"}, "'the_objective' trains on pairs: set data.pairs"),
        ("rated", {"pairs": "a"}, "trains on rated songs: set data.ratings"),
        ("group", {}, "trains on rated songs: set data.ratings"),
    ],
)
def test_data_that_is_not_configured_is_named(build, kind, data, says):
    with pytest.raises(ConfigError, match=says):
        build(kind, **data)


def test_tables_without_what_is_asked_for_say_so(tmp_path, songs, build):
    with pytest.raises(DataError, match=r"holds no ratings; run `diffdpo mine` or `diffdpo import-ratings`"):
        build("rated", ratings=str(tmp_path))
    folder = str(write_ratings(tmp_path, songs, dict(zip(names(0, 1), (0.5, -0.5), strict=True))))
    with pytest.raises(DataError, match=r"no rating is 0\.6 or more away from zero"):
        build("rated", ratings=folder, rated_margin=0.6)
    with pytest.raises(DataError, match="no prompt has 3 songs of different rating"):
        build("group", ratings=folder, group_size=3)
    with pytest.raises(DataError, match="no ratings of 'people', only of mined"):
        build("rated", ratings=folder, rating_source="people")
    write_ratings(tmp_path, songs, dict.fromkeys(names(0), 1.0), "people/ann")
    with pytest.raises(DataError, match=r"of mined and people; name one with data\.rating_source"):
        build("rated", ratings=folder)
    for source in ("people", "people/ann"):
        assert [row.rating for row in read_ratings(tmp_path, source)] == [1.0]
    write_ratings(tmp_path, songs, dict.fromkeys(names(0), math.nan))
    with pytest.raises(DataError, match=r"the rating of 'p00\.000' is not a number"):
        build("rated", ratings=folder, rating_source="mined")
    write_ratings(tmp_path, songs, {"p77.000": 1.0}, "else")
    with pytest.raises(DataError, match=r"names the song 'p77\.000', which \S+ does not have"):
        build("rated", ratings=folder, rating_source="else")


def test_a_song_whose_prompt_is_not_among_the_prompts_of_its_folder_is_named(tmp_path, build):
    songs = write_samples(tmp_path / "samples", prompts=2, per_prompt=1)
    lines = (songs / "prompts.jsonl").read_text().splitlines()
    (songs / "prompts.jsonl").write_text(lines[0])
    folder = write_ratings(tmp_path, songs, {"p01.000": 1.0})
    with pytest.raises(DataError, match=r"songs of the prompt 'p01', which \S+ does not know"):
        build("rated", ratings=str(folder))


@pytest.mark.parametrize(
    "wrong",
    [
        {"axis_dropout": 1.0},
        {"rated_margin": -1},
        {"group_size": 1},
        {"top_share": 0},
        {"top_per_prompt": -1},
    ],
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ValueError, match=f"data.{next(iter(wrong))} must"):
        DataConfig(**wrong)


def write_pairs(folder, songs, axes):
    pairs = [
        PairRow(
            prompt_id=f"p0{i}",
            samples=relative_folder(songs, folder),
            winner=f"p0{i}.000",
            loser=f"p0{i}.001",
            axis=axis,
        )
        for i, axis in enumerate(axes)
    ]
    tables.append(folder, PAIRS, pairs)
    return str(folder)


def test_a_pair_names_its_axis_except_in_a_share_of_the_stream(tmp_path, songs, build):
    folder = write_pairs(tmp_path, songs, ("harmony.key", "", "rhythm.pulse", "rhythm.pulse"))
    plain, told = (
        build("pair", pairs=folder),
        build("pair", pairs=folder, axis_condition=True, axis_dropout=0),
    )
    axes = {plain.rows[i].prompt_id: plain.rows[i].axis for i in range(4)}
    seen = batch(told, range(4))
    assert seen.axes == tuple(axes[words(winner)[0]] for winner, _ in seen.rows)
    for example, reference, axis in zip(seen.rows, seen.reference_rows, seen.axes, strict=True):
        assert [words(row)[3] for row in example] == [axis, axis]
        assert [words(row)[3] for row in reference] == ["", ""]
        assert [words(row)[:3] for row in example] == [words(row)[:3] for row in reference]
    without = batch(plain, range(4))
    assert without.reference_rows is None
    assert all(words(row)[3] == "" for example in without.rows for row in example)
    assert torch.equal(seen.latents, without.latents)
    half = build("pair", pairs=folder, axis_condition=True, axis_dropout=0.5)
    examples = [half.example(index_at(p, 4, SEED), p) for p in range(400)]
    named = [[words(row)[3] for row in example.rows] for example in examples if example.axis]
    assert all(winner == loser for winner, loser in named)
    assert len(named) == 300
    assert sum(bool(winner) for winner, _ in named) / 300 == pytest.approx(0.5, abs=0.1)


def test_axes_are_asked_for_only_of_pairs_that_have_them(tmp_path, songs, build):
    with pytest.raises(DataError, match="no pair names an axis"):
        build("pair", pairs=write_pairs(tmp_path, songs, ("", "")), axis_condition=True)
