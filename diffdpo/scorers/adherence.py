"""Adherence: does a song have the style of its prompt?"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from diffdpo import audio
from diffdpo.config_paths import PATH
from diffdpo.hub import BUNDLE, sha256_of
from diffdpo.scorers.features import EMPTY_PROMPT, ClipFeatures, mono, score_each_with_prompt
from diffdpo.types import Clip, Prompt

LOWEST_COSINE = -1.0


@dataclass(frozen=True)
class Adherence:
    """The cosine between the style of a song and that of its prompt, both by the style encoder of a bundle.

    adherence.style  Mean over windows of 10 s. In [-1, 1]; 0 for a style that has nothing to do with the
                     prompt's and for prompts without one, -1 for silence.

    The idea is that of the CLAP and MuLan scores. The prompt is text, a recording, or both, and is embedded as the
    model embeds it.

    How it can be gamed: the model is conditioned on this very encoder, so what the encoder does not hear the
    model need not do, and whatever excites its directions passes for style, music or not. When it is mined,
    it cannot be its own proof: `musicnn.tags` is the judge of adherence then, and `production` and
    `musicnn.typicality` guard the sound. Scores of different prompts cannot be compared: a vague one is
    easily met.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("adherence.style",)
    traits: ClassVar[Mapping[str, str]] = {"adherence.style": "adherence"}
    licenses: ClassVar[tuple[str, ...]] = ("CC-BY-SA-4.0",)
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 5.0
    needs_prompt: ClassVar[Literal[True]] = True

    bundle: str = field(default="", repr=False, metadata=PATH)
    """Folder of the bundle with the encoder; the shipped one by default."""

    @property
    def weights_hash(self) -> str:
        folder = self._folder()
        files = sorted((folder / "style").glob("*.*"))
        return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()

    def __call__(
        self, clips: Sequence[Clip], prompts: Sequence[Prompt] | None = None
    ) -> Float[np.ndarray, "clip axis"]:
        return score_each_with_prompt(clips, prompts, self.score_features)

    def score_features(self, features: ClipFeatures, prompt: Prompt = EMPTY_PROMPT) -> tuple[float]:
        import torch

        from diffdpo.encoders.descriptors import RATE
        from diffdpo.encoders.style import pretrained_encoder, windows

        clip = features.clip
        if not clip.samples.any():
            return (LOWEST_COSINE,)
        target = self.embed_prompt(prompt)
        if not target.any():
            return (0.0,)
        encoder = pretrained_encoder(self._folder())
        parts = windows(clip)
        resampled_parts = [mono(features, RATE, at_least_s=0.0)] if len(parts) == 1 else [None] * len(parts)
        styles = [encoder.embed_window(*pair).cpu() for pair in zip(parts, resampled_parts, strict=True)]
        return (float((torch.stack(styles) @ target).mean().clamp(-1, 1)),)

    def embed_prompt(self, prompt: Prompt) -> Float[Tensor, " style"]:
        """The style that a prompt names by text or recording, a unit vector; zeros if it names none."""
        from diffdpo.encoders.style import pretrained_encoder

        style_audio = prompt.style_audio
        clip = audio.read(style_audio) if isinstance(style_audio, str) else style_audio
        return pretrained_encoder(self._folder()).embed(prompt.text, clip)

    def _folder(self) -> Path:
        return Path(self.bundle) if self.bundle else BUNDLE
