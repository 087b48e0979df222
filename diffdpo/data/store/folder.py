"""The tables of a store, and the folder that holds them.

Votes and opinions have the common format, so a store is a folder of votes like any other. Songs are identified by
the hash of their sound; a song's file is a copy in `audio/`, or stays where it was.
"""

import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from diffdpo.data import tables
from diffdpo.data.schema import TableSpec
from diffdpo.data.votes import OPINIONS, VOTES, OpinionRow, VoteRow
from diffdpo.errors import DataError
from diffdpo.runs import read_json, write_json

STORE_FILE = "store.json"
STORE_VERSION = 1
SHARE_SCOPE, TRAIN_SCOPE = "share", "train"
CONSENT_SCOPES = (SHARE_SCOPE, TRAIN_SCOPE)
"""What listeners agreed to: that their answers are passed on, or only that they are trained on here."""


@dataclass(frozen=True, kw_only=True)
class StoreSongRow:
    """One song of a store."""

    sha256: str
    """Hash of the sound (canonical PCM)."""
    file: str
    """Audio file, relative to the store: a copy in `audio/`, or the file where it was."""
    source: str = ""
    """Data set, study or folder that the song comes from."""
    song_id: str = ""
    """Id of the song there."""
    prompt: str = ""
    """Text that the song was generated from, or that describes it."""
    lyrics: str = ""
    """Lyrics of the song."""
    group: str = ""
    """The group of the prompt: songs of one group never fall on both sides of a split."""
    system: str = ""
    """Name of the model that generated the song; empty for a recording."""
    license: str = ""
    """License of the song; empty where nobody stated one."""
    attribution: str = ""
    """Whom the license asks to name."""
    duration_s: float = 0.0
    """Length, in seconds."""


@dataclass(frozen=True, kw_only=True)
class StoreFeatureRow:
    """The features of a song by one reader."""

    sha256: str
    """Hash of the song's sound."""
    reader: str
    """Name of the reader: harmony, rhythm or style."""
    fingerprint: str
    """Version of the reader; features of another are read anew."""
    values: tuple[float, ...]
    """Empty for a song without features, such as silence."""


@dataclass(frozen=True, kw_only=True)
class ProvenanceRow:
    """Where a row of a store came from."""

    kind: str
    """`song`, `vote` or `opinion`."""
    id: str
    """The row's key: hash of the sound, or source and id, joined by a slash."""
    origin: str
    """Folder or file that it was added from, relative to the store."""
    via: str = ""
    """What the origin is: samples, prepared, audio, votes, or the format of an import."""
    added_at: float = 0.0
    """Seconds since 1970, UTC."""


@dataclass(frozen=True, kw_only=True)
class StoreTombstoneRow:
    """What is left of something that was forgotten: enough to keep it out, nothing of what it was."""

    digest: str
    """Keyed hash of kind and identity; the key is in store.json and in no export."""
    kind: str
    """`rater`, `song`, `vote`, `opinion` or `source`."""
    deleted_at: float = 0.0
    """Seconds since 1970, UTC."""
    rows: int = 0
    """Number of rows that were deleted with it."""
    uses: tuple[str, ...] = ()
    """Folders of tables and models that contained it at that time."""


@dataclass(frozen=True, kw_only=True)
class ConsentRow:
    """What listeners agreed to in a version and language of a consent."""

    consent: str
    """Version and language, as votes name it."""
    scope: str
    """`share`: answers may be passed on; `train`: they may be trained on here."""


STORE_SONGS = TableSpec("store_songs", StoreSongRow, key=("sha256",))
STORE_FEATURES = TableSpec("store_features", StoreFeatureRow, key=("sha256", "reader"))
PROVENANCE = TableSpec("provenance", ProvenanceRow, key=("kind", "id", "origin"))
TOMBSTONES = TableSpec("tombstones", StoreTombstoneRow, key=("digest",))
CONSENTS = TableSpec("consents", ConsentRow, key=("consent",))


