"""Guidance by a reward's gradient: closed forms on a Gaussian, neutral values bit for bit, one row at a time."""

from dataclasses import replace

import pytest
import torch
from support.local_model import CHANNELS, LocalModel, LocalNetwork
from support.rows import song_row

from diffdpo.errors import CheckpointError
from diffdpo.models.latent_probe import LatentProbe, ProbeCard, pooled_features, read_probe, save_probe
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import InpaintContext, Request
from diffdpo.sampling.reward_guidance import RewardGuidance, reward_guided_velocity, reward_push
from diffdpo.sampling.sampler import generate, planned_nfe, sample_batch
from diffdpo.sampling.solver import euler
from diffdpo.sampling.trajectory import schedule, solve
from diffdpo.types import Prompt

TOY = RewardGuidance(probe="toy", interval=[0.0, 1.0], limit=0.0, variance_correction=False)
GOAL, WIDTH = 2.0, 0.5
"""The quadratic reward of the specification: -(x - 2)² / (2 * .5)."""


def spread(t):
    return ((1 - t) ** 2 + t**2)[:, None, None]


def song_mean(x, t):
    """E[song | x_t] of songs N(0, 1)."""
    return (1 - t)[:, None, None] * x / spread(t)


def base_velocity(x, t, state):
    """E[noise - song | x_t]."""
    return (2 * t - 1)[:, None, None] * x / spread(t), state


def linear(x, t, mask):
    return 1.5 * song_mean(x, t).sum((1, 2))


def quadratic(x, t, mask):
    return -((song_mean(x, t) - GOAL) ** 2 / (2 * WIDTH)).sum((1, 2))


def exact_quadratic(x, t, mask):
    """log E[exp r(song) | x_t] but for a constant: the variance of the song widens the reward."""
    variance = t[:, None, None] ** 2 / spread(t)
    return -((song_mean(x, t) - GOAL) ** 2 / (2 * (WIDTH + variance))).sum((1, 2))


def law(reward, cfg, steps=200):
    """Mean and variance of the guided songs of N(0, 1): the flow is affine, so two noises tell both."""
    x = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None, None]
    mask = torch.ones(2, 1, dtype=torch.bool)
    velocity = reward_guided_velocity(base_velocity, reward, cfg, mask)
    times = schedule(steps)[:, None].expand(-1, 2)
    ends, _ = solve(velocity, x, times, euler, {"row": torch.arange(2)}, lambda i: lambda purpose, state: x)
    high, low = ends.flatten().tolist()
    return (high + low) / 2, ((high - low) / 2) ** 2


def test_a_linear_reward_shifts_the_law_exactly():
    for cfg in (TOY, replace(TOY, variance_correction=True)):
        mean, variance = law(linear, cfg)
        assert mean == pytest.approx(1.5, abs=0.01)
        assert variance == pytest.approx(1.0, abs=0.02)


def test_a_quadratic_reward_is_met_exactly_by_the_exact_h_and_by_far_too_much_without():
    """The target is N(4/3, 1/3)."""
    mean, variance = law(exact_quadratic, TOY)
    assert (mean, variance) == (pytest.approx(1.333, abs=0.01), pytest.approx(0.333, abs=0.01))
    mean, variance = law(quadratic, TOY)
    assert (mean, variance) == (pytest.approx(2.151, abs=0.02), pytest.approx(0.135, abs=0.01))


def test_the_variance_correction_makes_the_plug_in_exact():
    mean, variance = law(quadratic, replace(TOY, variance_correction=True))
    assert (mean, variance) == (pytest.approx(1.333, abs=0.01), pytest.approx(0.333, abs=0.01))


def test_no_song_is_pushed_by_more_than_the_limit():
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(3, 7, CHANNELS, generator=generator) for _ in range(2))
    mask = torch.arange(7) < torch.tensor([7, 4, 6])[:, None]
    steep = replace(TOY, weight=1e4, limit=0.3)
    push = reward_push(x, torch.tensor([0.1, 0.5, 0.9]), mask, v, linear, steep)
    assert not push[~mask].any()
    sizes = [(push[row][mask[row]].norm() / v[row][mask[row]].norm()).item() for row in range(3)]
    assert sizes == pytest.approx([0.3, 0.3, 0.3], rel=1e-4)
    weak = reward_push(x, torch.tensor([0.1, 0.5, 0.9]), mask, v, linear, replace(steep, weight=1e-4))
    free = reward_push(
        x, torch.tensor([0.1, 0.5, 0.9]), mask, v, linear, replace(steep, weight=1e-4, limit=0)
    )
    assert torch.equal(weak, free)


MODEL = LocalModel(network=LocalNetwork(1))


