"""Ids and the files named by them: nothing leaves a folder, nothing is too long, no two share a file."""

import os
from pathlib import PurePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffdpo.errors import DataError
from diffdpo.names import add_id, check_id, file_stem, fold, slug, slugs

anything = st.text(max_size=300) | st.text(st.sampled_from("./\\~a0é曲\0\n"), max_size=120)
UNCLEAN = ("Cc", "Zl", "Zp")
long_names = st.text(st.sampled_from("ab曲é.~"), min_size=60, max_size=400)


@settings(max_examples=200)
@given(anything | long_names)
def test_a_stem_is_one_name_in_its_folder_with_room_for_what_is_added(name):
    stem = file_stem(name)
    assert PurePath(stem).parts == (stem,)
    assert not stem.startswith(".")
    assert len(f".{stem}.preview.flac.4194304.partial".encode()) <= 255
    assert "\0" not in stem


@settings(max_examples=200)
@given(st.lists(anything | long_names, unique=True, max_size=6))
def test_no_two_ids_share_a_stem(names):
    stems = [file_stem(name) for name in names]
    assert len(set(stems)) == len(names)
    assert len({*stems, *map(file_stem, stems)}) >= len(names)
    for name, stem in zip(names, stems, strict=True):
        assert stem == name or file_stem(stem) != stem  # a shortened name is no id's own


@settings(max_examples=150)
@given(
    st.text(
        st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp"), exclude_characters="/\\"),
        max_size=70,
    )
)
def test_an_id_that_can_be_a_files_name_is_one_as_it_is(name):
    if not name.strip() or not name.strip("."):
        return
    assert check_id(name, "here") == name
    if not name.startswith(".") and len(name.encode()) <= 220:
        assert file_stem(name) == name or "~" in name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("../../escaped", "names files and may not contain a path separator"),
        ("/tmp/x", "names files and may not contain a path separator"),
        ("a\\b", "names files and may not contain a path separator"),
        ("a\0b", "names files and may not contain a path separator"),
        ("..", "dots only"),
        ("", "needs an id"),
        (" ", "needs an id"),
        ("a\nb", "control characters"),
        ("a\u2028b", "control characters"),
        ("a\ud800", "control characters"),
    ],
)
def test_ids_that_would_leave_the_folder_or_break_a_line_are_refused(name, says):
    with pytest.raises(DataError, match=f"^songs.jsonl:3: .*{says}") as caught:
        check_id(name, "songs.jsonl:3")
    assert "\n" not in str(caught.value)
    assert str(caught.value).encode()


@pytest.mark.parametrize(
    ("first", "second"), [("Song", "song"), ("caf\u00e9", "cafe\u0301"), ("\u00c9", "e\u0301")]
)
def test_ids_that_are_one_file_on_some_file_systems_are_refused(first, second):
    ids = {}
    add_id(ids, first, "a:1")
    with pytest.raises(DataError, match=r"a:2: the ids .* differ only in case or in the form of accents"):
        add_id(ids, second, "a:2")
    with pytest.raises(DataError, match=r"a:3: the id .* is used twice"):
        add_id(ids, first, "a:3")


segment = st.text(st.sampled_from("ab-A曲.\udce9"), min_size=1, max_size=90).filter(
    lambda name: name.strip(".")
)
paths = st.lists(
    st.lists(segment, min_size=1, max_size=3).map(lambda parts: "/".join(parts) + ".flac"), max_size=6
)


@settings(max_examples=150)
@given(paths)
def test_files_have_ids_that_differ_whatever_their_order(names):
    files = list({str(PurePath(name).with_suffix("")): PurePath(name) for name in names}.values())
    ids = slugs(files)
    assert len(set(map(fold, ids))) == len(files)
    assert dict(zip(files, ids, strict=True)) == dict(zip(files[::-1], slugs(files[::-1]), strict=True))
    for name in ids:
        assert file_stem(check_id(name, "here")) in (name, file_stem(name))


def test_ids_of_files_are_their_folders_and_names_unless_these_clash():
    assert slugs([PurePath("A/B/c.d.flac"), PurePath("e.wav")]) == ["A-B-c.d", "e"]
    first, second = slugs([PurePath("A/B-C.flac"), PurePath("A-B/C.flac")])
    assert first != second
    assert first.startswith("A-B-C-")
    assert second.startswith("A-B-C-")
    deep = PurePath("歌手" * 5, "专辑" * 5, "曲" * 66 + ".flac")
    assert slug(deep).startswith("歌手" * 5 + "-" + "专辑" * 5)
    assert len(slug(deep).encode()) <= 220
    assert slug(PurePath(os.fsdecode(b"caf\xe9.flac"))).startswith("caf_-")
