"""The table of real songs: written and read, cut by group, and what the package ships."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from diffdpo.errors import DataError
from diffdpo.evaluation.band import BAND_WITNESSES
from diffdpo.evaluation.real_songs import (
    HELD_OUT_SPLITS,
    REAL_SONGS_PATH,
    SONG_GROUPS,
    RealSongs,
    read_table,
    song_group,
    write_table,
)


def small_table() -> RealSongs:
    songs = ("a", "a", "b")
    return RealSongs(
        axes=("x.y", "x.z"),
        values=np.array([[0.5, 1.0], [0.25, 2.0], [-1.0, 3.0]]),
        song=songs,
        title=songs,
        package=("p", "p", "q"),
        artist=("", "", "n"),
        style=("rock, slow", "rock, slow", ""),
        tags=("", "", ""),
        split=("train", "train", "test"),
        group=("targets", "targets", "judge"),
        in_training=(True, True, False),
        start_s=(1.0, 2.5, 1.0),
        versions={"x": "1"},
    )


def test_a_table_survives_its_file(tmp_path):
    path, table = tmp_path / "songs.parquet", small_table()
    write_table(path, table)
    copy = read_table(path)
    assert np.array_equal(copy.values, table.values)
    assert (copy.axes, copy.versions, copy.style) == (table.axes, table.versions, table.style)
    assert (copy.in_training, copy.start_s) == (table.in_training, table.start_s)


def test_columns_and_groups_are_those_of_the_windows():
    table = small_table()
    assert table.column("x.z").tolist() == [1, 2, 3]
    assert table.matrix(["x.z", "x.y"]).tolist() == [[1, 0.5], [2, 0.25], [3, -1]]
    judge = table.of_group("judge")
    assert (len(judge), judge.song, judge.column("x.y").tolist()) == (1, ("b",), [-1])
    assert len(table.of_group("critic", "second_critic")) == 0
    with pytest.raises(DataError, match=r"lacks the axis 'x\.w'; it has x\.y, x\.z"):
        table.column("x.w")
    with pytest.raises(ValueError, match="'judges' is no group"):
        table.of_group("judges")


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but cut"])
def test_a_missing_or_damaged_file_is_one_line(content, tmp_path):
    path = tmp_path / "songs.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"songs\.parquet: no table of real songs"):
        read_table(path)


def test_held_out_songs_are_the_judges_and_an_artist_has_one_group():
    assert {song_group("p", "n", split) for split in HELD_OUT_SPLITS} == {"judge"}
    groups = [song_group("p", f"artist {number}") for number in range(400)]
    assert groups == [song_group("p", f"artist {number}") for number in range(400)]
    counts = [groups.count(group) for group in SONG_GROUPS]
    assert min(counts) > 70  # 100 each, with a standard deviation of 9


def test_the_package_ships_a_hundred_songs_in_groups_of_different_artists():
    table = read_table()
    assert Path(REAL_SONGS_PATH).stat().st_size <= 200_000
    assert len(set(table.song)) >= 100
    assert np.isfinite(table.values).all()
    assert set(BAND_WITNESSES) <= set(table.axes)
    artists = defaultdict(set)
    for package, artist, split, group in zip(
        table.package, table.artist, table.split, table.group, strict=True
    ):
        if split in HELD_OUT_SPLITS:
            assert group == "judge"
        else:
            artists[package, artist].add(group)
    assert all(len(groups) == 1 for groups in artists.values())
    for group in SONG_GROUPS:
        assert len(set(table.of_group(group).song)) >= 15


def test_a_song_has_up_to_three_windows_in_its_order():
    table = read_table()
    starts = defaultdict(list)
    for song, start_s in zip(table.song, table.start_s, strict=True):
        starts[song].append(start_s)
    assert all(1 <= len(times) <= 3 and times == sorted(set(times)) for times in starts.values())
