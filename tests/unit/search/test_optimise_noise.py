"""Noise by gradients: closed-form optima, the Gaussian shell, and songs that do not depend on each other."""

from dataclasses import replace

import pytest
import torch

from diffdpo.search.noise import SHELL_WIDTH, NoiseOptimiser, optimise_noise, project_to_shell

FRAMES, CHANNELS = 24, 4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flow(seed=3):
    """x0 = A x_T + b, with what it needs to be inverted."""
    matrix = torch.eye(CHANNELS, dtype=torch.float64) + 0.3 * draw(CHANNELS, CHANNELS, seed=seed)
    bias = draw(CHANNELS, seed=seed + 1)
    return matrix, bias, lambda noise: noise @ matrix.T + bias


def squared_error(target):
    return lambda songs, iteration: ((songs - target) ** 2).sum((1, 2))


def test_a_linear_flow_reaches_its_least_squares_optimum():
    """The map keeps three of four channels: the optimum is the projection, and Adam does not move the rest."""
    matrix, bias, _ = flow()
    target = draw(1, FRAMES, 3, seed=8)
    rows = matrix[:3]

    def sample(noise):
        return noise @ rows.T + bias[:3]

    flat = NoiseOptimiser(iterations=1200, lr=0.03, shell=False)
    result = optimise_noise(sample, squared_error(target), draw(1, FRAMES, CHANNELS), flat)
    assert result.losses[-1].item() < 1e-6
    biased = replace(flat, iterations=1500)
    two = matrix[:, :2]  # more equations than unknowns
    inputs = draw(1, FRAMES, 2)
    wide = draw(1, FRAMES, CHANNELS, seed=9)
    closed = (wide - bias) @ torch.linalg.pinv(two).T
    best = ((closed @ two.T + bias - wide) ** 2).sum()
    result = optimise_noise(lambda noise: noise @ two.T + bias, squared_error(wide), inputs, biased)
    assert result.losses.min().item() == pytest.approx(best.item(), rel=1e-6)
    assert (result.noise - closed).abs().max() < 1e-2


def test_noise_stays_on_the_gaussian_shell():
    _, _, sample = flow()
    noise = draw(2, 400, CHANNELS)
    target = 5 + draw(2, 400, CHANNELS, seed=5)
    mask = torch.ones(2, 400, dtype=torch.bool)
    mask[1, 300:] = False
    cfg = NoiseOptimiser(iterations=40, lr=0.3)
    result = optimise_noise(sample, squared_error(target), noise, cfg, mask)
    for song, count in enumerate((400, 300)):
        valid, start = result.noise[song, :count], noise[song, :count]
        assert valid.norm().item() == pytest.approx((count * CHANNELS) ** 0.5, rel=SHELL_WIDTH)
        assert torch.allclose(valid.mean(0), start.mean(0), atol=0.02)
        assert torch.allclose(valid.var(0), start.var(0), rtol=0.05)
    assert torch.equal(result.noise[1, 300:], noise[1, 300:])
    assert (result.losses[-1] < result.losses[0]).all()
    free = optimise_noise(sample, squared_error(target), noise, replace(cfg, shell=False), mask)
    assert free.noise[0].norm() > 1.5 * (400 * CHANNELS) ** 0.5


def test_the_shell_is_a_projection_and_a_draw_lies_on_it():
    noise, mask = draw(3, 500, CHANNELS), torch.ones(3, 500, dtype=torch.bool)
    assert torch.allclose(project_to_shell(noise, noise, mask), noise, atol=1e-12)
    away = 3 * noise**3 + 1
    once = project_to_shell(away, noise, mask)
    assert torch.allclose(project_to_shell(once, noise, mask), once, atol=1e-9)
    wide = project_to_shell(4 * noise, 4 * noise, mask)
    assert torch.allclose(wide.flatten(1).norm(dim=1), torch.tensor((500 * CHANNELS) ** 0.5 * 1.02).double())


STOPS = [{}, {"patience": 3}, {"target_loss": 60.0}, {"keep_best": False}]


@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_a_song_alone_is_the_song_in_a_batch(stop):
    _, _, sample = flow()
    noise, target = draw(3, FRAMES, CHANNELS), 2 * draw(3, FRAMES, CHANNELS, seed=5)
    cfg = NoiseOptimiser(iterations=25, lr=0.4, **stop)
    batch = optimise_noise(sample, squared_error(target), noise, cfg)
    for song in range(3):
        part = slice(song, song + 1)
        alone = optimise_noise(sample, squared_error(target[part]), noise[part], cfg)
        assert torch.allclose(alone.noise, batch.noise[part], atol=1e-12)
        count = len(alone.losses)
        assert torch.allclose(alone.losses[:, 0], batch.losses[:count, song], atol=1e-12)
        assert (batch.losses[count:, song] == batch.losses[count - 1, song]).all()


def test_a_longer_run_begins_with_the_shorter_one():
    _, _, sample = flow()
    noise, target = draw(2, FRAMES, CHANNELS), draw(2, FRAMES, CHANNELS, seed=5)
    runs = {
        count: optimise_noise(sample, squared_error(target), noise, NoiseOptimiser(iterations=count))
        for count in (0, 4, 9)
    }
    assert torch.equal(runs[0].noise, noise)
    assert torch.equal(runs[4].losses, runs[9].losses[:5])
    assert torch.equal(runs[0].losses, runs[9].losses[:1])
    again = optimise_noise(sample, squared_error(target), noise, NoiseOptimiser(iterations=4))
    assert torch.equal(again.noise, runs[4].noise)


def test_a_stop_ends_the_run_and_a_gradient_without_a_number_moves_nothing():
    _, _, sample = flow()
    calls = []

    def flat(songs, iteration):
        calls.append(iteration)
        return (0 * songs).sum((1, 2)) + 1

    noise = draw(1, FRAMES, CHANNELS)
    result = optimise_noise(sample, flat, noise, NoiseOptimiser(iterations=50, patience=4))
    assert calls == [0, 1, 2, 3, 4]
    assert torch.equal(result.noise, noise)
    broken = optimise_noise(
        sample, lambda songs, i: (songs * torch.nan).sum((1, 2)), noise, NoiseOptimiser(iterations=2)
    )
    assert torch.equal(broken.noise, noise)


@pytest.mark.parametrize(
    ("name", "value"), [("iterations", -1), ("lr", 0), ("lr", float("nan")), ("patience", -1)]
)
def test_ranges_are_checked(name, value):
    with pytest.raises(ValueError, match=name):
        NoiseOptimiser(**{name: value})
