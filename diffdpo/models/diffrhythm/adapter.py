"""DiffRhythm and its kin as a SongModel: the network's orientation, conditions and window in one place."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diffdpo import audio
from diffdpo.encoders.descriptors import directions
from diffdpo.errors import DataError
from diffdpo.lyrics.front_end import Line, place
from diffdpo.models.base import Condition, LatentSpec
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer, Encoded, padding_behind
from diffdpo.types import Clip, Prompt

AXIS_SCALE = 1.0
"""Length of the direction that stands for an axis, added to styles, which have length 1."""


@runtime_checkable
class Codec(Protocol):
    """Stereo audio at the model's rate <-> latents."""

    def encode(self, audio: Float[Tensor, "batch 2 sample"]) -> Float[Tensor, "batch frame channel"]: ...

    def decode(
        self, latents: Float[Tensor, "batch frame channel"], *, first_frame: int = 0
    ) -> Float[Tensor, "batch 2 sample"]: ...


@runtime_checkable
class StyleEncoder(Protocol):
    """Text, audio or both to one vector; zeros for nothing known."""

    def embed(self, text: str | None, clip: Clip | None) -> Float[Tensor, " style"]: ...


@runtime_checkable
class LyricsEncoder(Protocol):
    """LRC or plain lyrics to timed lines of vocabulary tokens."""

    def lines(self, lyrics: str, language: str | None, duration_s: float) -> tuple[Line, ...]: ...


@runtime_checkable
class BeatEncoder(Protocol):
    """Beats as timed lines of one token, for networks that have these in the place of lyrics."""

    def heard(self, clip: Clip) -> tuple[Line, ...]: ...

    def asked(
        self, text: str | None, style: Float[Tensor, " style"] | None, duration_s: float
    ) -> tuple[Line, ...]: ...


