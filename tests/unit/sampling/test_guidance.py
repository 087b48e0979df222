"""Guidance against closed forms and the guiders of diffusers; what is remembered belongs to one song."""

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
)

from diffdpo import flow
from diffdpo.errors import ConfigError
from diffdpo.sampling.guidance import FORMS, Branches, Guidance, Guided, Reused, build_form

ALL_FORMS = [
    ("plain", {}),
    ("rescaled", {"rescale": 0.7}),
    ("zero_star", {"held_steps": 0}),
    ("apg", {}),
    ("apg", {"parallel": 0.5, "limit": 0.3, "momentum": -0.5}),
]


def latents(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def branches(frames=(12, 12), seed=0, **others):
    length = max(frames)
    towards, away, x = (latents(len(frames), length, 4, seed=seed + k) for k in range(3))
    mask = flow.mask_from_frames(torch.tensor(frames), length)
    t = torch.linspace(0.3, 0.9, len(frames), dtype=torch.float64)
    return Branches(**{"towards": towards, "away": away, "x": x, "t": t, "mask": mask} | others)


def by_diffusers(guider, at):
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(0))
    return guider.forward(at.towards, at.away).pred


@pytest.mark.parametrize("scale", [0.0, 2.5, 6.0])
@pytest.mark.parametrize(
    ("name", "args", "guider"),
    [
        ("plain", {}, lambda s: ClassifierFreeGuidance(guidance_scale=s)),
        (
            "rescaled",
            {"rescale": 0.7},
            lambda s: ClassifierFreeGuidance(guidance_scale=s, guidance_rescale=0.7),
        ),
        (
            "zero_star",
            {"held_steps": 2},
            lambda s: ClassifierFreeZeroStarGuidance(guidance_scale=s, zero_init_steps=2),
        ),
    ],
)
def test_forms_equal_the_guiders_of_diffusers(name, args, guider, scale):
    at = branches()
    guided, _ = build_form(name, args)(at, scale, None)
    assert torch.allclose(guided, by_diffusers(guider(scale), at), atol=1e-7)


def test_projected_guidance_equals_that_of_diffusers_on_songs_step_after_step():
    scale, limit, size = 4.0, 0.3, 12 * 4
    guider = AdaptiveProjectedGuidance(
        guidance_scale=scale - 1, adaptive_projected_guidance_momentum=-0.5,
        adaptive_projected_guidance_rescale=limit * size**0.5, eta=0.25, use_original_formulation=True,
    )  # fmt: skip
    form, memory = build_form("apg", {"parallel": 0.25, "limit": limit, "momentum": -0.5}), None
    for step in range(3):
        at = branches(seed=10 * step)
        guided, memory = form(at, scale, memory)
        guider.set_state(step=step, num_inference_steps=10, timestep=torch.tensor(0))
        guider.prepare_inputs({})
        songs = (flow.song_from_velocity(at.x, v, at.t) for v in (at.towards, at.away))
        theirs = guider.forward(*songs).pred
        assert torch.allclose(flow.song_from_velocity(at.x, guided, at.t), theirs, atol=1e-9)


def test_the_best_scale_of_zero_star_leaves_nothing_along_the_negative():
    at = branches()
    unguided, _ = build_form("zero_star", {})(at, 1.0, None)
    assert torch.allclose(unguided, at.towards)
    negative, _ = build_form("zero_star", {})(at, 0.0, None)
    remainder = ((at.towards - negative) * at.away).sum((1, 2))
    assert torch.allclose(remainder, torch.zeros(2, dtype=torch.float64), atol=1e-9)


def test_projected_guidance_adds_nothing_along_the_song_and_keeps_to_its_limit():
    at, scale, limit = branches(), 5.0, 0.2
    guided, _ = build_form("apg", {"limit": limit})(at, scale, None)
    song, plain = (flow.song_from_velocity(at.x, v, at.t) for v in (guided, at.towards))
    added = song - plain
    assert torch.allclose((added * plain).sum((1, 2)), torch.zeros(2, dtype=torch.float64), atol=1e-9)
    assert (added.square().mean((1, 2)).sqrt() <= (scale - 1) * limit + 1e-9).all()


def test_rescaling_to_the_full_gives_the_spread_of_the_prompts_velocity():
    at = branches()
    guided, _ = build_form("rescaled", {"rescale": 1.0})(at, 6.0, None)
    assert torch.allclose(guided.std((1, 2)), at.towards.std((1, 2)))


@pytest.mark.parametrize(("name", "args"), ALL_FORMS)
def test_every_form_is_nothing_at_scale_one(name, args):
    at = branches()
    if args.get("rescale") is None:
        assert torch.allclose(build_form(name, args)(at, 1.0, None)[0], at.towards)


