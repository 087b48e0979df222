"""Tags: does a song have the tags that its prompt's words name? A judge of adherence, never mined with."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from diffdpo.scorers import musicnn
from diffdpo.scorers.features import EMPTY_PROMPT, ClipFeatures, score_each_with_prompt
from diffdpo.types import Clip, Prompt

MAX_LOG_RATIO = 3.0
SYNONYMS: dict[str, tuple[str, ...]] = {
    "calm": ("quiet", "soft"), "gentle": ("soft",), "smooth": ("soft",), "sparse": ("quiet", "slow"),
    "relaxing": ("slow", "soft"), "energetic": ("fast", "loud"), "driving": ("fast", "beat"),
    "heavy": ("metal", "loud"), "punchy": ("beat", "drums"), "percussive": ("beat", "drums"),
    "percussion": ("drums",), "house": ("techno", "dance"), "disco": ("dance",),
    "orchestral": ("classical", "strings"), "orchestra": ("classical", "strings"), "guitars": ("guitar",),
    "keyboard": ("piano",), "synthesizer": ("synth",), "synthesiser": ("synth",), "instrumental": ("no vocals",),
    "sung": ("singing",), "acoustic": ("guitar",),
}  # fmt: skip
"""The tags that a word of a prompt stands for, beside the tags themselves."""


@dataclass(frozen=True)
class Tags:
    """How strongly musicnn assigns a song the tags that the words of its prompt name.

    musicnn.tags  For each tag its logit, in standard deviations from the mean over real songs: +1 is "more of a
                  guitar than in most songs". Mean over windows of 9 s, over the tags of a word, and over the
                  words. In [-3, 3]; 0 for prompts with no word that has a tag, -3 for silence.

    The spread over real songs follows from the Gaussian of `musicnn.typicality`, for a logit is linear in the
    embedding. The network is not the one the model is conditioned on, so that it can watch adherence.

    How it can be gamed, and what it does not know: it has some 40 words, few of them about mood, and none about
    key, brightness or width. The tags come from listeners of MagnaTagATune (classical, electronic, folk; little
    metal, no games). It knows nothing of quality: noise may pass for "loud". Three seconds at a time, so "fast"
    and "slow" are about texture. It is a diagnosis, held out of mining; no verdict depends on it.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("musicnn.tags",)
    traits: ClassVar[Mapping[str, str]] = {"musicnn.tags": "adherence"}
    judges: ClassVar[tuple[str, ...]] = ()
    licenses: ClassVar[tuple[str, ...]] = ("ISC",)
    judge_only: ClassVar[bool] = True
    shortest_s: ClassVar[float] = 3.0
    needs_prompt: ClassVar[Literal[True]] = True

    @property
    def weights_hash(self) -> str:
        return musicnn.MusicnnTypicality().weights_hash

    def __call__(
        self, clips: Sequence[Clip], prompts: Sequence[Prompt] | None = None
    ) -> Float[np.ndarray, "clip axis"]:
        return score_each_with_prompt(clips, prompts, self.score_features)

    def score_features(self, features: ClipFeatures, prompt: Prompt = EMPTY_PROMPT) -> tuple[float]:
        from diffdpo.encoders.musicnn import TAGS

        embeddings, words = features.get(musicnn.embeddings), named_tags(prompt.text or "")
        if not len(embeddings):
            return (-MAX_LOG_RATIO,)
        if not words:
            return (0.0,)
        weight, mean, deviation = _outputs()
        scores = dict(zip(TAGS, ((embeddings @ weight.T - mean) / deviation).mean(0), strict=True))
        value = np.mean([np.mean([scores[tag] for tag in tags]) for tags in words])
        return (float(np.clip(value, -MAX_LOG_RATIO, MAX_LOG_RATIO)),)


def named_tags(text: str) -> list[tuple[str, ...]]:
    """The tags of every word of a text that has some, each word once."""
    from diffdpo.encoders.musicnn import TAGS

    meanings = {tag: (tag,) for tag in TAGS} | SYNONYMS
    return [meanings[word] for word in sorted(set(re.findall(r"[a-z]+", text.lower()))) if word in meanings]


@cache
def _outputs() -> tuple[Float[np.ndarray, "tag dim"], Float[np.ndarray, " tag"], Float[np.ndarray, " tag"]]:
    """The weights that give the logits, and their mean and deviation over real songs. The bias drops out."""
    from diffdpo.encoders.musicnn import pretrained_musicnn

    weight = pretrained_musicnn().output.weight.double().numpy()
    mean, variance = musicnn.real_songs().project(weight)
    return weight, mean, np.sqrt(variance)
