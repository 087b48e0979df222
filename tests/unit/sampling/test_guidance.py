"""Guidance against closed forms and the guiders of diffusers; what is remembered belongs to one song."""

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
)
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

from diffdpo import flow
from diffdpo.errors import ConfigError
from diffdpo.registry import Choice
from diffdpo.sampling.guidance import GUIDERS, Branches, build_guider

CHOICES = [
    ("cfg", {}),
    ("rescaled", {"rescale": 0.7}),
    ("zero_star", {"zero_init_steps": 0}),
    ("apg", {}),
    ("apg", {"parallel": 0.5, "limit": 0.3, "momentum": -0.5}),
    ("channel_apg", {}),
    ("channel_apg", {"parallel": 0.5, "limit": 0.3, "momentum": 0.5}),
]


def guide(name, args, at, scale, memory=None):
    """The guided velocity and the next memory, from no memory if none is given."""
    guider = build_guider(Choice(name, args))
    if memory is None:
        memory = torch.zeros_like(at.cond) if guider.stateful else at.cond[:0]
    return guider(at, scale, memory)


def latents(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def branches(frames=(12, 12), seed=0, **others):
    length = max(frames)
    cond, uncond, x = (latents(len(frames), length, 4, seed=seed + k) for k in range(3))
    mask = flow.mask_from_frames(torch.tensor(frames), length)
    t = torch.linspace(0.3, 0.9, len(frames), dtype=torch.float64)
    return Branches(**{"cond": cond, "uncond": uncond, "x": x, "t": t, "mask": mask} | others)


def by_diffusers(guider, at):
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(0))
    return guider.forward(at.cond, at.uncond).pred


@pytest.mark.parametrize("scale", [0.0, 2.5, 6.0])
@pytest.mark.parametrize(
    ("name", "args", "guider"),
    [
        ("cfg", {}, lambda s: ClassifierFreeGuidance(guidance_scale=s)),
        (
            "rescaled",
            {"rescale": 0.7},
            lambda s: ClassifierFreeGuidance(guidance_scale=s, guidance_rescale=0.7),
        ),
        (
            "zero_star",
            {"zero_init_steps": 2},
            lambda s: ClassifierFreeZeroStarGuidance(guidance_scale=s, zero_init_steps=2),
        ),
    ],
)
def test_guiders_equal_the_guiders_of_diffusers(name, args, guider, scale):
    at = branches()
    guided, _ = guide(name, args, at, scale)
    assert torch.allclose(guided, by_diffusers(guider(scale), at), atol=1e-7)


def test_projected_guidance_equals_that_of_diffusers_on_songs_step_after_step():
    scale, limit, size = 4.0, 0.3, 12 * 4
    guider = AdaptiveProjectedGuidance(
        guidance_scale=scale - 1, adaptive_projected_guidance_momentum=-0.5,
        adaptive_projected_guidance_rescale=limit * size**0.5, eta=0.25, use_original_formulation=True,
    )  # fmt: skip
    args, memory = {"parallel": 0.25, "limit": limit, "momentum": -0.5}, None
    for step in range(3):
        at = branches(seed=10 * step)
        guided, memory = guide("apg", args, at, scale, memory)
        guider.set_state(step=step, num_inference_steps=10, timestep=torch.tensor(0))
        guider.prepare_inputs({})
        songs = (flow.song_from_velocity(at.x, v, at.t) for v in (at.cond, at.uncond))
        theirs = guider.forward(*songs).pred
        assert torch.allclose(flow.song_from_velocity(at.x, guided, at.t), theirs, atol=1e-9)


@pytest.mark.parametrize(("eta", "limit"), [(0.0, 2.5), (0.25, 0.3), (1.0, 0.0)])
def test_projected_guidance_of_each_channel_equals_that_of_diffusers_step_after_step(eta, limit):
    buffer, memory, scale = MomentumBuffer(-0.75), None, 7.0
    for step in range(4):
        at = branches(seed=10 * step)
        guided, memory = guide("channel_apg", {"parallel": eta, "limit": limit}, at, scale, memory)
        theirs = normalized_guidance(
            at.cond, at.uncond, scale - 1, buffer, eta, limit, use_original_formulation=True, norm_dim=(1,)
        )
        assert torch.allclose(guided, theirs, atol=1e-9)


