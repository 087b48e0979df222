"""WavLM against closed forms and torch's own; parity with the original is in tests/golden."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from diffdpo.encoders.wavlm import (
    GatedAttention,
    PositionalConv,
    WavLM,
    WavLMConfig,
    conv_layers,
    distance_classes,
    published_config,
    valid_frames,
)
from diffdpo.errors import DataError

TINY = WavLMConfig(
    conv_layers=((8, 10, 5), *4 * ((8, 3, 2),), *2 * ((8, 2, 2),)),
    layers=2,
    dim=16,
    feedforward=32,
    heads=2,
    position_width=8,
    position_groups=4,
)


@pytest.fixture(scope="module")
def network() -> WavLM:
    torch.manual_seed(0)
    return WavLM(TINY).eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_all_layers_have_a_frame_every_20_ms(network):
    heard = network(noise(2, 16_000), torch.tensor([16_000, 8_000]))
    assert [tuple(layer.shape) for layer in heard.layers] == 3 * [(2, 49, 16)]
    assert all(layer.isfinite().all() for layer in heard.layers)
    assert heard.valid.sum(1).tolist() == [49, 25]


@pytest.mark.parametrize(("length", "frames"), [(1, 1), (320, 1), (321, 2), (159_360, 498), (160_000, 499)])
def test_a_frame_is_valid_from_its_first_sample_on(length, frames):
    valid = valid_frames(torch.tensor([length]), 160_000, 499)
    assert valid.sum() == frames
    assert valid[0, :frames].all()


def test_what_lies_behind_the_end_is_not_heard(network):
    samples, lengths = noise(2, 6_400), torch.tensor([6_400, 3_000])
    other = samples.clone()
    other[1, 3_000:] = 7.0
    for one, two in zip(network(samples, lengths).layers, network(other, lengths).layers, strict=True):
        assert torch.equal(one, two)


def test_frames_that_are_padding_change_no_other(network):
    features, padding = noise(1, 30, 16), 100 * noise(1, 12, 16)
    alone = network.encoder(features, torch.ones(1, 30, dtype=torch.bool))
    padded = network.encoder(torch.cat([features, padding], 1), (torch.arange(42) < 30)[None])
    for one, two in zip(alone, padded, strict=True):
        assert same(one, two[:, :30])


def test_an_item_is_heard_alike_alone_and_in_a_batch(network):
    samples, lengths = noise(3, 8_000), torch.tensor([8_000, 500, 4_321])
    together = network(samples, lengths)
    for i in range(3):
        alone = network(samples[i : i + 1], lengths[i : i + 1])
        assert all(same(a[0], b[i]) for a, b in zip(alone.layers, together.layers, strict=True))


def test_level_is_lost_in_the_first_layer(network):
    quiet, loud = (network(gain * noise(1, 6_400), torch.tensor([6_400])).layers[-1] for gain in (1.0, 8.0))
    assert torch.allclose(quiet, loud, atol=1e-2)
    assert not torch.allclose(
        quiet, network(noise(1, 6_400, seed=1), torch.tensor([6_400])).layers[-1], atol=0.1
    )


def test_distances_are_single_up_to_80_frames_then_grow_with_the_logarithm():
    classes = distance_classes(1_000, 320, 800)
    before, after = classes[:, 0], classes[0]  # keys before the query at 0, 1, …; and behind it
    assert before[:81].tolist() == list(range(81))
    assert before[800:].unique().tolist() == [159]
    assert torch.equal(after[1:], before[1:] + 160)
    assert (before.diff() >= 0).all()
    assert before[253] == 80 + 40  # half way on the logarithm from 80 to 800
    assert torch.equal(classes[:50, :50], classes[50:100, 50:100])


@pytest.mark.parametrize("width", [7, 8])
def test_the_convolution_of_positions_is_torchs_weight_norm(width):
    config = WavLMConfig(dim=16, heads=2, position_groups=4, position_width=width)
    conv = weight_norm(nn.Conv1d(16, 16, width, padding=width // 2, groups=4), dim=2)
    ours = PositionalConv(config)
    lengths = torch.rand(1, 1, width)
    ours.weight_g.data, ours.weight_v.data = lengths, conv.parametrizations.weight.original1.data
    ours.bias.data, conv.parametrizations.weight.original0.data = conv.bias.data, lengths
    x = noise(1, 16, 30)
    assert same(ours(x), conv(x)[..., :30])


def test_attention_without_content_follows_the_gated_positions():
    """One head, no queries: the weights are softmax(gate * bias), the gate 2 + u (r a - 1) as worked out here."""
    attention = GatedAttention(WavLMConfig(dim=4, heads=1, position_groups=1), owns_table=False)
    for parameter in attention.parameters():
        nn.init.zeros_(parameter)
    for linear in (attention.v_proj, attention.out_proj):
        nn.init.eye_(linear.weight)
    attention.grep_linear.bias.data = torch.tensor([0.5, 0.5, 0.0, 0.0, 1.0, 1.0, 1.0, -1.0])
    attention.grep_a.data.fill_(3.0)
    update, reset = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    gate = 2 + update * (reset * 3 - 1)
    x, bias = noise(1, 5, 4), noise(1, 5, 5, seed=1)
    valid = torch.tensor([[True, True, True, True, False]])
    weights = (gate * bias[0, :, :4]).softmax(1)
    assert same(attention(x, bias, valid)[0], weights @ x[0, :4])


def test_the_published_names_are_understood():
    assert published_config({}) == WavLMConfig()
    assert conv_layers("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2") == WavLMConfig().conv_layers
    found = published_config({"encoder_embed_dim": 32, "encoder_attention_heads": 4, "mask_prob": 0.8})
    assert (found.dim, found.heads, found.layers) == (32, 4, 12)


@pytest.mark.parametrize(
    ("published", "reason"),
    [
        ({"layer_norm_first": True}, "layer_norm_first=True is not supported"),
        ({"conv_feature_layers": "[(32,10,5)] + os.exit()"}, "is not like"),
        ({"encoder_embed_dim": 30, "encoder_attention_heads": 4}, "no multiple of heads=4"),
        ({"encoder_layers": "many", "num_bucket": 1, "encoder_embed_dim": None}, "no WavLM has these sizes"),
    ],
)
def test_another_kind_is_refused(published, reason):
    with pytest.raises(DataError, match=reason.replace("(", r"\(")):
        published_config(published)
