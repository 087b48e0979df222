"""Contrasts of prompts as training examples for sliders: a song, and what more and less of a concept are called."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffdpo.data.datasets.generated import (
    GeneratedSongs,
    Source,
    generated_songs_digest,
    sample_prompt,
)
from diffdpo.data.datasets.parts import ALL_PROMPTS, Part
from diffdpo.data.samples import SAMPLES, open_samples, sample_plan
from diffdpo.data.sliders import SliderContrast, contrast_prompts
from diffdpo.errors import DataError
from diffdpo.inputs import digest
from diffdpo.randomness import draw_uniform
from diffdpo.types import Batch, Embedding, Row

OWN_FOLDER = "."
"""The name of the samples folder, relative to itself."""


@dataclass(frozen=True, kw_only=True)
class ContrastExample:
    """One example: a song with three conditions, and the strength that the adapter is trained at."""

    latents: Float[Tensor, "frame channel"]
    neutral: Row
    plus: Row
    minus: Row
    scale: float
    name: str
    visit: int
    """Number of earlier epochs with the example."""


class Contrasts:
    """The songs of a samples folder under the contrasts of a slider; a song is an example of each that fits it.

    The strength is drawn by the position in the training stream. DataError if no song has a neutral prompt of the
    slider, if a neutral prompt has no song, or if the model cannot tell more from less.
    """

    def __init__(
        self,
        folder: Path,
        contrasts: Sequence[SliderContrast],
        source: Source,
        *,
        scales: Sequence[float] = (-1.0, 1.0),
        part: Part = ALL_PROMPTS,
    ) -> None:
        samples = open_samples(folder)
        rows = part.select(samples.rows(), folder)
        prompts = {prompt.id: prompt for prompt in samples.prompts()}
        self.scales, self.seed = list(scales), source.seed
        self.examples: list[tuple[str, int]] = []
        self.contrasts: dict[tuple[str, int], tuple[Embedding, Embedding]] = {}
        texts = set()
        for row in sorted(rows, key=lambda row: row.sample_id):
            prompt = sample_prompt(row, prompts, folder, OWN_FOLDER)
            plan = sample_plan(samples, row)
            plan_embedding = source.embed_plan(plan) if plan else {}
            texts.add(prompt.text or "")
            for number, pair in enumerate(contrast_prompts(prompt, contrasts)):
                plus, minus = (source.embed(pole) for pole in pair)
                if _is_same(plus, minus):
                    raise DataError(
                        f"slider {contrasts[0].name!r}: the model embeds {pair[0].text!r} and {pair[1].text!r} "
                        "alike; use words that it knows"
                    )
                self.examples.append((row.sample_id, number))
                self.contrasts[row.sample_id, number] = plus | plan_embedding, minus | plan_embedding
        _check_neutrals(contrasts, texts, folder, complete=part is ALL_PROMPTS)
        names = sorted({sample for sample, _ in self.examples})
        self.songs = GeneratedSongs(folder / SAMPLES.folder, [(OWN_FOLDER, name) for name in names], source)

    def __len__(self) -> int:
        return len(self.examples)

    def example(self, index: int, position: int) -> ContrastExample:
        """The example at `index`, at a strength drawn by its position in the stream."""
        sample, number = self.examples[index]
        draw = float(draw_uniform(self.seed, [position], "slider-scale"))
        neutral = self.songs.row(OWN_FOLDER, sample)
        plus, minus = (replace(neutral, embedding=e) for e in self.contrasts[sample, number])
        return ContrastExample(
            latents=self.songs.latents(OWN_FOLDER, sample),
            neutral=neutral,
            plus=plus,
            minus=minus,
            scale=self.scales[int(draw * len(self.scales))],
            name=f"{sample}/{number}",
            visit=position // len(self.examples),
        )

    def collate(self, examples: Sequence[ContrastExample], positions: Sequence[int]) -> Batch:
        """A batch of songs, padded to the longest of the micro-batch; padding has no effect on the loss."""
        latents = torch.nn.utils.rnn.pad_sequence([e.latents for e in examples], batch_first=True)
        return Batch(
            latents=latents[:, None],
            frames=torch.tensor([len(e.latents) for e in examples])[:, None],
            rows=tuple((e.neutral,) for e in examples),
            plus_rows=tuple((e.plus,) for e in examples),
            minus_rows=tuple((e.minus,) for e in examples),
            scale=torch.tensor([float(e.scale) for e in examples]),
            positions=tuple(positions),
            weight=torch.ones(len(examples)),
            ids=tuple(e.name for e in examples),
            visits=tuple(e.visit for e in examples),
        )


def _check_neutrals(
    contrasts: Sequence[SliderContrast], texts: set[str], folder: Path, *, complete: bool
) -> None:
    """DataError for a neutral prompt without a song; with a part of the prompts, only if none has one."""
    neutrals = {text for contrast in contrasts for text in contrast.neutral_texts()}
    gaps = sorted(neutrals - texts)
    if gaps and (complete or len(gaps) == len(neutrals)):
        raise DataError(
            f"{folder}: holds no song of the neutral prompt {gaps[0]!r} of the slider {contrasts[0].name!r}; "
            "sample one, or leave data.samples out"
        )


def _is_same(first: Embedding, second: Embedding) -> bool:
    """Whether two embeddings are equal tensor by tensor."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def contrasts_digest(contrasts: Sequence[SliderContrast], folder: str) -> str:
    """Identity of a slider, and of the songs if a folder of them is given."""
    songs = ""
    if folder:
        names = [(OWN_FOLDER, row.sample_id) for row in open_samples(folder).rows()]
        songs = generated_songs_digest(Path(folder), names)
    return digest([[sorted(vars(contrast).items()) for contrast in contrasts], songs])
