"""One song's fault is that song's: it is recorded with its reason, and the others are there."""

import errno
import json
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile
from support.bundle import write_bundle

from diffdpo import audio, progress
from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES
from diffdpo.data.scores import SCORES
from diffdpo.data.songs import SONGS
from diffdpo.errors import DataError
from diffdpo.faults import song_fault
from diffdpo.models import MODELS
from diffdpo.recipes import prepare, sample, sample_results, sample_worker, score
from diffdpo.recipes.prepare import PrepareRun
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.score import ScoreRun
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.types import Clip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Choice("tiny", {"bundle": str(write_bundle(tmp_path_factory.mktemp("bundle")))})


def noise(seconds=1.5, rate=44100, channels=2):
    return np.random.default_rng(0).normal(0, 0.1, (int(seconds * rate), channels)).astype(np.float32)


def with_value(value):
    samples = noise()
    samples[7] = value
    return samples


FILES = {
    "good": (noise(), 44100, ""),
    "surround": (noise(channels=6), 48000, ""),
    "seven": (noise(channels=7), 44100, ""),
    "nine": (noise(channels=9), 44100, "9 channels of no common layout"),
    "empty": (noise()[:0], 44100, "0 samples"),
    "click": (noise()[:1] + 0.1, 44100, ""),
    "slow": (noise(20, 1), 1, "a sample rate of 1 Hz, below 4000"),
    "fast": (noise(rate=384_000), 384_000, ""),
    "odd": (noise(rate=44101), 44101, "44101 Hz cannot be brought to 44100 Hz"),
    "nan": (with_value(np.nan), 44100, "samples that are not numbers"),
    "inf": (with_value(np.inf), 44100, "samples that are not numbers"),
    "constant": (np.full((44100, 2), 0.5, np.float32), 44100, "one value throughout"),
    "silent": (np.zeros((44100, 2), np.float32), 44100, "silent from beginning to end"),
}
"""Samples, rate, and the reason why the song is skipped; "" for a song that is prepared."""


def test_prepare_records_what_it_cannot_use_and_encodes_the_others(tmp_path, model):
    songs = tmp_path / "songs"
    songs.mkdir()
    for name, (samples, rate, _) in FILES.items():
        soundfile.write(songs / f"{name}.wav", samples, rate, subtype="FLOAT")
    (songs / "text.wav").write_text("no sound")
    (songs / "cut.flac").write_bytes(b"fLaC")
    out = prepare.run(PrepareRun(out=str(tmp_path / "out"), songs=str(songs), model=model))
    reasons = {row.id: row.error for row in tables.read_rows(out, SONGS)}
    assert reasons.keys() == {*FILES, "text", "cut"}
    for name, (_, _, reason) in FILES.items():
        assert reason in reasons[name], name
        assert bool(reason) == bool(reasons[name]), reasons[name]
        assert (out / "latents" / f"{name}.safetensors").is_file() == (not reason)
    assert "cannot decode" in reasons["text"]
    assert "cannot decode" in reasons["cut"]
    assert not [reason for reason in reasons.values() if "\n" in reason]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        *(OSError(code, "no") for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)),
    ],
)
def test_the_systems_errors_are_nobodys_fault(error):
    with pytest.raises(type(error)):
        song_fault(error)


def test_any_other_error_is_one_line_with_its_kind():
    assert song_fault(ValueError("five\nchannels")) == "ValueError: five channels"
    assert song_fault(DataError("x.wav: damaged")) == "x.wav: damaged"
    assert song_fault(IndexError()) == "IndexError"


@pytest.fixture
def lines(monkeypatch):
    """The lines that a verb logs."""
    texts = []
    for recipe in (sample_worker, sample_results, score):
        monkeypatch.setattr(recipe, "log", lambda text, **_: texts.append(text))
    assert progress.log
    return texts


def sample_songs(folder, model, rows):
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = SampleRun(
        out=str(folder / "samples"),
        prompts=str(prompts),
        model=model,
        sampling=SamplingConfig(steps=1, batch=2),
    )
    return sample.run(cfg)


