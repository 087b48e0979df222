"""A dataset of many songs holds none of them: latents and embeddings stay in the pages of their files."""

import ctypes
import gc
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.local_model import LocalModel
from support.songs import write_ratings, write_samples

from diffdpo.data import tables
from diffdpo.data.datasets.generated import Source
from diffdpo.data.datasets.groups import Groups
from diffdpo.data.datasets.pairs import Pairs
from diffdpo.data.datasets.rated import RatedSongs
from diffdpo.data.datasets.songs import CropConfig, Songs
from diffdpo.data.latents import write_latents
from diffdpo.data.pairs import PAIRS, PairRow
from diffdpo.data.ratings import read_ratings
from diffdpo.data.song_embeddings import write_song_embeddings
from diffdpo.data.songs import SONGS, SongRow, song_embeddings, song_latents
from diffdpo.models.embeddings import EmbeddingStore

PROMPTS, FRAMES, CHANNELS, TOKENS, WIDTH = 8, 8000, 64, 512, 2048
"""Each song has 2 MB of latents and each prompt 4 MB of embedding."""
LATENT_BYTES, EMBEDDING_BYTES = 4 * FRAMES * CHANNELS, 4 * TOKENS * WIDTH
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux"),
]


def anonymous_bytes():
    """Memory of this process that no file stands behind, once the allocator gave back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(re.search(r"^Anonymous:\s+(\d+)", text, re.MULTILINE)[1])


def is_mapped(tensor):
    """Whether a tensor lies in the pages of a file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        first, last = (int(number, 16) for number in words[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return len(words) > 5 and words[5].endswith(".safetensors")
    return False


class WideModel(LocalModel):
    """A model whose embeddings are as large as those of models with token sequences."""

    def embed(self, prompt):
        return super().embed(prompt) | {"tokens": torch.full((TOKENS, WIDTH), float(len(prompt.text)))}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Two songs of each prompt, with a text of its own."""
    folder = write_samples(tmp_path_factory.mktemp("mapped") / "samples", prompts=PROMPTS, per_prompt=2)
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    texts = [re.sub(r'"text": "[^"]*"', f'"text": "{"la" * (k + 1)}"', line) for k, line in enumerate(lines)]
    (folder / "prompts.jsonl").write_text("\n".join(texts))
    for path in (folder / "latents").iterdir():
        write_latents(path, torch.zeros(FRAMES, CHANNELS))
    return folder


def source(folder):
    store = EmbeddingStore(WideModel(), folder)
    return Source(
        embed=store.embed, embed_plan=store.embed_plan, frames_per_second=10.0, seed=0, report=print,
        channels=CHANNELS,
    )  # fmt: skip


def pairs_of(samples, where):
    names = [f"p{k:02d}" for k in range(PROMPTS)]
    rows = [
        PairRow(prompt_id=n, group=n, samples="../samples", winner=f"{n}.000", loser=f"{n}.001", rule="test")
        for n in names
    ]
    mined = samples.parent / "pairs"
    tables.append(mined, PAIRS, rows)
    return Pairs(mined / PAIRS.folder, where)


def ratings_of(samples):
    values = {f"p{k:02d}.{n:03d}": 1.0 if n else -1.0 for k in range(PROMPTS) for n in range(2)}
    folder = samples.parent / "ratings"
    if not folder.exists():
        write_ratings(folder, samples, values)
    return folder, read_ratings(folder, "mined")


def rated_of(samples, where):
    return RatedSongs(*ratings_of(samples), where, balance=False)


def groups_of(samples, where):
    return Groups(*ratings_of(samples), where, size=2)


@pytest.mark.parametrize("build", [pairs_of, rated_of, groups_of])
def test_generated_songs_are_read_when_they_are_used(samples, tmp_path, build):
    for _ in range(2):  # embedded, then found in the cache
        before = anonymous_bytes()
        examples = build(samples, source(tmp_path))
        held = [examples.example(index, index) for index in range(len(examples))]
        assert anonymous_bytes() - before < 0.25 * PROMPTS * EMBEDDING_BYTES
        embeddings = [embedding["tokens"] for embedding in examples.songs.embeddings.values()]
        assert len(embeddings) == 2 * PROMPTS
        assert all(map(is_mapped, embeddings))
        assert len({tokens.data_ptr() for tokens in embeddings}) == PROMPTS  # a prompt's songs share it
        fields = [value for example in held for value in vars(example).values()]
        latents = [value for value in fields if getattr(value, "shape", None) == (FRAMES, CHANNELS)]
        assert all(map(is_mapped, latents))


def test_prepared_songs_are_read_when_they_are_used(tmp_path):
    rows = [SongRow(id=f"s{k}", frames=FRAMES) for k in range(PROMPTS)]
    for k, row in enumerate(rows):
        write_latents(song_latents(tmp_path, row.id), torch.full((FRAMES, CHANNELS), float(k)))
        embedding = {"tokens": torch.full((TOKENS, WIDTH), float(k))}
        write_song_embeddings(song_embeddings(tmp_path, row.id), [[embedding]])
    tables.append(tmp_path, SONGS, [replace(row, split="train") for row in rows])
    before = anonymous_bytes()
    crop = CropConfig(min_frames=FRAMES, max_frames=FRAMES)
    songs = Songs(tmp_path, split="train", crop=crop, seed=0, channels=CHANNELS)
    held = [songs.example(index, index) for index in range(len(songs))]
    assert anonymous_bytes() - before < 0.25 * PROMPTS * (LATENT_BYTES + EMBEDDING_BYTES)
    assert len(held) == PROMPTS
    assert all(is_mapped(crop.latents) and is_mapped(crop.row.embedding["tokens"]) for crop in held)
