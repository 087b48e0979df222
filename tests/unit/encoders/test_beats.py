"""Beats as tokens, against clicks whose times are known, and the tempo that a text names or a style has."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.bundle import write_bundle
from support.rows import song_row

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.prompts import negative_prompt
from diffdpo.data.song_embeddings import SongEmbeddings
from diffdpo.data.songs import SONGS
from diffdpo.encoders.beats import BEAT, BEATS_FILE, Beats, clarity, load_beats, named_tempo, track_beats
from diffdpo.errors import DataError
from diffdpo.models import MODELS
from diffdpo.models.base import Transcribes, supports
from diffdpo.models.diffrhythm.lines import token_lines
from diffdpo.recipes import prepare
from diffdpo.recipes.prepare import PrepareRun
from diffdpo.registry import Choice
from diffdpo.sounds import sound_of
from diffdpo.types import Clip, Prompt

RATE = 44100


def clicks(gap_s: float, seconds: float = 12.0, first_s: float = 0.0) -> Clip:
    """Short bursts of noise at even distances, in both channels."""
    generator = np.random.default_rng(0)
    samples = np.zeros((2, round(seconds * RATE)), np.float32)
    burst = generator.normal(size=2000) * np.exp(-np.arange(2000) / 300)
    for start in (np.arange(first_s, seconds - 0.1, gap_s) * RATE).round().astype(int):
        samples[:, start : start + 2000] += 0.3 * burst
    return Clip(samples=samples, sample_rate=RATE)


def noise(seconds: float = 12.0) -> Clip:
    samples = 0.1 * np.random.default_rng(1).normal(size=(2, round(seconds * RATE)))
    return Clip(samples=samples.astype(np.float32), sample_rate=RATE)


@pytest.mark.parametrize("gap_s", [0.4, 0.5, 0.6])
def test_clicks_are_heard_where_they_are(gap_s):
    beats = np.array(track_beats(sound_of(clicks(gap_s, first_s=0.13))))
    assert np.median(np.diff(beats)) == pytest.approx(gap_s, abs=0.012)
    off = np.abs((beats - 0.13 + gap_s / 2) % gap_s - gap_s / 2)
    assert np.median(off) < 0.03
    assert len(beats) > 0.8 * 12 / gap_s


def test_noise_and_silence_have_no_beats():
    assert track_beats(sound_of(noise())) == ()
    assert track_beats(sound_of(Clip(samples=np.zeros((2, 8 * RATE), np.float32), sample_rate=RATE))) == ()
    assert track_beats(sound_of(clicks(0.5, seconds=0.2))) == ()


def test_a_pulse_that_begins_later_has_beats_from_there_on():
    samples = np.concatenate([noise(32).samples, clicks(0.5, 32).samples], axis=1)
    beats = np.array(track_beats(sound_of(Clip(samples=samples, sample_rate=RATE))))
    assert len(beats) > 50
    assert beats.min() > 31


def test_clarity_is_one_for_what_repeats_and_none_for_what_does_not():
    period = np.zeros(20)
    period[[0, 7]] = 1.0, 0.4
    assert clarity(np.tile(period, 30), 20.0) == pytest.approx(1.0, abs=0.01)
    assert abs(clarity(np.random.default_rng(0).random(4000), 20.0)) < 0.06
    assert clarity(np.ones(100), 20.0) == 0


@pytest.mark.parametrize(
    ("text", "bpm"),
    [
        ("rock, 128 bpm", 128.0),
        ("92.5BPM lofi", 92.5),
        ("fast rock", None),
        ("9000 bpm", None),
        ("12 bpm", None),
        ("300 bpm speedcore, felt at 150 bpm", 150.0),
        ("bpm 120", None),
    ],
)
def test_a_tempo_is_read_from_a_text_that_names_one(text, bpm):
    assert named_tempo(text) == bpm


def maps(octaves: float, pulse: float, dim: int = 512) -> Beats:
    """A style of the first direction has this tempo and this probability of a pulse; others have 2^7 and 0.6."""
    weight = torch.zeros(2, dim)
    weight[:, 0] = torch.tensor([octaves - 7, pulse - 0.6])
    return Beats(weight, torch.tensor([7.0, 0.6]))


def style(place: int) -> torch.Tensor:
    return torch.eye(512)[place]


def test_the_prompts_tempo_wins_over_that_of_the_text_and_this_over_that_of_the_style():
    beats = maps(6.0, 0.9)
    assert beats.tempo(style(0)) == pytest.approx(64)
    assert beats.tempo(style(1)) == pytest.approx(128)
    cases = (
        ("rock", None, 60 / 64),
        (None, None, 60 / 64),
        ("rock, 100 bpm", None, 0.6),
        ("rock, 100 bpm", 120, 0.5),
    )
    for text, bpm, gap in cases:
        lines = beats.beats(text, style(0), 9.0, bpm)
        times = np.array([at for at, _ in lines])
        assert times[0] == 0
        assert times[-1] < 9.0
        assert np.allclose(np.diff(times), gap)
        assert {tokens for _, tokens in lines} == {(BEAT,)}


def test_styles_without_a_pulse_and_no_style_get_no_beats():
    assert maps(7.0, 0.4).beats("ambient", style(0), 9.0) == ()
    assert maps(7.0, 0.9).beats(None, None, 9.0) == ()
    assert maps(7.0, 0.9).beats(None, torch.zeros(512), 9.0) == ()
    assert maps(12.0, 0.9).tempo(style(0)) == 240
    assert maps(1.0, 0.9).tempo(style(0)) == 40


@pytest.fixture
def with_beats(tmp_path):
    folder = write_bundle(tmp_path / "bundle")
    assert load_beats(folder) is None
    made = maps(7.0, 0.9, dim=16)
    save_file({"weight": made.weight, "bias": made.bias}, folder / BEATS_FILE)
    return folder


def beat_frames(model, prompt):
    """Frames with a token, and the tokens."""
    tokens = model.condition([song_row(model, prompt)], model.spec.frames(prompt.duration_s))["lyrics"][0]
    return tokens.nonzero().flatten().tolist(), set(tokens[tokens > 0].tolist())


def test_beats_are_tokens_on_their_frames_and_the_negative_has_none(with_beats):
    model = MODELS["tiny"](bundle=str(with_beats)).load()
    prompt = Prompt(id="a", text="rock, 60 bpm", duration_s=4.0)
    expected = [int(second * model.spec.frames_per_second) for second in range(4)]
    assert beat_frames(model, prompt) == (expected, {BEAT})
    assert beat_frames(model, Prompt(id="a", text="rock", duration_s=4.0, controls=(("bpm", 60),))) == (
        expected,
        {BEAT},
    )
    negative = negative_prompt(Prompt(id="a", text="rock", negative_text="noise, 80 bpm", duration_s=4.0))
    assert beat_frames(model, negative) == ([], set())


def test_prepare_writes_down_the_beats_of_a_recording(with_beats, tmp_path):
    """In every variant and window: they are those of the whole song."""
    audio.write(tmp_path / "click.flac", clicks(0.5))
    cfg = PrepareRun(
        songs=str(tmp_path / "songs.jsonl"), out=str(tmp_path / "data"),
        model=Choice("tiny", {"bundle": str(with_beats)}), style_window_s=6.0,
    )  # fmt: skip
    (tmp_path / "songs.jsonl").write_text(json.dumps({"id": "click", "audio": "click.flac"}))
    (row,) = tables.read_rows(prepare.run(cfg), SONGS)
    embeddings = SongEmbeddings(tmp_path / "data" / "embeddings" / f"{row.id}.safetensors")
    assert embeddings.windows == 2
    for variant in range(embeddings.variants):
        for window in range(2):
            lines = token_lines(embeddings.read(variant, window))
            assert np.median(np.diff([at for at, _ in lines])) == pytest.approx(0.5, abs=0.012)
            assert lines[-1][0] > 10
            assert all(tokens == (BEAT,) for _, tokens in lines)


def test_a_model_without_beats_transcribes_nothing_and_knows_no_tempo(bundle):
    model = MODELS["tiny"](bundle=str(bundle)).load()
    assert supports(model, Transcribes)
    assert model.transcribe(clicks(0.5)) == {}
    assert beat_frames(model, Prompt(id="a", text="rock, 60 bpm")) == ([], set())
    with pytest.raises(DataError, match=r"knows no control 'bpm'\. Known: axis, start"):
        model.embed(Prompt(id="a", text="rock", controls=(("bpm", 60),)))
