"""Particles: all that is remembered of a row is in its state, so rows can be copied, dropped and reordered."""

import pytest
import torch
from support.local_model import CHANNELS, LocalModel, LocalNetwork
from support.rows import song_row

from diffdpo.models.base import take
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import InitLatents, InpaintContext, Request
from diffdpo.sampling.sampler import follow, generate, start
from diffdpo.sampling.trajectory import solve
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow

STEPS, TURN = 8, 4
"""Rows are exchanged behind step TURN."""
MOMENTUM = Choice("apg", {"momentum": -0.5, "limit": 0.4})
DETERMINISTIC = [
    {"solver": Choice("euler")},
    {"solver": Choice("midpoint"), "guidance": MOMENTUM},
    {"solver": Choice("adams_bashforth"), "guidance": MOMENTUM},
    {"solver": Choice("dpmpp_2m"), "guidance": Choice("zero_star"), "shift": 2.0},
    {"solver": Choice("adams_bashforth"), "guidance_every": 2},
    {
        "solver": Choice("midpoint"),
        "guidance_every": 3,
        "guidance": MOMENTUM,
        "guidance_interval": [0.2, 0.9],
    },
    {"solver": Choice("dpmpp_2m"), "cache_threshold": 0.2},
    {"solver": Choice("adams_bashforth"), "cache_threshold": 0.2, "guidance_every": 2, "guidance": MOMENTUM},
]
STOCHASTIC = [
    {"solver": Choice("sde"), "guidance": MOMENTUM, "guidance_every": 2},
    {"solver": Choice("glass"), "cache_threshold": 0.2},
]


def latents(frames, seed):
    return torch.randn(frames, CHANNELS, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return LocalModel(network=LocalNetwork(1))


@pytest.fixture(scope="module")
def requests(model):
    """Two songs that differ in everything: prompt, negative, what is given, where sampling begins, length."""

    def row(text, frames):
        return song_row(model, Prompt(id=text, text=text, duration_s=(frames + 0.5) / 10))

    context = InpaintContext(latents(20, 1), torch.arange(20) < 6)
    return [
        Request(
            sample_id="a", row=row("rock", 20), negative=row("hum", 20), context=context, clamp_context=True
        ),
        Request(sample_id="b", row=row("jazz", 14), init=InitLatents(latents(14, 2), 0.7)),
    ]


def config(settings):
    return SamplingConfig(**{"steps": STEPS, "guidance_scale": 3.0, **settings})


def exchange(*rows):
    """A hook that goes on with these rows behind step TURN."""
    index = torch.tensor(rows)

    def hook(step, x, t, state):
        return (x[index], take(state, index)) if step == TURN else (x, state)

    return hook


@pytest.mark.parametrize("settings", DETERMINISTIC, ids=str)
@pytest.mark.parametrize("rows", [(0, 0), (1, 0), (1,), (1, 1, 0, 0, 1)], ids=str)
@torch.no_grad()
def test_rows_go_on_as_they_were(model, requests, settings, rows):
    """A copy of a row is that row to the end, its memory, its prompt and its given frames included."""
    cfg = config(settings)
    songs = generate(model, requests, cfg, seed=0)
    assert not torch.allclose(songs[0].latents[:14], songs[1].latents)
    exchanged = generate(model, requests, cfg, seed=0, hook=exchange(*rows))
    assert len(exchanged) == len(rows)
    for song, row in zip(exchanged, rows, strict=True):
        assert torch.allclose(song.latents, songs[row].latents, atol=1e-6)
        assert song.nfe == songs[row].nfe


@pytest.mark.parametrize("settings", DETERMINISTIC + STOCHASTIC, ids=str)
@torch.no_grad()
def test_nothing_is_remembered_outside_of_the_state(model, requests, settings):
    """The second half of a run, by a sampler built anew, from the x and the state in the middle."""
    cfg, middle = config(settings), {}

    def keep(step, x, t, state):
        x, state = exchange(0, 0)(step, x, t, state)
        if step == TURN:
            middle.update(x=x, state=state)
        return x, state

    whole, state = follow(start(model, requests, cfg, seed=0), cfg, hook=keep)
    path = start(model, requests, cfg, seed=0)
    rest, again = solve(
        path.velocity, middle["x"], path.times[TURN + 1 :], cfg.build_solver(), middle["state"],
        lambda i: path.noise(TURN + 1 + i),
    )  # fmt: skip
    assert torch.equal(rest, whole)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("settings", "memory"),
    [
        ({"solver": Choice("adams_bashforth")}, "solver.v"),
        ({"solver": Choice("dpmpp_2m")}, "solver.song"),
        ({"guidance": MOMENTUM}, "guidance.memory"),
        ({"guidance_every": 4}, "guidance.offset"),
        ({"cache_threshold": 0.3}, "cache.v"),
    ],
    ids=str,
)
@torch.no_grad()
def test_memory_left_behind_would_be_noticed(model, requests, settings, memory):
    """Row 1 becomes a copy of row 0 but for one part of its memory."""

    def forget(step, x, t, state):
        index = torch.tensor([0, 0])
        if step != TURN:
            return x, state
        return x[index], take(state, index) | {memory: state[memory]}

    first, second = generate(model, requests, config(settings), seed=0, hook=forget)
    assert not torch.allclose(first.latents, second.latents, atol=1e-4)


@torch.no_grad()
def test_a_hook_sees_the_estimate_of_the_song_and_the_time_it_has_reached(model, requests):
    """Where the last step is Euler's it ends at the estimate."""
    cfg, calls = config({"solver": Choice("euler")}), []

    def look(step, x, t, state):
        calls.append((step, t.tolist(), x.clone(), state["song"].clone()))
        return x, state

    songs = generate(model, requests, cfg, seed=0, hook=look)
    assert [step for step, *_ in calls] == list(range(STEPS))
    assert calls[3][1] == pytest.approx([0.5, 0.5 * 0.7])
    _, t, x, song = calls[-1]
    assert t == [0, 0]
    assert torch.allclose(song, x, atol=1e-6)
    assert torch.allclose(x[1, :14], songs[1].latents)
    assert torch.allclose(song[0, :6], requests[0].context.latents[:6], atol=1e-5)


@torch.no_grad()
def test_a_hook_may_move_x(model, requests):
    """What is added behind the last step is in the song."""
    cfg = config({})
    plain = generate(model, requests, cfg, seed=0)
    shifted = generate(
        model, requests, cfg, seed=0, hook=lambda step, x, t, state: (x + (step == STEPS - 1), state)
    )
    assert torch.allclose(shifted[1].latents, plain[1].latents + 1, atol=1e-6)
    assert torch.allclose(shifted[0].latents[6:], plain[0].latents[6:] + 1, atol=1e-6)
    assert torch.equal(shifted[0].latents[:6], requests[0].context.latents[:6])
