"""MuQ (Zhu et al. 2025): a self-supervised music encoder, 1024 dimensions 25 times a second.

The network is built here, with the published names of its parameters; the package of the same name is not needed.
The published weights are `diffdpo.hub.MUQ_LARGE`, under CC-BY-NC-4.0.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from diffdpo.encoders.conformer import ConformerBlock, Hidden, RotaryPositions, Valid
from diffdpo.errors import DataError, reason
from diffdpo.weight_files import check_weights_file, unreadable

MUQ_SAMPLE_RATE = 24_000
MEL_HOP = 240
MEL_WINDOW = 2048
BANDS = 128
MEL_FRAMES = 4
"""Mel frames (100 Hz) in a frame of the encoder (25 Hz)."""
SHORTEST = MEL_WINDOW // 2 + 1
"""Samples below which the spectrogram has nothing to reflect at the edges."""
MUQ_PREFIX = "model."
"""Prefix of the published keys."""
LAYERS = "conformer.layers."
MUQ_FILE = "model.safetensors"
MUQ_TRAINING_PREFIXES = ("rvq.", "linear.", "cls_token", "conformer.pos_conv_embed.")
"""Published parameters, by the beginnings of their names, that only training needs or that nothing ever reads."""

CHUNK = 250
"""Frames (10 s) that go through the convolutions at once: at full size 512 x 64 maps grow by 6.6 MB a second."""
MARGIN = 3
"""Frames around a chunk that reach its frames through the convolutions: 9 of 12 mel frames on either side."""

Mel = Float[Tensor, "batch 128 mel_frame"]
Map = Float[Tensor, "batch _ _ _"]
"""[batch, channel, band, frame]"""


@dataclass(frozen=True, kw_only=True)
class MuQConfig:
    """Sizes of the network; the defaults are those of MuQ-large."""

    dim: int = 1024
    depth: int = 12
    heads: int = 16
    hidden: int = 4096
    """Channels of the feed-forward layers."""
    kernel_size: int = 31
    conv_dim: int = 512
    mean: float = 6.768444971712967
    """Mean and standard deviation of the training set's mel spectrograms, in dB."""
    std: float = 18.417922652295623


class ResidualConvolution(nn.Module):
    """Residual block that halves bands and frames; batch normalisation uses the statistics of training."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv3 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x: Map, frames: Int[Tensor, " batch"] | None) -> Map:
        """Maps of the output, with zeros behind its first `frames` frames."""
        h = end(conv_norm(self.conv1, self.bn1, x).relu_(), frames)
        h = conv_norm(self.conv2, self.bn2, h)
        return end(h.add_(conv_norm(self.conv3, self.bn3, x)).relu_(), frames)


def conv_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Map) -> Map:
    """norm(conv(x)) with the statistics of training, in one pass over the maps."""
    mean, variance = norm.running_mean, norm.running_var
    assert conv.bias is not None
    assert mean is not None
    assert variance is not None
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    bias = (conv.bias - mean) * scale + norm.bias
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding)


def end(x: Map, frames: Int[Tensor, " batch"] | None) -> Map:
    """Zeros from each clip's end on, as the next convolution would pad it alone."""
    if frames is None:
        return x
    is_padding = torch.arange(x.shape[-1], device=x.device) >= frames[:, None]
    return x.masked_fill_(is_padding[:, None, None], 0)


