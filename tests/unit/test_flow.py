"""Rectified-flow maths against closed forms."""

import math

import pytest
import torch

from diffdpo import flow

MU, SIGMA = 0.7, 0.5


def latents(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_velocity_leads_back_to_song_and_noise_exactly():
    song, noise = latents(3, 5, 4), latents(3, 5, 4, seed=1)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x, v = flow.interpolate(song, noise, t), flow.velocity(song, noise)
    assert torch.allclose(flow.song_from_velocity(x, v, t), song, atol=1e-14)
    assert torch.allclose(flow.noise_from_velocity(x, v, t), noise, atol=1e-14)


def test_the_ends_of_the_path_are_song_and_noise():
    song, noise = latents(2, 3, 4), latents(2, 3, 4, seed=1)
    assert torch.equal(flow.interpolate(song, noise, torch.zeros(2).double()), song)
    assert torch.equal(flow.interpolate(song, noise, torch.ones(2).double()), noise)


def test_errors_of_velocity_song_and_noise_are_the_same_up_to_powers_of_t():
    song, noise, error = (latents(2, 6, 4, seed=s) for s in range(3))
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    x, v = flow.interpolate(song, noise, t), flow.velocity(song, noise) + error
    mask = torch.ones(2, 6, dtype=torch.bool)
    e = flow.masked_error(v, flow.velocity(song, noise), mask)
    assert torch.allclose(
        flow.masked_error(flow.song_from_velocity(x, v, t), song, mask), t**2 * e, rtol=1e-10
    )
    assert torch.allclose(
        flow.masked_error(flow.noise_from_velocity(x, v, t), noise, mask), (1 - t) ** 2 * e, rtol=1e-10
    )


def test_padding_counts_nowhere_not_even_a_nan():
    prediction, target = latents(2, 6, 4), latents(2, 6, 4, seed=1)
    mask = flow.mask_from_frames(torch.tensor([6, 4]), 6)
    alone = flow.masked_error(prediction[1:, :4], target[1:, :4], mask[1:, :4])
    prediction[1, 4:] = float("nan")
    both = flow.masked_error(prediction, target, mask)
    assert torch.equal(both[1:], alone)
    assert torch.isfinite(both).all()


def test_the_gradient_of_padding_is_zero():
    prediction = latents(1, 4, 2).requires_grad_()
    flow.masked_error(
        prediction, latents(1, 4, 2, seed=1), flow.mask_from_frames(torch.tensor([3]), 4)
    ).sum().backward()
    assert prediction.grad[0, 3].abs().max() == 0
    assert prediction.grad[0, :3].abs().min() > 0


@pytest.mark.parametrize(
    ("forward", "reduced"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_errors_are_reduced_in_at_least_fp32(forward, reduced):
    dtype = getattr(torch, forward)
    error = flow.frame_errors(latents(1, 2, 3).to(dtype), latents(1, 2, 3, seed=1).to(dtype))
    assert error.dtype == getattr(torch, reduced)


def test_a_bf16_prediction_is_measured_to_fp32_accuracy():
    prediction = latents(1, 256, 64, dtype=torch.float32).bfloat16()
    target = latents(1, 256, 64, seed=1, dtype=torch.float32)
    mask = torch.ones(1, 256, dtype=torch.bool)
    exact = ((prediction.double() - target.double()) ** 2).mean()
    assert flow.masked_error(prediction, target, mask).item() == pytest.approx(exact.item(), rel=1e-6)


def gaussian_velocity(x, t):
    """E[noise - song | x_t = x] for song ~ N(MU, SIGMA^2): linear regression, no network."""
    t = t[:, None, None]
    variance = (1 - t) ** 2 * SIGMA**2 + t**2
    return -MU + (t - (1 - t) * SIGMA**2) / variance * (x - (1 - t) * MU)


def test_the_conditional_mean_of_the_target_is_the_gaussian_velocity():
    """Catches song and noise swapped, which no test of a solver can see."""
    generator = torch.Generator().manual_seed(0)
    song = MU + SIGMA * torch.randn(200_000, 1, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(200_000, 1, 1, generator=generator, dtype=torch.float64)
    t = torch.full((200_000,), 0.6, dtype=torch.float64)
    x, v = flow.interpolate(song, noise, t).flatten(), flow.velocity(song, noise).flatten()
    slope, intercept = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), v).solution
    zero, one = gaussian_velocity(torch.tensor([[[0.0]], [[1.0]]]).double(), t[:2]).flatten()
    assert intercept.item() == pytest.approx(zero.item(), abs=0.01)
    assert slope.item() == pytest.approx((one - zero).item(), abs=0.01)


@pytest.mark.parametrize(
    ("density", "mean", "median"),
    [("logit_normal", 0.0, 0.5), ("logit_normal", 1.0, 0.731), ("uniform", 0.0, 0.5)],
)
def test_timesteps_have_the_median_of_their_density(density, mean, median):
    timesteps = flow.Timesteps(density, mean)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([timesteps.draw(generator) for _ in range(4000)])
    assert drawn.min() > 0 or density == "uniform"
    assert drawn.max() < 1
    assert drawn.median().item() == pytest.approx(median, abs=0.03)


def test_times_of_a_few_step_network_are_equally_likely_and_never_the_song():
    generator, known = torch.Generator().manual_seed(0), (1.0, 0.75, 0.3, 0.0)
    draws = torch.stack([flow.Timesteps().draw(generator, known) for _ in range(3000)])
    values, counts = draws.unique(return_counts=True)
    assert torch.equal(values, torch.tensor([0.3, 0.75, 1.0]))
    assert counts.tolist() == pytest.approx([1000] * 3, abs=130)  # five standard deviations


def test_a_time_may_belong_to_each_frame():
    song, noise = latents(2, 3, 4), latents(2, 3, 4, seed=1)
    t = torch.tensor([[0.0, 0.5, 1.0], [0.3, 0.3, 0.3]], dtype=torch.float64)
    x, v = flow.interpolate(song, noise, t), flow.velocity(song, noise)
    assert torch.equal(x[0, 0], song[0, 0])
    assert torch.equal(x[0, 2], noise[0, 2])
    assert torch.equal(x[1], flow.interpolate(song, noise, t[:, 0])[1])
    assert torch.allclose(flow.song_from_velocity(x, v, t), song, atol=1e-14)
    assert torch.allclose(flow.noise_from_velocity(x, v, t), noise, atol=1e-14)


def test_a_logit_normal_needs_a_spread():
    with pytest.raises(ValueError, match="std must be a positive number"):
        flow.Timesteps(std=0.0)
    assert math.isfinite(flow.Timesteps(std=0.1).draw(torch.Generator()).item())


def test_uniform_logits_are_uniform_and_longer_songs_are_noisier():
    """The shift is linear in the length between its bounds; a pair's draw differs by nothing else."""

    def logits(timesteps, frames=1, count=2000):
        generator = torch.Generator().manual_seed(0)
        return torch.logit(
            torch.stack([timesteps.draw(generator, frames=frames) for _ in range(count)]).double()
        )

    plain = logits(flow.Timesteps("logit_uniform"))
    assert plain.min() >= -5.001
    assert plain.max() <= 6.001
    for low in (-5, -2, 1):  # three of eleven
        share = ((plain > low) & (plain < low + 3)).double().mean()
        assert share == pytest.approx(3 / 11, abs=0.05)
    shifted = flow.Timesteps(length_shift=flow.LengthShift())
    base = logits(flow.Timesteps(), count=50)
    for frames, shift in ((1, 0.5), (256, 0.5), (2176, 0.825), (4096, 1.15), (9000, 1.15)):
        assert torch.allclose(logits(shifted, frames, 50), base + shift, atol=1e-4)
    with pytest.raises(ValueError, match="max_frames"):
        flow.LengthShift(min_frames=10, max_frames=10)
    with pytest.raises(ValueError, match="high"):
        flow.Timesteps(low=1.0, high=0.5)
