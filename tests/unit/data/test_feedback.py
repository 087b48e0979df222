"""Thumbs and stars become ratings, and every mistake in them is named with its line."""

import json

import pytest
from support.launch import verb
from support.songs import write_ratings, write_samples

from diffdpo.data import tables
from diffdpo.data.feedback import import_ratings
from diffdpo.data.ratings import RATINGS, read_ratings
from diffdpo.data.samples import SAMPLES, SampleRow, Samples
from diffdpo.errors import DataError


@pytest.fixture
def songs(tmp_path):
    return write_samples(tmp_path / "a", prompts=2, per_prompt=3)


def take(tmp_path, songs, text, name="opinions.csv", **options):
    (tmp_path / name).write_text(text)
    done = import_ratings(tmp_path / name, [str(songs)], tmp_path / "out", **options)
    return done, {row.sample_id: row.rating for row in read_ratings(tmp_path / "out")}


def test_every_word_for_a_thumb_is_understood(tmp_path, songs):
    words = {"up": 1, "TRUE": 1, "1": 1, "down": -1, "0": -1, "-1": -1}
    names = [f"p0{i}.00{k}" for i in (0, 1) for k in (0, 1, 2)]
    lines = "\n".join(f"{name},{word}" for name, word in zip(names, words, strict=True))
    done, ratings = take(tmp_path, songs, f"sample_id,thumb\n{lines}\n")
    assert ratings == dict(zip(names, words.values(), strict=True))
    assert (done.likes, done.dislikes, done.neutral, len(done.lines())) == (3, 3, 0, 1)


@pytest.mark.parametrize(("centre", "kept"), [(3.0, {"p00.000": 1.0, "p00.002": -1.0}), (3.5, None)])
def test_stars_are_liked_above_the_centre_and_nothing_at_it(tmp_path, songs, centre, kept):
    text = "file;stars\nheard/p00.000.flac;5\np00.001.flac;3\np00.002.flac;1\n"
    done, ratings = take(tmp_path, songs, text, centre=centre)
    assert ratings == (kept or {"p00.000": 0.75, "p00.001": -0.25, "p00.002": -1.25})
    assert done.neutral == (1 if kept else 0)


def test_raters_are_averaged_by_weight_and_the_last_word_of_each_counts(tmp_path, songs):
    rows = [
        {"sha256": "a-p00.000", "thumb": True, "rater": "ann", "weight": 3},
        {"sha256": "a-p00.000", "thumb": False, "rater": "bob"},
        {"sha256": "a-p00.001", "thumb": True, "rater": "ann"},
        {"sha256": "a-p00.001", "thumb": False, "rater": "ann", "comment": "on second thoughts"},
        {"sha256": "a-p00.002", "thumb": True},
        {"sha256": "a-p00.002", "thumb": False},
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    done, ratings = take(tmp_path, songs, text, "opinions.jsonl")
    assert ratings == {"p00.000": 0.5, "p00.001": -1.0}
    assert (done.opinions, done.raters, done.neutral) == (5, 2, 1)
    (first, _) = read_ratings(tmp_path / "out")
    assert (first.weight, first.raters, first.source) == (2.0, 2, "people")
    take(tmp_path, songs, text, "opinions.jsonl", keep_raters=True)
    kept = {(row.sample_id, row.source): row.rating for row in read_ratings(tmp_path / "out")}
    assert kept == {
        ("p00.000", "people/ann"): 1.0, ("p00.000", "people/bob"): -1.0, ("p00.001", "people/ann"): -1.0,
    }  # fmt: skip


def test_importing_again_replaces_people_and_leaves_what_was_mined(tmp_path, songs):
    write_ratings(tmp_path / "out", songs, {"p01.000": 1.5})
    for text in ("p00.000,up\np00.001,down", "p00.002,down\np01.001,up"):
        (tmp_path / "o.csv").write_text(f"sample_id,thumb\n{text}")
        import_ratings(tmp_path / "o.csv", [str(songs)], tmp_path / "out")
    people = {row.sample_id: row.rating for row in read_ratings(tmp_path / "out", "people")}
    assert people == {"p00.002": -1.0, "p01.001": 1.0}
    assert [row.rating for row in read_ratings(tmp_path / "out", "mined")] == [1.5]
    assert len(tables.read_rows(tmp_path / "out", RATINGS)) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no opinions"),
        ("sample_id,thumb\n", "holds no opinions"),
        ("sample_id,thump\np00.000,up", r"csv:1: unknown column 'thump'\. Did you mean 'thumb'\?"),
        ("sample_id,thumb,thumb\np00.000,up,up", "csv:1: two columns have the same name"),
        ("sample_id,thumb\np00.000,up\np00.001,great", "csv:3: thumb must be up, down, .*, got 'great'"),
        ("sample_id,thumb\np00.000,2", "csv:2: thumb must be"),
        ("sample_id,stars\np00.000,6", "csv:2: stars must be a number from 1 to 5, got '6'"),
        ("sample_id,stars\np00.000,nan", "csv:2: stars must be a number"),
        ("sample_id,thumb,weight\np00.000,up,0", "csv:2: weight must be a number from"),
        ("sample_id,thumb\np00.007,up", r"csv:2: no song with sample_id 'p00.007' in .*a\. Did you mean 'p00.00"),
        ("thumb\nup", "csv:2: needs one of sample_id, sha256, file, has none"),
        ("sample_id,file,thumb\np00.000,p00.000,up", "csv:2: needs one of .*, has sample_id and file"),
        ("sample_id,thumb\np00.000,up,loud", "csv:2: 3 cells, but the header has 2"),
        ("sample_id,stars\np00.000,3", "cancel out for every song"),
        ("sample_id,thumb,samples\np00.000,up,other", "csv:2: no song with sample_id .* in the folder 'other'"),
    ],
)  # fmt: skip
def test_every_mistake_is_one_line_and_leaves_the_table_alone(tmp_path, songs, text, says):
    with pytest.raises(DataError, match=says) as caught:
        take(tmp_path, songs, text)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path, songs):
    with pytest.raises(DataError, match="no such file"):
        import_ratings(tmp_path / "none.csv", [str(songs)], tmp_path / "out")
    (tmp_path / "o.csv").write_bytes(b"sample_id,thumb\n\xff\xfe,up")
    with pytest.raises(
        DataError, match=r"o\.csv: not UTF-8 \(line 2: invalid start byte at byte 16\); save it as UTF-8"
    ):
        import_ratings(tmp_path / "o.csv", [str(songs)], tmp_path / "out")


