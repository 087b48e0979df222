"""DiffRhythm's variational autoencoder between stereo audio and 64 channels at 21.5 frames a second.

The autoencoder is the Oobleck of Stable Audio Open, with a decoder trained further, in two forms: the published
TorchScript archive `vae_model.pt`, and folders of diffusers' `AutoencoderOobleck`. Both load as a `Vae`: two
functions on one window, and the chunking around them. The latents are not scaled.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderOobleck
from jaxtyping import Float
from torch import Tensor, nn

from diffdpo.devices import choose_device
from diffdpo.errors import CheckpointError, plain, reason
from diffdpo.gradient_checkpoints import checkpoint_call
from diffdpo.hub import Published, find_weights
from diffdpo.runs import read_json
from diffdpo.weight_files import WEIGHTS, assign, check_weights_file, read_tensors, unreadable
from diffdpo.windows import CUTS, Chunks, assemble, chunks_for_context, stream

VAE_SAMPLE_RATE = 44100
"""The sample rate of a TorchScript archive, which does not hold it."""
STD_FLOOR = 1e-4
LICENSE = "Stability AI Community License"
TORCHSCRIPT = Published(name="the VAE of DiffRhythm", repo="ASLP-lab/DiffRhythm-vae", license=LICENSE)
OOBLECK = Published(
    name="the VAE of Stable Audio Open", repo="stabilityai/stable-audio-open-1.0", license=LICENSE
)
ARCHIVE = "vae_model.pt"
SUBFOLDER = "vae"

ReadAudio = Callable[[int, int], Float[Tensor, "batch 2 _"]]
"""The samples of a song from start to stop."""
Join = Literal["cross_fade", "published"]


@dataclass(frozen=True, kw_only=True)
class Vae:
    """A Gaussian autoencoder that encodes and decodes long songs chunk by chunk."""

    analyse: Callable[[Float[Tensor, "batch 2 sample"]], Float[Tensor, "batch parameter frame"]]
    """Audio to means and, in the second half of the channels, scales; the standard deviation is softplus(scale) +
    1e-4."""
    synthesise: Callable[[Float[Tensor, "batch channel frame"]], Float[Tensor, "batch 2 sample"]]
    module: nn.Module
    """The weights of both functions, moved to the GPU, if there is one, on first use."""
    channels: int
    samples_per_frame: int
    sample_rate: int
    chunks: Chunks

    @property
    def frames_per_second(self) -> float:
        return self.sample_rate / self.samples_per_frame

    def encode(
        self, audio: Float[Tensor, "batch 2 sample"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch frame channel"]:
        """Latents of a song: a sample of the posterior drawn from `generator`, the mean without one. The last frame
        is padded with silence."""
        return self.encode_windows(lambda start, stop: audio[..., start:stop], audio.shape[-1], generator)

    def encode_windows(
        self, read: ReadAudio, samples: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch frame channel"]:
        """`encode` of a song of so many samples that is read window by window: `read(start, stop)`."""
        mean, deviation = self._posterior(read, samples)
        return mean if generator is None else mean + deviation * torch.randn(mean.shape, generator=generator)

    def posterior(
        self, audio: Float[Tensor, "batch 2 sample"]
    ) -> tuple[Float[Tensor, "batch frame channel"], Float[Tensor, "batch frame channel"]]:
        """Mean and standard deviation of the latents; mean + deviation * noise, as published, is a sample."""
        return self._posterior(lambda start, stop: audio[..., start:stop], audio.shape[-1])

    def _posterior(
        self, read: ReadAudio, samples: int
    ) -> tuple[Float[Tensor, "batch frame channel"], Float[Tensor, "batch frame channel"]]:
        device, hop = self._place(), self.samples_per_frame
        length = -(-samples // hop)

        @torch.no_grad()
        def run(start: int, stop: int) -> Tensor:
            window = read(start * hop, min(stop * hop, samples)).to(device)
            return self.analyse(F.pad(window, (0, (stop - start) * hop - window.shape[-1])))

        parameters = assemble(stream(run, length, self.chunks), length).transpose(1, 2)
        mean, scale = parameters.chunk(2, -1)
        return mean, F.softplus(scale) + STD_FLOOR

    def decode(
        self, latents: Float[Tensor, "batch frame channel"], *, first_frame: int = 0
    ) -> Float[Tensor, "batch 2 sample"]:
        """The whole sound, on the CPU. `first_frame`, its place in the song, changes nothing for a VAE."""
        return assemble(self.decode_chunks(latents), latents.shape[1] * self.samples_per_frame)

    def decode_chunks(self, latents: Float[Tensor, "batch frame channel"]) -> Iterator[Tensor]:
        """The sound chunk by chunk, [batch, 2, sample] each, for songs larger than memory."""
        device = self._place()

        @torch.no_grad()
        def run(start: int, stop: int) -> Tensor:
            return self.synthesise(latents[:, start:stop].transpose(1, 2).float().to(device))

        return stream(run, latents.shape[1], self.chunks, per_frame=self.samples_per_frame)

    def decode_with_gradients(
        self, latents: Float[Tensor, "batch frame channel"], *, first_frame: int = 0
    ) -> Float[Tensor, "batch 2 sample"]:
        """`decode` that gradients pass through, with the activations of a window in memory."""
        device = self._place()

        def synthesise(window: Tensor) -> Tensor:
            return self.synthesise(window.transpose(1, 2).float().to(device))

        def run(start: int, stop: int) -> Tensor:
            return checkpoint_call(synthesise, latents[:, start:stop])

        pieces = stream(run, latents.shape[1], self.chunks, per_frame=self.samples_per_frame)
        return assemble(pieces, latents.shape[1] * self.samples_per_frame)

    def _place(self) -> torch.device:
        device = choose_device()
        nn.Module.to(self.module, device)
        return device


def load_vae(location: str, *, join: Join = "cross_fade") -> Vae:
    """The VAE at `location`: an archive, a folder of either form or with a `vae` folder in it, or a hub id.

    CheckpointError or DataError for anything else.
    """
    folder = Path(location)
    for vae_folder in (folder, folder / SUBFOLDER):
        if (vae_folder / "config.json").is_file() and (vae_folder / WEIGHTS).is_file():
            return oobleck(vae_folder, join)
    if location == OOBLECK.repo:
        find_weights(OOBLECK, location, f"{SUBFOLDER}/{WEIGHTS}", accept_noncommercial=False)
        config = find_weights(OOBLECK, location, f"{SUBFOLDER}/config.json", accept_noncommercial=False)
        return oobleck(config.parent, join)
    return torchscript(find_weights(TORCHSCRIPT, location, ARCHIVE, accept_noncommercial=False), join)


def oobleck(folder: Path, join: Join = "cross_fade") -> Vae:
    """A VAE from a folder in diffusers' form: config.json and safetensors, strictly loaded."""
    config = read_json(folder / "config.json")
    if config.get("_class_name") != AutoencoderOobleck.__name__:
        raise CheckpointError(f"{folder}: not an AutoencoderOobleck but {config.get('_class_name')!r}")
    with torch.device("meta"):
        vae = AutoencoderOobleck.from_config(config)
    assign(vae, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS), torch.float32)
    return of_oobleck(vae, join)


