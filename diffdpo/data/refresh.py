"""Songs of an earlier run whose inputs changed or are gone: rows and files are dropped before a run goes on."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from diffdpo.data import tables
from diffdpo.data.edits import Edit
from diffdpo.data.prompts import prompt_row
from diffdpo.data.samples import SAMPLES, Samples
from diffdpo.data.schema import RowT, TableSpec
from diffdpo.data.song_manifest import SongEntry
from diffdpo.data.songs import SONGS, SongRow, song_files
from diffdpo.hub import sha256_of
from diffdpo.inputs import content_digest, digest
from diffdpo.progress import log
from diffdpo.runs import MANIFEST
from diffdpo.types import Prompt


def prompt_inputs(prompts: Iterable[Prompt], edits: Mapping[str, Edit], model: str) -> dict[str, str]:
    """For each prompt, by id, the digest of what its songs are generated from: the prompt with its recording, the
    edit with its song, and the model, whose digest is given."""
    return {prompt.id: digest([model, _content(prompt, edits.get(prompt.id))]) for prompt in prompts}


def _content(prompt: Prompt, edit: Edit | None) -> list[Any]:
    """A prompt and an edit, with the content of files for their paths. The group of a prompt changes no song."""
    row = {key: value for key, value in prompt_row(prompt).items() if key not in ("id", "group")}
    if isinstance(prompt.style_audio, str):
        row["style_audio"] = content_digest(Path(prompt.style_audio))
    return [row, edit and {**asdict(edit), "song": content_digest(Path(edit.song))}]


def refresh_samples(
    samples: Samples,
    prompts: Mapping[str, Prompt],
    inputs: Mapping[str, str],
    check_alone: Callable[[], None],
) -> None:
    """Drop generated songs whose prompt, edit or model changed, and those that the run no longer asks for.

    `prompts` is the prompt of each song by sample id; `inputs` are the digests of prompts. `check_alone` raises if
    other processes write into the folder, and is called only if there is something to drop.
    """
    rows = samples.all_rows()
    current = [
        replace(row, group=prompts[row.sample_id].group)
        for row in rows
        if row.sample_id in prompts and row.inputs in ("", inputs[row.prompt_id])
    ]
    if current != rows:
        check_alone()
        names = {row.sample_id for row in rows} - {row.sample_id for row in current}
        files = [path for name in sorted(names) for path in samples.files(name)]
        _drop(
            samples.folder,
            SAMPLES,
            current,
            files,
            stale_ids=names & prompts.keys(),
            foreign_ids=names - prompts.keys(),
        )


def recording_state(path: Path) -> str:
    """Size and time of a file, which change when it is written again; "" for a file that does not exist."""
    if not path.is_file():
        return ""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def song_inputs(song: SongEntry, sha256: str, model: str) -> str:
    """The digest of what the latents and embeddings of a recording are made from; `model` is the model's."""
    return digest([model, sha256, song.text, song.lyrics, song.language, *song.controls])


def song_labels(song: SongEntry, controls: Collection[str]) -> dict[str, Any]:
    """The columns of the songs table that say what a song of a manifest is; `controls` are those that songs are
    conditioned on."""
    names = ("text", "lyrics", "language", "license", "attribution", "split", "group")
    values = {name: value for name, value in song.controls if name in controls}
    return {name: getattr(song, name) for name in names} | {"controls": json.dumps(values)}


def refresh_songs(
    folder: Path, songs: Iterable[SongEntry], model: str, controls: Collection[str] = ()
) -> None:
    """Drop prepared songs whose recording, texts or model changed, and those that are no longer in the manifest.

    Properties that change no latents, such as the license, are taken over from the manifest. `controls` are those
    that songs are conditioned on.
    """
    rows, by_id = tables.read_rows(folder, SONGS), {song.id: song for song in songs}
    current = [row for song_row in rows if (row := _current_row(song_row, by_id, model, controls))]
    if current != rows:
        names = {row.id for row in rows} - {row.id for row in current}
        files = [path for name in sorted(names) for path in song_files(folder, name)]
        _drop(folder, SONGS, current, files, stale_ids=names & by_id.keys(), foreign_ids=names - by_id.keys())


def _current_row(
    row: SongRow, songs: Mapping[str, SongEntry], model: str, controls: Collection[str]
) -> SongRow | None:
    """The row of a song with the manifest's properties; None if the song is gone or was made from other inputs."""
    song = songs.get(row.id)
    if song is None:
        return None
    row = replace(row, audio=str(song.audio), **song_labels(song, controls))
    state = recording_state(song.audio)
    if row.error or not state:
        return row
    sha256 = row.sha256 if row.audio_state == state else sha256_of(song.audio)
    inputs = song_inputs(song, sha256, model)
    is_current = sha256 == row.sha256 and row.inputs in ("", inputs)
    return replace(row, audio_state=state) if is_current else None


def _drop(
    folder: Path,
    spec: TableSpec[RowT],
    current: Sequence[RowT],
    files: Iterable[Path],
    *,
    stale_ids: set[str],
    foreign_ids: set[str],
) -> None:
    """Delete files, then replace the table, so that a kill in between is noticed by the next run."""
    if stale_ids:
        log(f"{folder}: {len(stale_ids)} songs are made anew, since what they were made from changed")
    if foreign_ids:
        log(f"{folder}: {len(foreign_ids)} songs are dropped, since nothing asks for them any more")
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in files:
        path.unlink(missing_ok=True)
    tables.replace(folder, spec, current)
