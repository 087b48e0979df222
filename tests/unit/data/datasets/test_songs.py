"""Crops of prepared songs."""

import pytest
import torch

from diffdpo.data import tables
from diffdpo.data.datasets.songs import CropConfig, Songs
from diffdpo.data.latents import read_latents, write_latents
from diffdpo.data.song_embeddings import write_song_embeddings
from diffdpo.data.songs import SONGS, SongRow
from diffdpo.errors import DataError

VARIANTS, WINDOWS = 3, 4


@pytest.fixture
def dataset(tmp_path):
    """Latents count the frames; an embedding says its variant and its window."""
    for name, frames in (("long", 400), ("short", 20)):
        ramp = torch.arange(frames, dtype=torch.float32)[:, None].repeat(1, 4)
        write_latents(tmp_path / "latents" / f"{name}.safetensors", ramp)
        embeddings = [
            [{"place": torch.tensor([variant, window])} for window in range(WINDOWS)]
            for variant in range(VARIANTS)
        ]
        write_song_embeddings(tmp_path / "embeddings" / f"{name}.safetensors", embeddings)
        row = SongRow(id=name, frames=frames, split="train", group=name)
        tables.append(tmp_path, SONGS, [row])
    return tmp_path


def songs(folder, **crop):
    return Songs(folder, split="train", crop=CropConfig(**crop), seed=0)


def test_a_crop_is_a_stretch_of_its_song_and_says_where(dataset):
    data = songs(dataset, min_frames=50, max_frames=100)
    for position in range(30):
        crop = data.example(0, position)
        first, count = crop.latents[0, 0].item(), len(crop.latents)
        assert 50 <= count <= 100
        assert torch.equal(crop.latents[:, 0], torch.arange(first, first + count))
        assert (crop.row.first_frame, crop.row.frames, crop.row.song_frames) == (first, count, 400)
        assert not crop.row.is_full_song


def test_a_crop_has_the_embedding_of_the_window_around_its_middle_in_a_variant_of_its_own(dataset):
    data = songs(dataset, min_frames=50, max_frames=100)
    rows = [data.example(0, position).row for position in range(120)]
    places = [tuple(row.embedding["place"].tolist()) for row in rows]
    middles = [row.first_frame + row.frames / 2 for row in rows]
    assert [window for _, window in places] == [int(middle / 400 * WINDOWS) for middle in middles]
    for variant in range(VARIANTS):  # each as often as the others, whatever the window
        assert 20 < [v for v, _ in places].count(variant) < 60
    assert len(set(places)) == VARIANTS * WINDOWS


def test_crops_depend_on_the_position_alone(dataset):
    one, two = (songs(dataset, min_frames=50, max_frames=100) for _ in range(2))
    assert torch.equal(one.example(0, 7).latents, two.example(0, 7).latents)
    assert len({songs(dataset, min_frames=50).example(0, p).latents[0, 0].item() for p in range(9)}) > 1


def test_a_bucket_of_examples_shares_a_length(dataset):
    data = songs(dataset, min_frames=50, max_frames=150, bucket=4)
    lengths = [len(data.example(0, position).latents) for position in range(16)]
    assert [len(set(lengths[i : i + 4])) for i in range(0, 16, 4)] == [1, 1, 1, 1]
    assert len(set(lengths)) > 2


def test_a_song_shorter_than_the_crop_is_taken_whole(dataset):
    data = songs(dataset, min_frames=64, max_frames=64)
    crop = data.example(len(data) - 1, 3)
    assert len(crop.latents) == 20
    assert crop.row.is_full_song


def test_long_songs_are_visited_more_often(dataset):
    data = songs(dataset, min_frames=100, max_frames=100)
    assert [row.id for row in data.rows] == ["long"] * 4 + ["short"]


def test_a_batch_is_padded_and_knows_its_lengths(dataset):
    data = songs(dataset, min_frames=64, max_frames=64)
    batch = data.collate([data.example(0, 0), data.example(len(data) - 1, 1)], [0, 1])
    assert batch.latents.shape == (2, 1, 64, 4)
    assert batch.frames.tolist() == [[64], [20]]
    assert [[row.frames for row in example] for example in batch.rows] == [[64], [20]]
    assert batch.latents[1, 0, 20:].abs().max() == 0
    assert batch.reference_rows is None


def test_a_split_without_songs_is_refused(dataset):
    with pytest.raises(DataError, match="no prepared songs of the split 'test'"):
        Songs(dataset, split="test", crop=CropConfig(), seed=0)


def test_a_song_without_its_embeddings_is_named_before_training(dataset):
    (dataset / "embeddings" / "short.safetensors").unlink()
    with pytest.raises(DataError, match=r"short\.safetensors: no such file; run `diffdpo prepare` again"):
        songs(dataset)


def test_latents_that_are_not_numbers_or_damaged_are_named(tmp_path):
    path = tmp_path / "x.safetensors"
    write_latents(path, torch.full((3, 4), float("nan")))
    with pytest.raises(DataError, match=r"x\.safetensors: holds latents that are not numbers"):
        read_latents(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=r"x\.safetensors: damaged"):
        read_latents(path)
    with pytest.raises(DataError, match="no such file"):
        read_latents(tmp_path / "y.safetensors")