@dataclass(frozen=True)
class Tombstones:
    """What was forgotten, as a set that can be asked but not read."""

    salt: str
    digests: frozenset[str] = field(default_factory=frozenset)

    def digest(self, kind: str, *identity: str) -> str:
        """The keyed hash of something."""
        text = "\0".join((kind, *identity)).encode("utf-8", "surrogatepass")
        return hmac.new(bytes.fromhex(self.salt), text, "sha256").hexdigest()

    def has(self, kind: str, *identity: str) -> bool:
        """Whether something was forgotten."""
        return bool(self.digests) and self.digest(kind, *identity) in self.digests

    def has_vote(self, row: VoteRow) -> bool:
        """Whether a vote, its rater, its source or one of its songs was forgotten."""
        return (
            self.has("vote", row.source, row.vote_id)
            or self._has_person_or_source(row)
            or self.has("song", row.sha256_a)
            or self.has("song", row.sha256_b)
        )

    def has_opinion(self, row: OpinionRow) -> bool:
        """Whether an opinion, its rater, its source or its song was forgotten."""
        return (
            self.has("opinion", row.source, row.opinion_id)
            or self._has_person_or_source(row)
            or self.has("song", row.sha256)
        )

    def _has_person_or_source(self, row: VoteRow | OpinionRow) -> bool:
        return self.has("source", row.source) or bool(row.rater and self.has("rater", row.source, row.rater))


@dataclass(frozen=True)
class Store:
    """A store's folder."""

    folder: Path

    def songs(self) -> list[StoreSongRow]:
        return tables.read_rows(self.folder, STORE_SONGS)

    def votes(self) -> list[VoteRow]:
        return tables.read_rows(self.folder, VOTES)

    def opinions(self) -> list[OpinionRow]:
        return tables.read_rows(self.folder, OPINIONS)

    def features(self, reader: str) -> list[StoreFeatureRow]:
        """The features of all songs by one reader, of any fingerprint."""
        return [row for row in tables.read_rows(self.folder, STORE_FEATURES) if row.reader == reader]

    def provenance(self) -> list[ProvenanceRow]:
        return tables.read_rows(self.folder, PROVENANCE)

    def consent_scopes(self) -> dict[str, str]:
        """What listeners agreed to, by consent."""
        return {row.consent: row.scope for row in tables.read_rows(self.folder, CONSENTS)}

    def tombstones(self) -> Tombstones:
        rows = tables.read_rows(self.folder, TOMBSTONES)
        return Tombstones(self.salt, frozenset(row.digest for row in rows))

    @cached_property
    def salt(self) -> str:
        """The key of the hashes in tombstones."""
        return str(read_json(self.folder / STORE_FILE)["salt"])

    def path(self, row: StoreSongRow) -> Path:
        """The audio file of a song."""
        return self.folder / row.file

    def relative(self, path: Path) -> str:
        """A path relative to the store, so that both can be moved together."""
        return os.path.relpath(os.path.realpath(path), os.path.realpath(self.folder))


def open_store(folder: Path, *, create: bool = False) -> Store:
    """A store; made where there is none and `create` is true. DataError for a folder that is no store."""
    path = folder / STORE_FILE
    if not path.is_file():
        if not create:
            raise DataError(f"{folder}: is no store; make one with `diffdpo store add {folder} …`")
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(f"{folder}: holds other files and is no store; choose another folder")
        write_json(path, {"version": STORE_VERSION, "salt": secrets.token_hex(32)})
    version = read_json(path).get("version")
    if version != STORE_VERSION:
        raise DataError(
            f"{folder}: a store of version {version}; this diffdpo reads {STORE_VERSION}; update diffdpo"
        )
    return Store(folder)


def row_id(row: VoteRow | OpinionRow) -> str:
    """The id of a vote or opinion in the provenance table."""
    return f"{row.source}/{row.vote_id if isinstance(row, VoteRow) else row.opinion_id}"


def by_source(rows: Iterable[VoteRow | OpinionRow]) -> Mapping[str, int]:
    """The number of rows of each source."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.source] = counts.get(row.source, 0) + 1
    return counts