def test_the_best_scale_of_zero_star_leaves_nothing_along_the_negative():
    at = branches()
    unguided, _ = guide("zero_star", {}, at, 1.0)
    assert torch.allclose(unguided, at.cond)
    negative, _ = guide("zero_star", {}, at, 0.0)
    remainder = ((at.cond - negative) * at.uncond).sum((1, 2))
    assert torch.allclose(remainder, torch.zeros(2, dtype=torch.float64), atol=1e-9)


def test_projected_guidance_adds_nothing_along_the_song_and_keeps_to_its_limit():
    at, scale, limit = branches(), 5.0, 0.2
    guided, _ = guide("apg", {"limit": limit}, at, scale)
    song, plain = (flow.song_from_velocity(at.x, v, at.t) for v in (guided, at.cond))
    added = song - plain
    assert torch.allclose((added * plain).sum((1, 2)), torch.zeros(2, dtype=torch.float64), atol=1e-9)
    assert (added.square().mean((1, 2)).sqrt() <= (scale - 1) * limit + 1e-9).all()


def test_rescaling_to_the_full_gives_the_spread_of_the_prompts_velocity():
    at = branches()
    guided, _ = guide("rescaled", {"rescale": 1.0}, at, 6.0)
    assert torch.allclose(guided.std((1, 2)), at.cond.std((1, 2)))


@pytest.mark.parametrize(("name", "args"), CHOICES)
def test_every_guider_is_nothing_at_scale_one(name, args):
    at = branches()
    if args.get("rescale") is None:
        assert torch.allclose(guide(name, args, at, 1.0)[0], at.cond)


@pytest.mark.parametrize(("name", "args"), CHOICES)
def test_padding_and_neighbours_count_nowhere(name, args):
    memory = solo_memory = None
    for step in range(2):
        at = branches((12, 7), seed=20 * step)
        solo = Branches(*(v[1:, :7] for v in (at.cond, at.uncond, at.x)), at.t[1:], at.mask[1:, :7])
        for v in (at.cond, at.uncond, at.x):
            v[1, 7:] = 1e3
        together, memory = guide(name, args, at, 3.0, memory)
        alone, solo_memory = guide(name, args, solo, 3.0, solo_memory)
        assert torch.allclose(together[1:, :7], alone, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "args", "error", "message"),
    [
        ("appg", {}, ConfigError, "unknown guider 'appg'. Did you mean 'apg'"),
        ("apg", {"limt": 1}, ConfigError, "has no 'limt'. Did you mean 'limit'"),
        ("cfg", {"rescale": 1}, ConfigError, "Known: none"),
        ("apg", {"limit": float("nan")}, ValueError, "limit of guider 'apg' must be a number"),
        ("apg", {"limit": True}, ValueError, "must be a number, got True"),
        ("apg", {"limit": -1}, ValueError, "at least 0"),
        ("apg", {"momentum": 1.0}, ValueError, r"momentum must be in \(-1, 1\)"),
        ("rescaled", {"rescale": 1.5}, ValueError, r"in \[0, 1\]"),
        ("zero_star", {"zero_init_steps": -1}, ValueError, "whole number"),
    ],
)
def test_wrong_choices_are_refused(name, args, error, message):
    with pytest.raises(error, match=message):
        build_guider(Choice(name, args))


def test_only_momentum_is_remembered_and_what_is_remembered_is_no_input_that_changes():
    at = branches()
    for name, guider in GUIDERS.items():
        assert guider().zero_init_steps >= 0
        assert guider().stateful == (getattr(guider(), "momentum", 0) != 0), name
    memory = torch.zeros_like(at.cond)
    args = {"momentum": 0.5}
    _, first = guide("apg", args, at, 3.0, memory)
    _, second = guide("apg", args, at, 3.0, first)
    assert not memory.any()
    difference = at.t[:, None, None] * (at.uncond - at.cond)
    assert torch.allclose(first, difference)
    assert torch.allclose(second, 1.5 * difference)
