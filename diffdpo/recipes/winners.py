"""The winners of a search as a samples folder of their own: what `sample` writes when it is given a search."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES, SampleRow, Samples, sample_id
from diffdpo.errors import DataError
from diffdpo.recipes import search
from diffdpo.recipes.sample import SampleRun
from diffdpo.recipes.search import SearchRun
from diffdpo.recipes.search_results import search_rows
from diffdpo.run_dir import DistEnv
from diffdpo.search.config import SearchConfig
from diffdpo.search.store import SearchRow


def sample_winners(cfg: SampleRun, samples: Samples, dist: DistEnv) -> list[str]:
    """Search, then copy the best songs of each prompt into the samples folder; their ids. See `copy_winners`."""
    folder = search.run(_search_run(cfg))
    if dist.main:
        copy_winners(folder, samples, cfg.per_prompt)
    dist.barrier()
    return [
        sample_id(row.prompt_id, row.rank - 1) for row in search_rows(folder) if row.rank <= cfg.per_prompt
    ]


def copy_winners(folder: Path, samples: Samples, per_prompt: int) -> None:
    """Copy the best songs of each prompt of a finished search into a samples folder, as its songs 0, 1, ….

    DataError for a prompt whose search has fewer songs than `per_prompt`.
    """
    source, rows = Samples(folder), search_rows(folder)
    songs = {row.sample_id: row for row in source.rows()}
    winners = [_winner(row, songs[row.sample_id]) for row in rows if row.rank <= per_prompt]
    _check_count(winners, [row.prompt_id for row in rows], per_prompt)
    current = {row.sample_id: row for row in samples.rows()}
    for row in winners:
        if current.get(row.sample_id) != row or not samples.audio(row.sample_id).is_file():
            _copy(source, json.loads(row.search)["song"], samples, row.sample_id)
    tables.replace(samples.folder, SAMPLES, winners)


def _search_run(cfg: SampleRun) -> SearchRun:
    """The search whose winners are sampled, in a folder below that of the samples."""
    names = ("prompts", "songs", "model", "sampling", "longform", "seed", "embedding_cache")
    settings = replace(cfg.search or SearchConfig(), winners=cfg.per_prompt)
    return SearchRun(
        out=str(Path(cfg.out) / "search"), search=settings, **{name: getattr(cfg, name) for name in names}
    )


def _winner(row: SearchRow, song: SampleRow) -> SampleRow:
    """The row of a song under the number of its place."""
    origin = {"song": row.sample_id, "method": row.method, "reward": row.reward, "violation": row.violation}
    return replace(
        song,
        sample_id=sample_id(row.prompt_id, row.rank - 1),
        search=json.dumps(origin, sort_keys=True),
    )


def _check_count(winners: Sequence[SampleRow], prompt_ids: Sequence[str], per_prompt: int) -> None:
    for prompt_id in dict.fromkeys(prompt_ids):
        count = sum(row.prompt_id == prompt_id for row in winners)
        if count < per_prompt:
            raise DataError(
                f"prompt {prompt_id!r}: the search has {count} songs, per_prompt={per_prompt} asks for more; "
                "raise search.budget"
            )


def _copy(source: Samples, source_id: str, target: Samples, target_id: str) -> None:
    """Copy the files of a song under another id."""
    for origin, copy in zip(source.files(source_id), target.files(target_id), strict=True):
        if origin.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial: Path = copy.with_name(f".{copy.name}.partial")
            shutil.copyfile(origin, partial)
            partial.replace(copy)
        else:
            copy.unlink(missing_ok=True)
