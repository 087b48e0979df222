"""The judges notes and beats: each axis on notes and activities whose value is known, and on damaged songs."""

from pathlib import Path

import numpy as np
import pytest

from diffdpo import audio
from diffdpo.errors import ConfigError, DataError
from diffdpo.evaluation.perturbations import PERTURBATIONS
from diffdpo.scorers import SCORERS
from diffdpo.scorers.axes import UNPROVEN_AXES, axis_traits, diagnosis_axes, judge_axes, mined_axes
from diffdpo.scorers.beats import BeatRhythm, beat_coherence
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.features import ClipFeatures
from diffdpo.scorers.notes import (
    NoteHarmony,
    chroma_moments,
    neighbour_share,
    note_recurrence,
    note_variety,
    pitch_classes,
    pulse_clarity,
    scale_fit,
    triad_fit,
)
from diffdpo.types import Clip

RATE = 86 / 8
SONG = audio.read(Path(__file__).parents[2] / "data" / "galactic_temple.ogg", start_s=40.0, seconds=10.0)


def classes(*rows: tuple[int, ...], frames: int = 43) -> np.ndarray:
    """These pitch classes one after another, each for some frames."""
    table = np.zeros((len(rows) * frames, 12))
    for number, row in enumerate(rows):
        table[number * frames : (number + 1) * frames, list(row)] = 1.0
    return table


def score(clip: Clip) -> dict[str, float]:
    features = ClipFeatures(canonical(clip))
    values: dict[str, float] = {}
    for scorer in (NoteHarmony(), BeatRhythm()):
        values |= dict(zip(scorer.axes, scorer.score_features(features), strict=True))
    return values


def test_the_lowest_key_is_an_a_and_the_highest_a_c():
    notes = np.eye(88)
    assert pitch_classes(notes).argmax(1).tolist() == [(21 + number) % 12 for number in range(88)]
    assert pitch_classes(notes).sum() == 88


@pytest.mark.parametrize("root", range(12))
@pytest.mark.parametrize("chord", [(0, 4, 7), (0, 3, 7)])
def test_a_triad_fits_wholly_in_every_key(root, chord):
    triad = tuple((root + tone) % 12 for tone in chord)
    assert triad_fit(classes(triad, triad)) == pytest.approx(1)


def test_a_single_tone_and_all_tones_fit_a_triad_by_the_cosine():
    assert triad_fit(classes((5,))) == pytest.approx(3**-0.5)
    assert triad_fit(classes(tuple(range(12)))) == pytest.approx(0.5)


def test_a_scale_fits_wholly_and_chromatic_music_not_at_all():
    scale = np.isin(np.arange(12), (0, 2, 4, 5, 7, 9, 11)) / 7
    for shift in range(12):
        assert scale_fit(np.roll(scale, shift)) == pytest.approx(1)
    assert scale_fit(np.full(12, 1 / 12)) == pytest.approx(0, abs=1e-12)


def test_neighbours_are_semitones_that_sound_together():
    notes = np.zeros((4, 88))
    notes[:, [40, 44]] = 1
    assert neighbour_share(notes) == 0
    notes[:, 41] = 1
    assert neighbour_share(notes) == pytest.approx(1 / 3)


def test_a_loop_recurs_exactly_and_a_held_chord_without_any_change():
    rng = np.random.default_rng(0)
    bar = np.repeat(rng.random((8, 12)), 2, axis=0)
    assert note_recurrence(np.tile(bar, (8, 1)), RATE) == pytest.approx(1)
    assert note_recurrence(rng.random((120, 12)), RATE) < 0.3
    held_chord = chroma_moments(classes((0, 4, 7), frames=860))
    assert note_recurrence(held_chord, RATE) == pytest.approx(1)  # 0 / 0, by the floor of the mean distance
    assert note_variety(held_chord, RATE) == 0


