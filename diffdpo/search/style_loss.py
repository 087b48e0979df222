"""The loss of a style: one minus the cosine with a target, by the style encoder of a bundle, with gradients."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchaudio.functional import resample

from diffdpo import audio
from diffdpo.encoders.descriptors import MEASURES, RATE, measure
from diffdpo.encoders.style import (
    STYLE_WINDOW_S,
    TwoTowerStyle,
    pretrained_encoder,
    spectral_profile,
    standard_scores,
)
from diffdpo.errors import DataError
from diffdpo.hub import BUNDLE
from diffdpo.search.differentiable import SoundTensor
from diffdpo.types import Clip

if TYPE_CHECKING:
    from diffdpo.search.targets import SongSpec, SoundLoss, StyleTarget


def build_style_loss(style: "StyleTarget", song: "SongSpec") -> "SoundLoss":
    """See `targets.StyleTarget`. DataError for a style without a word or a recording."""
    encoder = pretrained_encoder(Path(style.bundle) if style.bundle else BUNDLE)
    target = _target(encoder, style, song)

    def loss(sound: SoundTensor, start_s: float) -> Float[Tensor, ""]:
        return (
            1
            - torch.stack(
                [embed_sound(encoder, w, song.sample_rate) @ target for w in _cut(sound, song)]
            ).mean()
        )

    return loss


def _target(encoder: TwoTowerStyle, style: "StyleTarget", song: "SongSpec") -> Float[Tensor, " style"]:
    text, style_audio = style.text, style.audio or None
    if not (text or style_audio):
        text, style_audio = song.prompt.text or "", song.prompt.style_audio  # type: ignore[assignment]
    clip = audio.read(style_audio) if isinstance(style_audio, str) else style_audio
    target = encoder.embed(text, clip)
    if not target.any():
        raise DataError("style: neither words nor a recording to aim at; give text or audio")
    return target.detach().clone()


def _cut(sound: SoundTensor, song: "SongSpec") -> list[SoundTensor]:
    """The sound in equal parts of about STYLE_WINDOW_S."""
    seconds = sound.shape[1] / song.sample_rate
    return list(torch.tensor_split(sound, max(1, round(seconds / STYLE_WINDOW_S)), dim=1))


def embed_sound(encoder: TwoTowerStyle, window: SoundTensor, sample_rate: int) -> Float[Tensor, " style"]:
    """The style of a window of some seconds, a unit vector, through whose spectral profile gradients pass.

    The measures of the sound, such as its tempo, have no gradient and count as constants.
    """
    stereo = window if len(window) == 2 else window[:1].expand(2, -1)
    stereo = resample(stereo, sample_rate, RATE)
    mono = stereo.detach().mean(0).numpy()
    values = measure(Clip(samples=stereo.detach().numpy(), sample_rate=RATE), mono)
    scores = standard_scores(np.array([values[name] for name in MEASURES]), encoder.thirds)
    profile = spectral_profile(encoder.mel_power_of(stereo))[None].to(encoder.audio_centre)
    return encoder.embed_profiles(profile, torch.from_numpy(scores).to(profile)[None])[0].cpu()
