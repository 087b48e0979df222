"""Tree search with mutated prompts: Text2midi-InferAlign (Bhandari et al. 2025, arXiv 2505.12669) for sound.

The best beginnings of long songs are beams, each continued in several ways at the border of a window; short songs
are leaves at once. Branches are made from the prompt in other words, those of the best song or beginning so far
mutated anew each time, and always scored by the user's own prompt.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from diffdpo.checks import check_range
from diffdpo.errors import ConfigError
from diffdpo.progress import log
from diffdpo.sampling.config import SamplingConfig
from diffdpo.search.chunks import (
    Branch,
    Prefix,
    SlotRewards,
    begin_prefix,
    best_slots,
    branch_beams,
    branch_prefix,
    check_chain,
    finish_prefixes,
    grow_prefixes,
)
from diffdpo.search.mutation import mutations, request_texts
from diffdpo.search.reward import rank
from diffdpo.search.task import SearchSong, SearchTask, Tensors


@dataclass(frozen=True)
class TreeSearch:
    """Rounds of beams x width songs. The first rounds of a longer search are the rounds of a shorter one."""

    beams: int = 2
    """Beginnings that are kept at the border of a window."""
    width: int = 2
    """Ways in which each is continued; the first keeps the text of its beginning."""
    variants: int = 4
    """Texts of a round: the prompt, and mutations of the best text so far. 1: the prompt alone."""
    local: float = 0.5
    """Share of the songs of later rounds, songs of one window only, that begin with the noise of the best song so
    far under a mutated text: near it, while the others are new."""
    score_s: float = 20.0
    """Seconds at the end of each window that are decoded and scored; 0: the whole beginning."""
    endpoint: str = ""
    """Address of an OpenAI-compatible service that rewrites prompts, such as http://localhost:8000/v1; without one
    they are edited by a small vocabulary, offline. The text of the prompt is sent there."""
    endpoint_model: str = ""
    """Name of the language model there."""
    endpoint_key: str = "DIFFDPO_API_KEY"
    """Name of the environment variable that holds the key."""

    def __post_init__(self) -> None:
        check_range(self, "beams", "width", "variants", low=1)
        check_range(self, "local", low=0, high=1)
        check_range(self, "score_s", low=0)
        if bool(self.endpoint) != bool(self.endpoint_model):
            raise ValueError("endpoint and endpoint_model belong together: give both, or none")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint must begin with http:// or https://, got {self.endpoint!r}")

    @property
    def round_songs(self) -> int:
        """Songs of a round."""
        return self.beams * self.width

    def check(self, sampling: SamplingConfig, budget: float) -> None:
        """ConfigError for a budget that does not reach for a round."""
        if budget < self.round_songs:
            raise ConfigError(
                f"search.method=tree: a round of {self.beams} beams x {self.width} is more than "
                f"search.budget={budget:g} songs; raise it, or lower beams and width"
            )

    def __call__(self, task: SearchTask) -> list[SearchSong]:
        self.check(task.sampling, task.budget)
        check_chain(task, "tree")
        songs: list[SearchSong] = []
        for number in range(int(task.budget) // self.round_songs):
            songs += self._grow_round(task, number, songs)
        return songs

    def _grow_round(self, task: SearchTask, number: int, songs: Sequence[SearchSong]) -> list[SearchSong]:
        """The complete songs of one round, given those of the rounds before."""
        slots = range(number * self.round_songs, (number + 1) * self.round_songs)
        population = self._begin_round(task, slots, songs, f"tree-{number}")

        def select(rewards: SlotRewards, prefixes: Mapping[int, Prefix], turn: int) -> Sequence[Branch]:
            best = prefixes[best_slots(rewards, 1)[0]]
            texts[turn] = self.write_texts(task, best.text, f"tree-{number}-{turn}")
            return branch_beams(rewards, self.beams, self.width, slots)

        def branch(prefix: Prefix, entry: Branch, turn: int) -> Prefix:
            prefix = branch_prefix(task, prefix, entry)
            return (
                prefix
                if entry.child == 0
                else reword(task, prefix, texts[turn][entry.slot % len(texts[turn])])
            )

        texts: dict[int, list[str | None]] = {}
        leaves = grow_prefixes(
            task, population, key=f"tree-{number}", score_s=self.score_s, select=select, branch=branch
        )
        details = {
            slot: {"round": number, "text": leaf.text, "texts": list(leaf.texts), "noise": leaf.noise}
            for slot, leaf in leaves.items()
        }
        return finish_prefixes(task, leaves, details)

    def _begin_round(
        self, task: SearchTask, slots: range, songs: Sequence[SearchSong], key: str
    ) -> dict[int, Prefix]:
        """Songs of which nothing exists: new noise under all texts, or the best song's noise under mutated ones."""
        best = songs[rank([song.reward for song in songs])[0]] if songs else None
        texts = self.write_texts(task, task.prompt.text if best is None else best.details["text"], key)
        n_local = 0
        if best is not None and task.windows == 1:
            n_local = min(round(self.local * len(slots)), len(texts) - 1)
        population = {}
        for place, slot in enumerate(slots):
            text, noise = texts[place % len(texts)], ""
            if best is not None and place >= len(slots) - n_local:
                text, noise = texts[1 + place - (len(slots) - n_local)], best.details["noise"]
            job = task.embed(slot, replace(task.prompt, text=text))
            population[slot] = begin_prefix(task, job, text, noise)
        return population

    def write_texts(self, task: SearchTask, text: str | None, key: str) -> list[str | None]:
        """The prompt's own text, and mutations of a text, all distinct."""
        original, count = task.prompt.text, self.variants - 1
        if not text or not original or not count:
            return [original]
        edits = self._rewrite(task, text, count, key) if self.endpoint else []
        edits += mutations(text, self.variants + len(edits), task.seed, f"{task.prompt.id}.{key}")
        return [original, *[edit for edit in dict.fromkeys(edits) if edit not in (original, text)][:count]]

    def _rewrite(self, task: SearchTask, text: str, count: int, key: str) -> list[str]:
        """Texts by the endpoint, kept with the search; none where it does not answer."""

        def ask() -> Tensors:
            try:
                answer = request_texts(self.endpoint, self.endpoint_model, self.endpoint_key, text, count)
            except (OSError, ValueError) as error:
                log(f"{task.prompt.id}: {self.endpoint} rewrites nothing ({error}); edited offline instead")
                answer = []
            data = bytearray(json.dumps(answer).encode())
            return {"json": torch.frombuffer(data, dtype=torch.uint8)}

        texts: list[str] = json.loads(bytes(task.memo(f"{key}-texts", ask)["json"].tolist()))
        return texts


def reword(task: SearchTask, prefix: Prefix, text: str | None) -> Prefix:
    """A beginning that goes on under another text, and under the same plan."""
    job = prefix.job
    source = replace(task.prompt, text=text)
    row = task.embed(int(job.job.sample_id.rpartition(".")[2]), source, job.plan)
    request = replace(prefix.draft.request, row=row.row, negative=row.negative)
    return replace(prefix, draft=replace(prefix.draft, request=request), job=row, text=text)
