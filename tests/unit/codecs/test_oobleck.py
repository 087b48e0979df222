"""Both forms of DiffRhythm's VAE: the same value, the same latents in windows as in one piece."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderOobleck
from safetensors.torch import load_file, save_file
from torch import nn

from diffdpo.codecs.oobleck import (
    decoder_receptive_frames,
    encoder_receptive_frames,
    load_vae,
    of_oobleck,
    torchscript,
)
from diffdpo.errors import CheckpointError, DataError
from diffdpo.models import MODELS
from diffdpo.types import Clip
from diffdpo.windows import Chunks

HOP = 32


def tiny(strides=(4, 8), channels=8):
    torch.manual_seed(0)
    return AutoencoderOobleck(
        encoder_hidden_size=2 * channels, downsampling_ratios=list(strides), channel_multiples=[1, 2],
        decoder_channels=4, decoder_input_channels=channels,
    ).eval()  # fmt: skip


class Published(nn.Module):
    """The interface of the published archive around convolutions of our own."""

    def __init__(self, hop=HOP, channels=8):
        super().__init__()
        self.down = nn.Conv1d(2, 2 * channels, hop, stride=hop)
        self.up = nn.ConvTranspose1d(channels, 2, 3 * hop, stride=hop, padding=hop)

    def encode_export(self, audio):
        return self.down(audio)

    def decode_export(self, latents):
        return self.up(latents)


def write_archive(path, module, **examples):
    examples = examples or {
        "encode_export": torch.zeros(1, 2, 4 * HOP),
        "decode_export": torch.zeros(1, 8, 4),
    }
    torch.jit.trace_module(module, examples).save(str(path))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    torch.manual_seed(1)
    folder, module = tmp_path_factory.mktemp("vae"), Published()
    return write_archive(folder / "vae_model.pt", module), module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("oobleck")
    tiny().save_pretrained(path)
    return path


def noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


def touched(output, start, stop, unit):
    """How many units of `unit` outputs differ from zero before `start` and behind `stop`, both in units."""
    places = output.abs().sum((0, 1)).nonzero().flatten() // unit
    return max(start - int(places.min()), int(places.max()) - stop)


@pytest.mark.parametrize("strides", [(4, 8), (2, 4), (2, 2), (8, 6)])
@torch.no_grad()
def test_the_reach_is_what_a_change_of_one_frame_shows(strides):
    vae, hop, length, at = tiny(strides).double(), math.prod(strides), 81, 40
    latents = noise(1, 8, length, dtype=torch.float64)
    other = latents.clone()
    other[..., at] += 1
    assert touched(vae.decoder(latents) - vae.decoder(other), at, at, hop) == decoder_receptive_frames(
        strides
    )
    audio = noise(1, 2, length * hop, dtype=torch.float64)
    other = audio.clone()
    other[..., at * hop : (at + 1) * hop] += 1
    assert touched(vae.encoder(audio) - vae.encoder(other), at, at, 1) == encoder_receptive_frames(strides)


def test_the_published_strides_fit_the_published_overlap():
    """10 and 8 frames, sixteen are thrown away: the original's hard cut is inaudible for a reason."""
    assert (decoder_receptive_frames((2, 4, 4, 8, 8)), encoder_receptive_frames((2, 4, 4, 8, 8))) == (10, 8)


@torch.no_grad()
def test_in_windows_as_in_one_piece():
    module = tiny()
    vae, latents, audio = of_oobleck(module), noise(2, 400, 8), noise(2, 2, 400 * HOP)
    assert len(vae.chunks.windows(400)) > 3
    sound = module.decoder(latents.transpose(1, 2))
    assert (vae.decode(latents) - sound).abs().max() < 1e-4 * sound.abs().max()
    mean = module.encode(audio).latent_dist.mean.transpose(1, 2)
    assert (vae.encode(audio) - mean).abs().max() < 1e-4 * mean.abs().max()


@torch.no_grad()
def test_with_too_little_context_the_joins_are_heard():
    """Else the test above could not fail."""
    module = tiny()
    vae, latents = of_oobleck(module, "published"), noise(1, 400, 8)
    short = Chunks(size=128, overlap=4, fade=0)
    sound = module.decoder(latents.transpose(1, 2))
    heard = type(vae)(**{**vars(vae), "chunks": short}).decode(latents)
    assert (heard - sound).abs().max() > 1e-3 * sound.abs().max()


@torch.no_grad()
def test_pieces_are_bounded_and_make_up_the_song():
    vae, latents = of_oobleck(tiny()), noise(1, 700, 8)
    pieces = list(vae.decode_chunks(latents))
    assert max(piece.shape[-1] for piece in pieces) <= vae.chunks.size * HOP
    assert torch.equal(torch.cat(pieces, -1), vae.decode(latents))


@torch.no_grad()
def test_the_last_frame_is_filled_with_silence():
    vae, audio = of_oobleck(tiny()), noise(1, 2, 10 * HOP + 5)
    padded = F.pad(audio, (0, HOP - 5))
    assert vae.encode(audio).shape == (1, 11, 8)
    assert torch.equal(vae.encode(audio), vae.encode(padded))


