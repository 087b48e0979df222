"""Feature extractors: deterministic vectors, windows of a song, networks by path, files, and who shares what."""

import ast
import json
from importlib import util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from contract.scorer_fixtures import MUQ
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from support.mulan import STYLES, write_mulan

from diffdpo import audio
from diffdpo.encoders import muq
from diffdpo.errors import CheckpointError, DataError
from diffdpo.extractors import DEFAULT_EXTRACTORS, EXTRACTORS
from diffdpo.extractors.base import (
    Crops,
    Extractor,
    TextExtractor,
    extract_crops,
    extractor_fingerprint,
    song_crops,
    song_features,
)
from diffdpo.extractors.clap import read_clap
from diffdpo.extractors.latents import latent_statistics
from diffdpo.types import Clip

ROOT = Path(__file__).parents[3]
SONG = audio.read(ROOT / "tests" / "data" / "galactic_temple.ogg", start_s=40.0, seconds=6.0)


def noise(seconds, seed=0, rate=24_000):
    samples = 0.1 * np.random.default_rng(seed).standard_normal((2, round(seconds * rate)))
    return Clip(samples=samples.astype(np.float32), sample_rate=rate)


@pytest.mark.parametrize("name", DEFAULT_EXTRACTORS)
def test_a_default_extractor_gives_one_finite_vector_of_fixed_length(name):
    extractor = EXTRACTORS[name]()
    assert isinstance(extractor, Extractor)
    vector = extractor(SONG)
    assert vector.ndim == 1
    assert np.array_equal(vector, extractor(SONG))
    assert np.isfinite(vector).all()
    short = extractor(noise(0.5))
    assert short.shape == vector.shape
    assert not np.allclose(short, vector)
    assert extractor_fingerprint(extractor) == extractor_fingerprint(EXTRACTORS[name]())
    assert isinstance(extractor, TextExtractor) == (name == "style")


def test_features_stand_side_by_side_in_the_order_of_their_names():
    extractors = {name: EXTRACTORS[name]() for name in ("musicnn", "latents")}
    rows = song_features([SONG, noise(2.0)], extractors)
    parts = [extractors[name](SONG) for name in ("musicnn", "latents")]
    assert rows[0] == pytest.approx(np.concatenate(parts))
    assert rows.shape == (2, sum(map(len, parts)))


def test_windows_are_spread_evenly_and_averaged_or_kept():
    assert len(Crops().cut(SONG)) == 1
    windows = Crops(seconds=2.0, count=3).cut(SONG)
    assert [window.seconds for window in windows] == pytest.approx([2.0] * 3, abs=1e-3)
    assert np.array_equal(windows[0].samples, SONG.samples[:, : windows[0].samples.shape[1]])
    assert np.array_equal(windows[2].samples, SONG.samples[:, -windows[2].samples.shape[1] :])
    assert len(Crops(seconds=9.0).cut(SONG)) == 1
    extractors = {"latents": EXTRACTORS["latents"]()}
    kept = song_crops(SONG, extractors, Crops(seconds=2.0, count=3, pool="rows"))
    mean = song_crops(SONG, extractors, Crops(seconds=2.0, count=3))
    assert kept.shape[0] == 3
    assert mean[0] == pytest.approx(kept.mean(0))
    with pytest.raises(ValueError, match="seconds"):
        Crops(seconds=-1.0)


