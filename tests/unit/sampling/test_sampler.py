"""Sampling: noise belongs to the sample, lengths to the song."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.rows import song_row

from diffdpo.data.prompts import negative_prompt
from diffdpo.errors import ConfigError, DataError
from diffdpo.models import MODELS
from diffdpo.models.base import Prepares, SongModel, supports
from diffdpo.models.compilation import compile_blocks
from diffdpo.randomness import draw_noise
from diffdpo.registry import Choice
from diffdpo.sampling import velocity
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.noise import start_noise
from diffdpo.sampling.request import InitLatents, InpaintContext, Request
from diffdpo.sampling.sampler import batch_requests, generate, planned_nfe, sample_batch
from diffdpo.training.config import LoraConfig
from diffdpo.training.setup import add_lora
from diffdpo.types import Prompt

pytestmark = pytest.mark.slow


@pytest.fixture
def model(bundle):
    return MODELS["tiny"](bundle=str(bundle)).load()


def requests(model, *durations):
    prompts = [
        Prompt(id=f"p{i}", text="rock", negative_text="ambient", duration_s=d)
        for i, d in enumerate(durations)
    ]
    return [
        Request(
            sample_id=f"{prompt.id}.000",
            row=song_row(model, prompt),
            negative=song_row(model, negative_prompt(prompt)),
        )
        for prompt in prompts
    ]


MEMBERS = [name for name in dir(SongModel) if not name.startswith("_")] + ["with_context"]
WAYS = [
    {"guidance_scale": 1.0},
    {"solver": Choice("midpoint"), "guidance": Choice("rescaled")},
    {"solver": Choice("adams_bashforth"), "guidance": Choice("zero_star"), "shift": 3.0},
    {"solver": Choice("dpmpp_2m"), "guidance": Choice("apg", {"limit": 0.2, "momentum": -0.5})},
    {"guidance_interval": [0.2, 0.8], "sway": -1.0},
    {"guidance_every": 2},
    {"solver": Choice("adams_bashforth"), "cache_threshold": 0.2},
    {"solver": Choice("sde")},
    {"solver": Choice("glass"), "guidance_every": 2, "cache_threshold": 0.2},
]


@pytest.mark.parametrize("settings", [{}, *WAYS], ids=str)
def test_a_song_does_not_depend_on_its_batch(model, settings):
    """Lengths, contexts and variations mixed, two songs of one prompt among them."""
    cfg = SamplingConfig(steps=4, **settings)
    one, two, three = requests(model, 1.0, 2.0, 0.6)
    given, kept = songs(model, 43, 12)
    wanted = [
        one,
        replace(one, sample_id="p0.001"),
        replace(two, context=InpaintContext(given, torch.arange(43) < 20)),
        replace(three, init=InitLatents(kept, 0.6)),
    ]
    together = generate(model, wanted, cfg, seed=5)
    alone = [generate(model, [request], cfg, seed=5)[0] for request in wanted]
    assert [len(song.latents) for song in together] == [21, 21, 43, 12]
    for here, there in zip(together, alone, strict=True):
        assert torch.allclose(here.latents, there.latents, atol=2e-5)
        assert here.nfe == there.nfe


@pytest.mark.parametrize("settings", [{}, *WAYS], ids=str)
def test_what_is_computed_once_a_song_is_what_would_be_computed_at_every_step(model, settings):
    """The same model without `prepare`: each song's condition encoded anew at every evaluation."""
    plain = SimpleNamespace(**{name: getattr(model, name) for name in MEMBERS})
    assert isinstance(plain, SongModel)
    assert not supports(plain, Prepares)
    cfg = SamplingConfig(steps=4, **settings)
    for wanted in (
        requests(model, 1.0, 2.0),
        [replace(requests(model, 1.0)[0], sample_id=f"{k}") for k in "ab"],
    ):
        for here, there in zip(*(sample_batch(m, wanted, cfg, seed=0) for m in (model, plain)), strict=True):
            assert torch.allclose(here, there, atol=1e-5)


def test_songs_of_one_prompt_are_encoded_once(model, monkeypatch):
    seen = []
    encode = type(model.network).encode_text

    def counting(network, text, padding=None):
        seen.append(len(text))
        return encode(network, text, padding)

    monkeypatch.setattr(type(model.network), "encode_text", counting)
    (one,) = requests(model, 1.0)
    sample_batch(
        model, [replace(one, sample_id=f"p0.{k}") for k in range(3)], SamplingConfig(steps=3), seed=0
    )
    assert seen == [2]  # the prompt and its negative, for three songs and three steps