def test_opinions_may_begin_with_a_mark_and_name_files_of_long_ids(tmp_path):
    name = "曲" * 85 + ".000"
    row = SampleRow(sample_id=name, prompt_id="曲" * 85, sha256="a", duration_s=1.0)
    tables.append(tmp_path / "a", SAMPLES, [row])
    file = Samples(tmp_path / "a").audio(name).name
    for suffix, text in (
        ("csv", f"file,thumb\n{file},up\n"),
        ("jsonl", json.dumps({"file": file, "thumb": True})),
    ):
        path = tmp_path / f"opinions.{suffix}"
        path.write_text("\ufeff" + text, encoding="utf-8")
        import_ratings(path, [str(tmp_path / "a")], tmp_path / suffix)
        assert [row.sample_id for row in read_ratings(tmp_path / suffix)] == [name]


def test_a_song_two_folders_have_is_told_apart_by_folder_or_path(tmp_path, songs):
    other = write_samples(tmp_path / "b", prompts=1, per_prompt=1, seed=1)
    folders, path, out = [str(songs), str(other)], tmp_path / "o.csv", tmp_path / "out"
    path.write_text("sample_id,thumb\np00.000,up")
    with pytest.raises(DataError, match=r"o\.csv:2: 'p00\.000' is a song of .*a and of .*b; say which"):
        import_ratings(path, folders, out)
    path.write_text("sample_id,file,samples,stars\np00.000,,b,5\n,a/audio/p00.000.flac,,2\np00.001,,,1\n")
    import_ratings(path, folders, out)
    found = {(row.samples, row.sample_id): row.rating for row in read_ratings(out)}
    assert found == {("../a", "p00.000"): -0.5, ("../a", "p00.001"): -1.0, ("../b", "p00.000"): 1.0}


def test_the_command_counts_opinions_warns_of_imbalance_and_exits_with_2_on_a_mistake(tmp_path, songs):
    def command(text, code=0):
        (tmp_path / "o.csv").write_text(text)
        return verb(
            "import-ratings", tmp_path / "o.csv", "--samples", songs, "--out", tmp_path / "out", code=code
        )

    likes = "".join(f"p0{i}.00{k},up\n" for i in (0, 1) for k in (0, 1))
    first, warning = command(f"\ufeffsample_id,thumb\n{likes}p00.002,down\n").splitlines()
    assert first == "4 liked, 1 disliked from 5 opinions of unnamed rater(s); 0 neutral left out"
    assert warning.startswith("warning: only 1 disliked")
    assert "thumb must be" in command("sample_id,thumb\np00.000,maybe\n", code=2)


def test_opinions_about_songs_that_are_not_there_are_left_out_and_said(tmp_path, songs, capsys):
    take(tmp_path, songs, "sample_id,thumb\np00.000,up\np00.007,up\np01.000,down")
    assert {row.sample_id for row in tables.read_rows(tmp_path / "out", RATINGS)} == {"p00.000", "p01.000"}
    assert "left out" in (line := capsys.readouterr().err)
    assert "csv:3: no song with sample_id 'p00.007'" in line
