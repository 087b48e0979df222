"""A small song codec: band magnitudes of a stereo STFT to 64 latents at 21.5 Hz, and back to sound.

The geometry is that of DiffRhythm's VAE (44.1 kHz stereo, 2,048 samples a latent frame, 64 channels). The latents
code magnitudes only, square-root compressed, through a linear path (initialised to principal components) plus a
ConvNeXt correction. Long windows resolve pitch, short windows attacks, and both are coded: sound comes from the
magnitudes of long windows with initial phases (phase_init.py), and is then shaped in time to the levels of short
windows (bands.py). Every stage is local in time: a decoded sample depends on at most `receptive_frames` latent
frames on either side.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from diffdpo.codecs.bands import Bands, shape
from diffdpo.codecs.phase_init import Stft, griffin_lim, initial_phases
from diffdpo.gradient_checkpoints import checkpoint_call


class ConvNextBlock(nn.Module):
    """Depthwise convolution over time, then a pointwise MLP (Liu et al. 2022), with a residual."""

    def __init__(self, dim: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.up = nn.Linear(dim, expansion * dim)
        self.down = nn.Linear(expansion * dim, dim)

    def forward(self, x: Float[Tensor, "batch frame dim"]) -> Float[Tensor, "batch frame dim"]:
        h = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.gelu(self.up(self.norm(h))))


class SpectralCodec(ModelMixin, ConfigMixin):
    """Stereo audio <-> latents [batch, frame, channel]; a variational autoencoder on band magnitudes."""

    @register_to_config
    def __init__(  # noqa: PLR0913 - diffusers writes each argument into config.json
        self,
        sample_rate: int = 44100,
        samples_per_frame: int = 2048,
        latent_channels: int = 64,
        stft_size: int = 8192,
        stft_hop: int = 2048,
        linear_bands: int = 512,
        grouped_bands: int = 64,
        top_hz: float = 20000.0,
        dim: int = 384,
        encoder_depth: int = 3,
        decoder_depth: int = 4,
        encoder_kernel: int = 5,
        decoder_kernel: int = 5,
        expansion: int = 2,
        griffin_lim_iterations: int = 4,
        steady_frames: int = 9,
        attack_size: int = 1024,
        attack_hop: int = 256,
        attack_linear: int = 8,
        attack_grouped: int = 24,
    ) -> None:
        super().__init__()
        for hop in (stft_hop, attack_hop):
            if samples_per_frame % hop:
                raise ValueError(f"samples_per_frame={samples_per_frame} must be a multiple of the hop {hop}")
        self.stft = Stft(stft_size, stft_hop)
        self.bands = Bands.of(stft_size, sample_rate, linear_bands, grouped_bands, top_hz)
        self.attack_stft = Stft(attack_size, attack_hop)
        self.attack_bands = Bands.of(attack_size, sample_rate, attack_linear, attack_grouped, top_hz)
        self.tonal_features = 2 * (samples_per_frame // stft_hop) * len(self.bands.widths)
        attack_features = 2 * (samples_per_frame // attack_hop) * len(self.attack_bands.widths)
        self.features = features = self.tonal_features + attack_features
        self.linear_encode = nn.Linear(features, latent_channels)
        self.encoder_in = nn.Linear(features, dim)
        self.encoder = nn.Sequential(
            *[ConvNextBlock(dim, encoder_kernel, expansion) for _ in range(encoder_depth)]
        )
        self.encoder_out = nn.Linear(dim, 2 * latent_channels)
        self.linear_decode = nn.Linear(latent_channels, features)
        self.decoder_in = nn.Linear(latent_channels, dim)
        self.decoder = nn.Sequential(
            *[ConvNextBlock(dim, decoder_kernel, expansion) for _ in range(decoder_depth)]
        )
        self.decoder_out = nn.Linear(dim, features)
        for correction in (self.encoder_out, self.decoder_out):
            nn.init.zeros_(correction.weight)
            nn.init.zeros_(correction.bias)

    @property
    def frames_per_second(self) -> float:
        return self.config.sample_rate / self.config.samples_per_frame

    @property
    def receptive_frames(self) -> int:
        """Latent frames on either side that a decoded sample can depend on."""
        per_frame = self.config.samples_per_frame // self.config.stft_hop
        overlap = self.config.stft_size // self.config.stft_hop - 1
        convolutions = self.config.decoder_depth * (self.config.decoder_kernel // 2)
        # in STFT frames
        phases = overlap * self.config.griffin_lim_iterations + self.config.steady_frames // 2
        attack_frames = -(-_pad(self.attack_stft) // self.config.samples_per_frame)
        return convolutions + attack_frames + -(-(phases + -(-overlap // 2)) // per_frame)

    def analyse(self, audio: Float[Tensor, "batch 2 sample"]) -> Float[Tensor, "batch frame feature"]:
        """Features: square roots of the band magnitudes of mid and side, in whole latent frames, the last
        zero-padded."""
        audio = F.pad(audio, (0, -audio.shape[-1] % self.config.samples_per_frame))
        middle_side = torch.stack([audio.sum(1) / 2, (audio[:, 0] - audio[:, 1]) / 2], 1)
        sides = rearrange(middle_side, "batch side sample -> (batch side) sample")
        features = []
        for stft, bands in ((self.stft, self.bands), (self.attack_stft, self.attack_bands)):
            pad = _pad(stft)
            power = (stft.forward(F.pad(sides, (pad, pad))).abs() * (4 / stft.size)) ** 2
            features.append(
                rearrange(
                    bands.pool(power).sqrt(),
                    "(batch side) (frame step) band -> batch frame (step side band)",
                    side=2,
                    step=self.config.samples_per_frame // stft.hop,
                )
            )
        return torch.cat(features, -1)

    def synthesise(
        self,
        features: Float[Tensor, "batch frame feature"],
        *,
        first_frame: int = 0,
        constant_phases: bool = False,
    ) -> Float[Tensor, "batch 2 sample"]:
        """Sound with the band magnitudes of `features`. `first_frame` is the place of the first latent frame in its
        song; `constant_phases` see `griffin_lim`."""
        stft, pad = self.stft, _pad(self.stft)
        tonal = self._levels(features[..., : self.tonal_features], stft)
        magnitude = self.bands.spread(tonal, stft.size // 2 + 1)
        phases = initial_phases(
            magnitude,
            stft,
            first_frame=first_frame * (self.config.samples_per_frame // stft.hop),
            tonal_bins=self.config.linear_bands,
            steady_frames=self.config.steady_frames,
        )
        sides = griffin_lim(
            magnitude,
            phases,
            stft,
            iterations=self.config.griffin_lim_iterations,
            constant_phases=constant_phases,
        )
        attacks = self._levels(features[..., self.tonal_features :], self.attack_stft)
        sides = shape(sides[:, pad:-pad], attacks, self.attack_stft, self.attack_bands)
        middle, side = rearrange(sides, "(b side) sample -> side b sample", side=2)
        return torch.stack([middle + side, middle - side], 1)

    def _levels(
        self, features: Float[Tensor, "batch frame feature"], stft: Stft
    ) -> Float[Tensor, "batch2 step band"]:
        """Band levels: root mean squares of STFT magnitudes, mid and side of each song in turn."""
        steps = self.config.samples_per_frame // stft.hop
        roots = rearrange(
            features, "batch frame (step side band) -> (batch side) (frame step) band", side=2, step=steps
        )
        return roots.clamp(min=0) ** 2 * (stft.size / 4)

    def encode_features(
        self, features: Float[Tensor, "batch frame feature"]
    ) -> tuple[Float[Tensor, "batch frame channel"], Float[Tensor, "batch frame channel"]]:
        """Mean and log-variance of the latents."""
        correction, log_variance = self.encoder_out(self.encoder(self.encoder_in(features))).chunk(2, -1)
        return self.linear_encode(features) + correction, log_variance.clamp(-12, 4)

    def decode_features(
        self, latents: Float[Tensor, "batch frame channel"]
    ) -> Float[Tensor, "batch frame feature"]:
        return self.linear_decode(latents) + self.decoder_out(self.decoder(self.decoder_in(latents)))

    def encode(
        self,
        audio: Float[Tensor, "batch 2 sample"],
        generator: torch.Generator | None = None,
        *,
        chunk: int = 512,
    ) -> Float[Tensor, "batch frame channel"]:
        """Latents of stereo audio at the codec's sample rate, `chunk` frames at a time: a sample of the posterior
        drawn from `generator`, the mean without one."""
        read = lambda start, stop: audio[..., start:stop]  # noqa: E731
        return self.encode_windows(read, audio.shape[-1], generator, chunk=chunk)

    @torch.no_grad()
    def encode_windows(
        self,
        read: Callable[[int, int], Float[Tensor, "batch 2 _"]],
        samples: int,
        generator: torch.Generator | None = None,
        *,
        chunk: int = 512,
    ) -> Float[Tensor, "batch frame channel"]:
        """`encode` of a song of so many samples that is read window by window: `read(start, stop)`."""
        per_frame = self.config.samples_per_frame
        overlap = -(-_pad(self.stft) // per_frame)
        context = self.config.encoder_depth * (self.config.encoder_kernel // 2) + overlap
        length = -(-samples // per_frame)
        posterior: Float[Tensor, "2 batch frame channel"] | None = None
        for start in range(0, length, chunk):
            stop, first = min(start + chunk, length), max(0, start - context)
            window = read(first * per_frame, min((stop + context) * per_frame, samples))
            mean, log_variance = self.encode_features(self.analyse(window))
            if posterior is None:  # filled window by window: pieces to be joined would take twice the memory
                posterior = mean.new_empty(1 if generator is None else 2, len(mean), length, mean.shape[-1])
            for statistic, values in zip(posterior, (mean, log_variance), strict=False):
                statistic[:, start:stop] = values[:, start - first : stop - first]
        if posterior is None:
            raise ValueError("a sound without samples has no latents")
        mean = posterior[0]
        if generator is None:
            return mean
        log_variance = posterior[1]
        return mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=generator)

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "batch frame channel"], *, chunk: int = 256, first_frame: int = 0
    ) -> Float[Tensor, "batch 2 sample"]:
        """Audio of latents, `chunk` frames at a time with their context, so that memory does not grow with length.

        The result does not depend on `chunk`, since the codec is local in time. `first_frame` is the place of the
        first latent frame in its song.
        """
        return self._decode(latents, chunk, first_frame)

    def decode_with_gradients(
        self, latents: Float[Tensor, "batch frame channel"], *, chunk: int = 128, first_frame: int = 0
    ) -> Float[Tensor, "batch 2 sample"]:
        """`decode` that gradients pass through, with the activations of a chunk in memory.

        They pass through the magnitudes; phases count as constants, see `griffin_lim`.
        """
        return self._decode(latents, chunk, first_frame, constant_phases=True)

    def _decode(
        self,
        latents: Float[Tensor, "batch frame channel"],
        chunk: int,
        first_frame: int,
        *,
        constant_phases: bool = False,
    ) -> Float[Tensor, "batch 2 sample"]:
        """The sound chunk by chunk; where gradients pass, each chunk is computed again in the backward pass."""
        context, length, chunks = self.receptive_frames, latents.shape[1], []

        def decode_window(window: Tensor, place: int) -> Tensor:
            features = self.decode_features(window)
            return self.synthesise(features, first_frame=place, constant_phases=constant_phases)

        for start in range(0, length, chunk):
            stop, first = min(start + chunk, length), max(0, start - context)
            window = latents[:, first : min(length, stop + context)]
            audio = checkpoint_call(decode_window, window, first_frame + first)
            offset = (start - first) * self.config.samples_per_frame
            chunks.append(audio[..., offset : offset + (stop - start) * self.config.samples_per_frame])
        return torch.cat(chunks, -1)


def _pad(stft: Stft) -> int:
    """Number of zeros at either end that centre the STFT frames on the latent frames."""
    return (stft.size - stft.hop) // 2


@torch.no_grad()
def standardise(
    codec: SpectralCodec, mean: Float[Tensor, " channel"], std: Float[Tensor, " channel"]
) -> None:
    """Change the weights in place so that latents become (latent - mean) / std, and sound stays."""
    channels = len(mean)
    codec.linear_encode.bias.sub_(mean).div_(std)
    codec.linear_encode.weight.div_(std[:, None])
    codec.encoder_out.weight[:channels].div_(std[:, None])
    codec.encoder_out.bias[:channels].div_(std)
    codec.encoder_out.bias[channels:].sub_(2 * std.log())
    for layer in (codec.linear_decode, codec.decoder_in):
        layer.bias.add_(layer.weight @ mean)
        layer.weight.mul_(std)
