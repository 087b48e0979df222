"""The search method `noise` on a small model: it gains, costs what it says, continues, and refuses in one line."""

from dataclasses import replace

import pytest
import torch
from support.local_model import LocalModel

from diffdpo.errors import ConfigError, DataError
from diffdpo.models import MODELS
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.parts import build_method, build_scorers
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig
from diffdpo.sampling.sample_jobs import sample_jobs
from diffdpo.search.engine import search_prompt
from diffdpo.search.noise import NoiseOptimiser
from diffdpo.search.optimised_noise import (
    OptimisedNoise,
    SongLoss,
    decode_frames,
    noise_sampler,
    optimise_song,
    surrogate_sampling,
)
from diffdpo.search.reward import RewardConfig
from diffdpo.search.store import MemoryStore
from diffdpo.search.targets import parse_targets
from diffdpo.search.task import SearchTask
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow

TARGETS = [{"name": "intensity", "curve": [[0, -30], [1, -10]], "smoothing_s": 0.2}]
LONGFORM = LongformConfig()
SAMPLING = SamplingConfig(steps=4, guidance_scale=2.0)


@pytest.fixture(scope="module")
def model(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


def search_task(model, *, budget=100.0, sampling=SAMPLING, seconds=1.0, store=None, longform=LONGFORM):
    prompt = Prompt(id="p", text="rock", duration_s=seconds)
    (job,), _ = sample_jobs(model.spec, [(prompt, 0)], {})
    reward = RewardConfig(weights={"structure.form": 1.0})
    store = store or MemoryStore(model=model, scorers=build_scorers(["structure"]), reward=reward)
    return SearchTask(
        model=model, job=job, sampling=sampling, longform=longform, seed=1, budget=budget,
        embeddings=EmbeddingStore(model), store=store,
    )  # fmt: skip


def test_the_curve_is_met_better_and_the_cost_is_what_was_counted(model):
    task = search_task(model)
    method = OptimisedNoise(targets=TARGETS, iterations=6, lr=0.1, surrogate_steps=2)
    result = search_prompt(task, method)
    song = result.winner
    loss = SongLoss.of(task, parse_targets(TARGETS), 0.0)
    (plain,) = task.sample([task.embed(0)])
    assert song.details["losses"]["intensity"] < loss.parts(plain)["intensity"]
    losses = song.details["surrogate_losses"]
    assert len(losses) == 7
    assert min(losses) < losses[0]
    assert song.sample_id == "p.006"
    surrogate_nfe, song_nfe = 2 * 2, 4 * 2  # both branches of guidance
    assert song.nfe == result.nfe == 6 * 4 * surrogate_nfe + song_nfe
    assert model.network.training is False
    assert all(parameter.requires_grad for parameter in model.network.parameters())
    again = search_prompt(search_task(model, store=task.store), method)
    assert again.winner is song
    assert again.nfe == result.nfe
    fresh = search_prompt(search_task(model), method)
    assert torch.equal(fresh.winner.latents, song.latents)


def test_the_budget_says_how_many_iterations_there_are(model):
    method = OptimisedNoise(targets=TARGETS, surrogate_steps=2)
    for budget, count in ((1, 0), (2.9, 0), (3, 1), (5, 2)):
        task = search_task(model, budget=budget)
        (song,) = method(task)
        assert song.details["iterations"] == count
        assert task.nfe <= budget * task.song_nfe
    (plain,) = task.sample([task.embed(0)])
    (unmoved,) = method(search_task(model, budget=1))
    assert torch.equal(unmoved.latents, plain)


def test_the_gradient_through_sampler_and_codec_is_that_of_finite_differences(model):
    task = search_task(model)
    (request,) = [replace_noise(task, None)]
    sample = noise_sampler(model, [request], surrogate_sampling(SAMPLING, 2), 1)
    noise = torch.randn(1, task.job.frames, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(task.job.frames, 8, generator=torch.Generator().manual_seed(1))

    def loss(x):
        return (weights * sample(x)[0]).sum()

    leaf = noise.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        slope = (loss(noise + 0.01 * direction) - loss(noise - 0.01 * direction)) / 0.02
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=0.01)


def replace_noise(task, noise):
    from diffdpo.sampling.request import Request

    job = task.embed(0)
    return Request(sample_id="p.000", row=job.row, negative=job.negative, noise=noise)


def test_a_window_of_a_song_is_decoded_as_in_the_whole(model):
    latents = torch.randn(80, 8, generator=torch.Generator().manual_seed(0))
    whole = decode_frames(model, latents, 0, 80)
    per_frame = whole.shape[1] // 80
    part = decode_frames(model, latents, 30, 50)
    expected = whole[:, 30 * per_frame : 50 * per_frame]
    assert (part - expected).abs().max() <= 1e-4 * whole.abs().max()


def test_windows_are_drawn_by_seed_and_iteration_and_shorter_runs_are_contained(model):
    task = search_task(model)
    loss = SongLoss.of(task, parse_targets(TARGETS), 0.3)
    latents = torch.randn(task.job.frames, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values, again = ([float(loss(latents, number)) for number in range(4)] for _ in range(2))
    assert values == again
    assert len(set(values)) > 1
    surrogate = surrogate_sampling(SAMPLING, 2)
    short, long = (
        optimise_song(task, task.embed(0), surrogate, NoiseOptimiser(iterations=count, keep_best=False), loss)
        for count in (2, 4)
    )
    assert torch.equal(short["losses"], long["losses"][:3])


def test_what_cannot_be_optimised_is_refused_in_one_line(model):
    method = OptimisedNoise(targets=TARGETS, iterations=1)
    with pytest.raises(DataError, match="optimised noise"):
        method(search_task(LocalModel()))
    with pytest.raises(DataError, match="through one window; ask for less"):
        method(search_task(model, seconds=4.0, longform=LongformConfig(window_s=2.0, overlap_s=0.5)))
    task = search_task(model)
    mask = task.job.to_generate.clone()
    mask[:3] = False
    task.job = replace(task.job, to_generate=mask)
    with pytest.raises(DataError, match="noise of an edit"):
        method(task)
    zero_star = replace(SAMPLING, guidance=Choice("zero_star", {"zero_init_steps": 2}))
    with pytest.raises(ConfigError, match="surrogate_steps=2"):
        replace(method, surrogate_steps=2)(search_task(model, sampling=zero_star))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"lr": 0}, "lr must be"),
        ({"iterations": -1}, "iterations must be"),
        ({"targets": [{"name": "melodi"}]}, "Did you mean 'melody'"),
        ({"iteration": 3}, "Did you mean 'iterations'"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(args, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        build_method(Choice("noise", args))
