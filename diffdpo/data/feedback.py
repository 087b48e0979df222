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
from diffdpo.data.ratings import KEY, MINED, PEOPLE, TABLE, Rating, of_source, rating_row
from diffdpo.data.samples import Samples, open_samples
from diffdpo.errors import DataError
from diffdpo.registry import closest
from diffdpo.runs import read_jsonl

SONG = ("sample_id", "sha256", "file")
"""What may name a song: its id, the hash of its sound, or the file it was heard from."""
OPINION = ("thumb", "stars")
KEYS = (*SONG, *OPINION, "samples", "rater", "weight", "comment")
THUMBS = {"up": 1.0, "true": 1.0, "down": -1.0, "false": -1.0}
STARS = (1.0, 5.0)
FEW = 0.25
"""A share of likes, or of dislikes, below which the import warns."""
Song = tuple[str, str]
"""Folder of samples, id of a sample."""


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What one person said of one song: above zero is liked."""

    song: Song
    rater: str
    rating: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import did."""

    liked: int
    disliked: int
    neutral: int
    opinions: int
    raters: int

    def lines(self) -> list[str]:
        """For the person at the terminal; the last one warns when there is something to warn of."""
        found = [
            f"{self.liked} liked, {self.disliked} disliked from {self.opinions} opinions of "
            f"{self.raters or 'unnamed'} rater(s); {self.neutral} neutral left out"
        ]
        rare = min(self.liked, self.disliked)
        if rare < FEW * (self.liked + self.disliked):
            kind = "liked" if self.liked <= self.disliked else "disliked"
            found.append(
                f"warning: only {rare} {kind}; KTO compares with the mean over both kinds, so train with "
                + ("data.balance=true" if rare else f"some songs that are {kind} as well")
            )
        return found


class Heard:
    """The songs that opinions can be about, found by id, hash or file."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = {folder: open_samples(folder) for folder in dict.fromkeys(folders)}
        self.rows: dict[Song, dict[str, Any]] = {}
        self.index: dict[tuple[str, str], list[Song]] = defaultdict(list)
        for name, samples in self.folders.items():
            for row in samples.rows():
                song = name, row["sample_id"]
                self.rows[song] = row
                self.index["sample_id", row["sample_id"]].append(song)
                if row.get("sha256"):
                    self.index["sha256", row["sha256"]].append(song)

    def find(self, key: str, name: str, samples: str, beside: Path, where: str) -> Song:
        """The one song that `key` = `name` is about; DataError if there is none, or more than one."""
        path = Path(name)
        wanted, kind = (path.stem, "sample_id") if key == "file" else (name, key)
        found = self.index.get((kind, wanted), [])
        if not found:
            hint = closest(wanted, (known for of, known in self.index if of == kind))
            raise DataError(f"{where}: no song with {key} {name!r} in {', '.join(self.folders)}.{hint}")
        if samples:
            found = [song for song in found if _same_folder(self.folders[song[0]], samples, beside)]
        elif key == "file" and len(found) > 1:
            parents = {p.resolve() for given in (path, beside / path) for p in given.resolve().parents}
            found = [song for song in found if self.folders[song[0]].folder.resolve() in parents] or found
        if key != "sha256" and len(found) > 1:
            raise DataError(
                f"{where}: {name!r} is a song of {' and of '.join(song[0] for song in found)}; "
                "say which in a column samples"
            )
        if not found:
            raise DataError(f"{where}: no song with {key} {name!r} in the folder {samples!r}")
        return found[0]  # of one sound in several folders, the first


def _same_folder(samples: Samples, asked: str, beside: Path) -> bool:
    """Whether `asked` means this folder: its name, or its path from here or from the opinions' file."""
    folder = samples.folder.resolve()
    return asked == folder.name or folder in (Path(asked).resolve(), (beside / asked).resolve())


