"""Songs of samples folders as training data: their latents, and the rows of condition that they were generated
from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffdpo.data.latents import check_latents, read_latents
from diffdpo.data.samples import SampleRow, open_samples, sample_plan
from diffdpo.errors import DataError
from diffdpo.inputs import content_digest, digest
from diffdpo.types import Embedding, Plan, Prompt, Row

SongRef = tuple[str, str]
"""Samples folder, relative to the folder of a table, and sample id."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The functions and values that datasets need of the model and the run."""

    embed: Callable[[Prompt], Embedding]
    embed_plan: Callable[[Plan], Embedding]
    frames_per_second: float
    seed: int
    report: Callable[[str], None]
    """Function that prints a line to the terminal."""
    channels: int = 0
    """Channels of the model's latents; with 0 those of files are not compared with them."""


class GeneratedSongs:
    """The songs that the rows of a table name. All prompts are embedded at construction, so that encoders can be
    freed afterwards, also with each of `axes` as their control."""

    def __init__(
        self, table: Path, songs: Iterable[SongRef], source: Source, axes: Sequence[str] = ()
    ) -> None:
        names = sorted(set(songs))
        self.folders = {name: open_samples(table.parent / name) for name in sorted({n for n, _ in names})}
        self.embeddings: dict[tuple[str, str, str], Embedding] = {}
        self.frames: dict[SongRef, int] = {}
        for name, samples in self.folders.items():
            rows = {row.sample_id: row for row in samples.rows()}
            prompts = {prompt.id: prompt for prompt in samples.prompts()}
            members = [sample for folder, sample in names if folder == name]
            for sample in members:
                self.frames[name, sample] = find_sample_row(rows, sample, table, name).frames
            if source.channels:
                check_latents(map(samples.latents, members), source.channels)
            for sample in members:
                prompt = sample_prompt(rows[sample], prompts, table, name)
                song_plan = sample_plan(samples, rows[sample])
                plan = source.embed_plan(song_plan) if song_plan else {}
                for axis in ("", *axes):
                    axis_prompt = prompt.with_control("axis", axis) if axis else prompt
                    self.embeddings[name, sample, axis] = source.embed(axis_prompt) | plan

    def row(self, samples: str, sample_id: str, axis: str = "") -> Row:
        """The row of condition of a song, with an axis if one is named."""
        return Row(
            embedding=self.embeddings[samples, sample_id, axis], frames=self.frames[samples, sample_id]
        )

    def latents(self, samples: str, sample_id: str) -> Float[Tensor, "frame channel"]:
        """The latents of a song, in float32."""
        return read_latents(self.folders[samples].latents(sample_id))


def generated_songs_digest(folder: Path, songs: Iterable[SongRef]) -> str:
    """Identity of the songs that a table in `folder` names.

    A song is identified by its sound and by what it was made from; in tables that say neither, by its latents.
    """
    names = sorted(set(songs))
    identities: list[Any] = []
    for name in sorted({samples for samples, _ in names}):
        samples = open_samples(folder / name)
        rows = {row.sample_id: row for row in samples.rows()}
        for sample in (sample for samples_name, sample in names if samples_name == name):
            row = rows.get(sample)
            if row is None or not (row.inputs or row.sha256):
                identities.append((name, sample, content_digest(samples.latents(sample))))
            else:
                plan = [row.plan] if row.plan else []  # older tables, and their digests, have none
                identities.append((name, sample, row.frames, row.inputs, row.sha256, *plan))
    return digest(identities)


def find_sample_row(rows: dict[str, SampleRow], sample: str, table: Path, folder: str) -> SampleRow:
    """The row of a song that a table names, of the rows of its folder. DataError if it is not there."""
    if sample not in rows:
        raise DataError(f"{table}: names the song {sample!r}, which {folder} does not have")
    return rows[sample]


def sample_prompt(row: SampleRow, prompts: dict[str, Prompt], table: Path, folder: str) -> Prompt:
    """The prompt of a song, with the song's duration, since an edit takes its length from the song."""
    if row.prompt_id not in prompts:
        raise DataError(f"{table}: has songs of the prompt {row.prompt_id!r}, which {folder} does not know")
    return replace(prompts[row.prompt_id], duration_s=row.duration_s)
