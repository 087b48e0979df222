"""What can be added to a store: folders of samples, prepared songs, recordings, votes; and imports.

Each is read into the same rows: songs with their sounds, votes and opinions whose songs are named by files.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffdpo.data.importers import IMPORTERS, import_preferences
from diffdpo.data.importers.records import SoundSource
from diffdpo.data.samples import SAMPLES, Samples, open_samples
from diffdpo.data.song_manifest import read_songs
from diffdpo.data.songs import SONGS
from diffdpo.data.store.folder import Store, StoreSongRow
from diffdpo.data.tables import read_rows
from diffdpo.data.votes import OPINIONS, VOTES, OpinionRow, VoteRow, check_vote, read_opinions_table
from diffdpo.errors import DataError
from diffdpo.text_files import is_file


@dataclass(frozen=True, kw_only=True)
class IntakeSong:
    """A song that is added: its row, without hash and file, and its sound."""

    row: StoreSongRow
    sound: SoundSource


@dataclass(frozen=True, kw_only=True)
class Intake:
    """All that is added at once.

    The key of a song in `songs` is what votes and opinions call it: `song`, or `samples/song` where a row names the
    samples folder, which is relative to the store.
    """

    origin: Path
    via: str
    songs: Mapping[str, IntakeSong] = field(default_factory=dict)
    votes: Sequence[VoteRow] = ()
    opinions: Sequence[OpinionRow] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class IntakeOptions:
    """What the user says of what is added."""

    layout: str = ""
    """The format of an import; empty for a folder that diffdpo wrote, or recordings."""
    license: str = ""
    source: str = ""


def read_intake(path: Path, options: IntakeOptions, store: Store) -> Intake:
    """The rows of a folder or an import, nothing written. DataError for a path that holds nothing to add."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if options.layout:
        return _read_import(path, options)
    if (path / VOTES.folder).exists() or (path / OPINIONS.folder).exists():
        return _read_votes_folder(path, options, store)
    if (path / SAMPLES.folder).exists():
        songs = {song.row.song_id: song for song in intake_samples(path, options)}
        return Intake(origin=path, via="samples", songs=songs)
    if (path / SONGS.folder).exists():
        return Intake(origin=path, via="prepared", songs=_prepared_songs(path, options))
    return Intake(origin=path, via="audio", songs=_recordings(path, options))


def song_key(row: VoteRow | OpinionRow, side: str) -> str:
    """The key of a song of a vote (side `a` or `b`) or of an opinion (side "")."""
    end = f"_{side}" if side else ""
    samples, song = getattr(row, f"samples{end}"), getattr(row, f"song{end}")
    return f"{samples}/{song}" if samples else str(song)


def _read_import(path: Path, options: IntakeOptions) -> Intake:
    """The rows of a published data set."""
    data = import_preferences(options.layout, path, source=options.source, license_name=options.license)
    songs: dict[str, IntakeSong] = {}
    attribution = IMPORTERS[options.layout].attribution
    for row, side in _sides(data.votes, data.opinions):
        key = song_key(row, side)
        if key in data.sounds and key not in songs:
            songs[key] = IntakeSong(
                row=replace(_song_of(row, side), attribution=attribution), sound=data.sounds[key]
            )
    return Intake(
        origin=path,
        via=options.layout,
        songs=songs,
        votes=data.votes,
        opinions=data.opinions,
        notes=data.notes,
    )


def _sides(
    votes: Sequence[VoteRow], opinions: Sequence[OpinionRow]
) -> Iterator[tuple[VoteRow | OpinionRow, str]]:
    """All rows with their sides: votes have two songs."""
    for vote in votes:
        yield vote, "a"
        yield vote, "b"
    for opinion in opinions:
        yield opinion, ""


def _song_of(row: VoteRow | OpinionRow, side: str) -> StoreSongRow:
    """What a vote or opinion says of a song."""
    end = f"_{side}" if side else ""
    return StoreSongRow(
        sha256=getattr(row, f"sha256{end}"),
        file="",
        source=row.source,
        song_id=getattr(row, f"song{end}"),
        prompt=row.prompt,
        lyrics=row.lyrics if isinstance(row, VoteRow) else "",
        group=row.group,
        system=getattr(row, f"system{end}"),
        license=row.license,
    )


