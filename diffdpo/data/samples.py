"""A folder of generated songs: latents, audio, and one row a song."""

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

    def plan(self, sample_id: str) -> Path:
        """The plan that a song was generated from, for models that plan."""
        return self.folder / "plans" / f"{sample_id}.safetensors"

    def preview(self, sample_id: str) -> Path:
        """The beginning of a song that is still being made."""
        return self.folder / "audio" / f"{sample_id}.preview.flac"


def open_samples(folder: str | Path) -> Samples:
    samples = Samples(Path(folder))
    if not (samples.folder / TABLE).is_dir():
        raise DataError(f"{folder}: holds no samples; run `diffdpo sample` first")
    return samples


def sample_id(prompt_id: str, number: int) -> str:
    return f"{prompt_id}.{number:03d}"
