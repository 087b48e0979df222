"""A folder of generated songs: latents, audio, and one row a song."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdpo.data import tables
from diffdpo.data.prompts import read_prompts
from diffdpo.errors import DataError
from diffdpo.types import Prompt

TABLE = "samples.parquet"
KEY = ("sample_id",)
PROMPTS = "prompts.jsonl"


@dataclass(frozen=True)
class Samples:
    """What `diffdpo sample` wrote."""

    folder: Path

    def rows(self) -> list[dict[str, Any]]:
        """One row a finished song, failures left out."""
        return [row for row in self.all_rows() if not row["error"]]

    def all_rows(self) -> list[dict[str, Any]]:
        return tables.read(self.folder / TABLE, KEY)

    def prompts(self) -> list[Prompt]:
        """The prompts the songs were made for, as they were then."""
        return read_prompts(self.folder / PROMPTS)

    def latents(self, sample_id: str) -> Path:
        return self.folder / "latents" / f"{sample_id}.safetensors"

    def audio(self, sample_id: str) -> Path:
        return self.folder / "audio" / f"{sample_id}.flac"

    def preview(self, sample_id: str) -> Path:
        """The beginning of a song that is still being made."""
        return self.folder / "audio" / f"{sample_id}.preview.flac"


def open_samples(folder: str | Path) -> Samples:
    samples = Samples(Path(folder))
    if not (samples.folder / TABLE).is_dir():
        raise DataError(f"{folder}: holds no samples; run `diffdpo sample` first")
    return samples


def open_named(
    table: Path, rows: Iterable[tables.Row], embed: Callable[[Prompt], Prompt]
) -> tuple[dict[str, Samples], dict[tuple[str, str], Prompt]]:
    """The folders of songs that rows name relative to their table, and the rows' prompts, embedded once each.

    Rows have `samples` and `prompt_id`, the prompts are found by the two together: rounds share prompts' ids.
    """
    wanted = sorted({(row["samples"], row["prompt_id"]) for row in rows})
    folders = {name: open_samples(table.parent / name) for name in sorted({name for name, _ in wanted})}
    known = {(name, prompt.id): prompt for name, samples in folders.items() for prompt in samples.prompts()}
    for name, prompt in wanted:
        if (name, prompt) not in known:
            raise DataError(f"{table}: has songs of the prompt {prompt!r}, which {name} does not know")
    return folders, {key: embed(known[key]) for key in wanted}


def sample_id(prompt_id: str, number: int) -> str:
    return f"{prompt_id}.{number:03d}"