@dataclass(frozen=True, kw_only=True)
class DiffRhythm:
    """A song model built from a DiffRhythm network and the encoders around it.

    The network keeps its published orientation, time 0 noise and time 1 song; here t=0 is the song, so both
    time and velocity are turned round.
    """

    network: DiffRhythmTransformer
    latents: LatentSpec
    codec: Codec | None = None
    style: StyleEncoder | None = None
    lyrics: LyricsEncoder | None = None
    beats: BeatEncoder | None = None

    def embed(self, prompt: Prompt) -> Prompt:
        """Fill in `style` and `lyric_lines` from text, audio and lyrics. What is already embedded stays.

        A network with beats in the place of lyrics gets those of the tempo that the text names or the style has.
        """
        style, lines = prompt.style, prompt.lyric_lines
        if style is None and (prompt.text or prompt.style_audio):
            if self.style is None:
                raise DataError(f"prompt {prompt.id!r}: this model was loaded without a style encoder")
            heard = prompt.style_audio
            clip = audio.read(heard) if isinstance(heard, str) else heard
            style = self.style.embed(prompt.text, clip)
        if lines is None and prompt.lyrics:
            if self.lyrics is None:
                raise DataError(
                    f"prompt {prompt.id!r}: this model was loaded without a vocabulary and cannot sing; set "
                    "model.args.vocabulary or DIFFDPO_DIFFRHYTHM_VOCAB, or leave the lyrics out"
                )
            lines = self.lyrics.lines(prompt.lyrics, prompt.language, prompt.duration_s)
        if lines is None and self.beats is not None:
            lines = self.beats.asked(prompt.text, style, prompt.duration_s)
        return replace(prompt, style=style, lyric_lines=lines)

    def condition(self, prompts: Sequence[Prompt], frames: int) -> Condition:
        """style, text, audio, start_time and, if the network knows it, duration; in fp32 on the CPU."""
        config = self.network.config
        rate = self.latents.frames_per_second
        condition = {
            "style": torch.stack([_style(p, config.style_dim) for p in prompts]),
            "lyrics": torch.stack([place(p.lyric_lines or (), frames, rate) for p in prompts]),
            "audio": torch.zeros(len(prompts), frames, config.latent_channels),
            "start_time": torch.tensor([p.start for p in prompts]),
        }
        if config.duration_embedding:
            lengths = [self.latents.frames(p.duration_s) / self.latents.max_frames for p in prompts]
            condition["duration"] = torch.tensor(lengths).clamp(max=1.0)
        return condition

    def velocity(
        self,
        network: Any,
        x: Float[Tensor, "batch frame channel"],
        t: Float[Tensor, " batch"],
        condition: Condition,
        frames: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch frame channel"]:
        """noise - song at (x, t); see SongModel. `condition` may be a prepared one."""
        length = x.shape[1]
        x = F.pad(x, (0, 0, 0, self._missing(length)))
        time = (1 - t).to(x.device, torch.promote_types(x.dtype, torch.float32))
        ends = None if self.latents.window == "fixed" else frames
        if "place" in condition:
            predicted = network.denoise(x, time, _encoded(condition, ends))
        else:
            predicted = network(x, time, **self._arguments(condition, x.dtype), frames=ends)
        return -predicted[:, :length]

    def prepare(self, network: Any, condition: Condition, frames: Int[Tensor, " batch"]) -> Condition:
        """Lyrics, place, and all of the input projection that x and t leave alone; see Prepares."""
        ends = None if self.latents.window == "fixed" else frames
        encoded = network.project(network.encode(**self._arguments(condition, torch.float32), frames=ends))
        residuals = {f"residual.{layer}": residual for layer, residual in enumerate(encoded.residuals)}
        inputs = "projected" if encoded.projected else "inputs"
        return {inputs: encoded.inputs, "place": encoded.place, **residuals}

    def _arguments(self, condition: Condition, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """A condition as the network takes it, padded to its window."""
        missing = self._missing(condition["lyrics"].shape[1])
        return {
            "text": F.pad(condition["lyrics"], (0, missing)),
            "style": condition["style"].to(dtype),
            "audio": F.pad(condition["audio"].to(dtype), (0, 0, 0, missing)),
            "start_time": condition["start_time"].to(dtype),
            "duration": condition["duration"].to(dtype) if "duration" in condition else None,
        }

    def _missing(self, length: int) -> int:
        """Frames between a batch's length and the only one that a network of fixed window knows."""
        if self.latents.window == "exact":
            return 0
        if length > self.latents.max_frames:
            raise DataError(f"{length} frames: this network knows songs of {self.latents.max_frames} only")
        return self.latents.max_frames - length

    def encode(self, clip: Clip) -> Float[Tensor, "frame channel"]:
        """See SongModel. Audio is taken at its level: `prepare` brings songs to a common loudness first."""
        clip = audio.stereo(audio.resample(clip, self.latents.sample_rate))
        return self._codec().encode(torch.from_numpy(clip.samples)[None])[0]

    def transcribe(self, clip: Clip) -> tuple[Line, ...]:
        """The beats of a recording, for a network that has them in the place of lyrics; see Transcribes."""
        return () if self.beats is None else self.beats.heard(clip)

    def decode(self, latents: Float[Tensor, "frame channel"], first_frame: int = 0) -> Clip:
        """See SongModel."""
        samples = self._codec().decode(latents[None].float(), first_frame=first_frame)[0]
        return Clip(samples=samples.cpu().numpy(), sample_rate=self.latents.sample_rate)

    def _codec(self) -> Codec:
        if self.codec is None:
            raise DataError("this model was loaded without a codec; it can be trained on latents, not heard")
        return self.codec


def _encoded(condition: Condition, frames: Int[Tensor, " batch"] | None) -> Encoded:
    """A prepared condition as the network takes it."""
    projected = "projected" in condition
    inputs = condition["projected" if projected else "inputs"]
    residuals = [condition[name] for name in condition if name.startswith("residual.")]
    padding = None if frames is None else padding_behind(frames, inputs.shape[1], inputs.device)
    return Encoded(inputs, tuple(residuals), condition["place"], padding, projected)


def _style(prompt: Prompt, dim: int) -> Float[Tensor, " {dim}"]:
    """The style, with a direction of its own added for the axis the song is to be good on.

    A random direction is nearly orthogonal to every style and every other axis, so a network that was never told of
    axes hears the same style; training on pairs that name theirs gives the direction its meaning.
    """
    style = torch.zeros(dim) if prompt.style is None else prompt.style.float()
    return style + AXIS_SCALE * directions([f"axis {prompt.axis}"], dim) if prompt.axis else style