def of_oobleck(vae: AutoencoderOobleck, join: Join = "cross_fade") -> Vae:
    """A VAE from a module. With `cross_fade` the windows overlap by the receptive frames of its strides."""
    config, strides = vae.config, tuple(vae.config.downsampling_ratios)
    if any(stride % 2 for stride in strides):
        raise CheckpointError(f"downsampling ratios {strides}: odd ones do not give whole frames")
    if config.encoder_hidden_size != 2 * config.decoder_input_channels or config.audio_channels != 2:
        raise CheckpointError(
            f"encoder_hidden_size={config.encoder_hidden_size} must be twice "
            f"decoder_input_channels={config.decoder_input_channels}, audio_channels={config.audio_channels} two"
        )
    chunks = CUTS[join]
    if join == "cross_fade":
        chunks = chunks_for_context(max(encoder_receptive_frames(strides), decoder_receptive_frames(strides)))
    return Vae(
        analyse=vae.encoder,
        synthesise=vae.decoder,
        module=vae.eval().requires_grad_(False),
        channels=config.decoder_input_channels,
        samples_per_frame=math.prod(strides),
        sample_rate=config.sampling_rate,
        chunks=chunks,
    )


def torchscript(path: Path, join: Join = "cross_fade") -> Vae:
    """A VAE from the published form: an archive with methods encode_export and decode_export.

    Sizes are measured by a trial run. The receptive frames are not: the default chunks have a context of 12 frames
    on either side; the published strides need 10.
    """
    check_weights_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # nothing newer opens what was published
            script = torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise unreadable(path, f"not a TorchScript archive ({reason(error)})") from None
    for method in ("encode_export", "decode_export"):
        if not hasattr(script, method):
            raise CheckpointError(f"{path}: a TorchScript archive, but not of a VAE: it has no {method}")
    channels, hop = _sizes(script, path)
    return Vae(
        analyse=script.encode_export,
        synthesise=script.decode_export,
        module=script,
        channels=channels,
        samples_per_frame=hop,
        sample_rate=VAE_SAMPLE_RATE,
        chunks=CUTS[join],
    )


