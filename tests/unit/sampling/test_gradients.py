"""Gradients flow from songs to noise, conditions, given latents and weights; only the caller can forbid them."""

from dataclasses import replace

import pytest
import torch
from support.local_model import CHANNELS, LocalModel, LocalNetwork
from support.rows import song_row

from diffdpo.models import MODELS
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.guidance import GUIDERS
from diffdpo.sampling.request import InitLatents, InpaintContext, Request
from diffdpo.sampling.sampler import follow, generate, sample_batch, start
from diffdpo.sampling.solver import SOLVERS
from diffdpo.types import Prompt, Row

pytestmark = pytest.mark.slow

FRAMES = (7, 5)
WAYS = [
    *({"solver": Choice(name), "guidance_scale": 1.0} for name in SOLVERS),
    *({"guidance": Choice(name)} for name in GUIDERS),
    {
        "guidance": Choice("apg", {"momentum": -0.5, "limit": 0.3, "parallel": 0.5}),
        "solver": Choice("dpmpp_2m"),
    },
    {"guidance_every": 2, "solver": Choice("midpoint")},
    {"guidance_interval": [0.3, 0.8]},
    {"cache_threshold": 0.2},
]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaves():
    """What songs are differentiated by."""
    return {
        "noise": draw(2, max(FRAMES), CHANNELS, seed=1),
        "pull": draw(2, CHANNELS, seed=2),
        "negative": draw(CHANNELS, seed=3),
        "context": draw(FRAMES[0], CHANNELS, seed=4),
        "weight": 0.5 * draw(CHANNELS, CHANNELS, seed=5),
    }


def songs(values, settings):
    """Two songs in float64: one with a negative prompt and given frames, one whose prompt is dropped."""
    model = LocalModel(network=LocalNetwork(1).double())
    keep_mask = torch.arange(FRAMES[0]) < 2
    first, second = (
        Request(sample_id=name, row=Row(embedding={"pull": pull}, frames=frames))
        for name, pull, frames in zip("ab", values["pull"], FRAMES, strict=True)
    )
    first = replace(
        first,
        negative=Row(embedding={"pull": values["negative"]}, frames=FRAMES[0]),
        context=InpaintContext(values["context"], keep_mask),
    )
    cfg = SamplingConfig(**{"steps": 4, "guidance_scale": 2.5, **settings})

    network = Reweighted(model.network, values["weight"])
    path = start(model, [first, second], cfg, seed=0, network=network)
    state = {name: v.double() if v.is_floating_point() else v for name, v in path.state.items()}
    x, _ = follow(replace(path, x=values["noise"], state=state), cfg)
    return x


class Reweighted:
    """A network with other weights, such as those of a step of an optimiser."""

    def __init__(self, network, weight):
        self.network, self.weight = network, weight

    def __call__(self, *args):
        return torch.func.functional_call(self.network, {"mix.weight": self.weight}, args)


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_gradients_are_those_of_finite_differences(settings):
    """Along one direction for each of the leaves, in float64, of a loss that weighs every number of the songs."""
    weights = draw(2, max(FRAMES), CHANNELS, seed=9)
    values = {name: value.requires_grad_() for name, value in leaves().items()}
    loss = (weights * songs(values, settings)).sum()
    gradients = dict(
        zip(values, torch.autograd.grad(loss, list(values.values()), allow_unused=True), strict=True)
    )
    for name, value in values.items():
        epsilon = 3e-3 if name == "context" else 1e-6  # conditions hold contexts in single precision
        direction = draw(*value.shape, seed=11)
        with torch.no_grad():
            ends = [
                (weights * songs({**values, name: value + sign * epsilon * direction}, settings)).sum()
                for sign in (1, -1)
            ]
        slope = ((ends[0] - ends[1]) / (2 * epsilon)).item()
        if (name, settings.get("solver")) == (
            "noise",
            Choice("glass"),
        ):  # at t = 1 a transition of its own begins
            assert slope == 0
            assert not gradients[name].any()
            continue
        if (name, settings.get("guidance_scale")) == ("negative", 1.0):
            assert slope == 0
            assert gradients[name] is None
            continue
        found = (gradients[name] * direction).sum().item()
        assert found == pytest.approx(slope, rel=1e-3 if name == "context" else 1e-5, abs=1e-7), name
        assert abs(found) > 1e-4, name


def test_no_gradient_reaches_the_noise_of_frames_that_are_padding():
    values = {name: value.requires_grad_() for name, value in leaves().items()}
    songs(values, {})[1, : FRAMES[1]].sum().backward()
    assert values["noise"].grad[1, : FRAMES[1]].abs().min() > 0
    assert not values["noise"].grad[1, FRAMES[1] :].any()
    assert not values["noise"].grad[0].any()


def test_songs_of_a_model_can_be_differentiated_by_what_was_asked_for(bundle):
    """Through `generate`, with a condition that is prepared once a song, in single precision."""
    model = MODELS["tiny"](bundle=str(bundle)).load()
    row = song_row(model, Prompt(id="p", text="rock", duration_s=0.6))
    init = torch.randn(row.frames, 8, generator=torch.Generator().manual_seed(0))
    cfg = SamplingConfig(steps=3, guidance_scale=2.0)

    def loss(style, latents):
        request = Request(
            sample_id="s",
            row=replace(row, embedding=row.embedding | {"style": style}),
            init=InitLatents(latents, 0.8),
        )
        (song,) = generate(model, [request], cfg, seed=0)
        return song.latents.square().mean()

    style = row.embedding["style"].clone().requires_grad_()
    latents = init.clone().requires_grad_()
    loss(style, latents).backward()
    for value, at in ((style, lambda v: loss(v, init)), (latents, lambda v: loss(style.detach(), v))):
        direction = value.grad / value.grad.norm()
        with torch.no_grad():
            ends = [at(value + sign * 0.02 * direction) for sign in (1, -1)]
        assert ((ends[0] - ends[1]) / 0.04).item() == pytest.approx(value.grad.norm().item(), rel=0.02)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.network.parameters())
    plain = Request(sample_id="s", row=row)
    assert not sample_batch(model, [plain], cfg, seed=0)[0].requires_grad
    assert generate(model, [plain], cfg, seed=0)[0].latents.requires_grad