def test_silent_windows_are_left_out():
    samples = SONG.samples.copy()
    samples[:, : samples.shape[1] // 2] = 0
    half = Clip(samples=samples, sample_rate=SONG.sample_rate)
    rows = extract_crops(EXTRACTORS["latents"](), half, Crops(seconds=2.0, count=4, pool="rows"))
    assert 1 <= len(rows) < 4
    silence = Clip(samples=np.zeros_like(samples), sample_rate=SONG.sample_rate)
    with pytest.raises(ValueError, match="silent"):
        extract_crops(EXTRACTORS["latents"](), silence, Crops())


def test_statistics_of_latents_by_hand():
    """A channel that jumps between 1 and -1: mean 0, deviation 1, a change of 2 at odd lags and 0 at even ones."""
    latents = np.array([[1.0], [-1.0]] * 20)
    mean, deviation, *movement = latent_statistics(latents)
    assert (mean, deviation) == (0, 1)
    assert movement == pytest.approx([2, 0, 0, 0, 0], rel=0.01)
    assert np.isfinite(latent_statistics(latents[:1])).all()


def write_clap(folder, fusion=False, seed=0):
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    torch.manual_seed(seed)
    sizes = {
        "audio_config": {
            "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 16,
            "num_hidden_layers": 2, "spec_size": 256, "num_mel_bins": 64, "window_size": 4, "patch_stride": [4, 4],
            "projection_dim": 12, "enable_fusion": fusion,
        },
        "text_config": {
            "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "projection_dim": 12, "max_position_embeddings": 40,
        },
        "projection_dim": 12,
    }  # fmt: skip
    model = ClapModel(ClapConfig(**sizes))
    model.save_pretrained(folder)
    ClapFeatureExtractor(feature_size=64, max_length_s=2, truncation="rand_trunc").save_pretrained(folder)
    return model.eval()


def test_clap_comes_from_a_folder_and_long_sounds_are_cut_evenly(tmp_path):
    model = write_clap(tmp_path)
    extractor = EXTRACTORS["clap"](folder=str(tmp_path))
    vector = extractor(SONG)
    assert vector.shape == (12,)
    assert np.array_equal(vector, extractor(SONG))
    short = noise(1.5, rate=48_000)
    inputs = read_clap(tmp_path).extractor(short.samples.mean(0), sampling_rate=48_000, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_audio_features(**inputs).pooler_output[0].numpy()
    assert extractor(short) == pytest.approx(expected, abs=1e-5)
    assert np.linalg.norm(expected) == pytest.approx(1, abs=1e-5)
    assert extractor.embed_text(" ") == pytest.approx(np.zeros(12))
    with pytest.raises(CheckpointError, match="tokenizer"):
        extractor.embed_text("slow")
    with pytest.raises(CheckpointError, match="no folder"):
        EXTRACTORS["clap"]()(SONG)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        EXTRACTORS["clap"](folder=str(tmp_path)).embed_text("slow")


def test_mulan_has_a_text_side_and_muq_a_hidden_state(tmp_path):
    write_mulan(tmp_path)
    args = {"weights": str(tmp_path), "tokenizer": str(tmp_path), "accept_noncommercial": True}
    mulan = EXTRACTORS["mulan"](**args)
    assert mulan(noise(3.0)).shape == mulan.embed_text("slow jazz").shape == (STYLES,)
    assert "CC-BY-NC-4.0" in mulan.licenses
    with pytest.raises(DataError, match="non-commercial"):
        EXTRACTORS["mulan"](weights=str(tmp_path), tokenizer=str(tmp_path)).embed_text("slow")
    encoder = muq.MuQ(MUQ).eval()
    save_tensors(
        {muq.MUQ_PREFIX + name: tensor for name, tensor in encoder.state_dict().items()},
        tmp_path / muq.MUQ_FILE,
    )
    features = EXTRACTORS["muq"](weights=str(tmp_path), accept_noncommercial=True, blocks=2)
    assert features(noise(1.0)).shape == (MUQ.dim,)


@pytest.mark.parametrize("kind", ["safetensors", "npz", "parquet"])
def test_features_of_other_networks_come_from_a_file(tmp_path, kind):
    clip = noise(0.2)
    vectors = {audio.pcm_sha256(clip.samples, clip.sample_rate): np.arange(3.0), "other": np.zeros(3)}
    path = tmp_path / f"mert.{kind}"
    if kind == "safetensors":
        save_file(vectors, path)
    elif kind == "npz":
        np.savez(path, **vectors)
    else:
        pq.write_table(
            pa.table({"sha256": list(vectors), "features": [v.tolist() for v in vectors.values()]}), path
        )
    extractor = EXTRACTORS["file"](path=str(path))
    assert extractor(clip).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="no features of the sound"):
        extractor(noise(0.2, seed=1))


def test_a_file_that_holds_no_features_is_refused(tmp_path):
    np.savez(tmp_path / "uneven.npz", a=np.zeros(2), b=np.zeros(3))
    np.savez(tmp_path / "nan.npz", a=np.array([np.nan]))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    (tmp_path / "list.json").write_text(json.dumps([1]))
    for name in ("uneven.npz", "nan.npz", "broken.parquet", "list.json", "absent.npz"):
        with pytest.raises(DataError, match=name.split(".")[0]):
            EXTRACTORS["file"](path=str(tmp_path / name))(noise(0.1))


def network_modules(module, done=()):
    """The modules of networks and scorers that a module imports, at any depth."""
    reached = set(done)
    spec = util.find_spec(module)
    for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if names and names[0] in ("diffdpo.encoders", "diffdpo.codecs"):
            names = [f"{names[0]}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            is_network = parts[0] == "diffdpo" and parts[1:2] in (["encoders"], ["codecs"], ["scorers"])
            if is_network and len(parts) > 2 and name not in reached:
                reached |= {name} | network_modules(name, reached | {name})
    return reached


HELPERS = {"diffdpo.scorers.features", "diffdpo.encoders.descriptors"}
"""Resampling and the like, without weights; from the second the witnesses have two published key profiles."""


def test_the_features_of_reward_models_share_nothing_with_the_witnesses():
    """Neither a network nor a formula: a hidden taste of what notes and beats hear is not among the features."""
    features = set().union(*(network_modules(f"diffdpo.extractors.{name}") for name in DEFAULT_EXTRACTORS))
    witnesses = set().union(*(network_modules(f"diffdpo.scorers.{name}") for name in ("notes", "beats")))
    assert {"diffdpo.encoders.style", "diffdpo.encoders.musicnn", "diffdpo.codecs.spectral"} <= features
    assert {"diffdpo.encoders.notes", "diffdpo.encoders.beat_net"} <= witnesses
    assert not features & witnesses - HELPERS
    imports = [
        {alias.name for alias in node.names}
        for name in witnesses
        for node in ast.walk(ast.parse(Path(util.find_spec(name).origin).read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "diffdpo.encoders.descriptors"
    ]
    assert set().union(*imports) == {"MAJOR", "MINOR"}
