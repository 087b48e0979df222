"""A DiffRhythm checkpoint in the published layout, random and small, through the commands a real one takes.

Real code all the way: cfm_model.pt, diffusers' VAE, MuQ-MuLan, sung English; only the numbers are random.
"""

import json

import numpy as np
import pytest
import soundfile
import torch
from diffusers import AutoencoderOobleck
from safetensors.torch import load_file
from support.launch import launch, rows, verb
from support.mulan import STYLES, write_mulan

from diffdpo.data import tables
from diffdpo.data.samples import Samples
from diffdpo.data.song_embeddings import SongEmbeddings
from diffdpo.data.songs import SONGS
from diffdpo.lyrics.phonemes import BOUNDARY
from diffdpo.models.diffrhythm.lines import token_lines
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.models.diffrhythm.published import wrap

pytestmark = pytest.mark.slow

CHANNELS, HOP, RATE, SECONDS = 8, 128, 44100, 3.0
PHONES = [",", ".", BOUNDARY, *["h", "ə", "l", "oʊ", "w", "d", "s", "ŋ", "ɜ"]]
VOCABULARY = {phone: number for number, phone in enumerate(PHONES)}
LYRICS = "[00:00.30]hello world\n[00:01.50]sing hello\n"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """All that somebody downloads."""
    root = tmp_path_factory.mktemp("published")
    (root / "vocab.json").write_text(json.dumps({"vocab": VOCABULARY}))
    torch.manual_seed(0)
    network = DiffRhythmTransformer(
        dim=64, depth=1, num_attention_heads=32, ff_mult=2, latent_channels=CHANNELS,
        text_num_embeds=len(VOCABULARY) + 1, text_dim=16, style_dim=STYLES, cond_dim=512, conv_layers=1,
        max_frames=2048,
    )  # fmt: skip
    for parameter in network.text_fusion_linears.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save({"model_state_dict": wrap(network.state_dict())}, root / "cfm_model.pt")
    vae = AutoencoderOobleck(
        encoder_hidden_size=2 * CHANNELS, downsampling_ratios=[8, 16], channel_multiples=[1, 2],
        decoder_channels=4, decoder_input_channels=CHANNELS,
    )  # fmt: skip
    vae.save_pretrained(root / "vae")
    write_mulan(root / "mulan")
    return root


@pytest.fixture(scope="module")
def model(published):
    parts = {
        "checkpoint": published / "cfm_model.pt",
        "release": "v1.2-base",
        "vae": published / "vae",
        "vocabulary": published / "vocab.json",
        "style": published / "mulan",
        "tokenizer": published / "mulan",
    }
    arguments = [f"model.args.{name}={path}" for name, path in parts.items()]
    return ("model.name=diffrhythm", *arguments, "model.args.accept_noncommercial=true")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Two songs with lyrics, one without times to its words, one that is no sound."""
    folder = tmp_path_factory.mktemp("songs")
    lines = []
    for name, lyrics in (("one", LYRICS), ("two", LYRICS), ("untimed", "hello world"), ("broken", "")):
        time = np.arange(int(SECONDS * RATE)) / RATE
        tone = 0.2 * np.sin(2 * np.pi * 220 * time[:, None] * np.array([1.0, 1.5]))
        soundfile.write(folder / f"{name}.flac", tone, RATE)
        lines.append(
            {"id": name, "audio": f"{name}.flac", "text": "slow jazz", "lyrics": lyrics, "language": "en"}
        )
    (folder / "broken.flac").write_bytes(b"no sound")
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, model, manifest):
    out = tmp_path_factory.mktemp("dataset") / "data"
    verb("prepare", f"songs={manifest}", f"out={out}", "style_window_s=3", *model)
    return out


def test_songs_become_latents_styles_and_tokens_and_bad_ones_say_why(dataset):
    rows_by_id = {row.id: row for row in tables.read_rows(dataset, SONGS)}
    assert {name for name, row in rows_by_id.items() if row.error} == {"untimed", "broken"}
    assert "cannot be aligned" in rows_by_id["untimed"].error
    embeddings = SongEmbeddings(dataset / "embeddings" / "one.safetensors")
    for variant in range(embeddings.variants):
        for window in range(embeddings.windows):
            embedding = embeddings.read(variant, window)
            lines = token_lines(embedding)
            assert [start for start, _ in lines] == pytest.approx([0.3, 1.5])
            assert all(tokens for _, tokens in lines)
            assert embedding["style"].shape == (STYLES,)
    latents = load_file(dataset / "latents" / "one.safetensors")["latents"]
    assert latents.shape == (-(-int(SECONDS * RATE) // HOP), CHANNELS)


def test_two_processes_prepare_the_same(tmp_path, model, manifest, dataset):
    out = tmp_path / "data"
    launch("two", "prepare", f"songs={manifest}", f"out={out}", "style_window_s=3", *model)
    assert {row.id for row in tables.read_rows(out, SONGS) if not row.error} == {"one", "two"}
    for name in ("one", "two"):
        one, two = (load_file(folder / "latents" / f"{name}.safetensors") for folder in (out, dataset))
        assert torch.allclose(one["latents"].float(), two["latents"].float(), atol=2e-3)
        one, two = (
            SongEmbeddings(folder / "embeddings" / f"{name}.safetensors") for folder in (out, dataset)
        )
        assert (one.variants, one.windows) == (two.variants, two.windows)
        for variant in range(one.variants):
            embeddings = one.read(variant, 0), two.read(variant, 0)
            assert torch.allclose(*(embedding["style"] for embedding in embeddings), atol=2e-3)
            assert token_lines(embeddings[0]) == token_lines(embeddings[1])


def test_it_trains_and_sings(tmp_path, model, dataset):
    out = tmp_path / "sft"
    verb(
        "train", f"out={out}", f"data.songs={dataset}", *model, "objective.name=flow_matching", "train.steps=2",
        "train.global_batch=2", "train.per_device=2", "train.learning_rate=1e-3", "train.trackers=[]",
        "train.lora.rank=2", "train.dropout={style: 0.2, lyrics: 0.2, context: 0.3}",
        "train.inpaint={min_fraction: 0.5, max_fraction: 1.0}", "data.crop={min_frames: 512, max_frames: 1024}",
    )  # fmt: skip
    assert len(rows(out)) == 2
    assert all(np.isfinite(row["loss"]) for row in rows(out))
    prompts = tmp_path / "prompts.jsonl"
    asked = {
        "id": "song",
        "text": "jazz @ 0.7 || metal @ 0.3",
        "duration_s": SECONDS,
        "lyrics": LYRICS,
        "language": "en",
    }
    prompts.write_text(json.dumps(asked) + "\n")
    songs, adapter = tmp_path / "songs", out / "checkpoints" / "step-00000002" / "export"
    verb(
        "sample",
        f"prompts={prompts}",
        f"out={songs}",
        *model,
        f"model.args.adapter={adapter}",
        "sampling.steps=2",
    )
    clip, rate = soundfile.read(Samples(songs).audio("song.000"))
    assert rate == RATE
    assert clip.shape == (pytest.approx(SECONDS * RATE, abs=HOP), 2)
    assert np.isfinite(clip).all()
