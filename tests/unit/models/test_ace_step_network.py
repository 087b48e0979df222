"""ACE-Step's masked forward against diffusers' own on each song alone."""

import pytest
import torch
from diffusers import AceStepTransformer1DModel as Published
from support.ace_step import network
from support.model_contract import distance, draw

CHANNELS, WIDTH = 8, 32


@pytest.fixture(scope="module")
def ours():
    return network()


@pytest.fixture(scope="module")
def published(ours):
    net = Published.from_config(ours.config).eval()
    net.load_state_dict(ours.state_dict())
    return net


def inputs(frames, tokens, seed=0):
    length, width = max(frames), max(tokens)
    return {
        "x": draw(len(frames), length, CHANNELS, seed=seed),
        "t": torch.linspace(0.1, 0.9, len(frames)),
        "encoder": draw(len(frames), width, WIDTH, seed=seed + 1),
        "tokens": torch.tensor(tokens),
        "context": draw(len(frames), length, 2 * CHANNELS, seed=seed + 2),
        "frames": torch.tensor(frames),
    }


def alone(net, row, batch):
    frames, tokens = int(batch["frames"][row]), int(batch["tokens"][row])
    t = batch["t"][row : row + 1]
    return net(
        batch["x"][row : row + 1, :frames],
        t,
        t,
        batch["encoder"][row : row + 1, :tokens],
        batch["context"][row : row + 1, :frames],
        return_dict=False,
    )[0][0]


@torch.no_grad()
@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (2, 9), (23, 5), (40, 12), (64, 3)])
def test_one_unpadded_song_is_diffusers_own_forward(ours, published, frames, tokens):
    for seed in range(3):
        batch = inputs([frames], [tokens], seed=10 * seed)
        assert distance(ours(**batch)[0], alone(published, 0, batch)) <= 1e-6


@torch.no_grad()
@pytest.mark.parametrize(
    ("frames", "tokens"),
    [
        ((40, 23), (12, 5)),
        ((9, 40, 1), (3, 3, 3)),
        ((40, 40), (12, 1)),
        ((39, 38), (7, 7)),
        ((64, 3, 17), (2, 11, 30)),
    ],
)
def test_each_song_of_a_padded_batch_is_diffusers_own_forward(ours, published, frames, tokens):
    for seed in range(2):
        batch = inputs(frames, tokens, seed=10 * seed)
        for name, counts in (("x", frames), ("context", frames), ("encoder", tokens)):
            if name == "encoder":
                continue
            for row, count in enumerate(counts):
                batch[name][row, count:] = torch.nan
        v = ours(**batch)
        for row, count in enumerate(frames):
            assert distance(v[row, :count], alone(published, row, batch)) <= 1e-5
            assert not v[row, count:].any()


@torch.no_grad()
def test_without_masks_the_batch_would_be_another(published):
    """What the masks are for: diffusers' own forward of a padded batch is far off its songs alone."""
    batch = inputs((40, 23), (12, 5))
    t = batch["t"]
    padded = published(batch["x"], t, t, batch["encoder"], batch["context"], return_dict=False)[0]
    assert distance(padded[1, :23], alone(published, 1, batch)) > 0.05


def test_the_config_names_diffusers_own_class(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    back = Published.from_pretrained(tmp_path)
    assert back.state_dict().keys() == ours.state_dict().keys()


@pytest.mark.parametrize(
    ("sizes", "billions"),
    [
        ({}, 1.575),
        (
            {
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "encoder_hidden_size": 2048,
            },
            4.17,
        ),
    ],
    ids=["2b", "xl"],
)
def test_published_sizes(sizes, billions):
    """On the meta device: names, shapes and number of parameters of the published networks."""
    with torch.device("meta"):
        net = type(network()).from_config({**sizes})
    parameters = sum(p.numel() for p in net.parameters())
    assert parameters == pytest.approx(billions * 1e9, rel=2e-3)
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    hidden, layers = net.config.hidden_size, net.config.num_hidden_layers
    assert shapes["proj_in_conv.weight"] == (hidden, 192, 2)
    assert shapes["proj_out_conv.weight"] == (hidden, 64, 2)
    assert shapes["condition_embedder.weight"] == (hidden, 2048)
    assert shapes[f"layers.{layers - 1}.scale_shift_table"] == (1, 6, hidden)
    assert shapes["layers.0.cross_attn.to_k.weight"] == (1024, hidden)
    targets = [name for name in shapes if ".to_" in name and name.endswith("weight")]
    assert len(targets) == 8 * layers
