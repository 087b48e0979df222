"""Networks of a fixed window: a shorter song is the same in any batch, and a full one is what was published.

They were trained on songs padded to one length and see what stands behind an end. That is zeros, in x as in the
context and the lyrics, whatever a batch holds there.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.rows import embedding

from diffdpo.errors import DataError
from diffdpo.models.base import LatentSpec
from diffdpo.models.diffrhythm.adapter import DiffRhythm
from diffdpo.objectives.flow_matching import FlowMatching
from diffdpo.registry import Choice
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.request import InitLatents, InpaintContext, Request
from diffdpo.sampling.sampler import generate
from diffdpo.training.config import InpaintConfig, TrainConfig
from diffdpo.training.step import outputs, sample_noise
from diffdpo.types import Batch, Row
from tools.parity.diffrhythm import PREFIX, build_network, network_config

GOLDEN = Path(__file__).parents[2] / "golden" / "diffrhythm" / "tiny_base"
WINDOW = 96
FRAMES = (96, 40, 17)


@pytest.fixture(scope="module")
def network():
    """The one that was measured: the architecture of v1.0 and v1.2-base, which hide no padding."""
    sizes = json.loads((GOLDEN / "config.json").read_text())
    built = build_network(GOLDEN, network_config(sizes["dit_kwargs"], sizes["effective_num_attention_heads"]))
    weights = load_file(GOLDEN / "state_dict.safetensors")
    built.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in weights.items()})
    return built.eval()


@pytest.fixture
def model(network):
    spec = LatentSpec(channels=8, frames_per_second=10.0, sample_rate=1000, max_frames=WINDOW, window="fixed")
    return DiffRhythm(network=network, spec=spec)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def song_rows():
    """Three songs, of which the first fills the window."""
    return [
        Row(
            embedding=embedding(draw(512, seed=frames), start=0.1, lines=((0.3, (5, 6, 7)), (1.4, (9,)))),
            frames=frames,
        )
        for frames in FRAMES
    ]


@pytest.mark.parametrize("window", ["fixed", "exact"])
def test_a_song_that_fills_the_window_has_the_published_numbers(model, window):
    """Those measured on the original; its time runs the other way round, and so does its velocity."""
    golden = load_file(GOLDEN / "case1_forward.safetensors")
    condition = {
        "style": golden["in.style_prompt"],
        "lyrics": golden["in.text"],
        "audio": golden["in.cond"],
        "start_time": golden["in.start_time"],
    }
    frames = torch.full((2,), WINDOW)
    assert golden["in.x"].shape[1] == WINDOW
    model = replace(model, spec=replace(model.spec, window=window))
    with torch.no_grad():
        v = model.velocity(model.network, golden["in.x"], 1 - golden["in.time"], condition, frames)
        prepared = model.prepare(model.network, condition, frames)
        again = model.velocity(model.network, golden["in.x"], 1 - golden["in.time"], prepared, frames)
    assert torch.allclose(v, -golden["out.pred"], rtol=1e-5, atol=1e-5)
    assert torch.allclose(again, -golden["out.pred"], rtol=1e-5, atol=1e-5)


def test_such_a_network_sees_what_stands_behind_the_end(network):
    """Else nothing here would be tested."""
    golden = load_file(GOLDEN / "case1_forward.safetensors")
    arguments = {
        "time": golden["in.time"], "text": golden["in.text"], "style": golden["in.style_prompt"],
        "audio": golden["in.cond"], "start_time": golden["in.start_time"],
    }  # fmt: skip
    zeros = golden["in.x"].clone()
    zeros[:, 40:] = 0
    with torch.no_grad():
        noisy, silent = (network(x, **arguments)[:, :40] for x in (golden["in.x"], zeros))
    assert (noisy - silent).norm() > 0.01 * silent.norm()  # a thousand times what is allowed below


def test_a_velocity_in_a_batch_is_that_of_the_song_alone(model):
    """With numbers that are none behind the ends, and with what is shown of the song there."""
    rows, frames = song_rows(), torch.tensor(FRAMES)
    x, t, context = draw(3, WINDOW, 8), torch.tensor([0.2, 0.5, 0.9]), draw(3, WINDOW, 8, seed=1)
    keep_mask = (torch.arange(WINDOW) % 3 > 0).expand(3, -1)
    condition = model.with_context(model.condition(rows, WINDOW), context, keep_mask)
    for row, end in enumerate(FRAMES):
        x[row, end:] = torch.nan
    with torch.no_grad():
        together = model.velocity(model.network, x, t, condition, frames)
        prepared = model.prepare(model.network, condition, frames)
        assert torch.allclose(
            model.velocity(model.network, x, t, prepared, frames), together, rtol=1e-5, atol=1e-5
        )
        for row, end in enumerate(FRAMES):
            one = slice(row, row + 1)
            alone = model.with_context(
                model.condition([rows[row]], end), context[one, :end], keep_mask[one, :end]
            )
            v = model.velocity(model.network, x[one, :end], t[one], alone, frames[one])
            assert torch.allclose(together[one, :end], v, rtol=1e-5, atol=1e-5)
            assert not together[row, end:].any()


@pytest.mark.parametrize("settings", [{}, {"solver": Choice("sde")}, {"guidance_every": 2}], ids=str)
def test_a_sampled_song_in_a_batch_of_mixed_lengths_is_the_song_alone(model, settings):
    requests = [
        Request(sample_id=f"s{row.frames}", row=row, context=context, init=init)
        for row, context, init in zip(
            song_rows(),
            (None, InpaintContext(draw(40, 8), torch.arange(40) < 12), None),
            (None, None, InitLatents(draw(17, 8), 0.7)),
            strict=True,
        )
    ]
    cfg = SamplingConfig(steps=3, guidance_scale=3.0, **settings)
    with torch.no_grad():
        together = generate(model, requests, cfg, seed=4)
        apart = [generate(model, [request], cfg, seed=4)[0] for request in requests]
        shorter = generate(model, requests[1:], cfg, seed=4)
    for one, other in zip([*together, *shorter], [*apart, *apart[1:]], strict=True):
        assert torch.allclose(one.latents, other.latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inpaint", [None, InpaintConfig(0.5, 0.5)])
def test_a_training_error_in_a_batch_of_mixed_lengths_is_that_of_the_song_alone(model, inpaint):
    cfg = TrainConfig(inpaint=inpaint, dropout={"style": 0.5})
    latents = draw(3, 1, WINDOW, 8)
    batch = Batch(
        latents=latents,
        frames=torch.tensor(FRAMES)[:, None],
        rows=tuple((row,) for row in song_rows()),
        positions=(3, 4, 5),
        weight=torch.ones(3),
    )

    def errors(data):
        with torch.no_grad():
            noise = sample_noise(data, cfg, seed=0)
            return outputs(model, model.network, None, data, FlowMatching(), noise).policy

    together = errors(batch)
    for place, end in enumerate(FRAMES):
        alone = replace(
            batch,
            latents=latents[place : place + 1, :, :end],
            frames=batch.frames[place : place + 1],
            rows=(batch.rows[place],),
            positions=(batch.positions[place],),
            weight=torch.ones(1),
        )
        assert torch.allclose(errors(alone), together[place : place + 1], rtol=1e-5)


def test_a_song_longer_than_the_window_is_refused(model):
    row = Row(embedding=embedding(draw(512)), frames=WINDOW + 1)
    condition = model.condition([row], WINDOW + 1)
    with pytest.raises(DataError, match="97 frames: this network knows songs of 96 only"):
        model.velocity(model.network, draw(1, 97, 8), torch.ones(1), condition, torch.tensor([97]))
