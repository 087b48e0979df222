"""Embeddings of prepared songs and plans of candidates on disk: bit for bit, each tensor once, damage named."""

import pytest
import torch

from diffdpo.data.plans import read_plan, write_plan
from diffdpo.data.song_embeddings import SongEmbeddings, write_song_embeddings
from diffdpo.errors import DataError
from diffdpo.types import Plan


def equal(one, two):
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


def tensors(seed):
    """Of many kinds: scalars, empty ones, views, halves, integers, truth values, numbers that are none."""
    table = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    return {
        "view": table.T,
        "row": table[1],
        "half": table.half(),
        "scalar": torch.tensor(seed / 3, dtype=torch.float64),
        "empty": torch.zeros(0, 5, dtype=torch.long),
        "tokens": torch.arange(seed, seed + 3),
        "mask": table > 0,
    }


def test_embeddings_survive_their_file_bit_for_bit(tmp_path):
    path = tmp_path / "song.safetensors"
    embeddings = [[tensors(3 * variant + window) for window in range(3)] for variant in range(2)]
    write_song_embeddings(path, embeddings)
    song = SongEmbeddings(path)
    assert (song.variants, song.windows) == (2, 3)
    for variant, windows in enumerate(embeddings):
        for window, embedding in enumerate(windows):
            assert equal(song.read(variant, window), embedding)


def test_windows_may_have_different_tensors_or_none(tmp_path):
    path = tmp_path / "song.safetensors"
    write_song_embeddings(path, [[{}, {"a": torch.ones(2)}], [{"b": torch.zeros(3)}, {}]])
    song = SongEmbeddings(path)
    assert [[sorted(song.read(v, w)) for w in range(2)] for v in range(2)] == [[[], ["a"]], [["b"], []]]
    write_song_embeddings(path, [[{}]])
    assert SongEmbeddings(path).read(0, 0) == {}


def test_what_windows_share_is_stored_once(tmp_path):
    large = torch.randn(1000)
    one, many = tmp_path / "one.safetensors", tmp_path / "many.safetensors"
    write_song_embeddings(one, [[{"large": large}]])
    write_song_embeddings(many, [[{"large": large.clone(), "n": torch.tensor(i)} for i in range(20)]] * 2)
    assert many.stat().st_size < one.stat().st_size + 10_000  # two thousand for numbers, the rest the index
    twice = tmp_path / "twice.safetensors"  # equal bytes of another type or shape are another tensor
    write_song_embeddings(
        twice,
        [
            [
                {
                    "a": torch.zeros(4),
                    "b": torch.zeros(2, 2),
                    "c": torch.zeros(4).int(),
                    "d": torch.zeros(2).double(),
                }
            ]
        ],
    )
    shapes = {name: (t.dtype, tuple(t.shape)) for name, t in SongEmbeddings(twice).read(0, 0).items()}
    assert shapes == {
        "a": (torch.float32, (4,)),
        "b": (torch.float32, (2, 2)),
        "c": (torch.int32, (4,)),
        "d": (torch.float64, (2,)),
    }


def test_a_file_that_holds_something_else_is_named(tmp_path):
    path = tmp_path / "song.safetensors"
    with pytest.raises(DataError, match=r"song\.safetensors: no such file; run `diffdpo prepare` again"):
        SongEmbeddings(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"song\.safetensors: holds no embeddings of a song"):
        SongEmbeddings(path)
    write_plan(path, Plan(planner="p", tensors={"codes": torch.arange(3)}))
    with pytest.raises(DataError, match=r"song\.safetensors: holds no embeddings of a song"):
        SongEmbeddings(path)


def test_a_plan_keeps_its_planner_and_its_tensors(tmp_path):
    path = tmp_path / "plans" / "p.000.safetensors"
    plan = Plan(planner="planner-7b @ 0123", tensors=tensors(1))
    write_plan(path, plan)
    again = read_plan(path)
    assert again.planner == plan.planner
    assert equal(again.tensors, plan.tensors)


def test_a_file_that_is_no_plan_is_named(tmp_path):
    path = tmp_path / "p.000.safetensors"
    for content in (b"", b"nothing", None):
        if content is None:
            write_song_embeddings(path, [[{"a": torch.ones(2)}]])
        else:
            path.write_bytes(content)
        with pytest.raises(
            DataError, match=r"p\.000\.safetensors: no plan of a candidate .*; sample the song"
        ):
            read_plan(path)
