"""The network of Stable Audio 3 against diffusers' own, song by song; padding, gradients, sizes."""

import pytest
import torch
from support.model_contract import distance, draw
from support.stable_audio3 import CHANNELS, SIZES, TEXT, dit

from diffdpo.models.stable_audio3.network import StableAudio3DiTModel

FRAMES, TOKENS = (40, 23, 9), (9, 4, 1)


def ours(published):
    network = StableAudio3DiTModel.from_config(published.config)
    network.load_state_dict(published.state_dict())
    return network.eval()


def inputs(present=1.0):
    """Three songs, NaN behind the end of each; kept frames in the first two."""
    frames, length = torch.tensor(FRAMES), max(FRAMES)
    inside = torch.arange(length) < frames[:, None]
    keep = torch.zeros(3, length, dtype=torch.bool)
    keep[0, 5:15], keep[1, :7] = True, True
    local = torch.cat([keep[..., None].float(), draw(3, length, CHANNELS, seed=5) * keep[..., None]], -1)
    local = torch.cat([local, torch.full((3, length, 1), present)], -1)
    x = draw(3, length, CHANNELS)
    return {
        "x": x.where(inside[..., None], torch.nan),
        "t": torch.tensor([0.3, 0.8, 0.55]),
        "text": draw(3, 9, TEXT, seed=1),
        "text_mask": torch.arange(9) < torch.tensor(TOKENS)[:, None],
        "duration": draw(3, TEXT, seed=2),
        "local": local.where(inside[..., None], torch.nan),
        "frames": frames,
    }


@torch.no_grad()
def published_alone(network, batch, i, local=True):
    """Diffusers' answer for one song, without any padding of frames."""
    end = FRAMES[i]
    song = {name: tensor[i : i + 1] for name, tensor in batch.items()}
    return network(
        song["x"][:, :end].transpose(1, 2), song["t"], song["text"], song["duration"], song["text_mask"],
        local_add_cond=song["local"][:, :end, :-1].transpose(1, 2) if local else None, return_dict=False,
    )[0].transpose(1, 2)[0]  # fmt: skip


@pytest.mark.parametrize("differential", [True, False])
@pytest.mark.parametrize("local", [True, False])
def test_a_song_in_a_padded_batch_is_diffusers_answer_for_it_alone(differential, local):
    network = dit(differential)
    batch = inputs(present=float(local))
    with torch.no_grad():
        together = ours(network)(**batch)
    for i, end in enumerate(FRAMES):
        assert distance(together[i, :end], published_alone(network, batch, i, local)) <= 1e-5
        assert not together[i, end:].any()


def test_diffusers_batch_is_another_answer():
    """What the mask is for: a song's frames see the padding behind another."""
    network, batch = dit(), inputs()
    names = ("t", "text", "duration", "text_mask")
    x = batch["x"].nan_to_num().transpose(1, 2)
    with torch.no_grad():
        together = network(x, *(batch[name] for name in names), return_dict=False)[0].transpose(1, 2)
    alone = published_alone(network, batch, 1, local=False)
    assert distance(together[1, :23], alone) > 0.05


def test_the_gradient_of_a_padded_batch_is_that_of_its_songs():
    network = ours(dit()).requires_grad_(True)
    batch = inputs()
    network(**batch).square().sum().backward()
    together = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    for i, end in enumerate(FRAMES):
        song = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        song |= {name: song[name][:, :end] for name in ("x", "local")}
        network(**song).square().sum().backward()
    scale = max(float(p.grad.abs().max()) for p in network.parameters())
    for name, parameter in network.named_parameters():
        assert (parameter.grad - together[name]).abs().max() <= 1e-5 * scale, name


def test_positions_of_a_network_in_bf16_are_not_rounded():
    """The rotation is computed in fp32: the angle of position p is p, p / 10^k, … as in closed form."""
    network = ours(dit()).to(torch.bfloat16)
    angles = network._angles(1000, torch.device("cpu"))
    assert angles.dtype == torch.float32
    assert torch.equal(angles[:, 0], torch.arange(1000.0))
    assert angles[999, 1] == pytest.approx(999 / 100, rel=1e-6)


SMALL = {"embed_dim": 1024, "depth": 20, "num_heads": 16, "use_differential_attention": False}


@pytest.mark.parametrize(
    ("sizes", "whole", "bare"), [({}, 1453, 1387), (SMALL, 459, 433)], ids=["medium", "small"]
)
def test_the_published_sizes_have_the_published_numbers_of_parameters(sizes, whole, bare):
    """1,453 M with the in-painting inputs of the blocks for medium, 433 M without them for small."""
    with torch.device("meta"):
        network = StableAudio3DiTModel(**sizes)
    counts = {name: p.numel() / 1e6 for name, p in network.named_parameters()}
    inputs = sum(count for name, count in counts.items() if "to_local_embed" in name)
    assert sum(counts.values()) == pytest.approx(whole, abs=0.5)
    assert sum(counts.values()) - inputs == pytest.approx(bare, abs=0.5)


def test_sizes_that_cannot_be_built_are_refused():
    for change in ({"patch_size": 2}, {"local_add_cond_dim": 5}, {"num_heads": 3}):
        with pytest.raises(ValueError, match=next(iter(change))):
            StableAudio3DiTModel(**SIZES | change)
