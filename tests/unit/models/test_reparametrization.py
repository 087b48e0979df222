"""Predictions of noise and v as velocities: closed forms in fp64."""

import pytest
import torch
from support.model_contract import draw

from diffdpo.models.reparametrization import step_of_angle, velocity_from_noise, velocity_from_v, vp_point

T = torch.tensor([0.0, 0.02, 0.3, 0.5, 0.7, 0.98, 1.0], dtype=torch.float64)


def test_song_and_noise_come_back_exactly():
    song, noise = (draw(len(T), 5, 3, seed=seed).double() for seed in (0, 1))
    t = T[:, None, None]
    point = vp_point((1 - t) * song + t * noise, T)
    cos, sin = point.angle.cos()[:, None, None], point.angle.sin()[:, None, None]
    assert torch.allclose(point.x, cos * song + sin * noise, atol=1e-14)
    assert torch.allclose(point.angle.tan()[:-1], (T / (1 - T))[:-1])
    v = velocity_from_v(point, cos * noise - sin * song)
    assert torch.allclose(v, noise - song, atol=1e-13)
    early = velocity_from_noise(point, noise)
    assert torch.allclose(early[:-1], (noise - song)[:-1], atol=1e-11)


def test_a_discrete_schedule_is_read_between_its_steps():
    """At a step its number; between two, the place of the logarithm of the ratio; beyond the ends, the ends."""
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    angles = torch.acos(signal.sqrt())
    steps = torch.arange(1000.0, dtype=torch.float64)
    assert torch.allclose(step_of_angle(angles, signal), steps, atol=1e-6)
    ratio = torch.logit(signal)
    middle = torch.acos(torch.sigmoid((ratio[7] + ratio[8]) / 2).sqrt())
    assert step_of_angle(middle[None], signal).item() == pytest.approx(7.5)
    ends = step_of_angle(torch.tensor([0.0, torch.pi / 2], dtype=torch.float64), signal)
    assert ends.tolist() == [0.0, 999.0]