def test_sample_records_a_damaged_style_recording_and_a_damaged_edit(tmp_path, model, lines):
    (tmp_path / "style.wav").write_text("no sound")
    (tmp_path / "edit.wav").write_text("no sound")
    soundfile.write(tmp_path / "wide.wav", noise(channels=6), 44100, subtype="FLOAT")
    folder = sample_songs(
        tmp_path,
        model,
        [
            {"id": "good", "text": "rock", "duration_s": 1},
            {"id": "style", "style_audio": "style.wav", "duration_s": 1},
            {"id": "surround", "style_audio": "wide.wav", "duration_s": 1},
            {"id": "edit", "text": "rock", "edit": {"song": "edit.wav", "spans": [[0, 1]]}},
            {"id": "remix", "text": "rock", "edit": {"song": "wide.wav", "spans": [[0.1, 0.9]]}},
        ],
    )
    errors = {row.prompt_id: row.error for row in tables.read_rows(folder, SAMPLES)}
    assert {name for name, error in errors.items() if error} == {"style", "edit"}
    assert "cannot decode" in errors["style"]
    assert "cannot decode" in errors["edit"]
    assert [line for line in lines if "2 of 5 songs failed" in line]


def test_score_leaves_out_a_damaged_song_and_one_that_is_another(tmp_path, model, lines):
    names = ["one", "two", "three"]
    folder = sample_songs(tmp_path, model, [{"id": name, "text": name, "duration_s": 1} for name in names])
    (folder / "audio" / "one.000.flac").write_bytes(b"fLaC")
    audio.write(folder / "audio" / "two.000.flac", Clip(samples=noise().T, sample_rate=44100))
    cfg = ScoreRun(samples=[str(folder)], out=str(tmp_path / "scores"), scorers=["production"])
    out = score.run(cfg)
    hashes = {row.prompt_id: row.sha256 for row in tables.read_rows(folder, SAMPLES)}
    assert {row.sha256 for row in tables.read_rows(out, SCORES)} == {hashes["three"]}
    warnings = [line for line in lines if line.startswith("warning: no scores")]
    assert len(warnings) == 2
    assert any("one.000.flac: cannot decode" in line for line in warnings)
    assert any(
        "two.000.flac: its sound is not the one in the table; sample it again" in line for line in warnings
    )


def test_no_song_with_scores_is_an_error(tmp_path, model, lines):
    folder = sample_songs(tmp_path, model, [{"id": "one", "text": "one", "duration_s": 1}])
    (folder / "audio" / "one.000.flac").write_bytes(b"fLaC")
    with pytest.raises(DataError, match="no song could be scored"):
        score.run(ScoreRun(samples=[str(folder)], out=str(tmp_path / "scores"), scorers=["production"]))


@dataclass(frozen=True)
class Fragile:
    """A song model of a stranger whose network fails for songs of more than 40 frames."""

    bundle: str

    def load(self):
        model = MODELS["tiny"](bundle=self.bundle).load()

        def refuse_long(network, args, kwargs):
            if any(
                value.shape[1] > 40 for value in (*args, *kwargs.values()) if getattr(value, "ndim", 0) == 3
            ):
                raise IndexError("position out of range")

        model.network.register_forward_pre_hook(refuse_long, with_kwargs=True)
        return model


def test_a_song_that_breaks_its_batch_is_left_out_and_the_others_are_made(tmp_path, model, monkeypatch):
    monkeypatch.setitem(MODELS.entries, "fragile", Fragile)
    rows = [
        {"id": name, "text": "rock", "duration_s": seconds}
        for name, seconds in (("a", 1), ("b", 3), ("c", 1))
    ]
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    cfg = SampleRun(
        out=str(tmp_path / "out"), prompts=str(tmp_path / "p.jsonl"), model=Choice("fragile", dict(model.args)),
        sampling=SamplingConfig(steps=1), audio=False,
    )  # fmt: skip
    errors = {row.sample_id: row.error for row in tables.read_rows(sample.run(cfg), SAMPLES)}
    assert errors == {"a.000": "", "b.000": "IndexError: position out of range", "c.000": ""}
