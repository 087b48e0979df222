"""Songs and pairs that were made elsewhere: columns that may be left out, and latents that do not fit the model."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.launch import verb
from support.songs import write_ratings, write_samples

from diffdpo.api import Song
from diffdpo.api import train as train_in_memory
from diffdpo.data import tables
from diffdpo.data.datasets.examples import DataConfig, build_examples
from diffdpo.data.datasets.generated import Source
from diffdpo.data.latents import check_latents, check_width, write_latents
from diffdpo.data.song_embeddings import write_song_embeddings
from diffdpo.data.songs import SONGS, SongRow
from diffdpo.errors import DataError
from diffdpo.mining.values import Pair
from diffdpo.models import MODELS
from diffdpo.types import Prompt, Row

CHANNELS = 8
"""Of the songs of `support.songs`, and of the models here."""


def source(channels=CHANNELS):
    return Source(
        embed=lambda prompt: {}, embed_plan=lambda plan: {}, frames_per_second=15.0, seed=0, report=print,
        channels=channels,
    )  # fmt: skip


@pytest.fixture
def samples(tmp_path):
    return write_samples(tmp_path / "samples", prompts=3, per_prompt=4)


def documented_pairs(folder, samples="../samples"):
    """A table of pairs as another program writes it: the columns that must be there, and no more."""
    columns = {
        "prompt_id": ["p00", "p01"],
        "samples": [samples] * 2,
        "winner": ["p00.000", "p01.001"],
        "loser": ["p00.001", "p01.000"],
    }
    (folder / "pairs.parquet").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "pairs.parquet" / "mine.parquet")
    return folder


def train(tmp_path, bundle, pairs, *words, code=0):
    return verb(
        "train", f"out={tmp_path}/run", f"data.pairs={pairs}", f"model.args.bundle={bundle}", "train.steps=1",
        "train.global_batch=2", "train.per_device=2", "train.lora.rank=2", "train.trackers=[]", *words, code=code,
    )  # fmt: skip


def test_pairs_with_the_documented_columns_train(tmp_path, samples, bundle):
    train(tmp_path, bundle, documented_pairs(tmp_path / "mine"))
    examples = build_examples(DataConfig(pairs=str(tmp_path / "mine")), "pair", "dpo", source())
    batch = examples.collate([examples.example(k, k) for k in (0, 1)], [0, 1])
    assert batch.soft_label.tolist() == [1.0, 1.0]
    assert batch.axes == ("", "")
    assert batch.span.all()


@pytest.mark.parametrize("width", [4, 9])
def test_pairs_of_another_width_are_one_line_before_the_first_step(tmp_path, samples, bundle, width):
    pairs = documented_pairs(tmp_path / "mine")
    path = samples / "latents" / "p01.000.safetensors"
    write_latents(path, torch.zeros(14, width))
    error = train(tmp_path, bundle, pairs, code=2)
    assert f"latents/p01.000.safetensors: latents of {width} channels, this model's have 8 channels" in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_song_that_is_gone_or_damaged_is_one_line_before_the_first_step(tmp_path, samples, bundle, workers):
    pairs, path = documented_pairs(tmp_path / "mine"), samples / "latents" / "p01.000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    error = train(tmp_path, bundle, pairs, f"train.workers={workers}", code=2)
    assert error.endswith("delete it and run its stage again")
    path.unlink()
    error = train(tmp_path, bundle, pairs, f"train.workers={workers}", code=2)
    assert error.endswith("p01.000.safetensors: no such file; was it moved? Run its stage again")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_song_with_values_that_are_no_numbers_is_the_same_line_whoever_reads(
    tmp_path, samples, bundle, workers
):
    pairs = documented_pairs(tmp_path / "mine")
    write_latents(samples / "latents" / "p01.000.safetensors", torch.full((14, CHANNELS), float("nan")))
    error = train(tmp_path, bundle, pairs, f"train.workers={workers}", code=2)
    assert error.startswith("error: ")
    text = "p01.000.safetensors: holds latents that are not numbers; delete it and run its stage again"
    assert error.endswith(text)


@pytest.mark.parametrize(
    ("kind", "settings"), [("rated", {}), ("group", {"group_size": 2}), ("song", {"top_share": 1.0})]
)
@pytest.mark.parametrize("fault", ["width", "gone"])
def test_rated_songs_groups_and_the_best_songs_are_checked_too(tmp_path, samples, kind, settings, fault):
    names = [f"p0{k}.00{n}" for k in range(2) for n in range(3)]
    ratings = write_ratings(tmp_path / "ratings", samples, {name: 1.0 + k for k, name in enumerate(names)})
    cfg = DataConfig(ratings=str(ratings), **settings)
    build_examples(cfg, kind, "objective", source())
    path = samples / "latents" / "p01.002.safetensors"
    if fault == "width":
        write_latents(path, torch.zeros(14, 3))
    else:
        path.unlink()
    with pytest.raises(DataError, match="of 3 channels" if fault == "width" else "no such file"):
        build_examples(cfg, kind, "objective", source())


@pytest.mark.parametrize("fault", ["width", "gone"])
def test_prepared_songs_are_checked_too(tmp_path, fault):
    path = tmp_path / "latents" / "a.safetensors"
    write_latents(path, torch.zeros(40, CHANNELS))
    write_song_embeddings(tmp_path / "embeddings" / "a.safetensors", [[{}]])
    tables.append(tmp_path, SONGS, [SongRow(id="a", frames=40, split="train", group="a")])
    cfg = DataConfig(songs=str(tmp_path))
    build_examples(cfg, "song", "sft", source())
    if fault == "width":
        write_latents(path, torch.zeros(40, 3))
    else:
        shutil.move(path, tmp_path / "elsewhere.safetensors")
    with pytest.raises(DataError, match="of 3 channels" if fault == "width" else "no such file"):
        build_examples(cfg, "song", "sft", source())


def test_songs_in_memory_are_checked_too(tmp_path, bundle):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    songs = [
        Song(
            id=name, prompt=Prompt(id="p", duration_s=1.0), latents=torch.zeros(14, width), clip=None,
            row=Row(embedding={}, frames=14),
        )
        for name, width in (("a", CHANNELS), ("b", 3))
    ]  # fmt: skip
    pair = Pair(prompt_id="p", group="", winner="a", loser="b", rule="", margins={})
    with pytest.raises(DataError, match="song 'b': latents of 3 channels, this model's have 8"):
        train_in_memory(model, songs, [pair], out=tmp_path / "run", steps=1)


def test_shapes_that_are_no_latents_are_named(tmp_path):
    with pytest.raises(DataError, match=r"of shape \[2, 3, 4\]"):
        check_width("x", (2, 3, 4), 4)
    check_width("x", (5, 4), 4)
    write_latents(tmp_path / "x.safetensors", torch.zeros(3, 4))
    check_latents([tmp_path / "x.safetensors"], 4)
    check_latents([], 4)
