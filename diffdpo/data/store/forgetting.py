"""Forgetting: a rater, a song, a vote or a source leaves a store with all that hangs on it, and a tombstone stays.

The tombstone keeps what was forgotten from being added again; it holds a keyed hash and no content. Nothing outside
of the store is deleted: tables and models that contained it are named.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffdpo.data import tables
from diffdpo.data.store.adding import AUDIO_FOLDER
from diffdpo.data.store.folder import (
    PROVENANCE,
    STORE_FEATURES,
    STORE_SONGS,
    TOMBSTONES,
    Store,
    StoreSongRow,
    StoreTombstoneRow,
    row_id,
)
from diffdpo.data.store.uses import DataIds, DataUse, find_uses
from diffdpo.data.votes import OPINIONS, VOTES, OpinionRow, VoteRow
from diffdpo.errors import ConfigError, DataError

INDEX_FOLDER = "index"


@dataclass(frozen=True, kw_only=True)
class ForgetSelection:
    """What is forgotten: one of rater, song, vote and source; a source may also narrow a rater or a vote."""

    rater: str = ""
    song: str = ""
    """Hash of the sound."""
    vote: str = ""
    """Id of a vote or an opinion."""
    source: str = ""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.rater, self.song, self.vote))) > 1:
            raise ValueError("name one of --rater, --song, --vote at a time")
        if not any((self.rater, self.song, self.vote, self.source)):
            raise ValueError("name what is to be forgotten: --rater, --song, --vote or --source")
        if self.song and self.source:
            raise ValueError("a song is forgotten in all sources; leave --source out")


@dataclass(frozen=True, kw_only=True)
class ForgetReport:
    """What left the store, and what contained it elsewhere."""

    votes: int = 0
    opinions: int = 0
    songs: int = 0
    features: int = 0
    uses: tuple[DataUse, ...] = ()
    earlier: bool = False
    """Whether it had been forgotten before."""
    earlier_uses: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report for the terminal."""
        if self.earlier:
            lines = ["forgotten before; what contained it then:", *self.earlier_uses]
            return lines if self.earlier_uses else ["forgotten before; nothing contained it then"]
        lines = [
            f"forgotten: {self.votes} votes, {self.opinions} opinions, {self.songs} songs, "
            f"{self.features} rows of features"
        ]
        if not self.uses:
            return [*lines, "no table and no model outside of the store contained it"]
        models = sum(use.is_model for use in self.uses)
        lines.append(
            f"{len(self.uses)} folders contained it and still do, {models} of them models; delete them, or make "
            "them again in this order:"
        )
        return [*lines, *(f"  {use.line()}" for use in self.uses)]


@dataclass(frozen=True, kw_only=True)
class ForgottenRows:
    """The rows of a store that a selection takes with it."""

    votes: Sequence[VoteRow]
    opinions: Sequence[OpinionRow]
    songs: Sequence[StoreSongRow]


def forget(
    store: Store,
    selection: ForgetSelection,
    roots: Sequence[Path],
    *,
    clock: Callable[[], float] = time.time,
) -> ForgetReport:
    """Delete what is selected, leave tombstones, and name its uses in all run folders below `roots`.

    DataError for something that the store does not hold and never forgot, and for a rater or a vote of several
    sources.
    """
    rows = select_rows(store, selection)
    if not (rows.votes or rows.opinions or rows.songs):
        return _earlier(store, selection)
    return forget_rows(store, rows, _identities(selection, rows), roots, clock=clock)


def forget_rows(
    store: Store,
    rows: ForgottenRows,
    identities: Sequence[tuple[str, ...]],
    roots: Sequence[Path],
    *,
    clock: Callable[[], float] = time.time,
) -> ForgetReport:
    """The same for rows of the store, with what their tombstones are to keep out."""
    ids = DataIds.of(rows.votes, rows.opinions, [song.sha256 for song in rows.songs])
    uses = tuple(
        use for use in find_uses(roots, ids, _origins(store, rows)) if use.folder != store.folder.resolve()
    )
    tombstones = store.tombstones()
    total = len(rows.votes) + len(rows.opinions) + len(rows.songs)
    tables.append(
        store.folder,
        TOMBSTONES,
        [
            StoreTombstoneRow(
                digest=tombstones.digest(*identity),
                kind=identity[0],
                deleted_at=clock(),
                rows=total,
                uses=tuple(use.line() for use in uses),
            )
            for identity in identities
        ],
    )
    return replace(_delete(store, rows), uses=uses)