@torch.no_grad()
def _sizes(script: Any, path: Path, samples: int = 1 << 15) -> tuple[int, int]:
    """Latent channels and samples a frame, measured by encoding and decoding `samples` samples of silence."""
    try:
        shape = tuple(script.encode_export(torch.zeros(1, 2, samples)).shape)
        _, parameters, frames = shape
        decoded_shape = tuple(script.decode_export(torch.zeros(1, parameters // 2, frames)).shape)
    except (RuntimeError, ValueError, torch.jit.Error) as error:
        last_line = plain(str(error)).strip().splitlines()[-1]
        raise CheckpointError(f"{path}: cannot encode and decode stereo audio ({last_line})") from None
    if parameters % 2 or decoded_shape != (1, 2, samples):
        raise CheckpointError(
            f"{path}: {samples} samples are encoded as {shape}, and half of those channels decoded as "
            f"{decoded_shape}; expected means and scales of stereo audio"
        )
    return parameters // 2, samples // frames


DILATIONS = (1, 3, 9)
UNIT_CONTEXT = sum(3 * dilation for dilation in DILATIONS)
"""Samples on either side that three residual units with kernels of seven depend on."""


def decoder_receptive_frames(strides: Sequence[int]) -> int:
    """Latent frames on either side that the decoded samples of one frame depend on, by interval arithmetic."""
    low, high = -3, math.prod(strides) - 1 + 3
    for stride in strides:  # from the sound back to the latents; the decoder has them reversed
        low, high = low - UNIT_CONTEXT, high + UNIT_CONTEXT
        pad, kernel = math.ceil(stride / 2), 2 * stride
        low, high = -(-(low + pad - kernel + 1) // stride), (high + pad) // stride
    return max(3 - low, 3 + high)


def encoder_receptive_frames(strides: Sequence[int]) -> int:
    """Latent frames on either side whose samples one encoded frame depends on, by interval arithmetic."""
    low, high = -1, 1
    for stride in reversed(strides):
        pad, kernel = math.ceil(stride / 2), 2 * stride
        low, high = low * stride - pad - UNIT_CONTEXT, high * stride - pad + kernel - 1 + UNIT_CONTEXT
    hop = math.prod(strides)
    return max(-((low - 3) // hop), (high + 3) // hop)