class ConvolutionalFrontEnd(nn.Module):
    """Mel frames at 100 Hz to vectors at 25 Hz."""

    def __init__(self, config: MuQConfig) -> None:
        super().__init__()
        channels = config.conv_dim
        self.conv = nn.ModuleList([ResidualConvolution(1, channels), ResidualConvolution(channels, channels)])
        self.linear = nn.Linear(channels * (BANDS // MEL_FRAMES), config.dim)

    def forward(self, mel: Mel, frames: Int[Tensor, " batch"] | None) -> Hidden:
        """Vectors of a clip, chunk by chunk: memory does not grow with its length, and the result is the same."""
        total = -(-mel.shape[-1] // MEL_FRAMES)
        parts = []
        for begin in range(0, total, CHUNK):
            first = max(0, begin - MARGIN)
            part = mel[..., MEL_FRAMES * first : MEL_FRAMES * (begin + CHUNK + MARGIN)]
            part_frames = None if frames is None else (frames - MEL_FRAMES * first).clamp(min=0)
            parts.append(self._forward_chunk(part, part_frames)[:, begin - first :][:, :CHUNK])
        return torch.cat(parts, dim=1)

    def _forward_chunk(self, mel: Mel, frames: Int[Tensor, " batch"] | None) -> Hidden:
        # Channels last in memory, for all maps that follow: on CPUs with matrix units bfloat16 is then twice as
        # fast, fp32 no slower. One channel fits either layout; only a clone is sure to be marked as that one.
        x = mel[:, None].clone(memory_format=torch.channels_last)
        for block in self.conv:
            frames = None if frames is None else (frames + 1) // 2
            x = block(x, frames)
        return self.linear(x.permute(0, 3, 1, 2).flatten(2))


class Conformer(nn.Module):
    """The first blocks of MuQ's conformer, with the final normalisation only if all blocks are there."""

    def __init__(self, config: MuQConfig, blocks: int) -> None:
        super().__init__()
        self.embed_positions = RotaryPositions(config.dim // config.heads)
        self.layers = nn.ModuleList(
            ConformerBlock(config.dim, config.hidden, config.heads, config.kernel_size) for _ in range(blocks)
        )
        self.layer_norm = nn.LayerNorm(config.dim) if blocks == config.depth else nn.Identity()

    def states(self, h: Hidden, valid: Valid) -> Iterator[Hidden]:
        """The input, then the output of every block."""
        turns = self.embed_positions(h.shape[1])
        yield h
        for layer in self.layers[:-1]:
            h = layer(h, turns, valid)
            yield h
        if self.layers:
            yield self.layer_norm(self.layers[-1](h, turns, valid))


class MuQ(nn.Module):
    """Mel spectrograms to hidden states 0 to `blocks`, counted as published: 0 is what the convolutions give.

    In bfloat16 the convolutions, most of the work, are rounded; the spectrogram and the blocks never are.
    """

    def __init__(
        self,
        config: MuQConfig,
        blocks: int | None = None,
        convolutions: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        blocks = config.depth if blocks is None else blocks
        if not 0 <= blocks <= config.depth:
            raise ValueError(f"blocks must be in [0, {config.depth}], got {blocks}")
        self.config = config
        self.convolutions = convolutions
        self.conv = ConvolutionalFrontEnd(config)
        self.conformer = Conformer(config, blocks)

    def forward(self, mel: Mel, frames: Int[Tensor, " batch"] | None = None) -> tuple[Hidden, Valid]:
        """The last hidden state, and which of its frames exist."""
        valid = self.valid(mel, frames)
        for h in self.states(mel, frames):
            last = h
        return last, valid

    def states(self, mel: Mel, frames: Int[Tensor, " batch"] | None = None) -> Iterator[Hidden]:
        """All hidden states in turn, of decibels as `log_mel` gives them; `frames` mel frames of each exist."""
        config = self.config
        x = end(((mel - config.mean) / config.std)[:, None], frames)[:, 0]
        with torch.autocast(mel.device.type, torch.bfloat16, enabled=self.convolutions == torch.bfloat16):
            h = self.conv(x, frames)
        yield from self.conformer.states(h.float(), self.valid(mel, frames))

    def valid(self, mel: Mel, frames: Int[Tensor, " batch"] | None) -> Valid:
        """Which frames of the hidden states exist."""
        if frames is None:
            return None
        total = -(-mel.shape[-1] // MEL_FRAMES)
        return torch.arange(total, device=mel.device) < -(-frames // MEL_FRAMES)[:, None]

    @torch.no_grad()
    def embed(self, waves: Sequence[Float[Tensor, " _"]]) -> tuple[Hidden, Valid]:
        """The last hidden state of mono clips at 24 kHz, each as if it were alone, and which frames exist."""
        return self(*pad_mels([log_mel(wave) for wave in waves]))


def pad_mels(mels: Sequence[Float[Tensor, "128 _"]]) -> tuple[Mel, Int[Tensor, " batch"] | None]:
    """A padded batch of spectrograms, and the number of valid frames of each; None if there is no padding."""
    lengths = [mel.shape[1] for mel in mels]
    batch = torch.stack([F.pad(mel, (0, max(lengths) - mel.shape[1])) for mel in mels])
    return batch, None if len(set(lengths)) == 1 else torch.tensor(lengths, device=batch.device)


def log_mel(wave: Float[Tensor, " sample"]) -> Float[Tensor, "128 mel_frame"]:
    """Power in 128 HTK mel bands in dB, 100 times a second; a begun frame at the end is left out.

    Ten seconds at a time, in fp32 and without a floor relative to the peak, as MuQ was trained.
    """
    if len(wave) < SHORTEST:
        raise DataError(f"a clip of {len(wave)} samples is too short for MuQ: at least {SHORTEST} at 24 kHz")
    sound = F.pad(wave[None].float(), (MEL_WINDOW // 2, MEL_WINDOW // 2), mode="reflect")[0]
    window = torch.hann_window(MEL_WINDOW, device=wave.device)
    total, step, parts = len(wave) // MEL_HOP, MEL_FRAMES * CHUNK, []
    for begin in range(0, total, step):
        last = min(begin + step, total) - 1
        piece = sound[MEL_HOP * begin : MEL_HOP * last + MEL_WINDOW]
        spectrum = torch.stft(piece, MEL_WINDOW, MEL_HOP, window=window, center=False, return_complex=True)
        power = filterbank().to(wave.device).T @ spectrum.abs().square()
        parts.append(10 * power.clamp(min=1e-10).log10())
    return torch.cat(parts, dim=1)


@cache
def filterbank() -> Float[Tensor, "frequency 128"]:
    """Triangles of height 1 on the HTK mel scale, from 0 Hz to 12 kHz."""
    return melscale_fbanks(MEL_WINDOW // 2 + 1, 0.0, MUQ_SAMPLE_RATE / 2, BANDS, MUQ_SAMPLE_RATE, None, "htk")


def load_muq(path: Path, blocks: int | None = None, convolutions: torch.dtype = torch.float32) -> MuQ:
    """The published network from model.safetensors, frozen; only the blocks that are wanted are read."""
    check_weights_file(path)
    try:
        with safe_open(path, "pt") as file:
            published_keys = {name.removeprefix(MUQ_PREFIX): name for name in file.keys()}  # noqa: SIM118 - not a dict
            return build(
                published_keys,
                lambda name: file.get_tensor(published_keys[name]),
                str(path),
                blocks,
                convolutions,
            )
    except (OSError, SafetensorError) as error:
        raise unreadable(path, f"cannot be read as safetensors: {reason(error)}") from None


def build(
    names: Collection[str],
    read: Callable[[str], Tensor],
    location: str,
    blocks: int | None = None,
    convolutions: torch.dtype = torch.float32,
) -> MuQ:
    """The network of published parameters, given by their names without the prefix and a way to read them.

    Its sizes are those of the parameters. DataError names the first that is missing, superfluous or misshapen.
    """
    depth = depth_of(names)
    blocks = depth if blocks is None else blocks
    if depth < max(1, blocks):
        raise DataError(f"{location}: holds {depth} conformer blocks of MuQ, {max(1, blocks)} are needed")
    try:
        config = sizes(read, depth)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise DataError(f"{location}: not the weights of MuQ: {error} is missing or misshapen") from None
    weights = {name: read(name) for name in names if is_used(name, blocks, depth)}
    with torch.device("meta"):
        network = MuQ(config, blocks, convolutions)
    fill(network, weights, location)
    return network


def depth_of(names: Collection[str]) -> int:
    """Conformer blocks that a checkpoint holds."""
    return 1 + max((int(name.split(".")[2]) for name in names if name.startswith(LAYERS)), default=-1)


def is_used(name: str, blocks: int, depth: int) -> bool:
    """Whether the first `blocks` of `depth` blocks need a published parameter."""
    if name.startswith(LAYERS):
        return int(name.split(".")[2]) < blocks
    return not name.startswith(MUQ_TRAINING_PREFIXES) and (
        blocks == depth or not name.startswith("conformer.layer_norm.")
    )


def sizes(read: Callable[[str], Tensor], depth: int) -> MuQConfig:
    dim, hidden = read(f"{LAYERS}0.ffn1.output_dense.weight").shape
    return MuQConfig(
        dim=dim,
        depth=depth,
        heads=dim // (2 * len(read("conformer.embed_positions.inv_freq"))),
        hidden=hidden,
        kernel_size=read(f"{LAYERS}0.conv_module.depthwise_conv.weight").shape[2],
        conv_dim=len(read("conv.conv.0.conv1.bias")),
    )


def fill(network: nn.Module, weights: Mapping[str, Tensor], location: str) -> None:
    """Give a network its parameters, frozen and in fp32. DataError unless every name and shape fits."""
    network_shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    weight_shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if differences := sorted(name for name, _ in network_shapes.items() ^ weight_shapes.items()):
        name = differences[0]
        raise DataError(
            f"{location}: {len(differences)} parameters do not fit, first {name}: "
            f"{weight_shapes.get(name, 'missing')} instead of {network_shapes.get(name, 'nothing')}"
        )
    float_weights = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }
    network.load_state_dict(float_weights, assign=True)
    network.eval().requires_grad_(False)