@pytest.mark.parametrize(
    ("settings", "nfe"),
    [
        ({}, 16),
        ({"guidance_scale": 1.0}, 8),
        ({"solver": Choice("midpoint")}, 32),
        ({"guidance_interval": [0.3, 0.7]}, 8 + 3),  # t = 5/8, 4/8, 3/8
        ({"guidance_every": 4}, 8 + 2),
        ({"guidance": Choice("zero_star", {"zero_init_steps": 2})}, 12),
        ({"guidance": Choice("zero_star"), "guidance_scale": 1.0}, 8),
    ],
    ids=str,
)
def test_evaluations_are_counted_and_can_be_foretold(model, settings, nfe):
    cfg, steps = SamplingConfig(steps=8, **settings), []
    (made,) = generate(model, requests(model, 0.5), cfg, seed=0, on_step=lambda: steps.append(1))
    assert made.nfe == planned_nfe(cfg) == nfe
    assert len(steps) == 8


def test_the_velocity_cache_saves_evaluations_and_stays_near(model):
    whole, near = (
        generate(model, requests(model, 1.0), SamplingConfig(steps=16, cache_threshold=share), seed=0)[0]
        for share in (0.0, 0.3)
    )
    assert near.nfe < whole.nfe == 32
    assert (near.latents - whole.latents).norm() < 0.1 * whole.latents.norm()


def test_a_network_of_fixed_window_is_prepared_for_its_window(model):
    fixed = replace(model, spec=replace(model.spec, max_frames=60, window="fixed"))
    plain = SimpleNamespace(**{name: getattr(fixed, name) for name in MEMBERS})
    cfg, wanted = SamplingConfig(steps=3), requests(fixed, 1.0, 2.0)
    for here, there in zip(*(sample_batch(m, wanted, cfg, seed=0) for m in (fixed, plain)), strict=True):
        assert torch.allclose(here, there, atol=1e-5)


def test_an_adapter_around_the_input_projection_is_not_lost(model):
    lora = LoraConfig(rank=2, targets=["proj"])
    add_lora(model.network, lora, model.lora_targets, seed=0)
    for name, parameter in model.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    plain = SimpleNamespace(**{name: getattr(model, name) for name in MEMBERS})
    cfg, wanted = SamplingConfig(steps=2), requests(model, 1.0)
    ours, theirs = (sample_batch(m, wanted, cfg, seed=0)[0] for m in (model, plain))
    assert torch.allclose(ours, theirs, atol=1e-5)
    model.network.disable_adapters()
    assert not torch.allclose(ours, sample_batch(model, wanted, cfg, seed=0)[0], atol=1e-2)


def test_seed_and_sample_id_decide_the_song(model):
    cfg, (request,) = SamplingConfig(steps=2), requests(model, 1.0)
    song = sample_batch(model, [request], cfg, seed=0)[0]
    assert torch.equal(song, sample_batch(model, [request], cfg, seed=0)[0])
    assert not torch.equal(song, sample_batch(model, [request], cfg, seed=1)[0])
    other = replace(request, sample_id="p0.001")
    assert not torch.equal(song, sample_batch(model, [other], cfg, seed=0)[0])


def test_guidance_is_linear_between_its_branches(model):
    (request,) = requests(model, 1.0)
    ends = {
        g: sample_batch(model, [request], SamplingConfig(steps=1, guidance_scale=g), seed=0)[0]
        for g in (0.0, 1.0, 3.0)
    }
    assert torch.allclose(ends[3.0], ends[0.0] + 3 * (ends[1.0] - ends[0.0]), atol=1e-5)
    assert not torch.allclose(ends[0.0], ends[1.0])


def test_one_step_follows_the_network_by_hand(model):
    (request,) = requests(model, 1.0)
    noise = draw_noise(0, ["p0.000"], 21, 8)
    with torch.no_grad():
        condition = model.condition([request.row], 21)
        v = model.velocity(model.network, noise, torch.ones(1), condition, torch.tensor([21]))
    song = sample_batch(model, [request], SamplingConfig(steps=1, guidance_scale=1.0), seed=0)[0]
    assert torch.allclose(song, (noise - v)[0], atol=1e-6)


def test_a_song_longer_than_the_model_is_refused(model):
    with pytest.raises(DataError, match=r"'p0\.000': 59\.95 s is longer than this model's 23\.78 s; ask"):
        sample_batch(model, requests(model, 60.0), SamplingConfig(), seed=0)