def test_sections_vary_more_than_shuffled_moments():
    rng = np.random.default_rng(0)
    sections = np.repeat(rng.random((4, 12)), 30, axis=0)
    assert note_variety(sections, RATE) > 2 * note_variety(rng.permutation(sections), RATE)


def test_clips_too_short_for_form_and_pulse_have_none():
    moments = np.random.default_rng(0).random((10, 12))
    assert note_recurrence(moments, RATE) == note_variety(moments, RATE) == 0
    assert pulse_clarity(np.ones(80), 86) == pulse_clarity(np.zeros(900), 86) == 0


def test_activity_on_one_tempo_is_coherent_and_pulses_and_even_activity_is_not():
    time = np.arange(500)
    clicks = (time % 25 == 0).astype(float)  # every half second
    assert beat_coherence(clicks, 50) == pytest.approx(1, abs=0.01)
    assert pulse_clarity(clicks, 50) == pytest.approx(1, abs=0.05)
    assert beat_coherence(np.ones(500), 50) < 0.1


def test_coherence_is_the_same_however_many_frames_are_summed_at_a_time(monkeypatch):
    activity = np.random.default_rng(0).random(700)
    whole = beat_coherence(activity, 50)
    monkeypatch.setattr("diffdpo.scorers.beats.FRAME_CHUNK", 64)
    assert beat_coherence(activity, 50) == pytest.approx(whole)


def test_white_noise_scores_below_a_song_on_every_axis_that_judges():
    song, noise = score(SONG), score(PERTURBATIONS["white noise"](SONG, np.random.default_rng(0)))
    judges = [axis for axis in judge_axes() if axis in song]
    assert len(judges) == 4
    assert [axis for axis in judges if noise[axis] >= song[axis]] == []


def test_diagnoses_do_not_judge_and_neither_is_mined():
    judges = {"note.triad", "note.key", "note.scale", "beat.coherence", "form.order", "critic.second"}
    judges |= {"artefacts.mos", "pitch.tuning"}
    assert set(judge_axes()) == judges
    diagnoses = {"note.clean", "note.pulse", "note.recur", "note.variety", "beat.pulse"}
    diagnoses |= {"artefacts.mos", "musicnn.typicality", "musicnn.tags", "harmony.consonance", "rhythm.tempo"}
    assert set(diagnosis_axes([*judges, *diagnoses, "harmony.key"])) == diagnoses
    assert diagnosis_axes(["note.triad", "harmony.key"], ["harmony.key"]) == ["note.triad"]
    axes = [*SCORERS["notes"].axes, *SCORERS["beats"].axes]
    assert mined_axes([], ["harmony.key", *axes]) == ["harmony.key"]
    for axis in axes:
        with pytest.raises(ConfigError, match="belongs to a judge"):
            mined_axes([axis], axes)


def test_axes_without_shown_validity_are_mined_only_by_name():
    unproven = ["harmony.consonance", "rhythm.tempo", "production.balance", "adherence.style", "audiobox.pc"]
    unproven += ["tunejury.preference"]
    proven = ["harmony.key", "harmony.tuning", "rhythm.pulse", "structure.form", "structure.order"]
    assert sorted([*unproven, "artefacts.mos"]) == sorted(UNPROVEN_AXES)  # a judge's, never mined
    assert mined_axes([], [*unproven, *proven]) == proven
    for axis in unproven:
        assert mined_axes([axis], unproven) == [axis]
    with pytest.raises(DataError, match=r"mined only by name: axes=\[harmony.consonance\]"):
        mined_axes([], ["harmony.consonance"])


def test_every_axis_has_a_trait():
    traits = axis_traits()
    assert traits.keys() == {axis for scorer in SCORERS.values() for axis in scorer.axes}
    assert traits["harmony.key"] == traits["note.triad"] == "harmony"
    assert traits["rhythm.pulse"] == traits["beat.coherence"] == "rhythm"
    assert traits["structure.form"] == traits["note.recur"] == "form"