def _read_votes_folder(path: Path, options: IntakeOptions, store: Store) -> Intake:
    """The votes and opinions of a folder such as that of `diffdpo listen`, with the songs that are still there."""
    votes, opinions = read_rows(path, VOTES), read_opinions_table(path)
    for vote in votes:
        check_vote(vote, f"{path / VOTES.folder}, vote {vote.vote_id!r}")
    songs: dict[str, IntakeSong] = {}
    earlier: list[VoteRow | OpinionRow] = [*votes, *opinions]
    rows: list[VoteRow | OpinionRow] = []
    for row in earlier:
        values: dict[str, Any] = {}
        for side in ("_a", "_b") if isinstance(row, VoteRow) else ("",):
            samples = getattr(row, f"samples{side}")
            if samples:
                values[f"samples{side}"] = store.relative(path / samples)
        if options.license and not row.license:
            values["license"] = options.license
        if options.source:
            values["source"] = options.source
        rows.append(replace(row, **values))
    new_votes = [row for row in rows if isinstance(row, VoteRow)]
    new_opinions = [row for row in rows if isinstance(row, OpinionRow)]
    for row, side in _sides(new_votes, new_opinions):
        key = song_key(row, side)
        sound = _sound_of(row, side, path, store)
        if key not in songs and sound is not None:
            songs[key] = IntakeSong(row=_song_of(row, side), sound=sound)
    return Intake(origin=path, via="votes", songs=songs, votes=new_votes, opinions=new_opinions)


def _sound_of(row: VoteRow | OpinionRow, side: str, folder: Path, store: Store) -> Path | None:
    """The audio file of a song of a vote or opinion; None where it is not there."""
    end = f"_{side}" if side else ""
    samples, song = getattr(row, f"samples{end}"), getattr(row, f"song{end}")
    path = Samples(store.folder / samples).audio(song) if samples else folder / song
    return path if is_file(path) else None


def intake_samples(path: Path, options: IntakeOptions) -> Iterator[IntakeSong]:
    """The songs of a samples folder that have sound."""
    samples = open_samples(path)
    try:
        texts = {prompt.id: prompt for prompt in samples.prompts()}
    except DataError:
        texts = {}
    for row in samples.rows():
        sound = samples.audio(row.sample_id)
        if not sound.is_file():
            continue
        prompt = texts.get(row.prompt_id)
        yield IntakeSong(
            row=StoreSongRow(
                sha256=row.sha256,
                file="",
                source=options.source or path.resolve().name,
                song_id=row.sample_id,
                prompt=(prompt.text or "") if prompt else "",
                lyrics=(prompt.lyrics or "") if prompt else "",
                group=row.group,
                system=_model_name(row.model),
                license=options.license,
            ),
            sound=sound,
        )


def _model_name(model: str) -> str:
    try:
        return str(json.loads(model).get("name", ""))
    except (ValueError, AttributeError):
        return ""


def _prepared_songs(path: Path, options: IntakeOptions) -> dict[str, IntakeSong]:
    songs = {}
    for row in read_rows(path, SONGS):
        if row.error:
            continue
        if not Path(row.audio).is_file():
            raise DataError(f"{path / SONGS.folder}, song {row.id!r}: its recording {row.audio!r} is gone")
        songs[row.id] = IntakeSong(
            row=StoreSongRow(
                sha256="",
                file="",
                source=options.source or path.resolve().name,
                song_id=row.id,
                prompt=row.text,
                lyrics=row.lyrics,
                group=row.group,
                license=options.license or row.license,
                attribution=row.attribution,
            ),
            sound=Path(row.audio),
        )
    return songs


def _recordings(path: Path, options: IntakeOptions) -> dict[str, IntakeSong]:
    """The songs of a folder of recordings with what stands beside them, or of a manifest."""
    songs = {}
    for entry in read_songs(path, 0.0, lambda text: None):
        songs[entry.id] = IntakeSong(
            row=StoreSongRow(
                sha256="",
                file="",
                source=options.source or path.resolve().stem,
                song_id=entry.id,
                prompt=entry.text,
                lyrics=entry.lyrics,
                group=entry.group,
                license=options.license or entry.license,
                attribution=entry.attribution,
            ),
            sound=Path(entry.audio),
        )
    return songs