def test_an_archive_tells_its_sizes_and_computes_what_its_module_does(archive):
    path, module = archive
    vae = load_vae(str(path))
    assert (vae.channels, vae.samples_per_frame, vae.sample_rate) == (8, HOP, 44100)
    audio, latents = noise(2, 2, 300 * HOP), noise(2, 300, 8)
    with torch.no_grad():
        parameters, sound = module.encode_export(audio), module.decode_export(latents.transpose(1, 2))
    mean, std = vae.posterior(audio)
    assert torch.allclose(mean, parameters[:, :8].transpose(1, 2), atol=1e-6)
    assert torch.allclose(std, (1 + parameters[:, 8:].exp()).log().transpose(1, 2) + 1e-4, atol=1e-6)
    assert torch.allclose(vae.decode(latents), sound, atol=1e-6)
    assert not vae.decode(latents).requires_grad


def test_the_published_join_is_the_published_algorithm(tmp_path):
    """Chunks of 128 frames every 96 and one at the end; each gives way sixteen frames into the next."""

    class Position(nn.Module):
        """Sound that tells where in its window it stands: every join shows."""

        def encode_export(self, audio):
            return audio.reshape(1, 2, -1, HOP).mean(3).repeat(1, 8, 1)

        def decode_export(self, latents):
            places = torch.ones_like(latents).cumsum(-1)[:, :2]
            return places.repeat_interleave(HOP, -1)

    vae = torchscript(write_archive(tmp_path / "vae_model.pt", Position()), "published")
    expected = torch.zeros(300)
    for start, first in ((0, 0), (96, 112), (172, 188)):  # a later chunk overwrites what stood there
        expected[first : start + 128] = torch.arange(first - start, 128) + 1.0
    assert torch.equal(vae.decode(torch.zeros(1, 300, 8))[0, 0, ::HOP], expected)


def test_all_places_where_a_vae_can_be(archive, folder, tmp_path):
    latents = noise(1, 20, 8)
    by_file, by_folder = load_vae(str(archive[0])), load_vae(str(archive[0].parent))
    assert torch.equal(by_file.decode(latents), by_folder.decode(latents))
    (tmp_path / "vae").symlink_to(folder)  # the layout of Stable Audio Open
    inside, alone = load_vae(str(tmp_path)), load_vae(str(folder))
    assert torch.equal(inside.decode(latents), alone.decode(latents))
    with torch.no_grad():
        assert torch.allclose(alone.decode(latents), tiny().decoder(latents.transpose(1, 2)), atol=1e-6)
    with pytest.raises(DataError, match="no such file or folder, and not a hub id; expected the VAE"):
        load_vae("./nowhere")


def test_what_is_no_vae_is_refused(bundle, folder, tmp_path):
    with pytest.raises(CheckpointError, match="not an AutoencoderOobleck but 'DiffRhythmTransformer'"):
        load_vae(str(bundle / "network"))
    (tmp_path / "vae_model.pt").write_bytes(b"\0nothing")
    with pytest.raises(CheckpointError, match="not a TorchScript archive"):
        load_vae(str(tmp_path))
    other = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    other.save(str(tmp_path / "vae_model.pt"))
    with pytest.raises(CheckpointError, match="has no encode_export"):
        load_vae(str(tmp_path))
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    state["decoder.extra"] = state.pop("decoder.conv1.bias")
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"1 missing, first decoder.conv1.bias .*; 1 unexpected, first"):
        load_vae(str(tmp_path))


def test_sizes_that_give_no_whole_frames_or_no_scales_are_refused(tmp_path):
    class MeansOnly(Published):
        def encode_export(self, audio):
            return self.down(audio)[:, :8]

    class Mono(Published):
        def decode_export(self, latents):
            return self.up(latents)[:, :1]

    with pytest.raises(CheckpointError, match=r"cannot encode and decode stereo audio .*4 channels"):
        torchscript(write_archive(tmp_path / "means.pt", MeansOnly()))
    with pytest.raises(
        CheckpointError, match=r"encoded as \(1, 16, 1024\), and .* decoded as \(1, 1, 32768\)"
    ):
        torchscript(write_archive(tmp_path / "mono.pt", Mono()))
    with pytest.raises(CheckpointError, match="odd ones"):
        of_oobleck(tiny((3, 4)))
    lopsided = AutoencoderOobleck(
        encoder_hidden_size=16, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_input_channels=4
    )
    with pytest.raises(
        CheckpointError, match="encoder_hidden_size=16 must be twice decoder_input_channels=4"
    ):
        of_oobleck(lopsided)


def test_a_checkpoint_with_a_vae_can_be_heard(bundle, folder, tmp_path):
    model = MODELS["diffrhythm"](network=str(bundle / "network"), vae=str(folder)).load()
    assert model.spec.frames_per_second == pytest.approx(44100 / HOP)
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 8000)).astype(np.float32)
    latents = model.encode(Clip(samples=sound, sample_rate=22050))  # 16,000 stereo samples at 44.1 kHz
    assert latents.shape == (500, 8)
    heard = model.decode(latents)
    assert heard.samples.shape == (2, 16000)
    assert heard.sample_rate == 44100
    tiny(channels=4).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["decoder_input_channels"] == 4
    with pytest.raises(CheckpointError, match="a VAE of 4 channels, the network has 8"):
        MODELS["diffrhythm"](network=str(bundle / "network"), vae=str(tmp_path)).load()