def select_rows(store: Store, selection: ForgetSelection) -> ForgottenRows:
    """The rows of a selection, with the votes and opinions about its songs."""
    votes, opinions = store.votes(), store.opinions()
    if selection.rater or selection.vote:
        rows: list[VoteRow | OpinionRow] = [*votes, *opinions]
        matches = [
            row
            for row in rows
            if (selection.rater and row.rater == selection.rater)
            or (selection.vote and row_id(row) == f"{row.source}/{selection.vote}")
        ]
        sources = sorted({row.source for row in matches})
        if len(sources) > 1 and not selection.source:
            raise DataError(
                f"{store.folder}: {selection.rater or selection.vote!r} is in {', '.join(sources)}; add --source"
            )
        chosen_ids = {row_id(row) for row in matches if selection.source in ("", row.source)}
        return ForgottenRows(
            votes=[row for row in votes if row_id(row) in chosen_ids],
            opinions=[row for row in opinions if row_id(row) in chosen_ids],
            songs=[],
        )
    songs = [
        row
        for row in store.songs()
        if (row.sha256 == selection.song if selection.song else row.source == selection.source)
    ]
    hashes = {row.sha256 for row in songs} | ({selection.song} - {""})
    return ForgottenRows(
        votes=[
            row for row in votes if row.source == selection.source or {row.sha256_a, row.sha256_b} & hashes
        ],
        opinions=[row for row in opinions if row.source == selection.source or row.sha256 in hashes],
        songs=songs,
    )


def _identities(selection: ForgetSelection, rows: ForgottenRows) -> list[tuple[str, ...]]:
    """What tombstones keep out."""
    votes = [("vote", row.source, row.vote_id) for row in rows.votes]
    opinions = [("opinion", row.source, row.opinion_id) for row in rows.opinions]
    if selection.vote:
        return [*votes, *opinions]
    if selection.song:
        return [("song", selection.song)]
    if selection.rater:
        sources = sorted({*(row.source for row in rows.votes), *(row.source for row in rows.opinions)})
        return [("rater", source, selection.rater) for source in sources]
    return [("source", selection.source)]


def _earlier(store: Store, selection: ForgetSelection) -> ForgetReport:
    """The report of something that is not there; DataError unless it was forgotten before."""
    tombstones = store.tombstones()
    candidates = [
        ("song", selection.song),
        ("source", selection.source),
        ("rater", selection.source, selection.rater),
        ("vote", selection.source, selection.vote),
        ("opinion", selection.source, selection.vote),
    ]
    digests = {tombstones.digest(*identity) for identity in candidates if all(identity[1:])}
    for row in tables.read_rows(store.folder, TOMBSTONES):
        if row.digest in digests:
            return ForgetReport(earlier=True, earlier_uses=row.uses)
    name = selection.rater or selection.song or selection.vote or selection.source
    hint = (
        "" if selection.source or selection.song else "; of something forgotten before, name the --source too"
    )
    kind = next(kind for kind in ("rater", "song", "vote", "source") if getattr(selection, kind))
    raise DataError(f"{store.folder}: holds no {kind} {name!r}{hint}")


def _origins(store: Store, rows: ForgottenRows) -> list[Path]:
    """The store, and the folders that the rows were added from."""
    names = {*map(row_id, rows.votes), *map(row_id, rows.opinions), *(song.sha256 for song in rows.songs)}
    origins = {row.origin for row in store.provenance() if row.id in names}
    return [store.folder, *(path for name in sorted(origins) if (path := store.folder / name).is_dir())]


def _delete(store: Store, rows: ForgottenRows) -> ForgetReport:
    """Take rows out of all tables of a store, and copies of songs out of its folder."""
    hashes = {song.sha256 for song in rows.songs}
    ids = {*map(row_id, rows.votes), *map(row_id, rows.opinions)}
    songs, votes, opinions = store.songs(), store.votes(), store.opinions()
    features = tables.read_rows(store.folder, STORE_FEATURES)
    kept_features = [row for row in features if row.sha256 not in hashes]
    tables.replace(store.folder, VOTES, [row for row in votes if row_id(row) not in ids])
    tables.replace(store.folder, OPINIONS, [row for row in opinions if row_id(row) not in ids])
    tables.replace(store.folder, STORE_FEATURES, kept_features)
    tables.replace(
        store.folder,
        PROVENANCE,
        [row for row in store.provenance() if row.id not in (hashes if row.kind == "song" else ids)],
    )
    for song in rows.songs:
        if song.file.startswith(f"{AUDIO_FOLDER}/"):
            store.path(song).unlink(missing_ok=True)
    shutil.rmtree(store.folder / INDEX_FOLDER, ignore_errors=True)
    tables.replace(store.folder, STORE_SONGS, [row for row in songs if row.sha256 not in hashes])
    return ForgetReport(
        votes=len(rows.votes),
        opinions=len(rows.opinions),
        songs=len(rows.songs),
        features=len(features) - len(kept_features),
    )


def check_selection(**values: str) -> ForgetSelection:
    """A selection; ConfigError for one that is none."""
    try:
        return ForgetSelection(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from None
