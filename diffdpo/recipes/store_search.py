"""The command `store search`: songs of a store that are similar to one of them, to a file, or to words."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffdpo.data import tables
from diffdpo.data.licenses import license_kind, may_share
from diffdpo.data.store.folder import STORE_FEATURES, Store, StoreFeatureRow, StoreSongRow, open_store
from diffdpo.data.store.forgetting import INDEX_FOLDER
from diffdpo.errors import ConfigError, DataError
from diffdpo.evaluation.similarity import EXACT_BELOW, READERS, nearest, read_song, text_style
from diffdpo.locks import lock_folder
from diffdpo.progress import bar, log
from diffdpo.registry import closest, pick
from diffdpo.threads import parallel_map, worker_count

SHORTEST_HASH = 8
"""Digits of a hash by which a song may be called."""
LISTED_TEXT = 40


@dataclass(frozen=True, kw_only=True)
class StoreSearch:
    """What is looked for, among which songs."""

    store: Path
    query: str = ""
    """Id, or beginning of the hash, of a song of the store; or the path of an audio file."""
    text: str = ""
    """Words for a style, in place of a song."""
    reader: str = "style"
    count: int = 10
    licenses: Sequence[str] = ()
    """Only songs under these licenses; all by default."""
    commercial: bool = False
    """Only songs that may be used commercially."""
    index: bool | None = None
    """Whether a graph of neighbours is searched; None: for many songs."""

    def __post_init__(self) -> None:
        if bool(self.query) == bool(self.text):
            raise ValueError("name a song, or words with --text")
        if self.text and self.reader != "style":
            raise ValueError(f"--text: words have a style and no {self.reader}; leave --by out")
        if self.count < 1:
            raise ValueError(f"--count must be at least 1, got {self.count}")


@dataclass(frozen=True, kw_only=True)
class SimilarSong:
    """A song with its distance."""

    distance: float
    song: StoreSongRow


def search_store(settings: StoreSearch) -> list[SimilarSong]:
    """The most similar songs, the nearest first; a song is not similar to itself."""
    pick("reader", READERS, settings.reader)
    store = open_store(settings.store)
    with lock_folder(store.folder):
        songs, features = read_store_features(store, settings.reader)
        if not songs:
            raise DataError(f"{store.folder}: holds no song with sound; add some with `diffdpo store add`")
        query, query_hash = _query(store, settings, songs, features)
        places = [
            place
            for place, song in enumerate(songs)
            if song.sha256 != query_hash and _is_allowed(song, settings)
        ]
        use_index = len(songs) > EXACT_BELOW if settings.index is None else settings.index
        hits = nearest(
            query,
            features,
            settings.count,
            candidates=places,
            index=store.folder / INDEX_FOLDER / f"{settings.reader}.usearch" if use_index else None,
        )
    return [SimilarSong(distance=distance, song=songs[place]) for place, distance in hits]


def read_store_features(
    store: Store, reader: str
) -> tuple[list[StoreSongRow], Float[np.ndarray, "song dim"]]:
    """The songs with features, by the order of their hashes, and these; what is missing is computed and kept."""
    fingerprint = READERS[reader].fingerprint
    rows = {row.sha256: row for row in store.features(reader) if row.fingerprint == fingerprint}
    songs = sorted(store.songs(), key=lambda row: row.sha256)
    work = [song for song in songs if song.sha256 not in rows and store.path(song).is_file()]
    absences = sum(song.sha256 not in rows and not store.path(song).is_file() for song in songs)
    if absences:
        log(f"{absences} songs left out: their sound is not where it was")
    size = 4 * worker_count()
    batches = [work[:1], *(work[begin : begin + size] for begin in range(1, len(work), size))]
    with bar(reader, len(work), "song") as progress:
        for batch in filter(None, batches):  # the first alone: networks are loaded by one thread
            values = parallel_map(lambda song: _feature_row(store, song, reader), batch)
            tables.append(store.folder, STORE_FEATURES, values)
            rows |= {row.sha256: row for row in values}
            progress.advance(len(batch))
    tables.compact(store.folder, STORE_FEATURES)
    complete = [song for song in songs if song.sha256 in rows and rows[song.sha256].values]
    return complete, np.array([rows[song.sha256].values for song in complete], np.float64)


def _feature_row(store: Store, song: StoreSongRow, reader: str) -> StoreFeatureRow:
    values = read_song(store.path(song), reader)
    return StoreFeatureRow(
        sha256=song.sha256,
        reader=reader,
        fingerprint=READERS[reader].fingerprint,
        values=tuple(values.tolist()) if np.isfinite(values).all() else (),
    )


def _query(
    store: Store,
    settings: StoreSearch,
    songs: Sequence[StoreSongRow],
    features: Float[np.ndarray, "song dim"],
) -> tuple[Float[np.ndarray, " dim"], str]:
    """The features that are searched for, and the hash of the song that has them, if it is in the store."""
    if settings.text:
        return text_style(settings.text), ""
    places = [
        place
        for place, song in enumerate(songs)
        if settings.query == song.song_id
        or (len(settings.query) >= SHORTEST_HASH and song.sha256.startswith(settings.query))
    ]
    if len(places) > 1:
        sources = ", ".join(sorted(f"{songs[place].source} ({songs[place].sha256[:12]})" for place in places))
        raise DataError(f"{store.folder}: {settings.query!r} is in {sources}; name the beginning of its hash")
    if places:
        return features[places[0]], songs[places[0]].sha256
    path = Path(settings.query)
    if not path.is_file():
        hint = closest(settings.query, (song.song_id for song in songs))
        raise DataError(f"{store.folder}: no song {settings.query!r}, and no such file.{hint}")
    values = read_song(path, settings.reader)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: silent; nothing is similar to it")
    return values, ""


def _is_allowed(song: StoreSongRow, settings: StoreSearch) -> bool:
    """Whether a song's license is one that was asked for."""
    if settings.commercial and (
        not may_share(song.license) or license_kind(song.license) == "non-commercial"
    ):
        return False
    names = {name.lower() for name in settings.licenses}
    return not names or (song.license or "unknown").lower() in names


def result_objects(songs: Sequence[SimilarSong], store: Path) -> list[dict[str, Any]]:
    """The result as objects for JSON."""
    return [
        {
            "distance": round(similar.distance, 6),
            "song_id": similar.song.song_id,
            "sha256": similar.song.sha256,
            "source": similar.song.source,
            "system": similar.song.system,
            "license": similar.song.license or "unknown",
            "attribution": similar.song.attribution,
            "prompt": similar.song.prompt,
            "file": str(store / similar.song.file),
        }
        for similar in songs
    ]


def result_json(songs: Sequence[SimilarSong], store: Path) -> str:
    """The result as JSON."""
    return json.dumps(result_objects(songs, store), indent=2, ensure_ascii=False)


def result_lines(songs: Sequence[SimilarSong], store: Path) -> Iterator[str]:
    """The result as a table."""
    if not songs:
        yield "no song"
        return
    head = ("distance", "song", "source", "license", "prompt")
    rows = [
        (f"{row['distance']:.3f}", row["song_id"], row["source"], row["license"], row["prompt"][:LISTED_TEXT])
        for row in result_objects(songs, store)
    ]
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def check_store_search(**values: Any) -> StoreSearch:
    """Settings; ConfigError for some that are none."""
    try:
        return StoreSearch(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from None
