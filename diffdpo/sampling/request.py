"""Requests to the sampler: one a song or window, with its conditions and the frames that are given."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffdpo.data.prompts import negative_prompt
from diffdpo.models.base import Plans, supports
from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.randomness import generator
from diffdpo.types import Embedding, Plan, Prompt, Row


@dataclass(frozen=True, eq=False)
class InpaintContext:
    """A song of which some frames are given: these stay, the others are generated to fit them."""

    latents: Float[Tensor, "frame channel"]
    keep_mask: Bool[Tensor, " frame"]
    """True where the song is given."""

    def __post_init__(self) -> None:
        if len(self.latents) != len(self.keep_mask):
            raise ValueError(
                f"a context of {len(self.latents)} frames cannot have a mask of {len(self.keep_mask)}"
            )

    def paste(self, song: Float[Tensor, "frame channel"]) -> Float[Tensor, "frame channel"]:
        """A generated song with the given frames put back."""
        return torch.where(self.keep_mask[:, None], self.latents.to(song), song)


@dataclass(frozen=True, eq=False)
class InitLatents:
    """A song to vary (SDEdit, Meng et al. 2022): sampling begins at t = strength, from the song with noise."""

    latents: Float[Tensor, "frame channel"]
    strength: float
    """In (0, 1]: near 0 the song hardly changes, at 1 nothing of it remains."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must be in (0, 1], got {self.strength}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """One song, or one window of a song, to be generated."""

    sample_id: str
    """The key of the request's noise."""
    row: Row
    negative: Row | None = None
    """The condition of the negative prompt; None drops the model's unconditional parts instead."""
    context: InpaintContext | None = field(default=None)
    init: InitLatents | None = field(default=None)
    clamp_context: bool = False
    """Given frames move straight from their noise to what they are, and both branches of guidance see them, so that
    guidance is of the prompt alone. False, as published: given frames go where the network takes them and are put
    back at the end, and guidance is of the context too."""
    noise: Float[Tensor, "_ channel"] | None = field(default=None)
    """The noise that the whole song begins with; a window takes that of its frames. None: drawn by seed and sample
    id."""
    axis_rows: Mapping[str, Row] = field(default_factory=dict)
    """The condition with a preference axis in the prompt, by axis, for knobs that name it."""


def prompt_rows(
    prompt: Prompt, frames: int, embed: Callable[[Prompt], Embedding], plan: Embedding | None = None
) -> tuple[Row, Row | None]:
    """The row of a prompt, and the row of its negative prompt, None where it has none. `embed` is a model's, or an
    EmbeddingStore's.

    `plan` is the embedding of the candidate's plan, if it has one. A plan belongs to the song and not to what is
    said about it: both rows have it, as both branches do where the prompt is dropped, so that guidance is of the
    prompt alone.
    """
    negative, plan = negative_prompt(prompt), plan or {}
    return (
        Row(embedding=embed(prompt) | plan, frames=frames),
        Row(embedding=embed(negative) | plan, frames=frames) if negative else None,
    )


def axis_rows(
    prompt: Prompt,
    axes: Iterable[str],
    frames: int,
    embed: Callable[[Prompt], Embedding],
    plan: Embedding | None = None,
) -> dict[str, Row]:
    """The row of a prompt with each of some preference axes in it; DataError for a model that knows no axes."""
    plan = plan or {}
    return {
        axis: Row(embedding=embed(prompt.with_control("axis", axis)) | plan, frames=frames) for axis in axes
    }


def prompt_request(
    prompt: Prompt,
    sample_id: str,
    frames: int,
    embed: Callable[[Prompt], Embedding],
    plan: Embedding | None = None,
    *,
    axes: Sequence[str] = (),
) -> Request:
    """The request for a whole song of a prompt; `frames` are `LatentSpec.frames` of its duration. See
    `prompt_rows`; `axes` are those of `SamplingConfig.axes`."""
    row, negative = prompt_rows(prompt, frames, embed, plan)
    rows_by_axis = axis_rows(prompt, axes, frames, embed, plan)
    return Request(sample_id=sample_id, row=row, negative=negative, axis_rows=rows_by_axis)


def plan_candidate(
    store: EmbeddingStore, prompt: Prompt, sample_id: str, frames: int, seed: int
) -> tuple[Plan, Embedding] | tuple[None, None]:
    """A plan for one candidate, drawn by seed and sample id, and its embedding; None for a model without plans."""
    model: Any = store.model
    if not supports(model, Plans):
        return None, None
    plan = model.plan(prompt, frames, generator(seed, sample_id, "plan"))
    return plan, store.embed_plan(plan)
