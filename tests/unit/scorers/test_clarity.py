"""`production.clarity`: sounds whose three facts are known, and what has to lower it."""

from pathlib import Path

import numpy as np
import pytest

from diffdpo import audio
from diffdpo.evaluation.perturbations import PERTURBATIONS, degraded_latents, shuffled_latents
from diffdpo.models.tiny import Tiny
from diffdpo.scorers.axes import axis_traits, mined_axes
from diffdpo.scorers.canonical import canonical
from diffdpo.scorers.clarity import (
    HIGHEST,
    LAG,
    LEVEL_HOP,
    LOWEST,
    Clarity,
    attack_kurtosis,
    clarity_facts,
    find_partials,
    lasting_share,
    quiet_db,
)
from diffdpo.scorers.features import SAMPLE_RATE, ClipFeatures
from diffdpo.types import Clip

SONG = audio.read(Path(__file__).parents[2] / "data" / "galactic_temple.ogg", start_s=40.0, seconds=6.0)
TIME = np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE


def score(clip):
    return Clarity().score_features(ClipFeatures(canonical(clip)))[0]


def as_clip(samples):
    return Clip(samples=samples[None].astype(np.float32), sample_rate=SAMPLE_RATE)


def test_partials_of_a_steady_tone_last_and_those_of_noise_come_and_go():
    tone = np.sin(2 * np.pi * 440 * TIME).astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(len(TIME)).astype(np.float32)
    assert clarity_facts(tone)[0] > 0.95
    assert clarity_facts(noise)[0] < 0.5


def test_the_share_of_lasting_partials_is_counted_within_a_bin():
    partials = np.zeros((20, 10), bool)
    partials[5, 0] = partials[6, LAG] = True  # a bin apart: the same
    partials[15, 1] = partials[12, LAG + 1] = True  # three bins apart: another
    assert lasting_share(partials) == 0.5
    assert lasting_share(np.zeros((20, 10), bool)) == 0.0


def test_only_what_stands_out_is_a_partial():
    magnitudes = np.full((100, 3), 1e-2)
    magnitudes[50] = 1.0
    magnitudes[20] = 1.1e-2
    assert np.flatnonzero(find_partials(magnitudes).all(1)).tolist() == [50]


def test_quiet_is_the_distance_of_the_noise():
    rng = np.random.default_rng(0)
    noise = np.sqrt(rng.exponential(size=(400, 2000)))  # magnitudes of white noise of power one
    assert quiet_db(noise) == pytest.approx(0.0, abs=0.5)
    loud = noise.copy()
    loud[:, ::4] *= 10.0  # a quarter of the frames 20 dB louder: the mean power is 25.75
    assert quiet_db(loud) == pytest.approx(10 * np.log10(25.75), abs=1.5)
    assert quiet_db(np.zeros((4, 20))) <= 90.0


def test_kurtosis_of_level_changes():
    rng = np.random.default_rng(0)
    levels = np.cumsum(rng.standard_normal(20_000) * 0.01)
    steady = np.repeat(10 ** (levels / 20), LEVEL_HOP)
    assert attack_kurtosis(steady) == pytest.approx(np.log(3.0), abs=0.1)
    attacks = np.where(np.arange(2000) % 50 == 0, 1.0, 0.1).repeat(LEVEL_HOP)
    assert attack_kurtosis(attacks) == pytest.approx(np.log(25.0), abs=0.05)  # one in 25 changes, all alike
    assert attack_kurtosis(np.ones(100 * LEVEL_HOP)) == 0.0


def test_silence_is_lowest_level_counts_nothing_and_all_is_bounded():
    assert score(as_clip(np.zeros(len(TIME)))) == LOWEST
    for clip in (SONG, as_clip(np.sin(2 * np.pi * 440 * TIME) * (TIME % 1 < 0.1)), as_clip(TIME % 0.01)):
        assert LOWEST <= score(clip) <= HIGHEST
    quiet = Clip(samples=SONG.samples / 4, sample_rate=SONG.sample_rate)
    assert score(quiet) == pytest.approx(score(SONG), abs=1e-3)
    assert np.isfinite(score(as_clip(np.eye(1, 100)[0])))


def test_noise_and_loops_are_less_clear():
    for name in ("white noise", "loop of 1 s"):
        assert score(PERTURBATIONS[name](SONG, np.random.default_rng(0))) < score(SONG)


def test_damaged_latents_are_less_clear():
    model, rng = Tiny().load(), np.random.default_rng(0)
    latents = model.encode(audio.normalise(SONG, -16.0))
    clean = score(model.decode(latents))
    assert score(model.decode(degraded_latents(latents, rng))) < clean
    assert score(model.decode(shuffled_latents(latents, rng))) < clean


def test_a_long_song_has_the_mean_of_its_windows():
    rng = np.random.default_rng(0)
    size = 10 * SAMPLE_RATE
    parts = [np.sin(2 * np.pi * 330 * np.arange(size) / SAMPLE_RATE), rng.standard_normal(size)]
    scorer = Clarity()
    alone = [scorer.score_features(ClipFeatures(as_clip(part)))[0] for part in parts]
    together = scorer.score_features(ClipFeatures(as_clip(np.concatenate(parts))))[0]
    assert together == pytest.approx(np.mean(alone), abs=1e-6)


def test_it_is_mined_where_it_is_scored():
    assert axis_traits()["production.clarity"] == "production"
    assert mined_axes([], ["production.balance", "production.clarity"]) == ["production.clarity"]
