"""DiffRhythm and its kin as a SongModel: the network's orientation, conditions and window in one place."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo import audio
from diffdpo.encoders.descriptors import directions
from diffdpo.errors import DataError
from diffdpo.flow import mask_from_frames
from diffdpo.lyrics.front_end import TokenLine
from diffdpo.models.base import Condition, LatentSpec, check_controls, check_part
from diffdpo.models.codec_audio import Codec, decode_clip, decode_tensor, encode_clip, encode_slices
from diffdpo.models.diffrhythm.encoders import Encoders
from diffdpo.models.diffrhythm.lines import line_tensors, place_lines
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer, EncodedCondition, padding_behind
from diffdpo.sounds import Sound, sound_of
from diffdpo.types import Clip, Embedding, Prompt, Row

AXIS_SCALE = 1.0
"""Length of the direction that stands for an axis, added to styles, which have length 1."""
LyricsKey = tuple[str, str | None, float]  # lyrics, language, duration in seconds


@dataclass(kw_only=True, eq=False)
class DiffRhythm:
    """A song model built from a DiffRhythm network and the encoders around it.

    The network keeps its published orientation, time 0 noise and time 1 song; here t=0 is the song, so both
    time and velocity are reversed. Embeddings hold the style, the lines of tokens of the whole song with their
    starts in seconds, and where the prompt's excerpt begins in its song.
    """

    network: DiffRhythmTransformer
    spec: LatentSpec
    codec: Codec | None = None
    encoders: Encoders | None = field(default_factory=Encoders)
    identify: Callable[[], str] = lambda: "no encoders"
    """The fingerprint of the encoders, computed on first use."""
    lyric_lines: dict[LyricsKey, tuple[TokenLine, ...]] = field(default_factory=dict, repr=False)
    """Cache of the token lines of lyrics."""
    parts: tuple[str, ...] = ("style", "lyrics")
    unconditional: tuple[str, ...] = ("style", "lyrics")
    timed_lyrics: bool = True
    embeds_audio: bool = True
    lora_targets: tuple[str, ...] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        """See SongModel."""
        return self.identify()

    def embed(self, prompt: Prompt) -> Embedding:
        """Style, token lines and the place of the excerpt.

        A network with beats in the place of lyrics gets the beats of the prompt's tempo, or of its style's.
        """
        controls = ("axis", "bpm", "start") if self._encoders(prompt).beats else ("axis", "start")
        check_controls(prompt, controls)
        style, lines = self._style(prompt), self._lines(prompt)
        if lines is None:
            beats, bpm = self._encoders(prompt).beats, prompt.control("bpm")
            tempo = bpm if isinstance(bpm, int | float) else None
            lines = beats.beats(prompt.text, style, prompt.duration_s, tempo) if beats else ()
        vector = torch.zeros(self.network.config.style_dim) if style is None else style.float()
        if axis := prompt.control("axis"):
            vector = vector + axis_direction(str(axis), len(vector))
        place = torch.tensor(prompt.control("start") or 0.0, dtype=torch.float64)
        return {"style": vector, "start": place, **line_tensors(lines)}

    def _encoders(self, prompt: Prompt) -> Encoders:
        if self.encoders is None:
            raise DataError(
                f"prompt {prompt.id!r}: the encoders were freed, and this prompt is not among the embeddings kept"
            )
        return self.encoders

    def _style(self, prompt: Prompt) -> Float[Tensor, " style"] | None:
        """The style of text and recording, None where the prompt has neither."""
        if not (prompt.text or prompt.style_audio):
            return None
        encoder, style_audio = self._encoders(prompt).style, prompt.style_audio
        if encoder is None:
            raise DataError(f"prompt {prompt.id!r}: this model was loaded without a style encoder")
        clip = audio.read(style_audio) if isinstance(style_audio, str) else style_audio
        return encoder.embed(prompt.text, clip)

    def _lines(self, prompt: Prompt) -> tuple[TokenLine, ...] | None:
        """The token lines of the lyrics; () for an instrumental, None for a prompt without the field."""
        if not prompt.lyrics:
            return None if prompt.lyrics is None else ()
        encoder = self._encoders(prompt).lyrics
        if encoder is None:
            raise DataError(
                f"prompt {prompt.id!r}: this model was loaded without a vocabulary and cannot sing; set "
                "model.args.vocabulary or DIFFDPO_DIFFRHYTHM_VOCAB, or leave the lyrics out"
            )
        key = prompt.lyrics, prompt.language, prompt.duration_s
        if key not in self.lyric_lines:  # windows of a song share its lyrics; one set of warnings is enough
            self.lyric_lines[key] = encoder.lines(*key)
        return self.lyric_lines[key]

    def condition(self, rows: Sequence[Row], length: int) -> Condition:
        """style, lyrics on the frame axis, audio context, start_time and, if the network takes one, duration."""
        condition = {
            "style": torch.stack([row.embedding["style"] for row in rows]),
            "lyrics": torch.stack([place_lines(row, length, self.spec.frames_per_second) for row in rows]),
            "audio": torch.zeros(len(rows), length, self.network.config.latent_channels),
            "start_time": torch.tensor([_start_fraction(row) for row in rows]),
        }
        if self.network.config.duration_embedding:
            lengths = [row.frames / self.spec.max_frames for row in rows]
            condition["duration"] = torch.tensor(lengths).clamp(max=1.0)
        return condition

    def without(self, condition: Condition, part: str, drop_mask: Bool[Tensor, " row"]) -> Condition:
        """The condition with zeros in the place of a part, as published."""
        check_part(part, self.parts)
        tensor = condition[part]
        rows = drop_mask.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1))
        return {**condition, part: tensor.masked_fill(rows, 0)}

    def with_context(
        self,
        condition: Condition,
        latents: Float[Tensor, "row frame channel"],
        keep_mask: Bool[Tensor, "row frame"],
    ) -> Condition:
        """The latents in the channels of in-painting, zero where the song is to be generated."""
        context = latents.to(condition["audio"]).where(keep_mask[..., None].to(condition["audio"].device), 0)
        return {**condition, "audio": context}

    def velocity(
        self,
        network: Any,
        x: Float[Tensor, "row frame channel"],
        t: Float[Tensor, " row"],
        condition: Condition,
        frames: Int[Tensor, " row"],
    ) -> Float[Tensor, "row frame channel"]:
        """noise - song at (x, t); see SongModel. `condition` may be one that `prepare` returned."""
        length = x.shape[1]
        time = 1 - t.to(torch.promote_types(t.dtype, torch.float32))
        time = time.to(x.device, torch.promote_types(x.dtype, torch.float32))
        padding_mask = ~mask_from_frames(frames.to(x.device), length)[..., None] if self._is_fixed else None
        if padding_mask is not None:
            x = F.pad(x.masked_fill(padding_mask, 0), (0, 0, 0, self._padding(length)))
        ends = None if self._is_fixed else frames
        if "place" in condition:
            prediction = network(x, time, encoding=_encoded_condition(condition, ends))
        else:
            prediction = network(x, time, **self._arguments(condition, x.dtype, frames), frames=ends)
        v = -prediction[:, :length]
        return v if padding_mask is None else v.masked_fill(padding_mask, 0)

    def prepare(self, network: Any, condition: Condition, frames: Int[Tensor, " row"]) -> Condition:
        """Lyrics, place, and the part of the input projection that depends on neither x nor t; see Prepares."""
        ends = None if self._is_fixed else frames
        arguments = self._arguments(condition, torch.float32, frames)
        encoding = network.project(network.encode(**arguments, frames=ends))
        residuals = {f"residual.{layer}": residual for layer, residual in enumerate(encoding.residuals)}
        inputs = "projected" if encoding.is_projected else "inputs"
        return {inputs: encoding.inputs, "place": encoding.place, **residuals}

    def _arguments(
        self, condition: Condition, dtype: torch.dtype, frames: Int[Tensor, " row"]
    ) -> dict[str, Tensor | None]:
        """A condition as arguments of the network; for a fixed window padded with zeros behind each end."""
        lyrics, context = condition["lyrics"], condition["audio"].to(dtype)
        if self._is_fixed:
            padding_mask = ~mask_from_frames(frames.to(lyrics.device), lyrics.shape[1])
            padding = self._padding(lyrics.shape[1])
            lyrics = F.pad(lyrics.masked_fill(padding_mask, 0), (0, padding))
            context = F.pad(context.masked_fill(padding_mask[..., None], 0), (0, 0, 0, padding))
        return {
            "text": lyrics,
            "style": condition["style"].to(dtype),
            "audio": context,
            "start_time": condition["start_time"].to(dtype),
            "duration": condition["duration"].to(dtype) if "duration" in condition else None,
        }

    def check_division(self, processes: int) -> None:
        """See DividesFrames."""
        if self._is_fixed:
            raise DataError(
                f"this network knows songs of {self.spec.max_frames} frames only and cannot be divided over "
                f"{processes} processes; leave train.context_parallel out"
            )

    @property
    def _is_fixed(self) -> bool:
        return self.spec.window == "fixed"

    def _padding(self, length: int) -> int:
        """Frames that pad a batch of `length` frames to the fixed window. DataError if the batch is longer."""
        if length > self.spec.max_frames:
            raise DataError(f"{length} frames: this network knows songs of {self.spec.max_frames} only")
        return self.spec.max_frames - length

    def encode(self, clip: Clip, generator: torch.Generator | None = None) -> Float[Tensor, "frame channel"]:
        """See SongModel. Audio keeps its level: `diffdpo prepare` brings songs to a common loudness first."""
        return encode_clip(self.codec, clip, self.spec.sample_rate, generator)

    def encode_sound(self, sound: Sound) -> Float[Tensor, "frame channel"]:
        """See EncodesSounds."""
        return encode_slices(self.codec, sound, self.spec.sample_rate)

    def transcribe_sound(self, sound: Sound) -> Embedding:
        """See TranscribesSounds."""
        if self.encoders is None or self.encoders.beats is None:
            return {}
        return line_tensors(self.encoders.beats.transcribe(sound))

    def transcribe(self, clip: Clip) -> Embedding:
        """The beats of a recording, for a network that takes beats in the place of lyrics; see Transcribes."""
        return self.transcribe_sound(sound_of(clip))

    def decode(self, latents: Float[Tensor, "frame channel"], first_frame: int = 0) -> Clip:
        """See SongModel."""
        return decode_clip(self.codec, latents, self.spec.sample_rate, first_frame)

    def decode_tensor(
        self, latents: Float[Tensor, "frame channel"], first_frame: int = 0
    ) -> Float[Tensor, "2 sample"]:
        """See DecodesWithGradients."""
        return decode_tensor(self.codec, latents, first_frame)

    def place(self, part: Literal["encoders", "codec"], device: str | None) -> None:
        """See SongModel."""
        if device is None:
            setattr(self, part, None)
            return
        module = self.codec if part == "codec" else self.encoders and self.encoders.style
        if isinstance(module, torch.nn.Module):
            torch.nn.Module.to(module, device)


def axis_direction(axis: str, dim: int) -> Float[Tensor, " {dim}"]:
    """The direction in style space that stands for a preference axis, to be added to a song's style.

    A random direction is nearly orthogonal to every style and every other axis, so a network that was never trained
    with axes acts on the same style; training on pairs that name their axis gives the direction its meaning.
    """
    return AXIS_SCALE * directions([f"axis {axis}"], dim)


def _start_fraction(row: Row) -> float:
    """The start of a row as a fraction of its song. An excerpt with a start above 0 is taken to end its song."""
    excerpt = float(row.embedding["start"])
    return excerpt + (1 - excerpt) * (row.first_frame / row.total_frames)


def _encoded_condition(condition: Condition, frames: Int[Tensor, " row"] | None) -> EncodedCondition:
    """A prepared condition as the network's encoding."""
    is_projected = "projected" in condition
    inputs = condition["projected" if is_projected else "inputs"]
    residuals = [condition[name] for name in condition if name.startswith("residual.")]
    padding = None if frames is None else padding_behind(frames, inputs.shape[1], inputs.device)
    return EncodedCondition(inputs, tuple(residuals), condition["place"], padding, is_projected)
