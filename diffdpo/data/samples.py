"""Samples: a folder of generated songs, with latents, audio, and a table of one row a song."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from diffdpo.data import tables
from diffdpo.data.edits import Edit
from diffdpo.data.plans import plan_digest, read_plan
from diffdpo.data.prompts import DURATION, EDIT, prompt_row, read_prompts
from diffdpo.data.schema import TableSpec
from diffdpo.errors import DataError
from diffdpo.names import check_id, file_stem
from diffdpo.runs import write_if_changed
from diffdpo.types import Plan, Prompt

PROMPTS = "prompts.jsonl"


@dataclass(frozen=True, kw_only=True)
class SampleRow:
    """One generated song."""

    sample_id: str
    """The prompt's id and a number; the song's files are named by it, shortened where it is long."""
    prompt_id: str
    """The song's prompt in prompts.jsonl."""
    group: str = ""
    """The group of the prompt: prompts of one group never fall on both sides of a split."""
    seed: int = 0
    """Seed of the run; noise follows from the seed and the sample id."""
    frames: int = 0
    """Length of the latents, in frames."""
    duration_s: float = 0.0
    """Length in the prompt, in seconds."""
    model: str = "{}"
    """JSON: name and arguments of the song model."""
    sampling: str = "{}"
    """JSON: the configuration of the sampler."""
    longform: str = "{}"
    """JSON: the configuration of songs longer than a window."""
    edit: str = ""
    """JSON: the edit of another song; empty for a song without one."""
    sha256: str = ""
    """Hash of the sound (canonical PCM), the key of its scores; empty for a song without audio."""
    inputs: str = ""
    """Digest of what the song was generated from: prompt, edit and model; empty in tables of older versions."""
    plan: str = ""
    """Digest of the plan that the song follows, which is in plans/; empty for a song without one."""
    search: str = ""
    """JSON: of a search's winner, the song of the search that it is, method and reward; empty for other songs."""
    staleness: int = 0
    """Rounds between the policy that made the song and the one that it trains; 0 outside of `round`."""
    error: str = ""
    """Why the song could not be generated; empty on success."""


SAMPLES = TableSpec("samples", SampleRow, key=("sample_id",))


@dataclass(frozen=True)
class Samples:
    """A folder that `diffdpo sample` wrote."""

    folder: Path

    def rows(self) -> list[SampleRow]:
        """One row a finished song, failures left out."""
        return [row for row in self.all_rows() if not row.error]

    def all_rows(self) -> list[SampleRow]:
        """One row a song. DataError for an id that cannot name files, as in a table from elsewhere."""
        rows = tables.read_rows(self.folder, SAMPLES)
        for row in rows:
            check_id(row.sample_id, str(self.folder / SAMPLES.folder))
        return rows

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of the finished songs."""
        table = tables.read_columns(self.folder, SAMPLES, (*names, "error"))
        return table.filter(pc.equal(table["error"], "")).select(list(names))

    def prompts(self) -> list[Prompt]:
        """The prompts of the songs, as copied into the folder when sampling began."""
        return read_prompts(self.folder / PROMPTS)

    def latents(self, sample_id: str) -> Path:
        return self.folder / "latents" / f"{file_stem(sample_id)}.safetensors"

    def audio(self, sample_id: str) -> Path:
        return self.folder / "audio" / f"{file_stem(sample_id)}.flac"

    def plan(self, sample_id: str) -> Path:
        """Path of the plan that a song was generated from, for models with plans."""
        return self.folder / "plans" / f"{file_stem(sample_id)}.safetensors"

    def files(self, sample_id: str) -> list[Path]:
        """Paths of all files of a song, whether they exist or not."""
        return [self.latents(sample_id), self.audio(sample_id), self.plan(sample_id), self.picture(sample_id)]

    def picture(self, sample_id: str) -> Path:
        """Path of the spectrogram of a song, for the folder's page."""
        return self.folder / "pictures" / f"{file_stem(sample_id)}.png"

    def preview(self, sample_id: str) -> Path:
        """Path of the beginning of a song that is still being generated."""
        return self.folder / "audio" / f"{file_stem(sample_id)}.preview.flac"


def open_samples(folder: str | Path) -> Samples:
    samples = Samples(Path(folder))
    if not (samples.folder / SAMPLES.folder).is_dir():
        raise DataError(f"{folder}: holds no samples; run `diffdpo sample` first")
    return samples


def sample_plan(samples: Samples, row: SampleRow) -> Plan | None:
    """The plan that a song was generated from; None for a song without one.

    DataError for a plan that is gone, damaged, or not the one that the song follows.
    """
    path = samples.plan(row.sample_id)
    if not path.is_file():
        if row.plan:
            raise DataError(
                f"{path}: missing, and the song {row.sample_id!r} follows it; sample the song again"
            )
        return None
    plan = read_plan(path)
    if row.plan and plan_digest(plan) != row.plan:
        raise DataError(
            f"{path}: not the plan that the song {row.sample_id!r} follows; sample the song again"
        )
    return plan


def relative_folder(samples: Path, folder: Path) -> str:
    """The path of a samples folder relative to `folder`, that of a table, so that both can be moved together.

    Links are resolved first: behind a link ".." is the parent of the folder that the link points to.
    """
    return os.path.relpath(os.path.realpath(samples), os.path.realpath(folder))


def sample_id(prompt_id: str, number: int) -> str:
    return f"{prompt_id}.{number:03d}"


def write_prompts(path: Path, prompts: Iterable[Prompt], edits: Mapping[str, Edit]) -> None:
    """A copy of the prompts beside the songs, with absolute paths."""
    lines = []
    for prompt in prompts:
        row = prompt_row(prompt)
        if "style_audio" in row:
            row["style_audio"] = str(Path(row["style_audio"]).resolve())
        if prompt.id in edits:
            del row[DURATION]
            row[EDIT] = asdict(edits[prompt.id]) | {"song": str(Path(edits[prompt.id].song).resolve())}
        lines.append(json.dumps(row, ensure_ascii=False))
    write_if_changed(path, "".join(f"{line}\n" for line in lines))
