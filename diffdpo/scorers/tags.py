"""Tags: does musicnn hear what the prompt's words say? A judge of adherence that no pair was ever mined with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float

from diffdpo.encoders.musicnn import TAGS
from diffdpo.scorers import musicnn
from diffdpo.scorers.features import each_with_prompt
from diffdpo.types import Clip, Prompt

MOST = 3.0
MEANINGS: dict[str, tuple[str, ...]] = {tag: (tag,) for tag in TAGS if " " not in tag} | {
    "calm": ("quiet", "soft"), "gentle": ("soft",), "smooth": ("soft",), "sparse": ("quiet", "slow"),
    "relaxing": ("slow", "soft"), "energetic": ("fast", "loud"), "driving": ("fast", "beat"),
    "heavy": ("metal", "loud"), "punchy": ("beat", "drums"), "percussive": ("beat", "drums"),
    "percussion": ("drums",), "house": ("techno", "dance"), "disco": ("dance",),
    "orchestral": ("classical", "strings"), "orchestra": ("classical", "strings"), "guitars": ("guitar",),
    "keyboard": ("piano",), "synthesizer": ("synth",), "synthesiser": ("synth",), "instrumental": ("no vocals",),
    "sung": ("singing",), "acoustic": ("guitar",),
}  # fmt: skip
"""The tags that should be heard when a prompt says a word."""


@dataclass(frozen=True)
class Tags:
    """How clearly musicnn hears the tags that a prompt's words name.

    musicnn.tags  For each tag its logit, in standard deviations from the mean over real songs: +1 is "more of a
                  guitar than in most songs". Mean over windows of 9 s, over the tags of a word, and over the
                  words. In [-3, 3]; 0 for prompts with no word that has a tag, -3 for silence.

    The spread over real songs follows from the Gaussian of `musicnn.typicality`, for a logit is linear in the
    embedding. The ear is not the one the model is conditioned on, which makes this the judge of adherence.

    How it can be gamed, and what it does not hear: some 40 words, few of them about mood, and none about key,
    brightness or width. The tags come from listeners of MagnaTagATune (classical, electronic, folk; little
    metal, no games). It knows nothing of quality: noise may pass for "loud". Three seconds at a time, so "fast"
    and "slow" are about texture. Being a judge, it is only watched.
    """

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("musicnn.tags",)
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
        return each_with_prompt(clips, prompts, self._score)

    def _score(self, clip: Clip, prompt: Prompt) -> float:
        embeddings, named = musicnn.embeddings(clip), named_tags(prompt.text or "")
        if not len(embeddings):
            return -MOST
        if not named:
            return 0.0
        weight, mean, deviation = _outputs()
        heard = dict(zip(TAGS, ((embeddings @ weight.T - mean) / deviation).mean(0), strict=True))
        value = np.mean([np.mean([heard[tag] for tag in tags]) for tags in named])
        return float(np.clip(value, -MOST, MOST))


def named_tags(text: str) -> list[tuple[str, ...]]:
    """The tags of every word of a text that has some, each word once."""
    return [MEANINGS[word] for word in sorted(set(re.findall(r"[a-z]+", text.lower()))) if word in MEANINGS]


@cache
def _outputs() -> tuple[Float[np.ndarray, "tag dim"], Float[np.ndarray, " tag"], Float[np.ndarray, " tag"]]:
    """The weights that give the logits, and their mean and deviation over real songs. The bias drops out."""
    weight = musicnn.network().output.weight.double().numpy()
    mean, variance = musicnn.reference().project(weight)
    return weight, mean, np.sqrt(variance)
