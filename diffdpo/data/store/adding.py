"""Adding to a store: nothing twice, nothing that was forgotten, and nothing at all where a part does not fit."""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.importers.records import AUDIO_SUFFIXES, EmbeddedSound, read_embedded
from diffdpo.data.licenses import license_kind
from diffdpo.data.schema import TableSpec
from diffdpo.data.store.folder import (
    CONSENTS,
    PROVENANCE,
    STORE_SONGS,
    ConsentRow,
    ProvenanceRow,
    Store,
    StoreSongRow,
    Tombstones,
    row_id,
)
from diffdpo.data.store.intake import Intake, IntakeSong, song_key
from diffdpo.data.votes import OPINIONS, VOTES, OpinionRow, VoteRow
from diffdpo.errors import DataError

AUDIO_FOLDER = "audio"
STAGING = ".staging"
"""Folder for sounds that are not yet known to be sounds; removed whatever happens."""
T = TypeVar("T", VoteRow, OpinionRow)


@dataclass(frozen=True, kw_only=True)
class AddSummary:
    """What was added, and what was not."""

    counts: Mapping[str, tuple[int, int]]
    """By kind of row: new ones, and those that were there already."""
    kept_out: int = 0
    """Rows and songs that had been forgotten."""
    deletions: tuple[VoteRow | OpinionRow, ...] = ()
    """Rows of an earlier addition of this origin that it no longer holds."""
    notes: tuple[str, ...] = field(default=())

    def lines(self) -> list[str]:
        """The summary for the terminal."""
        lines = [
            f"{new} {kind}s added" + (f", {present} were there" if present else "")
            for kind, (new, present) in self.counts.items()
            if new or present
        ]
        if self.kept_out:
            lines.append(f"{self.kept_out} kept out: they were forgotten")
        return [*lines, *self.notes]


@dataclass(frozen=True)
class StoredSound:
    """A sound in or beside a store: hash, file relative to the store, and length."""

    sha256: str
    file: str
    duration_s: float


def add_intake(
    store: Store,
    intake: Intake,
    *,
    copy: bool = False,
    scope: str = "",
    clock: Callable[[], float] = time.time,
) -> AddSummary:
    """Add the rows of an intake. DataError, with nothing added, for a sound that cannot be decoded.

    With `copy` the store has its own copy of every sound; sounds inside of Parquet files are always copied. `scope`
    says what the listeners of the votes agreed to.
    """
    tombstones = store.tombstones()
    staging = store.folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    try:
        sounds = {key: _take_in(store, song, staging, copy=copy) for key, song in intake.songs.items()}
        present = {row.sha256: row for row in store.songs()}
        songs, kept_out = _song_rows(intake, sounds, present, tombstones)
        votes, vote_count = _rows(intake.votes, sounds, tombstones.has_vote)
        opinions, opinion_count = _rows(intake.opinions, sounds, tombstones.has_opinion)
        for sound in sounds.values():
            _settle(store, sound, staging, is_new=sound.sha256 in songs)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    counts = {
        "song": _append(store, STORE_SONGS, songs.values(), present.values(), lambda row: row.sha256),
        "vote": _append(store, VOTES, votes, store.votes(), row_id),
        "opinion": _append(store, OPINIONS, opinions, store.opinions(), row_id),
    }
    deletions = _find_deletions(store, intake)
    _append_provenance(
        store, intake, (*songs, *map(row_id, votes), *map(row_id, opinions)), songs, votes, clock()
    )
    if scope:
        consents = sorted({*(row.consent for row in votes), *(row.consent for row in opinions)} - {""})
        tables.append(store.folder, CONSENTS, [ConsentRow(consent=name, scope=scope) for name in consents])
    for spec in (STORE_SONGS, VOTES, OPINIONS, PROVENANCE, CONSENTS):
        tables.compact(store.folder, spec)
    return AddSummary(
        counts=counts,
        kept_out=kept_out + vote_count + opinion_count,
        deletions=tuple(deletions),
        notes=tuple(intake.notes),
    )


def _take_in(store: Store, song: IntakeSong, staging: Path, *, copy: bool) -> StoredSound:
    """Hash a sound; one that is copied waits in `staging`."""
    if isinstance(song.sound, EmbeddedSound):
        staging.mkdir(parents=True, exist_ok=True)
        suffix = Path(song.sound.name).suffix.lower()
        suffix = suffix if suffix in AUDIO_SUFFIXES else ".wav"
        path = staging / f"sound{suffix}"
        path.write_bytes(read_embedded(song.sound))
        return _describe_sound(store, path, song.sound.location, f"{AUDIO_FOLDER}/{{}}{suffix}")
    path = song.sound
    copied_sound = _describe_sound(
        store, path, str(path), f"{AUDIO_FOLDER}/{{}}{path.suffix}" if copy else ""
    )
    if copy:
        staging.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, staging / Path(copied_sound.file).name)
    return copied_sound