@pytest.mark.parametrize(("name", "args"), ALL_FORMS)
def test_padding_and_neighbours_count_nowhere(name, args):
    form, memory, alone = build_form(name, args), None, None
    for step in range(2):
        at = branches((12, 7), seed=20 * step)
        solo = Branches(*(v[1:, :7] for v in (at.towards, at.away, at.x)), at.t[1:], at.mask[1:, :7])
        for v in (at.towards, at.away, at.x):
            v[1, 7:] = 1e3
        together, memory = form(at, 3.0, memory)
        by_itself, alone = form(solo, 3.0, alone)
        assert torch.allclose(together[1:, :7], by_itself, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "args", "error", "message"),
    [
        ("appg", {}, ConfigError, "unknown guidance form 'appg'. Did you mean 'apg'"),
        ("apg", {"limt": 1}, ConfigError, "has no 'limt'. Did you mean 'limit'"),
        ("plain", {"rescale": 1}, ConfigError, "Known: none"),
        ("apg", {"limit": float("nan")}, ValueError, "limit of guidance form 'apg' must be a number"),
        ("apg", {"limit": True}, ValueError, "must be a number, got True"),
        ("apg", {"limit": -1}, ValueError, "at least 0"),
        ("apg", {"momentum": 1.0}, ValueError, "between -1 and 1"),
        ("rescaled", {"rescale": 1.5}, ValueError, r"in \[0, 1\]"),
        ("zero_star", {"held_steps": -1}, ValueError, "whole number"),
    ],
)
def test_wrong_forms_are_refused(name, args, error, message):
    with pytest.raises(error, match=message):
        build_form(name, args)


class Rows:
    """Velocities that tell which row they are of; remembers which rows were asked for at which times."""

    def __init__(self, count):
        self.count, self.asked = count, []

    def __call__(self, x, t, rows):
        self.asked.append((rows.tolist(), t.tolist()))
        value = 1 + rows.to(x) + t.to(x) ** 2
        return value[:, None, None].expand_as(x).clone()


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def guided(rows, **settings):
    form = build_form("plain", {})
    return Guided(rows, torch.ones(rows.count, 3, dtype=torch.bool), Guidance(3.0, form, **settings))


def test_the_negative_is_asked_only_inside_the_interval_of_each_song():
    rows = Rows(2)
    velocity = Reused(guided(rows, low=0.25, high=0.75), 0.0)
    x = latents(2, 3, 4)
    for t in (times(1.0, 0.5), times(0.5, 0.25), times(0.2, 0.1)):
        velocity(x, t)
    assert [asked for asked, _ in rows.asked] == [[0, 1, 3], [0, 1, 2, 3], [0, 1]]
    assert velocity.passes.tolist() == [4, 5]
    v = velocity(x, times(0.5, 0.9))
    assert v[0, 0, 0] == pytest.approx(3.25 + 3 * (1.25 - 3.25))
    assert v[1, 0, 0] == pytest.approx(2.81)


def test_what_guidance_added_is_reused_between_refreshes():
    rows = Rows(1)
    velocity = Reused(guided(rows, every=3), 0.0)
    found = [velocity(latents(1, 3, 4), times(t))[0, 0, 0].item() for t in (1.0, 0.8, 0.6, 0.4)]
    assert [len(asked) for asked, _ in rows.asked] == [2, 1, 1, 2]
    added = 2 * (1 - 2)  # (s - 1)(towards - away), the same at every t for these rows
    assert found == pytest.approx([2 + added, 1.64 + added, 1.36 + added, 1.16 + added])


def test_a_velocity_that_changes_little_is_extrapolated_each_song_by_itself():
    class Lines(Rows):
        """Song 0 changes linearly and slowly with t, song 1 fast."""

        def __call__(self, x, t, rows):
            super().__call__(x, t, rows)
            slope = torch.tensor([0.1, 5.0])[rows].to(x)
            return (1 + slope * t.to(x))[:, None, None].expand_as(x).clone()

    rows = Lines(2)
    form = build_form("plain", {})
    inner = Guided(rows, torch.ones(2, 3, dtype=torch.bool), Guidance(1.0, form))
    velocity = Reused(inner, 0.05)
    for t in (1.0, 0.9, 0.8, 0.7, 0.3):
        found = velocity(latents(2, 3, 4), times(t, t))
        assert found[0].mean().item() == pytest.approx(1 + 0.1 * t)  # exact: a line is extrapolated as a line
        assert found[1].mean().item() == pytest.approx(1 + 5 * t)
    assert [asked for asked, _ in rows.asked] == [[0, 1], [0, 1], [1], [1], [0, 1]]
    assert velocity.passes.tolist() == [3, 5]


def test_a_registry_entry_is_a_form():
    for form in FORMS.values():
        assert form().held_steps >= 0
