"""People's thumbs and stars for generated songs, from CSV or JSON lines to ratings; checked before any is kept."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdpo.data import tables
from diffdpo.data.ratings import MINED, PEOPLE, RATINGS, RatingRow, is_from
from diffdpo.data.samples import SampleRow, Samples, open_samples, relative_folder
from diffdpo.errors import DataError
from diffdpo.registry import closest
from diffdpo.runs import read_jsonl

SONG_COLUMNS = ("sample_id", "sha256", "file")
"""What may name a song: its id, the hash of its sound, or the name of its audio file."""
OPINION_COLUMNS = ("thumb", "stars")
COLUMNS = (*SONG_COLUMNS, *OPINION_COLUMNS, "samples", "rater", "weight", "comment")
THUMBS = {"up": 1.0, "true": 1.0, "down": -1.0, "false": -1.0}
STARS = (1.0, 5.0)
RARE_SHARE = 0.25
"""A share of likes, or of dislikes, below which the import warns."""
SongKey = tuple[str, str]
"""Folder of samples, id of a sample."""


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What one person said of one song: above zero is liked."""

    song: SongKey
    rater: str
    rating: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """Counts of what an import wrote."""

    liked: int
    disliked: int
    neutral: int
    opinions: int
    raters: int

    def lines(self) -> list[str]:
        """For the person at the terminal; the last line warns when there is something to warn of."""
        lines = [
            f"{self.liked} liked, {self.disliked} disliked from {self.opinions} opinions of "
            f"{self.raters or 'unnamed'} rater(s); {self.neutral} neutral left out"
        ]
        rare = min(self.liked, self.disliked)
        if rare < RARE_SHARE * (self.liked + self.disliked):
            kind = "liked" if self.liked <= self.disliked else "disliked"
            lines.append(
                f"warning: only {rare} {kind}; KTO compares with the mean over both kinds, so train with "
                + ("data.balance=true" if rare else f"some songs that are {kind} as well")
            )
        return lines


