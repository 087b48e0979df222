"""Evidence that needs two models or the sound of their songs, on the small bundle."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffdpo import audio
from diffdpo.config import build_config
from diffdpo.data.samples import open_samples
from diffdpo.evaluation.effects import PairedSample, effects
from diffdpo.evaluation.song_embeddings import complete_rows, embed_songs
from diffdpo.models.tiny import Tiny
from diffdpo.recipes import model_evidence, sample
from diffdpo.recipes.model_evidence import ModelEvidence, measure_evidence
from diffdpo.recipes.sample import SampleRun
from diffdpo.types import Clip

pytestmark = pytest.mark.slow

PROMPTS = [f"p{k}" for k in range(8)]


@pytest.fixture(scope="module")
def samples(tmp_path_factory, bundle):
    """Songs of the small bundle and of a network that was moved a little, and the folder of that network."""
    folder = tmp_path_factory.mktemp("models")
    rows = [{"id": name, "text": f"fast rock {k}", "duration_s": 1 + k % 2} for k, name in enumerate(PROMPTS)]
    (folder / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    network = Tiny(bundle=str(bundle)).load().network
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    network.save_pretrained(folder / "network")
    words = [f"prompts={folder / 'p.jsonl'}", f"model.args.bundle={bundle}", "sampling.steps=1", "per_prompt=2",
             "audio=false"]  # fmt: skip
    sides = {}
    for name, more in (("base", []), ("aligned", [f"model.args.network={folder / 'network'}"])):
        cfg = build_config(SampleRun, None, [*words, f"out={folder / name}", *more])
        sides[name] = open_samples(sample.run(cfg))
    return sides["base"], sides["aligned"], folder / "network"


def paired(samples):
    rng = np.random.default_rng(0)
    pairs = [
        PairedSample(row.sample_id, row.prompt_id, row.group, scores, scores)
        for row in samples.rows()
        for scores in [{"harmony.key": float(rng.normal())}]
    ]
    return pairs, effects(pairs, ["harmony.key"], ["harmony.key"])


def test_a_model_has_no_drift_from_itself_and_another_has(samples):
    base, aligned, _ = samples
    pairs, axis_effects = paired(base)
    same = measure_evidence(base, base, pairs, axis_effects, 8, diversity=False)
    assert (same.drift.value, same.winner_error, same.diversity) == (0, 1, None)
    moved = measure_evidence(base, aligned, pairs, axis_effects, 8, diversity=False)
    assert 0 < moved.drift.low <= moved.drift.value <= moved.drift.high
    assert moved.winner_error != 1


def test_drift_does_not_depend_on_the_batch(samples, monkeypatch):
    base, aligned, _ = samples
    pairs, axis_effects = paired(base)
    whole = measure_evidence(base, aligned, pairs, axis_effects, 8, diversity=False)
    sampling_of = model_evidence._sampling_of
    monkeypatch.setattr(model_evidence, "_sampling_of", lambda *args: replace(sampling_of(*args), batch=1))
    single = measure_evidence(base, aligned, pairs, axis_effects, 8, diversity=False)
    assert single.drift.value == pytest.approx(whole.drift.value, rel=1e-3)
    assert single.winner_error == pytest.approx(whole.winner_error, rel=1e-4)


def test_what_cannot_be_measured_is_left_out_with_a_line(samples, capsys):
    base, aligned, network = samples
    pairs, axis_effects = paired(base)
    nothing = ModelEvidence()
    assert measure_evidence(base, aligned, pairs, axis_effects, 0, diversity=False) == nothing
    few = [pair for pair in pairs if pair.prompt_id != "p0"]
    assert measure_evidence(base, aligned, few, axis_effects, 8, diversity=False) == nothing
    no_mined = effects(pairs, [], ["harmony.key"])
    assert measure_evidence(base, aligned, pairs, no_mined, 8, diversity=False).winner_error is None
    shutil.move(network, network.with_name("elsewhere"))
    try:
        assert measure_evidence(base, aligned, pairs, axis_effects, 8, diversity=True) == ModelEvidence(
            diversity={}
        ), "there is no sound either"
    finally:
        shutil.move(network.with_name("elsewhere"), network)
    output = capsys.readouterr()
    assert "drift and held-out winners are not measured" in output.out + output.err


def test_winners_are_the_songs_that_are_best_on_the_mined_axes(samples):
    pairs, axis_effects = paired(samples[0])
    winners = model_evidence._choose_songs(pairs, axis_effects, 8)[1]
    scores = {pair.sample_id: pair.baseline["harmony.key"] for pair in pairs}
    for name in winners:
        prompt = name.rsplit(".", 1)[0]
        assert scores[name] == max(value for key, value in scores.items() if key.startswith(f"{prompt}."))
    assert len(model_evidence._choose_songs(pairs, axis_effects, 3)[0]) == 3


def test_songs_are_embedded_by_what_they_are_and_silence_is_no_song(tmp_path):
    t = np.arange(3 * 44100) / 44100
    rng = np.random.default_rng(0)
    sounds = [np.sin(440 * t), np.sin(440 * t), rng.normal(size=len(t)), np.zeros(len(t))]
    paths = [tmp_path / f"{k}.flac" for k in range(4)]
    for path, sound in zip(paths, sounds, strict=True):
        audio.write(
            path, Clip(samples=(0.1 * np.stack([sound, sound])).astype(np.float32), sample_rate=44100)
        )
    embeddings = embed_songs(paths)
    assert "style" in embeddings
    for rows in embeddings.values():
        assert np.allclose(rows[0], rows[1], atol=1e-6)
        assert not np.allclose(rows[0], rows[2], atol=1e-3)
        assert np.isnan(rows[3]).all()
    assert complete_rows({name: (rows, rows) for name, rows in embeddings.items()}) == [0, 1, 2]
