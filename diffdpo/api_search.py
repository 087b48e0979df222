"""Search from Python, on values in memory."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffdpo.errors import ConfigError
from diffdpo.models.base import SongModel
from diffdpo.registry import Choice
from diffdpo.types import Prompt

if TYPE_CHECKING:
    from diffdpo.search.engine import SearchResult

__all__ = ["search_songs"]


def search_songs(
    model: SongModel,
    prompts: Prompt | str | Iterable[Prompt | str],
    *,
    method: str | Choice = "best_of_n",
    budget: float = 8.0,
    weights: Mapping[str, float] | None = None,
    constraints: Sequence[Mapping[str, Any]] = (),
    seconds: float = 10.0,
    seed: int = 0,
    **settings: Any,
) -> "list[SearchResult]":
    """The songs of a search for each prompt, the best first, with latents, rewards and costs.

    `weights` are those of axes, `constraints` are mappings with axis, low and high; `budget` is in songs' worth of
    network evaluations for each prompt; `settings` are fields of SamplingConfig, as `sample` takes them.
    """
    from dataclasses import replace

    from diffdpo.api import as_prompts, sampling_config
    from diffdpo.config import as_choice
    from diffdpo.knob_parts import check_knobs, load_interventions
    from diffdpo.models.embeddings import EmbeddingStore
    from diffdpo.parts import build_method, build_scorers
    from diffdpo.sampling.longform import LongformConfig
    from diffdpo.sampling.sample_jobs import sample_jobs
    from diffdpo.search.engine import search_prompt
    from diffdpo.search.reward import Constraint, RewardConfig
    from diffdpo.search.store import MemoryStore
    from diffdpo.search.task import SearchTask, check_method

    try:
        reward = RewardConfig(constraints=[Constraint(**entry) for entry in constraints])
        reward = reward if weights is None else replace(reward, weights=dict(weights))
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
    if budget < 1:
        raise ConfigError(f"search: budget must be at least 1, got {budget:g}")
    cfg, search_method = sampling_config(settings), build_method(as_choice(method, "method"))
    store = MemoryStore(model=model, scorers=build_scorers(reward.scorers()), reward=reward)
    embeddings, results = EmbeddingStore(model), []
    check_method(search_method, cfg, budget)
    check_knobs(cfg)
    with load_interventions(model, cfg) as interventions:
        for prompt in as_prompts(prompts, seconds):
            (job,), _ = sample_jobs(model.spec, [(prompt, 0)], {})
            task = SearchTask(
                model=model, job=job, sampling=cfg, longform=LongformConfig(), seed=seed, budget=budget,
                embeddings=embeddings, store=store, interventions=interventions,
            )  # fmt: skip
            results.append(search_prompt(task, search_method))
    return results
