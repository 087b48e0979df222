"""The scorers of signal properties on sounds whose order is known, and canonical clips."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from diffdpo import audio
from diffdpo.encoders.descriptors import MAJOR
from diffdpo.errors import DataError
from diffdpo.scorers import DEFAULT_SCORERS, SCORERS
from diffdpo.scorers.canonical import TARGET_LUFS, canonical
from diffdpo.scorers.harmony import CONSONANCE, LEAST, PLACES, key_clarity
from diffdpo.scorers.rhythm import Rhythm
from diffdpo.types import Clip

SONG = Path(__file__).parents[2] / "data" / "galactic_temple.ogg"
RATE = 22_050
C_MAJOR = ((60, 64, 67), (65, 69, 72), (67, 71, 74), (60, 64, 67))
A_MINOR = ((57, 60, 64), (62, 65, 69), (64, 67, 71), (57, 60, 64))


@pytest.fixture(scope="module")
def song() -> Clip:
    return audio.read(SONG, start_s=40.0, seconds=10.0)


def clip(samples: np.ndarray, rate: int = RATE) -> Clip:
    return Clip(samples=np.atleast_2d(samples).astype(np.float32), sample_rate=rate)


def score(name: str, sound: Clip) -> dict[str, float]:
    scorer = SCORERS[name]()
    return dict(zip(scorer.axes, scorer([canonical(sound)])[0], strict=True))


def chord(pitches: tuple[float, ...], seconds: float, harmonics: int = 5) -> np.ndarray:
    """MIDI pitches as decaying tones with a few harmonics."""
    t = np.arange(int(seconds * RATE)) / RATE
    hertz = 440 * 2 ** ((np.array(pitches) - 69) / 12)
    tones = [np.sin(2 * np.pi * h * f * t) / h for f in hertz for h in range(1, harmonics + 1)]
    return 0.1 * np.sum(tones, axis=0) * np.exp(-2 * t / seconds)


def progression(chords: tuple[tuple[float, ...], ...], seconds: float = 0.5) -> np.ndarray:
    return np.concatenate([chord(pitches, seconds) for pitches in chords])


def noise(seconds: float = 8.0, channels: int = 1, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal((channels, int(seconds * RATE)))


def clicks(times: np.ndarray, seconds: float = 10.0) -> np.ndarray:
    out = np.zeros(int(seconds * RATE) + RATE)
    tick = np.random.default_rng(0).standard_normal(1000) * np.exp(-np.arange(1000) / 150)
    for time in times:
        out[int(time * RATE) :][:1000] += 0.3 * tick
    return out[: int(seconds * RATE)]


# --- harmony


def test_a_progression_has_a_clearer_key_than_noise_and_than_detuned_clusters():
    rng = np.random.default_rng(1)
    clusters = tuple(tuple(48 + 24 * rng.random(5)) for _ in range(16))
    tonal = score("harmony", clip(progression(4 * C_MAJOR)))
    out_of_tune = score("harmony", clip(progression(clusters)))
    hiss = score("harmony", clip(noise()))
    assert tonal["harmony.key"] > 0.7 > 0.5 > max(out_of_tune["harmony.key"], hiss["harmony.key"])
    assert tonal["harmony.tuning"] > 0.9 > 0.5 > max(out_of_tune["harmony.tuning"], hiss["harmony.tuning"])
    assert hiss["harmony.key"] < 0.2


def test_tuning_may_lie_anywhere_but_must_stay_there():
    low, drifting = (
        progression(
            tuple(tuple(p + 0.4 * shift(i) for p in pitches) for i, pitches in enumerate(4 * C_MAJOR))
        )
        for shift in (lambda i: 1.0, lambda i: np.sin(1.3 * i))
    )
    steady, wandering = score("harmony", clip(low)), score("harmony", clip(drifting))
    assert steady["harmony.key"] == pytest.approx(
        score("harmony", clip(progression(4 * C_MAJOR)))["harmony.key"], abs=0.05
    )
    assert wandering["harmony.tuning"] < 0.7 * steady["harmony.tuning"]


def test_a_key_profile_in_any_transposition_correlates_with_itself():
    profile = np.array(MAJOR) / sum(MAJOR)
    for tonic in range(12):
        assert key_clarity(np.roll(profile, tonic), flatness=1e-9) == pytest.approx(1)
    assert key_clarity(np.full(12, 1 / 12), flatness=0.01) == 0


def test_octaves_are_consonant_random_intervals_nothing_and_clusters_dissonant():
    """Sines without overtones: what sounds together is known."""
    octaves, fifths, thirds, tritones, seconds = (
        score("harmony", clip(np.concatenate([chord(pitches, 1.0, harmonics=1) for _ in range(4)])))
        for pitches in ((57, 69), (57, 64), (57, 61), (57, 63), (57, 58))
    )
    values = [found["harmony.consonance"] for found in (octaves, fifths, thirds, tritones, seconds)]
    expected = [CONSONANCE[2 * semitones] for semitones in (12, 7, 4, 6, 1)]
    assert values == pytest.approx(expected, abs=0.08)
    assert abs(score("harmony", clip(noise()))["harmony.consonance"]) < 0.05


def test_consonance_is_heard_over_time_whatever_the_key():
    """Half of a clip in seconds: the score lies halfway. A drift of pitch changes no interval."""
    pure, rough = ([chord(pitches, 1.0, harmonics=1) for _ in range(4)] for pitches in ((57, 69), (57, 58)))
    parts = [
        score("harmony", clip(np.concatenate(sounds)))["harmony.consonance"]
        for sounds in (pure + pure, pure[:2] + rough[:2], rough + rough)
    ]
    assert parts[1] == pytest.approx((parts[0] + parts[2]) / 2, abs=0.1)


def test_the_scale_of_consonance_has_mean_zero_and_an_octave_is_one():
    assert np.trapezoid(CONSONANCE, PLACES) == pytest.approx(0, abs=1e-12)
    assert CONSONANCE[0] == CONSONANCE[-1] == 1
    assert CONSONANCE.min() == LEAST


# --- rhythm


def test_clicks_at_120_bpm_pulse_and_jittered_ones_do_not():
    beats = np.arange(0.25, 9.9, 0.5)
    jitter = np.random.default_rng(0).uniform(-0.15, 0.15, len(beats))
    even, uneven = score("rhythm", clip(clicks(beats))), score("rhythm", clip(clicks(beats + jitter)))
    assert even["rhythm.pulse"] > 0.9
    assert even["rhythm.tempo"] > 0.8
    assert uneven["rhythm.pulse"] < 0.6
    assert uneven["rhythm.tempo"] < 0.6


def test_a_tempo_that_runs_away_is_less_steady():
    running = np.cumsum(np.geomspace(0.5, 0.4, 20))
    steady = score("rhythm", clip(clicks(np.arange(0.25, 9.9, 0.45))))
    assert score("rhythm", clip(clicks(running)))["rhythm.tempo"] < 0.7 * steady["rhythm.tempo"]


# --- structure


def form(samples: np.ndarray) -> float:
    return score("structure", clip(samples))["structure.form"]


@pytest.mark.parametrize("seconds", [8, 16])
def test_a_form_of_two_parts_beats_a_loop_and_noise(seconds):
    """A-B-A-B: a minor tune, low and plucked, against a major one, an octave up with a beat."""
    a = progression(A_MINOR, seconds / 16)
    b = progression(tuple(tuple(p + 12 for p in chord) for chord in C_MAJOR), seconds / 16)
    b += clicks(np.arange(0, seconds / 4, 0.25), len(b) / RATE)
    loop = np.resize(a[:RATE], len(a) * 4)
    abab = form(np.concatenate([a, b, a, b]))
    assert abab > 0.5
    assert form(loop) < 0.6 * abab
    assert form(noise(seconds)) < 0.6 * abab


def test_noise_a_held_tone_and_an_exact_loop_are_all_without_form():
    held = 0.1 * np.sin(2 * np.pi * 220 * np.arange(8 * RATE) / RATE)
    for sound in (noise(), held, np.resize(noise(1.0), 8 * RATE)):
        assert form(sound) < 0.4


# --- production


def damaged(song: Clip, how: Callable[[np.ndarray], np.ndarray]) -> Clip:
    return clip(how(song.samples), song.sample_rate)


def low_pass(x: np.ndarray) -> np.ndarray:
    return signal.sosfiltfilt(signal.butter(8, 4000, fs=44_100, output="sos"), x)


def test_low_pass_clipping_and_noise_each_cost_production(song):
    ceiling = np.abs(song.samples).max() / 4
    hiss = 0.1 * song.samples.std() * np.random.default_rng(0).standard_normal(song.samples.shape)
    original = score("production", song)["production.balance"]
    assert original > 0.7
    for how in (low_pass, lambda x: np.clip(x, -ceiling, ceiling), lambda x: x + hiss):
        assert score("production", damaged(song, how))["production.balance"] < 0.8 * original


def test_opposite_phase_is_worse_than_mono_and_mono_worse_than_stereo(song):
    mono = song.samples.mean(0, keepdims=True)
    stereo, flat, inverted = (
        score("production", clip(x, song.sample_rate))["production.balance"]
        for x in (song.samples, mono, np.concatenate([mono, -mono]))
    )
    assert stereo > flat > inverted


# --- all of them


SIGNAL = tuple(name for name in DEFAULT_SCORERS if not SCORERS[name].judge_only)


@settings(max_examples=12, deadline=None)
@given(
    seconds=st.floats(0.05, 6.0),
    channels=st.integers(1, 2),
    rate=st.sampled_from([16_000, 22_050, 44_100, 48_000]),
    sharpness=st.floats(0, 6),
    seed=st.integers(0, 1000),
)
def test_random_audio_gets_finite_bounded_scores(seconds, channels, rate, sharpness, seed):
    """From dense noise to lone spikes."""
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal((channels, max(1, int(seconds * rate))))
    samples = samples * np.abs(samples) ** sharpness
    for name in SIGNAL:
        scores = SCORERS[name]()([canonical(clip(samples, rate))])
        assert np.isfinite(scores).all()
        assert (np.abs(scores) <= 1).all()


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="clearest"):
        Rhythm(clearest=0.0)


# --- canonical


def test_canonical_clips_have_one_loudness_and_silence_stays_silent(song):
    for db in (-30, 0, 12):
        found = canonical(clip(song.samples * 10 ** (db / 20), song.sample_rate))
        assert audio.loudness(found) == pytest.approx(TARGET_LUFS, abs=0.01)
    assert audio.loudness(canonical(clip(noise(0.1)))) == pytest.approx(TARGET_LUFS, abs=0.01)
    assert not canonical(clip(1e-6 * noise())).samples.any()
    shifted = canonical(clip(song.samples + 0.1, song.sample_rate))
    assert np.allclose(shifted.samples, canonical(song).samples, atol=1e-4)
    assert canonical(clip(np.zeros((1, 0)))).samples.shape == (1, 0)


def test_canonical_refuses_what_is_not_a_number():
    with pytest.raises(DataError, match="not numbers"):
        canonical(clip(np.array([0.1, np.nan])))
