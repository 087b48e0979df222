"""ACE-Step 1.5 as a SongModel: its packed condition, its source latents, and the tasks that go with them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffdpo import audio
from diffdpo.codecs.oobleck import Vae
from diffdpo.errors import DataError
from diffdpo.flow import mask_from_frames
from diffdpo.models.ace_step.encoders import AceStepEncoders, pad_rows
from diffdpo.models.ace_step.network import AceStepTransformer1DModel
from diffdpo.models.ace_step.planner import CodePlanner
from diffdpo.models.ace_step.text import TASKS, prompt_texts
from diffdpo.models.ace_step.timbre import REFERENCE_S, reference_excerpts
from diffdpo.models.base import Condition, LatentSpec, check_part, host_value
from diffdpo.models.codec_audio import decode_clip, decode_tensor, encode_clip, encode_slices
from diffdpo.sounds import Sound
from diffdpo.types import Clip, Embedding, Plan, Prompt, Row

TEXT2MUSIC, REPAINT, COVER = range(len(TASKS))
HINTS = "plan.hints"
MakePlan = Callable[[Prompt, int, torch.Generator], Plan]
FREE = "the encoders were freed"


@dataclass(kw_only=True, eq=False)
class AceStep:
    """A song model built from an ACE-Step network and the encoders around it.

    An embedding holds the tokens of lyrics and timbre (`head`), those of the text for each task, and, for a
    candidate with a plan, the source latents that its audio codes stand for. A condition holds the source latents
    and the chunk mask, 1 where the song is to be generated; the task follows from them: with audio codes a cover,
    with frames that are kept a repaint. The network is prompted with the instruction of the task.
    """

    network: AceStepTransformer1DModel
    spec: LatentSpec
    null: Float[Tensor, " width"]
    """The learned condition of the unconditional branch."""
    silence: Float[Tensor, "frame channel"]
    """Latents of silence, in the place of an absent source."""
    identify: Callable[[], str]
    """The fingerprint of encoders and text format, computed on first use."""
    load_encoders: Callable[[], AceStepEncoders] | None = None
    """The encoders are loaded when the first prompt is embedded; None after they were freed."""
    load_planner: Callable[[], CodePlanner] | None = None
    identify_planner: Callable[[], str] = lambda: "none"
    identify_tokenizer: Callable[[], str] = lambda: "none"
    codec: Vae | None = None
    codes_per_second: float = 5.0
    plan: MakePlan | None = None
    """See Plans; None without a planner, and songs follow no plan."""
    unconditional: tuple[str, ...] = ("prompt",)
    parts: tuple[str, ...] = ("prompt", "plan")
    timed_lyrics: bool = False
    embeds_audio: bool = True
    own_style_reference: bool = False
    """The published trainer shows a song no reference."""
    lora_targets: tuple[str, ...] = tuple(
        f"{kind}.{layer}"
        for kind in ("self_attn", "cross_attn")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    )
    memory: dict[str, Any] = field(default_factory=dict, repr=False)
    """Encoders and planner once they are loaded, and where they are to be."""

    @property
    def fingerprint(self) -> str:
        """See SongModel."""
        return self.identify()

    @property
    def planner(self) -> str:
        """See Plans."""
        return self.identify_planner()

    def embed(self, prompt: Prompt) -> Embedding:
        """The tokens of lyrics, timbre and texts; see SongModel."""
        texts = prompt_texts(prompt)
        encoders = self._encoders(f"prompt {prompt.id!r}")
        tasks = encoders.embed_texts(texts, prompt.id)
        timbre = encoders.embed_timbre(self._reference(prompt))
        return {
            "head": torch.cat([encoders.embed_lyrics(texts, prompt.id), timbre]),
            "text": pad_rows(tasks),
            "text_tokens": torch.tensor([len(text) for text in tasks]),
        }

    def _reference(self, prompt: Prompt) -> Float[Tensor, "frame channel"]:
        """Latents of the timbre reference, of silence where a prompt has none."""
        if prompt.style_audio is None:
            return self.silence_frames(0, math.ceil(REFERENCE_S * self.spec.frames_per_second))
        clip = audio.read(prompt.style_audio) if isinstance(prompt.style_audio, str) else prompt.style_audio
        return self.encode(reference_excerpts(audio.resample(clip, self.spec.sample_rate)))

    def embed_plan(self, plan: Plan) -> Embedding:
        """The source latents of a plan's audio codes; see Plans."""
        if plan.planner not in (self.planner, self.cover_planner):
            raise DataError(
                f"audio codes of planner {plan.planner!r}, this model's is {self.planner!r}; set "
                "model.args.planner to the one that sampled them, or sample the songs again"
            )
        return {HINTS: self._encoders("a plan").embed_codes(plan.tensors["codes"])}

    def make_plan(self, prompt: Prompt, frames: int, generator: torch.Generator) -> Plan:
        """The audio codes of one candidate, written by the planner; `plan` of a model with one."""
        count = math.ceil(frames * self.codes_per_second / self.spec.frames_per_second)
        texts = prompt_texts(prompt)
        if "planner" not in self.memory:
            if self.load_planner is None:
                raise DataError(f"prompt {prompt.id!r}: {FREE}, so its song cannot be planned")
            self.memory["planner"] = self.load_planner()
        codes = self.memory["planner"].codes(texts, count, generator)
        return Plan(planner=self.planner, tensors={"codes": codes})

    @property
    def cover_planner(self) -> str:
        """See Covers: the checkpoint's own audio tokenizer, of no planner."""
        return f"recording-{self.identify_tokenizer()}"

    def cover_plan(self, latents: Float[Tensor, "frame channel"]) -> Plan:
        """The audio codes of a song's latents; see Covers."""
        codes = self._encoders("a cover").read_codes(latents, self.silence)
        return Plan(planner=self.cover_planner, tensors={"codes": codes})

    def silence_frames(self, first: int, count: int) -> Float[Tensor, "frame channel"]:
        """Frames of a silence without end: the published latents, again and again."""
        return self.silence[torch.arange(first, first + count) % len(self.silence)]

    def condition(self, rows: Sequence[Row], length: int) -> Condition:
        """Tokens of all tasks with their numbers, source latents, and the chunk mask."""
        source, task = [], torch.full((len(rows),), TEXT2MUSIC)
        for number, row in enumerate(rows):
            frames = self.silence_frames(row.first_frame, length)
            hints = row.embedding.get(HINTS)
            if hints is not None:
                window = hints[row.first_frame :][: min(length, row.frames)]
                frames[: len(window)] = window.to(frames)
                task[number] = COVER
            source.append(frames)
        heads = [row.embedding["head"] for row in rows]
        texts = [row.embedding["text"].transpose(0, 1) for row in rows]
        return {
            "head": pad_rows(heads),
            "head_tokens": torch.tensor([len(head) for head in heads]),
            "text": pad_rows(texts).transpose(1, 2),
            "text_tokens": torch.stack([row.embedding["text_tokens"] for row in rows]),
            "task": task,
            "is_null": torch.zeros(len(rows), dtype=torch.bool),
            "source": torch.stack(source),
            "silence": torch.stack([self.silence_frames(row.first_frame, length) for row in rows]),
            "to_generate": torch.ones(len(rows), length, dtype=torch.bool),
        }

    def without(self, condition: Condition, part: str, drop_mask: Bool[Tensor, " row"]) -> Condition:
        """The learned null in the place of the prompt, silence in the place of a plan."""
        check_part(part, self.parts)
        drop_mask = drop_mask.to(condition["task"].device)
        if part == "prompt":
            return {**condition, "is_null": condition["is_null"] | drop_mask}
        is_replaced = drop_mask[:, None] & condition["to_generate"]
        return {
            **condition,
            "source": torch.where(is_replaced[..., None], condition["silence"], condition["source"]),
            "task": condition["task"].where(~(drop_mask & (condition["task"] == COVER)), TEXT2MUSIC),
        }

    def with_context(
        self,
        condition: Condition,
        latents: Float[Tensor, "row frame channel"],
        keep_mask: Bool[Tensor, "row frame"],
    ) -> Condition:
        """The latents as the source where they are kept, and the task of a repaint."""
        keep_mask = keep_mask.to(condition["task"].device)
        return {
            **condition,
            "source": torch.where(keep_mask[..., None], latents.to(condition["source"]), condition["source"]),
            "to_generate": condition["to_generate"] & ~keep_mask,
            "task": condition["task"].where(~keep_mask.any(1), REPAINT),
        }

    def prepare(self, network: Any, condition: Condition, frames: Int[Tensor, " row"]) -> Condition:
        """The condition packed for its task; see Prepares."""
        rows = torch.arange(len(condition["task"]), device=condition["task"].device)
        text = condition["text"][rows, condition["task"]]
        text_tokens = condition["text_tokens"][rows, condition["task"]]
        encoder = pack(condition["head"], condition["head_tokens"], text, text_tokens)
        # The null is one token repeated; the result does not depend on how often, so one is enough.
        is_null = condition["is_null"]
        encoder = torch.where(is_null[:, None, None], self.null.to(encoder), encoder)
        tokens = (condition["head_tokens"] + text_tokens).masked_fill(is_null, 1)
        chunk_mask = condition["to_generate"][..., None].to(condition["source"])
        context = torch.cat([condition["source"], chunk_mask.expand_as(condition["source"])], -1)
        return {"encoder": encoder, "tokens": tokens, "context": context}

    def velocity(
        self,
        network: Any,
        x: Float[Tensor, "row frame channel"],
        t: Float[Tensor, " row"],
        condition: Condition,
        frames: Int[Tensor, " row"],
    ) -> Float[Tensor, "row frame channel"]:
        """noise - song at (x, t); see SongModel. `condition` may be one that `prepare` returned."""
        if "encoder" not in condition:
            condition = self.prepare(network, condition, frames)
        time = t.to(x.device, torch.promote_types(t.dtype, torch.float32))
        time = time.to(torch.promote_types(x.dtype, torch.float32))
        velocity: Tensor = network(
            x,
            time,
            encoder=condition["encoder"].to(x.dtype),
            tokens=condition["tokens"],
            context=condition["context"].to(x.dtype),
            frames=frames,
        )
        return velocity

    def check_division(self, processes: int) -> None:
        """See DividesFrames."""
        if self.network.config.attention_dropout:
            raise DataError(
                f"this network has dropout in its attention, which cannot be divided over {processes} processes; "
                "leave train.context_parallel out"
            )

    def encode(self, clip: Clip, generator: torch.Generator | None = None) -> Float[Tensor, "frame channel"]:
        """See SongModel."""
        return encode_clip(self.codec, clip, self.spec.sample_rate, generator)

    def encode_sound(self, sound: Sound) -> Float[Tensor, "frame channel"]:
        """See EncodesSounds."""
        return encode_slices(self.codec, sound, self.spec.sample_rate)

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
        if part == "codec":
            if device is None:
                self.codec = None
            elif self.codec is not None:
                torch.nn.Module.to(self.codec.module, device)
            return
        if device is None:
            self.memory.clear()
            self.load_encoders = self.load_planner = None
            return
        self.memory["device"] = device
        for module in self.memory["encoders"].modules if "encoders" in self.memory else []:
            module.to(device)
        if "planner" in self.memory:
            self.memory["planner"].model.to(device)

    def _encoders(self, subject: str) -> AceStepEncoders:
        """The encoders, loaded on first use."""
        if "encoders" not in self.memory:
            if self.load_encoders is None:
                raise DataError(f"{subject}: {FREE}, and it is not among the embeddings kept")
            self.memory["encoders"] = self.load_encoders()
            if "device" in self.memory:
                self.place("encoders", self.memory["device"])
        encoders: AceStepEncoders = self.memory["encoders"]
        return encoders


def pack(
    head: Float[Tensor, "row head width"],
    head_tokens: Int[Tensor, " row"],
    text: Float[Tensor, "row text width"],
    text_tokens: Int[Tensor, " row"],
) -> Float[Tensor, "row token width"]:
    """Two padded sequences a row as one, the text right behind the last valid token of the head."""
    width = host_value((head_tokens + text_tokens).max()) or head.shape[1] + text.shape[1]
    place = torch.arange(width, device=head.device)[None]
    behind = place - head_tokens[:, None] + head.shape[1]
    index = torch.where(place < head_tokens[:, None], place, behind).clamp(
        max=head.shape[1] + text.shape[1] - 1
    )
    tokens = torch.cat([head, text], 1)
    packed = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))
    inside = mask_from_frames(head_tokens + text_tokens, width)
    return packed.masked_fill(~inside[..., None], 0)
