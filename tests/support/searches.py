"""Searches on a model of a few lines: a task whose reward is how far the left channel outweighs the right."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from diffdpo.models.embeddings import EmbeddingStore
from diffdpo.sampling.config import SamplingConfig
from diffdpo.sampling.longform import LongformConfig
from diffdpo.sampling.sample_jobs import SampleJob
from diffdpo.search.reward import RewardConfig
from diffdpo.search.store import MemoryStore
from diffdpo.search.task import SearchTask
from diffdpo.types import Prompt
from support.local_model import LocalModel, LocalNetwork


@dataclass(frozen=True)
class LeftScorer:
    """The share of the left channel in the power of a clip."""

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("test.left",)
    traits: ClassVar[dict[str, str]] = {"test.left": "test"}
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    shortest_s: ClassVar[float] = 0.0
    weights_hash: str = ""

    def __call__(self, clips):
        powers = [np.square(clip.samples, dtype=np.float64).mean(1) for clip in clips]
        return np.array([[power[0] / max(power.sum(), 1e-12)] for power in powers])


@dataclass(frozen=True)
class WordScorer:
    """The number of words in the prompt of a song: what a reward sees of the prompt."""

    version: ClassVar[str] = "1"
    axes: ClassVar[tuple[str, ...]] = ("test.words",)
    traits: ClassVar[dict[str, str]] = {"test.words": "adherence"}
    licenses: ClassVar[tuple[str, ...]] = ()
    judge_only: ClassVar[bool] = False
    needs_prompt: ClassVar[bool] = True
    shortest_s: ClassVar[float] = 0.0
    texts: list = field(default_factory=list)
    weights_hash: str = ""

    def __call__(self, clips, prompts=None):
        self.texts.extend(prompt.text for prompt in prompts)
        return np.array([[float(len(prompt.text.split()))] for prompt in prompts])


class Calls:
    """How many rows a model's network saw; `limit` more of them, then it raises, as a stopped machine would."""

    def __init__(self, model, limit=None):
        self.rows, self.limit = 0, limit
        model.network.register_forward_pre_hook(self)

    def __call__(self, network, args):
        if self.limit is not None and self.rows + len(args[0]) > self.limit:
            raise KeyboardInterrupt
        self.rows += len(args[0])


def local_model(reach=1):
    return LocalModel(network=LocalNetwork(reach))


def store_for(model, scorers=None, weights=None):
    scorers = scorers or {"left": LeftScorer()}
    return MemoryStore(
        model=model,
        scorers=scorers,
        reward=RewardConfig(weights=weights or {"test.left": 1.0}, scales={"test.left": 0.05}, gates=False),
    )


def search_task(
    model,
    *,
    budget=4,
    seconds=2.0,
    store=None,
    text="slow guitar rock",
    seed=3,
    window_s=0.0,
    overlap_s=0.6,
    **settings,
):
    prompt = Prompt(id="p", text=text, duration_s=seconds + 0.05)
    frames = model.spec.frames(prompt.duration_s)
    return SearchTask(
        model=model,
        job=SampleJob("p.000", prompt, torch.ones(frames, dtype=torch.bool)),
        sampling=SamplingConfig(**{"steps": 4, "guidance_scale": 2.0, "batch": 8, **settings}),
        longform=LongformConfig(window_s=window_s, overlap_s=overlap_s),
        seed=seed,
        budget=budget,
        embeddings=EmbeddingStore(model),
        store=store or store_for(model),
    )