@pytest.fixture(scope="module")
def probe_file(tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("probe") / "probe.safetensors"
    card = ProbeCard(axis="harmony.key", center=0.4, scale=0.1, correlation=0.5, correlations={"0.5": 0.5})
    save_probe(path, LatentProbe(CHANNELS, width=8, hidden=8), card)
    return path


def requests(*frames):
    texts = ("rock", "jazz", "folk")
    return [
        Request(
            sample_id=text, row=song_row(MODEL, Prompt(id=text, text=text, duration_s=(count + 0.5) / 10))
        )
        for text, count in zip(texts, frames, strict=False)
    ]


def test_at_its_neutral_value_the_plain_path_runs(probe_file):
    cfg = SamplingConfig(steps=4, guidance_scale=2.0)
    batch = requests(7, 12)
    plain = generate(MODEL, batch, cfg, seed=0)
    for neutral in (
        RewardGuidance(weight=0.0),
        RewardGuidance(weight=0.0, probe=str(probe_file)),
        RewardGuidance(probe=str(probe_file), interval=[0.01, 0.02]),
    ):
        songs = generate(MODEL, batch, replace(cfg, reward_guidance=neutral), seed=0)
        for a, b in zip(plain, songs, strict=True):
            assert torch.equal(a.latents, b.latents)
            assert a.nfe == b.nfe


@pytest.mark.parametrize("settings", [{}, {"cache_threshold": 0.2}, {"precision": "bf16"}], ids=str)
def test_a_guided_song_depends_on_nothing_else_and_takes_no_evaluation_more(probe_file, settings):
    guidance = RewardGuidance(probe=str(probe_file), weight=5.0, limit=0.5)
    plain = SamplingConfig(steps=4, guidance_scale=2.0, **settings)
    cfg = replace(plain, reward_guidance=guidance)
    batch = requests(7, 12, 5)
    with torch.no_grad():
        songs = generate(MODEL, batch, cfg, seed=0)
    for request, song in zip(batch, songs, strict=True):
        (alone,) = generate(MODEL, [request], cfg, seed=0)
        (unguided,) = generate(MODEL, [request], plain, seed=0)
        tolerance = 1e-5 if "precision" not in settings else 0.05
        assert (alone.latents - song.latents).abs().max() <= tolerance * song.latents.abs().max()
        assert (unguided.latents - song.latents).abs().max() > 0.01
        if not settings:
            assert song.nfe == unguided.nfe == planned_nfe(cfg)


def test_the_probe_says_more_of_songs_that_are_guided_by_it(probe_file):
    probe, _ = read_probe(probe_file)
    cfg = SamplingConfig(steps=8, guidance_scale=1.0)
    values = []
    for weight in (-5.0, 0.0, 5.0):
        guidance = RewardGuidance(probe=str(probe_file), weight=weight, limit=0.5)
        (song,) = sample_batch(MODEL, requests(12), replace(cfg, reward_guidance=guidance), seed=0)
        mask = torch.ones(1, 12, dtype=torch.bool)
        values.append(probe(song[None], torch.zeros(1), mask).item())
    assert values == sorted(values)
    assert values[2] > values[0] + 0.01


def test_given_frames_stay_as_they_are(probe_file):
    (request,) = requests(12)
    given = torch.randn(12, CHANNELS, generator=torch.Generator().manual_seed(1))
    context = InpaintContext(given, torch.arange(12) < 5)
    guidance = RewardGuidance(probe=str(probe_file), weight=5.0)
    cfg = SamplingConfig(steps=4, reward_guidance=guidance)
    (song,) = sample_batch(MODEL, [replace(request, context=context, clamp_context=True)], cfg, seed=0)
    assert torch.equal(song[:5], given[:5])


def test_a_probe_survives_its_file_and_does_not_hear_padding(probe_file):
    probe, card = read_probe(probe_file)
    assert card.axis == "harmony.key"
    assert sum(parameter.numel() for parameter in LatentProbe(64).parameters()) in range(10_000, 125_000)
    x = torch.randn(2, 9, CHANNELS, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([9, 6])[:, None]
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    noisy = x.masked_fill(~mask[..., None], torch.nan)
    values = probe(noisy, t, mask)
    assert torch.allclose(values[1:], probe(x[1:, :6], t[1:], mask[1:, :6]), atol=1e-6)
    features = pooled_features(x, mask)
    inside = x[1, :6]
    expected = [inside.mean(0), inside.std(0, correction=0), inside.diff(dim=0).abs().mean(0)]
    assert torch.allclose(features[1], torch.cat(expected), atol=1e-5)


def test_what_is_no_probe_is_refused_in_one_line(probe_file, tmp_path):
    (request,) = requests(7)

    def sample(path, model=MODEL):
        cfg = SamplingConfig(steps=2, reward_guidance=RewardGuidance(probe=str(path)))
        sample_batch(model, [request], cfg, seed=0)

    (tmp_path / "text.safetensors").write_text("no weights")
    for path in (tmp_path / "absent.safetensors", tmp_path / "text.safetensors"):
        with pytest.raises(CheckpointError, match=path.name):
            sample(path)
    narrow = tmp_path / "narrow.safetensors"
    save_probe(narrow, LatentProbe(3, 4, 4), ProbeCard(axis="a", center=0, scale=1, correlation=0))
    with pytest.raises(CheckpointError, match="latents of 3 channels, this model's have 4"):
        sample(narrow)
    for args in ({"weight": 1.0}, {"interval": [0.5, 0.2], "probe": "a"}, {"limit": -1, "probe": "a"}):
        with pytest.raises(ValueError, match=r"sampling\.reward_guidance"):
            RewardGuidance(**args)