def test_batches_hold_songs_of_similar_length(model):
    grouped = batch_requests(requests(model, 3.0, 1.0, 3.0, 1.0), 2)
    assert [[r.row.frames for r in group] for group in grouped] == [[21, 21], [64, 64]]


NAN = float("nan")


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0}, {"batch": 0}, {"guidance_scale": -1.0}, {"guidance_scale": NAN}, {"shift": 0.0},
        {"shift": NAN}, {"sway": -1.5}, {"sway": NAN}, {"cache_threshold": NAN}, {"cache_threshold": -0.1},
        {"guidance_every": 0}, {"guidance_interval": [0.5]}, {"guidance_interval": [0.6, 0.4]},
        {"guidance_interval": [NAN, 1.0]}, {"guidance": Choice("apg", {"limit": NAN})},
        {"solver": Choice("sde", {"eta": NAN})},
        {"steps": 2, "guidance": Choice("zero_star", {"zero_init_steps": 2})},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        SamplingConfig(**bad)


@pytest.mark.parametrize(("key", "value"), [("solver", "eulr"), ("guidance", "cgf")])
def test_a_name_nobody_knows_is_refused_with_what_was_meant(key, value):
    with pytest.raises(ConfigError, match="Did you mean"):
        SamplingConfig(**{key: Choice(value)})


def songs(model, *frames):
    random = torch.Generator().manual_seed(1)
    return [torch.randn(n, model.spec.channels, generator=random) for n in frames]


def test_kept_frames_stay_and_the_others_are_made_to_fit_them(model):
    (request,), (given, other) = requests(model, 1.0), songs(model, 21, 21)
    keep_mask = torch.arange(21) < 8
    cfg = SamplingConfig(steps=3)
    edited, elsewhere, free = (
        sample_batch(model, [replace(request, context=context)], cfg, seed=0)[0]
        for context in (
            InpaintContext(given, keep_mask),
            InpaintContext(given.where(keep_mask[:, None], other), keep_mask),
            None,
        )
    )
    assert torch.equal(edited[:8], given[:8])
    assert torch.equal(edited, elsewhere)  # what is not kept is not seen
    assert not torch.allclose(edited[8:], free[8:], atol=1e-3)


def test_a_variation_begins_on_the_way_to_its_song(model):
    (request,), (given,) = requests(model, 1.0), songs(model, 21)
    cfg = SamplingConfig(steps=4)
    whole, none = (
        sample_batch(model, [replace(request, init=InitLatents(given, s))], cfg, seed=0)[0]
        for s in (1.0, 1e-6)
    )
    assert torch.allclose(whole, sample_batch(model, [request], cfg, seed=0)[0], atol=1e-6)
    assert torch.allclose(none, given, atol=1e-4)


def test_windows_of_one_song_share_the_noise_of_shared_frames(model):
    first, second = (replace(request, sample_id="song") for request in requests(model, 1.0, 1.0))
    second = replace(second, row=replace(second.row, first_frame=13, song_frames=34))
    noise = start_noise([first, second], 0, 21, model.spec.channels)
    assert torch.equal(noise[0, 13:], noise[1, :8])
    assert not torch.equal(noise[0, :8], noise[1, :8])


def test_a_context_of_another_length_is_refused(model):
    (request,), (given,) = requests(model, 1.0), songs(model, 20)
    wrong = replace(request, context=InpaintContext(given, torch.ones(20, dtype=torch.bool)))
    with pytest.raises(DataError, match=r"'p0.000': its context is \(20, 8\)"):
        sample_batch(model, [wrong], SamplingConfig(), seed=0)
    with pytest.raises(ValueError, match="strength must be in"):
        InitLatents(given, 0.0)


def test_passes_cut_to_the_cache_give_the_same_songs(model, monkeypatch):
    wanted, cfg = requests(model, 1.0, 2.0, 0.6), SamplingConfig(steps=3)
    whole = sample_batch(model, wanted, cfg, seed=0)
    monkeypatch.setattr(velocity, "CPU_FRAMES", 90)  # two rows of 43 frames
    for one, two in zip(whole, sample_batch(model, wanted, cfg, seed=0), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_a_network_that_does_not_name_its_blocks_cannot_be_compiled():
    with pytest.raises(
        ConfigError, match=r"sampling\.compile: Linear names no _repeated_blocks; set it to false"
    ):
        compile_blocks(torch.nn.Linear(2, 2), "sampling.compile")
