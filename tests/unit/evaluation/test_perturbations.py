"""Perturbations to a real song: the axis that claims to hear one falls, and gain changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffdpo import audio
from diffdpo.evaluation.perturbations import PERTURBATIONS, degraded_latents, noise_latents, shuffled_latents
from diffdpo.scorers import SCORERS
from diffdpo.scorers.canonical import canonical
from diffdpo.types import Clip

pytestmark = pytest.mark.slow

SONG = Path(__file__).parents[2] / "data" / "galactic_temple.ogg"
SCORED = ("harmony", "rhythm", "structure", "production", "musicnn")


def scores(clip: Clip) -> dict[str, float]:
    scorers = [SCORERS[name]() for name in SCORED]
    prepared = canonical(clip)
    return {axis: value for s in scorers for axis, value in zip(s.axes, s([prepared])[0], strict=True)}


@pytest.fixture(scope="module")
def song() -> Clip:
    return audio.read(SONG, start_s=40.0, seconds=10.0)


@pytest.fixture(scope="module")
def original(song) -> dict[str, float]:
    return scores(song)


@pytest.mark.parametrize("name", [name for name, damage in PERTURBATIONS.items() if damage.falls])
def test_the_axes_that_claim_a_damage_fall(name, song, original):
    found = scores(PERTURBATIONS[name](song, np.random.default_rng(0)))
    claimed = [axis for axis in original if PERTURBATIONS[name].lowers(axis)]
    rose = [axis for axis in claimed if not found[axis] < original[axis]]
    assert not rose, [(axis, original[axis], found[axis]) for axis in rose]


def test_six_decibels_less_change_no_axis(song, original):
    found = scores(PERTURBATIONS["gain -6 dB"](song, np.random.default_rng(0)))
    assert found == pytest.approx(original, rel=1e-3)


def test_damages_keep_length_and_channels(song):
    for name, damage in PERTURBATIONS.items():
        found = damage(song, np.random.default_rng(0))
        assert found.samples.shape == song.samples.shape, name
        assert found.sample_rate == song.sample_rate


def test_a_claim_names_an_axis_or_a_family():
    assert PERTURBATIONS["shuffled seconds"].lowers("structure.form")
    assert not PERTURBATIONS["shuffled seconds"].lowers("rhythm.pulse")
    assert PERTURBATIONS["low-pass 4 kHz"].lowers("musicnn.typicality")
    assert not PERTURBATIONS["low-pass 4 kHz"].lowers("musicnn.tags")


def test_latents_keep_what_their_damage_leaves():
    rng = np.random.default_rng(0)
    latents = torch.randn(4000, 3, generator=torch.manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0]) + 5
    noise, worse = noise_latents(latents, 4000, rng), degraded_latents(latents, rng)
    for made in (noise, worse):
        assert made.mean(0).numpy() == pytest.approx(latents.mean(0).numpy(), abs=0.2)
        assert made.std(0).numpy() == pytest.approx(latents.std(0).numpy(), rel=0.05)
    correlation = np.corrcoef(worse[:, 0].numpy(), latents[:, 0].numpy())[0, 1]
    assert correlation == pytest.approx(0.5**0.5, abs=0.03)
    shuffled = shuffled_latents(latents, rng, run=10)
    assert not torch.equal(shuffled, latents)
    assert torch.equal(shuffled.sort(0)[0], latents.sort(0)[0])
    runs = {tuple(run.flatten().tolist()) for run in latents.split(10)}
    assert {tuple(run.flatten().tolist()) for run in shuffled.split(10)} == runs