def import_ratings(
    opinions: Path,
    folders: Sequence[str],
    out: Path,
    *,
    source: str = PEOPLE,
    keep_raters: bool = False,
    centre: float = 3.0,
) -> Imported:
    """Put the opinions of a file into `out`/ratings.parquet, in place of all that came from this source before.

    A song's rating is the weighted mean of its raters', thumbs as ±1 and stars as (stars - centre) / 2; a rater's
    last word counts. With `keep_raters` each named rater has rows of her own (`people/ann`). Songs whose ratings
    cancel out are left out.
    """
    if "/" in source or source in ("", MINED):
        raise DataError(f"the source {source!r} is not free for people's ratings; choose another word")
    heard = Heard(folders)
    said = list(read_opinions(opinions, heard, centre))
    if not said:
        raise DataError(f"{opinions}: holds no opinions")
    last = {(opinion.song, opinion.rater): opinion for opinion in said if opinion.rater}
    kept = [opinion for opinion in said if not opinion.rater] + list(last.values())
    ratings = [
        (song[0], _rating(heard.rows[song], same, f"{source}/{rater}" if rater else source))
        for (song, rater), same in sorted(_by_song(kept, keep_raters).items())
    ]
    decided = [(folder, rating) for folder, rating in ratings if abs(rating.rating) > 1e-9]
    if not decided:
        raise DataError(
            f"{opinions}: likes and dislikes cancel out for every song; there is nothing to learn"
        )
    path = out / TABLE
    others = [row for row in tables.read(path, KEY) if not of_source(row["source"], source)]
    tables.replace(path, others + [rating_row(rating, Path(folder), path) for folder, rating in decided])
    liked = sum(rating.rating > 0 for _, rating in decided)
    return Imported(
        liked=liked,
        disliked=len(decided) - liked,
        neutral=len(ratings) - len(decided),
        opinions=len(kept),
        raters=len({opinion.rater for opinion in kept if opinion.rater}),
    )


def _by_song(opinions: Iterable[Opinion], keep_raters: bool) -> dict[tuple[Song, str], list[Opinion]]:
    groups: dict[tuple[Song, str], list[Opinion]] = defaultdict(list)
    for opinion in opinions:
        groups[opinion.song, opinion.rater if keep_raters else ""].append(opinion)
    return groups


def _rating(row: Mapping[str, Any], same: Sequence[Opinion], source: str) -> Rating:
    weight = math.fsum(opinion.weight for opinion in same)
    return Rating(
        prompt_id=row["prompt_id"],
        group=row["group"],
        sample_id=row["sample_id"],
        rating=math.fsum(opinion.weight * opinion.rating for opinion in same) / weight,
        source=source,
        weight=weight / len(same),
        raters=len(same),
    )


def read_opinions(path: Path, heard: Heard, centre: float = 3.0) -> Iterator[Opinion]:
    """The opinions of a file, in its order. DataError names file and line of the first that cannot be right."""
    if not STARS[0] < centre < STARS[1]:
        raise DataError(f"the centre of the stars must lie between 1 and 5, got {centre:g}")
    for number, row in _lines(path):
        where = f"{path}:{number}"
        given = {
            key: text for key, value in row.items() if value is not None and (text := str(value).strip())
        }
        song, opinion = _only(given, SONG, where), _only(given, OPINION, where)
        rating = (
            _thumb(given[opinion], where)
            if opinion == "thumb"
            else (_number(given[opinion], "stars", where, *STARS) - centre) / 2
        )
        yield Opinion(
            song=heard.find(song, given[song], given.get("samples", ""), path.parent, where),
            rater=given.get("rater", ""),
            rating=rating,
            weight=_number(given.get("weight", "1"), "weight", where, 1e-6, 1e6),
        )


def _only(given: Mapping[str, str], keys: Sequence[str], where: str) -> str:
    """The one of several keys that a line has."""
    found = [key for key in keys if key in given]
    if len(found) != 1:
        raise DataError(f"{where}: needs one of {', '.join(keys)}, has {' and '.join(found) or 'none'}")
    return found[0]


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
        _check_keys(list(row), f"{path}:{number}")
        yield number, row


def _check_keys(names: Sequence[str], where: str) -> None:
    for key in names:
        if key not in KEYS:
            raise DataError(f"{where}: unknown column {key!r}.{closest(key, KEYS)} Known: {', '.join(KEYS)}.")
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
        _check_keys(header, f"{path}:1")
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
