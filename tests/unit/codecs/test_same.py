"""SAME in windows against diffusers' autoencoder on whole songs."""

import pytest
import torch
from safetensors.torch import save_file
from support.model_contract import distance, draw, one_line_error
from support.stable_audio3 import CHANNELS, SAME_SIZES, same

from diffdpo.codecs.same import build_same, load_same, same_receptive_frames
from diffdpo.errors import CheckpointError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("same")
    same().save_pretrained(path)
    return path


@pytest.mark.parametrize("frames", [3, 130, 300])
@torch.no_grad()
def test_windows_decode_and_encode_as_the_whole_song(folder, frames):
    codec, whole = load_same(folder), same()
    latents = draw(1, frames, CHANNELS)
    sound = codec.decode(latents)
    assert distance(sound, whole.decode(latents.transpose(1, 2)).sample) <= 1e-5
    again = codec.encode(sound[..., :-5])
    assert distance(again, whole.encode(sound[..., :-5]).latents.transpose(1, 2)) <= 1e-5


def test_long_songs_are_never_in_one_window(folder):
    codec, lengths = load_same(folder), []
    codec.module.decoder.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[-1]))
    codec.decode(draw(1, 1000, CHANNELS))
    assert max(lengths) <= 128


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"encoder_c_mults": [2, 4], "encoder_strides": [2, 4], "encoder_transformer_depths": [1, 3]},
        {"sliding_window": 2},
    ],
)
def test_the_receptive_frames_are_those_that_matter(sizes):
    """A change of one frame reaches so far and no further, in both directions."""
    from diffusers import AutoencoderSAME
    from support.stable_audio3 import draw_zeros

    torch.manual_seed(0)
    module = draw_zeros(AutoencoderSAME(**SAME_SIZES | sizes))
    reach, place, hop = same_receptive_frames(module.config), 30, module.downsampling_ratio
    for direction in ("decode", "encode"):
        shape = (1, CHANNELS, 60) if direction == "decode" else (1, 2, 60 * hop)
        value = draw(*shape)
        changed = value.clone()
        width = 1 if direction == "decode" else hop
        changed[..., place * width : (place + 1) * width] += 1
        with torch.no_grad():
            one, two = (getattr(module, direction)(v, return_dict=False)[0] for v in (value, changed))
        moved = (one - two).abs().reshape(one.shape[1], 60, -1).amax((0, 2)).nonzero().squeeze(1)
        assert reach >= max(place - int(moved.min()), int(moved.max()) - place) >= reach - 1


def test_other_weights_are_refused_in_one_line(folder, tmp_path):
    with one_line_error("misshapen", CheckpointError):
        build_same(SAME_SIZES | {"dim_heads": 16, "ff_mult": 2}, same().state_dict(), "here")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderOobleck"}')
    save_file({"a": torch.ones(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with one_line_error("not an AutoencoderSAME", CheckpointError):
        load_same(tmp_path)
