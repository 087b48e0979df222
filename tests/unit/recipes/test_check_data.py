"""What `check-data` says of songs whose faults are known, and its estimates of sounds whose tempo and key are."""

import json

import numpy as np
import pytest
import soundfile
from support.launch import verb

from diffdpo.data.song_manifest import SongEntry
from diffdpo.recipes.check_data import check_songs, estimate_key, estimate_tempo, foreign_script, text_remarks
from diffdpo.types import Clip

RATE = 44100


def clicks(bpm, seconds=20.0):
    """A click on every beat, in a soft noise."""
    samples = np.random.default_rng(0).normal(0, 0.002, int(seconds * RATE)).astype(np.float32)
    decay = np.exp(-np.arange(2000) / 200).astype(np.float32)
    for beat in range(int(seconds * bpm / 60)):
        start = int(beat * 60 / bpm * RATE)
        samples[start : start + 2000] += 0.5 * decay[: len(samples[start : start + 2000])]
    return Clip(samples=np.stack([samples, samples]), sample_rate=RATE)


def chords(*chords_hz, seconds=2.0):
    """Chords of sines, one after the other."""
    time = np.arange(int(seconds * RATE)) / RATE
    parts = [sum(np.sin(2 * np.pi * hertz * time) for hertz in chord) / 4 for chord in chords_hz]
    samples = np.concatenate(parts).astype(np.float32) * 0.3
    return Clip(samples=np.stack([samples, samples]), sample_rate=RATE)


def note(midi):
    return 440.0 * 2 ** ((midi - 69) / 12)


def triads(*roots_and_modes):
    return [[note(root), note(root + (4 if major else 3)), note(root + 7)] for root, major in roots_and_modes]


@pytest.mark.parametrize("bpm", [75, 100, 120, 140])
def test_the_tempo_of_clicks_is_theirs(bpm):
    estimate = estimate_tempo(clicks(bpm))
    octaves = np.log2(float(estimate.value) / bpm)
    assert abs(octaves - round(octaves)) < 0.05
    assert estimate.confidence > 0.6


def test_noise_has_no_tempo_to_speak_of():
    noise = np.random.default_rng(1).normal(0, 0.1, (2, 20 * RATE)).astype(np.float32)
    assert estimate_tempo(Clip(samples=noise, sample_rate=RATE)).confidence < 0.6


@pytest.mark.parametrize(
    ("progression", "key"),
    [
        ([(60, True), (65, True), (67, True), (60, True)], "C major"),
        ([(57, False), (62, False), (64, False), (57, False)], "A minor"),
        ([(62, True), (67, True), (69, True), (62, True)], "D major"),
    ],
)
def test_a_cadence_is_in_its_key(progression, key):
    assert estimate_key(chords(*triads(*progression))).value == key


@pytest.mark.parametrize(
    ("lyrics", "language", "script"),
    [("hello world", "en", ""), ("你好世界", "zh", ""), ("你好世界", "en", "Cjk"), ("привет", "en", "Cyrillic"),
     ("hello", "ru", "Latin"), ("さくら", "ja", ""), ("hello", "sw", ""), ("12", "en", "")],
)  # fmt: skip
def test_letters_tell_a_wrong_language(lyrics, language, script):
    assert foreign_script(lyrics, language) == script


def test_texts_are_held_against_the_length(tmp_path):
    def remarks(seconds, **values):
        return text_remarks(SongEntry(id="a", audio=tmp_path, **values), seconds)

    assert remarks(60, text="rock") == []
    assert remarks(60) == ["no caption"]
    assert remarks(60, text="rock", lyrics="la la la", language="en") == []
    assert remarks(1, text="rock", lyrics="la " * 20, language="en") == [
        "lyrics of 20.0 syllables a second are too long for 1 s"
    ]
    late = remarks(10, text="rock", lyrics="[00:05.00]la\n[00:20.00]la", language="en")
    assert late == ["1 lines of lyrics begin after the song ends"]
    assert remarks(60, text="rock", lyrics="la la la") == ["lyrics without a language"]


def test_the_command_names_each_fault_and_goes_on(tmp_path):
    folder = tmp_path / "songs"
    folder.mkdir()
    good = clicks(120, 6.0).samples.T
    for name in ("good", "same", "slow"):
        soundfile.write(folder / f"{name}.flac", good, RATE)
        (folder / f"{name}.json").write_text(
            json.dumps({"caption": "clicks", "bpm": 85 if name == "slow" else 120})
        )
    soundfile.write(folder / "silent.flac", np.zeros((RATE * 3, 2)), RATE)
    (folder / "broken.flac").write_text("no sound")
    (folder / "mute.json").write_text('{"bpm": "fast"}')
    soundfile.write(folder / "mute.flac", good[: RATE * 3], RATE)
    output = verb("check-data", folder, "--out", tmp_path / "checks.json")
    lines = output.splitlines()
    assert not any(line.startswith("good:") for line in lines)
    for name, text in (
        ("same", "the same sound as good"), ("slow", "bpm 85 is written"), ("silent", "fails the gate"),
        ("broken", "cannot decode"), ("mute", "bpm: must be a number"),
    ):  # fmt: skip
        assert any(line.startswith(f"{name}:") and text in line for line in lines), (name, lines)
    assert lines[-1].startswith("6 songs, ")
    assert {row["id"] for row in json.loads((tmp_path / "checks.json").read_text())} == {
        "good", "same", "slow", "silent", "broken", "mute",
    }  # fmt: skip


def test_what_the_user_wrote_is_never_replaced(tmp_path):
    soundfile.write(tmp_path / "a.flac", clicks(120, 6.0).samples.T, RATE)
    (tmp_path / "a.json").write_text('{"bpm": 85}')
    (check,) = check_songs(tmp_path)
    assert json.loads((tmp_path / "a.json").read_text()) == {"bpm": 85}
    assert any("bpm 85 is written" in remark for remark in check.remarks)
