"""TuneJury (2026): a published preference of listeners for songs and their texts, on MuQ-MuLan."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from diffdpo import hub
from diffdpo.config_paths import PATH
from diffdpo.errors import DataError
from diffdpo.extractors.mulan import MuLanFeatures
from diffdpo.types import Clip, Prompt

TUNEJURY_LIMIT = 50.0
"""Values are cut at ± this, which no song reaches; silence gets the lower end."""
TUNEJURY_FILE = "tunejury_muq_leave_MA.safetensors"
TUNEJURY = hub.Published(
    name="the MuQ head of TuneJury",
    repo="arXiv:2606.17006",
    license="CC-BY-NC-4.0",
    noncommercial=True,
)


@dataclass(frozen=True)
class TuneJury:
    """A published utility of songs for their prompts, learned from votes of listeners.

    tunejury.preference  A difference of 1 between two songs of one prompt stands for odds of e to 1. 0 for a prompt
                         without words, -50 for silence.

    The head's file says names and shapes, not the order of its inputs: the sound's 512 numbers first, then the
    text's, is an assumption. It is a reward that can be mined when it is named, and no judge: its authors report
    that its accuracy falls from .72 to .54 on systems newer than its votes.

    How it can be gamed: it sees two embeddings and nothing else, so what MuQ-MuLan does not hear is free.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("tunejury.preference",)
    traits: ClassVar[Mapping[str, str]] = {"tunejury.preference": "appeal"}
    licenses: ClassVar[tuple[str, ...]] = (TUNEJURY.license, *MuLanFeatures.licenses)
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 5.0
    needs_prompt: ClassVar[Literal[True]] = True

    # What does not change the numbers is left out of repr, and so of the cache key.
    head: str = field(default="", repr=False, metadata=PATH)
    """The file of the head, `tunejury_muq_leave_MA` as .safetensors or as torch saved it."""
    weights: str = field(default="", repr=False, metadata=PATH)
    """`pytorch_model.bin` of MuQ-MuLan-large, its folder, or a hub id; by default the hub's."""
    tokenizer: str = field(default="", repr=False, metadata=PATH)
    """`tokenizer.json` of xlm-roberta-base, its folder, or a hub id; by default the hub's."""
    accept_noncommercial: bool = field(default=False, repr=False)
    """Both are for non-commercial use only: say that this is one."""

    @property
    def weights_hash(self) -> str:
        text = hub.sha256_of(self._head()) + self._features().weights_hash
        return hashlib.sha256(text.encode()).hexdigest()

    def __call__(
        self, clips: Sequence[Clip], prompts: Sequence[Prompt] | None = None
    ) -> Float[np.ndarray, "clip axis"]:
        self._head()  # or a line that says what is missing
        texts = [""] * len(clips) if prompts is None else [prompt.text or "" for prompt in prompts]
        rows = [self._score(clip, text) for clip, text in zip(clips, texts, strict=True)]
        return np.array(rows, dtype=np.float64).reshape(len(clips), 1)

    def _score(self, clip: Clip, text: str) -> float:
        import torch

        from diffdpo.encoders.tunejury import TUNEJURY_STYLES, load_tunejury

        head, features = load_tunejury(self._head()), self._features()
        if not clip.samples.any():
            return -TUNEJURY_LIMIT
        if not text.strip():
            return 0.0
        vectors = [features(clip), features.embed_text(text)]
        if len(vectors[0]) != TUNEJURY_STYLES:
            raise DataError(
                f"tunejury: embeddings of {len(vectors[0])} numbers instead of {TUNEJURY_STYLES}; this MuQ-MuLan "
                "is not the one that the head was trained on"
            )
        sound, words = (torch.from_numpy(vector).float()[None] for vector in vectors)
        with torch.no_grad():
            value = float(head(sound, words))
        return float(np.clip(value, -TUNEJURY_LIMIT, TUNEJURY_LIMIT))

    def _head(self) -> Path:
        """The head's file. DataError where there is none, or its license is not accepted."""
        if not self.head:
            raise DataError(
                f"tunejury: no head given; fetch {TUNEJURY_FILE} from its authors (license: {TUNEJURY.license}) "
                "and set head to its path"
            )
        return hub.find_weights(
            TUNEJURY, self.head, TUNEJURY_FILE, accept_noncommercial=self.accept_noncommercial
        )

    def _features(self) -> MuLanFeatures:
        return MuLanFeatures(
            weights=self.weights, tokenizer=self.tokenizer, accept_noncommercial=self.accept_noncommercial
        )
