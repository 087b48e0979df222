"""A folder of generated songs: latents, audio, and one row a song."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from diffdpo.data import tables
from diffdpo.data.prompts import read_prompts
from diffdpo.data.schema import TableSpec
from diffdpo.errors import DataError
from diffdpo.types import Prompt

PROMPTS = "prompts.jsonl"


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One generated song."""

    sample_id: str
    """Names its files: the prompt's id and a number."""
    prompt_id: str
    """The prompt in prompts.jsonl that the song was made for."""
    group: str = ""
    """The prompt's: prompts of one group never fall on both sides of a split."""
    seed: int = 0
    """Of the run: noise follows from it and the sample id."""
    frames: int = 0
    """Length of the latents."""
    duration_s: float = 0.0
    """Length that the prompt asks for, in seconds."""
    model: str = "{}"
    """JSON: name and arguments of the song model."""
    sampling: str = "{}"
    """JSON: the configuration of the sampler."""
    longform: str = "{}"
    """JSON: the configuration of songs longer than a window."""
    edit: str = ""
    """JSON: what was kept of which song; empty for a song made from nothing."""
    sha256: str = ""
    """Hash of the sound (canonical PCM), by which scores are found again; empty for a song without audio."""
    error: str = ""
    """Why the song could not be made; empty if it was."""


SAMPLES = TableSpec("samples", SampleRow, key=("sample_id",))


@dataclass(frozen=True)
class Samples:
    """What `diffdpo sample` wrote."""

    folder: Path

    def rows(self) -> list[SampleRow]:
        """One row a finished song, failures left out."""
        return [row for row in self.all_rows() if not row.error]

    def all_rows(self) -> list[SampleRow]:
        return tables.read_rows(self.folder, SAMPLES)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of the finished songs."""
        table = tables.read_columns(self.folder, SAMPLES, (*names, "error"))
        return table.filter(pc.equal(table["error"], "")).select(list(names))

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
    if not (samples.folder / SAMPLES.folder).is_dir():
        raise DataError(f"{folder}: holds no samples; run `diffdpo sample` first")
    return samples


def relative_folder(samples: Path, folder: Path) -> str:
    """The folder of some songs as a table in `folder` names it, so that both can be moved together."""
    return os.path.relpath(samples, folder)


def sample_id(prompt_id: str, number: int) -> str:
    return f"{prompt_id}.{number:03d}"