def _describe_sound(store: Store, path: Path, location: str, pattern: str) -> StoredSound:
    try:
        with audio.decode(path) as file:
            seconds = file.frames / file.samplerate
        sha256 = audio.file_sha256(path)
    except (DataError, RuntimeError) as error:
        raise DataError(f"{location}: no sound that can be decoded ({error})") from None
    name = pattern.format(sha256) if pattern else store.relative(path)
    if pattern and path.parent.name == STAGING:
        path.replace(path.parent / Path(name).name)
    return StoredSound(sha256=sha256, file=name, duration_s=seconds)


def _settle(store: Store, sound: StoredSound, staging: Path, *, is_new: bool) -> None:
    """Move a copy to its place, unless the store has it, or the song was forgotten."""
    path, target = staging / Path(sound.file).name, store.folder / sound.file
    if is_new and path.is_file() and sound.file.startswith(f"{AUDIO_FOLDER}/"):
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def _song_rows(
    intake: Intake,
    sounds: Mapping[str, StoredSound],
    present: Mapping[str, StoreSongRow],
    tombstones: Tombstones,
) -> tuple[dict[str, StoreSongRow], int]:
    """The songs by hash that are added, and how many were forgotten. What an earlier addition said is kept."""
    songs: dict[str, StoreSongRow] = {}
    kept_out = 0
    for key, song in intake.songs.items():
        sound = sounds[key]
        row = replace(song.row, sha256=sound.sha256, file=sound.file, duration_s=round(sound.duration_s, 3))
        if tombstones.has("song", row.sha256) or tombstones.has("source", row.source):
            kept_out += 1
            continue
        songs.setdefault(row.sha256, _merge(present.get(row.sha256), row))
    return songs, kept_out


def _merge(earlier: StoreSongRow | None, row: StoreSongRow) -> StoreSongRow:
    """A song that was there before keeps what is known of it; empty cells are filled, a copy replaces a file."""
    if earlier is None:
        return row
    values = {name: value or getattr(row, name) for name, value in vars(earlier).items()}
    if license_kind(earlier.license) == "unknown":
        values["license"] = row.license or earlier.license
    if row.file.startswith(f"{AUDIO_FOLDER}/"):
        values["file"] = row.file
    return StoreSongRow(**values)


def _rows(
    rows: Iterable[T], sounds: Mapping[str, StoredSound], is_forgotten: Callable[[T], bool]
) -> tuple[list[T], int]:
    """Votes or opinions with the hashes and files of their songs, and how many were forgotten."""
    complete_rows, kept_out = [], 0
    for row in rows:
        values: dict[str, Any] = {}
        for side in ("a", "b") if isinstance(row, VoteRow) else ("",):
            end = f"_{side}" if side else ""
            sound = sounds.get(song_key(row, side))
            if sound is not None:
                values[f"sha256{end}"] = sound.sha256
                if not getattr(row, f"samples{end}"):
                    values[f"song{end}"] = sound.file
        complete = replace(row, **values)
        if is_forgotten(complete):
            kept_out += 1
        else:
            complete_rows.append(complete)
    return complete_rows, kept_out


S = TypeVar("S")


def _append(
    store: Store, spec: TableSpec[S], rows: Iterable[S], present: Iterable[S], key: Callable[[S], str]
) -> tuple[int, int]:
    """Append rows that are new or differ; the numbers of new keys and of keys that were there."""
    earlier = {key(row): row for row in present}
    changes = [row for row in rows if earlier.get(key(row)) != row]
    tables.append(store.folder, spec, changes)
    total = list(rows)
    new = sum(key(row) not in earlier for row in total)
    return new, len(total) - new


def _append_provenance(
    store: Store,
    intake: Intake,
    ids: Iterable[str],
    songs: Mapping[str, StoreSongRow],
    votes: Iterable[VoteRow],
    now: float,
) -> None:
    origin = store.relative(intake.origin)
    vote_ids = {row_id(row) for row in votes}
    earlier = {(row.kind, row.id) for row in store.provenance() if row.origin == origin}
    rows = []
    for name in ids:
        kind = "song" if name in songs else "vote" if name in vote_ids else "opinion"
        if (kind, name) not in earlier:
            rows.append(ProvenanceRow(kind=kind, id=name, origin=origin, via=intake.via, added_at=now))
    tables.append(store.folder, PROVENANCE, rows)


def _find_deletions(store: Store, intake: Intake) -> list[VoteRow | OpinionRow]:
    """Votes and opinions that came from this folder of votes alone and are no longer in it: deleted there."""
    if intake.via != "votes":
        return []
    origin = store.relative(intake.origin)
    ids_here = {*map(row_id, intake.votes), *map(row_id, intake.opinions)}
    origins: dict[str, set[str]] = {}
    for row in store.provenance():
        if row.kind in ("vote", "opinion"):
            origins.setdefault(row.id, set()).add(row.origin)
    rows: list[VoteRow | OpinionRow] = [*store.votes(), *store.opinions()]
    return [row for row in rows if origins.get(row_id(row)) == {origin} and row_id(row) not in ids_here]
