"""The times of a path, and the loop of steps along it."""

from dataclasses import replace

import pytest
import torch

from diffdpo.models.base import LatentSpec
from diffdpo.sampling.config import LogSnrGrid, SamplingConfig
from diffdpo.sampling.solver import SOLVERS
from diffdpo.sampling.trajectory import schedule, solve


def test_schedules_go_from_noise_to_song_and_bend_as_published():
    even = schedule(10)
    assert torch.allclose(even, torch.linspace(1, 0, 11, dtype=torch.float64))
    assert torch.allclose(schedule(10, shift=3.0), 3 * even / (1 + 2 * even))
    swayed = 1 - schedule(10, sway=-1.0)
    assert torch.allclose(swayed, 1 - torch.cos(torch.pi / 2 * (1 - even)))
    for settings in ({"shift": 3.0}, {"shift": 0.2, "sway": 1.0}, {"sway": -1.0}):
        times = schedule(50, **settings)
        assert times[0] == 1
        assert times[-1].abs() < 1e-15
        assert (times.diff() < 0).all()


def test_a_hook_stands_behind_every_step_and_may_replace_x_and_state():
    """Rows with a time grid of their own: behind each step the hook gets the times its rows have reached."""
    times = schedule(3)[:, None] * torch.tensor([1.0, 0.5], dtype=torch.float64)
    reached = []

    def hook(step, x, t, state):
        reached.append((step, t.tolist()))
        if step == 0:  # the second sample twice, the first no more
            return x[[1, 1]] + 7, {"row": state["row"][[1, 1]]}
        return x, state

    x, state = solve(
        lambda x, t, state: (torch.ones_like(x), state),
        torch.zeros(2, 1, 1, dtype=torch.float64),
        times,
        SOLVERS["euler"],
        {"row": torch.arange(2)},
        lambda step: lambda purpose, state: x,
        hook,
    )
    assert [step for step, _ in reached] == [0, 1, 2]
    times_reached = [time for _, row_times in reached for time in row_times]
    assert times_reached == pytest.approx([2 / 3, 1 / 3, 1 / 6, 1 / 6, 0, 0])
    assert state["row"].tolist() == [1, 1]
    assert torch.allclose(x.flatten(), torch.full((2,), 7 - 0.5, dtype=torch.float64))


def test_the_log_snr_grid_is_even_in_log_snr_and_begins_earlier_for_longer_songs():
    """log((1 - t) / t) rises by equal steps; each doubling of the length takes `rate` off the start."""
    for frames, start in ((None, -6.2), (2000, -6.2), (8000, -8.2), (500, -4.2)):
        times = LogSnrGrid(rate=1.0).times(4, frames)
        assert times.dtype == torch.float64
        assert (times[0], times[-1]) == (1.0, 0.0)
        expected = torch.linspace(start, 2.0, 5, dtype=torch.float64)[1:-1]
        assert torch.allclose(torch.logit(1 - times[1:-1]), expected, atol=1e-4)
    assert torch.equal(LogSnrGrid().times(4, 8000), LogSnrGrid().times(4, 100))
    assert torch.equal(LogSnrGrid().times(5), LogSnrGrid().times(5).float().double())  # values of fp32


def test_the_length_that_was_asked_for_has_no_headroom():
    spec = LatentSpec(
        channels=1, frames_per_second=10.0, sample_rate=100, max_frames=3000, headroom_s=6.0, rounding="up"
    )
    cfg = SamplingConfig(steps=4, log_snr=LogSnrGrid(rate=1.0))
    assert torch.equal(cfg.times(spec, spec.frames(200.0)), LogSnrGrid(rate=1.0).times(4, 2000))
    few = replace(spec, times=(1.0, 0.7, 0.0))
    assert replace(cfg, steps=2).times(few, 100).tolist() == [1.0, 0.7, 0.0]
    with pytest.raises(ValueError, match=r"leave sampling\.shift"):
        SamplingConfig(log_snr=LogSnrGrid(), shift=3.0)