class SongIndex:
    """The songs of some folders, to be looked up by id, by hash or by file."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = {folder: open_samples(folder) for folder in dict.fromkeys(folders)}
        self.rows: dict[SongKey, SampleRow] = {}
        self.index: dict[tuple[str, str], list[SongKey]] = defaultdict(list)
        for name, samples in self.folders.items():
            for row in samples.rows():
                song = name, row.sample_id
                self.rows[song] = row
                self.index["sample_id", row.sample_id].append(song)
                if row.sha256:
                    self.index["sha256", row.sha256].append(song)

    def find(self, column: str, name: str, samples: str, folder: Path, where: str) -> SongKey:
        """The song that `name` in a column means; DataError if there is none, or more than one.

        `samples` names its folder, or is empty. Relative paths start here or at `folder`, that of the opinions;
        `where` is the file and line of the error.
        """
        path = Path(name)
        value, kind = (path.stem, "sample_id") if column == "file" else (name, column)
        songs = self.index.get((kind, value), [])
        if not songs:
            hint = closest(value, (text for of, text in self.index if of == kind))
            raise DataError(f"{where}: no song with {column} {name!r} in {', '.join(self.folders)}.{hint}")
        if samples:
            songs = [song for song in songs if _same_folder(self.folders[song[0]], samples, folder)]
        elif column == "file" and len(songs) > 1:
            parents = {
                parent.resolve() for file in (path, folder / path) for parent in file.resolve().parents
            }
            songs = [song for song in songs if self.folders[song[0]].folder.resolve() in parents] or songs
        if column != "sha256" and len(songs) > 1:
            raise DataError(
                f"{where}: {name!r} is a song of {' and of '.join(song[0] for song in songs)}; "
                "say which in a column samples"
            )
        if not songs:
            raise DataError(f"{where}: no song with {column} {name!r} in the folder {samples!r}")
        return songs[0]  # of one sound in several folders, the first


def _same_folder(samples: Samples, name: str, folder: Path) -> bool:
    """Whether `name` means this folder: its last part, or its path from here or from `folder`."""
    own = samples.folder.resolve()
    return name == own.name or own in (Path(name).resolve(), (folder / name).resolve())


def import_ratings(
    opinions: Path,
    folders: Sequence[str],
    out: Path,
    *,
    source: str = PEOPLE,
    keep_raters: bool = False,
    centre: float = 3.0,
) -> ImportSummary:
    """Put the opinions of a file into `out`/ratings.parquet, in place of all that came from this source before.

    A song's rating is the weighted mean of its raters', thumbs as ±1 and stars as (stars - centre) / 2; a rater's
    last word counts. With `keep_raters` each named rater has rows of her own (`people/ann`). Songs whose ratings
    cancel out are left out.
    """
    if "/" in source or source in ("", MINED):
        raise DataError(f"the source {source!r} is not free for people's ratings; choose another word")
    index = SongIndex(folders)
    lines = list(read_opinions(opinions, index, centre))
    if not lines:
        raise DataError(f"{opinions}: holds no opinions")
    last = {(opinion.song, opinion.rater): opinion for opinion in lines if opinion.rater}
    valid = [opinion for opinion in lines if not opinion.rater] + list(last.values())
    ratings = [
        _rating(index.rows[song], group, f"{source}/{rater}" if rater else source, Path(song[0]), out)
        for (song, rater), group in sorted(_by_song(valid, keep_raters).items())
    ]
    clear = [row for row in ratings if abs(row.rating) > 1e-9]
    if not clear:
        raise DataError(
            f"{opinions}: likes and dislikes cancel out for every song; there is nothing to learn"
        )
    rest = [row for row in tables.read_rows(out, RATINGS) if not is_from(row.source, source)]
    tables.replace(out, RATINGS, [*rest, *clear])
    liked = sum(row.rating > 0 for row in clear)
    return ImportSummary(
        liked=liked,
        disliked=len(clear) - liked,
        neutral=len(ratings) - len(clear),
        opinions=len(valid),
        raters=len({opinion.rater for opinion in valid if opinion.rater}),
    )


def _by_song(opinions: Iterable[Opinion], keep_raters: bool) -> dict[tuple[SongKey, str], list[Opinion]]:
    groups: dict[tuple[SongKey, str], list[Opinion]] = defaultdict(list)
    for opinion in opinions:
        groups[opinion.song, opinion.rater if keep_raters else ""].append(opinion)
    return groups


def _rating(song: SampleRow, opinions: Sequence[Opinion], source: str, samples: Path, out: Path) -> RatingRow:
    weight = math.fsum(opinion.weight for opinion in opinions)
    return RatingRow(
        prompt_id=song.prompt_id,
        group=song.group,
        samples=relative_folder(samples, out),
        sample_id=song.sample_id,
        rating=math.fsum(opinion.weight * opinion.rating for opinion in opinions) / weight,
        source=source,
        weight=weight / len(opinions),
        raters=len(opinions),
    )


def read_opinions(path: Path, index: SongIndex, centre: float = 3.0) -> Iterator[Opinion]:
    """The opinions of a file, in its order. DataError names file and line of the first that cannot be right."""
    if not STARS[0] < centre < STARS[1]:
        raise DataError(f"the centre of the stars must lie between 1 and 5, got {centre:g}")
    for number, row in _lines(path):
        where = f"{path}:{number}"
        cells = {
            key: text for key, value in row.items() if value is not None and (text := str(value).strip())
        }
        song, opinion = _only(cells, SONG_COLUMNS, where), _only(cells, OPINION_COLUMNS, where)
        rating = (
            _thumb(cells[opinion], where)
            if opinion == "thumb"
            else (_number(cells[opinion], "stars", where, *STARS) - centre) / 2
        )
        yield Opinion(
            song=index.find(song, cells[song], cells.get("samples", ""), path.parent, where),
            rater=cells.get("rater", ""),
            rating=rating,
            weight=_number(cells.get("weight", "1"), "weight", where, 1e-6, 1e6),
        )


def _only(cells: Mapping[str, str], columns: Sequence[str], where: str) -> str:
    """Which of several columns a line has; DataError unless it has exactly one of them."""
    present = [column for column in columns if column in cells]
    if len(present) != 1:
        raise DataError(f"{where}: needs one of {', '.join(columns)}, has {' and '.join(present) or 'none'}")
    return present[0]


def _thumb(text: str, where: str) -> float:
    word = text.lower()
    if word in THUMBS:
        return THUMBS[word]
    try:
        return {1.0: 1.0, 0.0: -1.0, -1.0: -1.0}[float(word)]
    except (ValueError, KeyError):
        raise DataError(f"{where}: thumb must be up, down, true, false, 1, 0 or -1, got {text!r}") from None


def _number(text: str, key: str, where: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise DataError(f"{where}: {key} must be a number from {low:g} to {high:g}, got {text!r}")
    return value


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, fields) of CSV with a header, or of JSON lines, told apart by the file's name."""
    if path.suffix not in (".jsonl", ".ndjson"):
        yield from _csv(path)
        return
    for number, row in read_jsonl(path):
        _check_columns(list(row), f"{path}:{number}")
        yield number, row


def _check_columns(names: Sequence[str], where: str) -> None:
    for key in names:
        if key not in COLUMNS:
            hint = closest(key, COLUMNS)
            raise DataError(f"{where}: unknown column {key!r}.{hint} Known: {', '.join(COLUMNS)}.")
    if len(set(names)) < len(names):
        raise DataError(f"{where}: two columns have the same name")


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin with a mark
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not text in UTF-8; save it as CSV UTF-8") from None
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_columns(header, f"{path}:1")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{path}:{reader.line_num}: {len(cells)} cells, but the header has {len(header)}"
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error})") from None
