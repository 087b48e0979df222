"""People's thumbs and stars for generated songs, from CSV or JSON lines to ratings; all checked before any is
written."""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffdpo.data import tables
from diffdpo.data.ratings import MINED_SOURCE, PEOPLE_SOURCE, RATINGS, RatingRow, is_from
from diffdpo.data.samples import SampleRow, Samples, open_samples, relative_folder
from diffdpo.errors import DataError
from diffdpo.names import file_stem
from diffdpo.progress import log
from diffdpo.registry import closest
from diffdpo.text_files import read_jsonl, read_text

SONG_COLUMNS = ("sample_id", "sha256", "file")
"""Columns that may identify a song: its id, the hash of its sound, or the name of its audio file."""
OPINION_COLUMNS = ("thumb", "stars")
FEEDBACK_COLUMNS = (*SONG_COLUMNS, *OPINION_COLUMNS, "samples", "rater", "weight", "comment")
THUMBS = {"up": 1.0, "true": 1.0, "down": -1.0, "false": -1.0}
STARS = (1.0, 5.0)
MAX_FAULTS = 5
"""Opinions left out that are printed, before the remaining ones are counted only."""
RARE_SHARE = 0.25
"""A share of likes, or of dislikes, below which the import warns."""
SongKey = tuple[str, str]
"""Folder of samples, id of a sample."""


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """One person's rating of one song; above zero is a like."""

    song: SongKey
    rater: str
    rating: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """Counts of an import: rated songs by sign, opinions and raters."""

    likes: int
    dislikes: int
    neutral: int
    opinions: int
    raters: int

    def lines(self) -> list[str]:
        """The summary as lines for the terminal; the last warns where likes or dislikes are rare."""
        lines = [
            f"{self.likes} liked, {self.dislikes} disliked from {self.opinions} opinions of "
            f"{self.raters or 'unnamed'} rater(s); {self.neutral} neutral left out"
        ]
        rare = min(self.likes, self.dislikes)
        if rare < RARE_SHARE * (self.likes + self.dislikes):
            kind = "liked" if self.likes <= self.dislikes else "disliked"
            lines.append(
                f"warning: only {rare} {kind}; KTO compares with the mean over both kinds, so train with "
                + ("data.balance=true" if rare else f"some songs that are {kind} as well")
            )
        return lines


class SongIndex:
    """Songs of samples folders by id, by hash of the sound and by audio file."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = {folder: open_samples(folder) for folder in dict.fromkeys(folders)}
        self.rows: dict[SongKey, SampleRow] = {}
        self.index: dict[tuple[str, str], list[SongKey]] = defaultdict(list)
        for name, samples in self.folders.items():
            for row in samples.rows():
                song = name, row.sample_id
                self.rows[song] = row
                self.index["sample_id", row.sample_id].append(song)
                self.index["file", file_stem(row.sample_id)].append(song)
                if row.sha256:
                    self.index["sha256", row.sha256].append(song)

    def find(self, column: str, name: str, samples: str, folder: Path, location: str) -> SongKey:
        """The song that `name` in a column identifies; DataError if there is none, or more than one.

        `samples` names the song's folder, or is empty. Relative paths start at the working directory or at
        `folder`, the folder of the opinions; `location` is the file and line that an error names.
        """
        path = Path(name)
        value = path.stem if column == "file" else name
        songs = self.index.get((column, value), [])
        if not songs:
            hint = closest(value, (text for of, text in self.index if of == column))
            raise DataError(f"{location}: no song with {column} {name!r} in {', '.join(self.folders)}.{hint}")
        if samples:
            songs = [song for song in songs if _same_folder(self.folders[song[0]], samples, folder)]
        elif column == "file" and len(songs) > 1:
            parents = {
                parent.resolve() for file in (path, folder / path) for parent in file.resolve().parents
            }
            songs = [song for song in songs if self.folders[song[0]].folder.resolve() in parents] or songs
        if column != "sha256" and len(songs) > 1:
            raise DataError(
                f"{location}: {name!r} is a song of {' and of '.join(song[0] for song in songs)}; "
                "say which in a column samples"
            )
        if not songs:
            raise DataError(f"{location}: no song with {column} {name!r} in the folder {samples!r}")
        return songs[0]  # of one sound in several folders, the first


def _same_folder(samples: Samples, name: str, folder: Path) -> bool:
    """Whether `name` is a samples folder: its last part, or its path from the working directory or `folder`."""
    path = samples.folder.resolve()
    return name == path.name or path in (Path(name).resolve(), (folder / name).resolve())


def import_ratings(
    opinions: Path,
    folders: Sequence[str],
    out: Path,
    *,
    source: str = PEOPLE_SOURCE,
    keep_raters: bool = False,
    centre: float = 3.0,
) -> ImportSummary:
    """Write the opinions of a file to `out`/ratings.parquet, replacing earlier ratings of the same source.

    A song's rating is the weighted mean of its raters' opinions, thumbs as ±1 and stars as (stars - centre) / 2; of
    several opinions of a rater the last counts. With `keep_raters` each named rater has separate rows
    (`people/ann`). Songs whose opinions cancel out are left out; so are opinions about songs that are not there,
    which are printed.
    """
    if "/" in source or source in ("", MINED_SOURCE):
        raise DataError(f"the source {source!r} is not free for people's ratings; choose another word")
    index = SongIndex(folders)
    faults: list[str] = []
    lines = list(read_opinions(opinions, index, centre, faults))
    if not lines:
        raise DataError(faults[0] if faults else f"{opinions}: holds no opinions")
    for fault in faults[:MAX_FAULTS]:
        log(f"left out: {fault}")
    if len(faults) > MAX_FAULTS:
        log(f"… and {len(faults) - MAX_FAULTS} more opinions about songs that are not there")
    last = {(opinion.song, opinion.rater): opinion for opinion in lines if opinion.rater}
    valid = [opinion for opinion in lines if not opinion.rater] + list(last.values())
    ratings = [
        _rating(index.rows[song], group, f"{source}/{rater}" if rater else source, Path(song[0]), out)
        for (song, rater), group in sorted(_by_song(valid, keep_raters).items())
    ]
    nonzero_ratings = [row for row in ratings if abs(row.rating) > 1e-9]
    if not nonzero_ratings:
        raise DataError(
            f"{opinions}: likes and dislikes cancel out for every song; there is nothing to learn"
        )
    other_sources = [row for row in tables.read_rows(out, RATINGS) if not is_from(row.source, source)]
    tables.replace(out, RATINGS, [*other_sources, *nonzero_ratings])
    likes = sum(row.rating > 0 for row in nonzero_ratings)
    return ImportSummary(
        likes=likes,
        dislikes=len(nonzero_ratings) - likes,
        neutral=len(ratings) - len(nonzero_ratings),
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


def read_opinions(
    path: Path, index: SongIndex, centre: float = 3.0, faults: list[str] | None = None
) -> Iterator[Opinion]:
    """The opinions of a file, in its order. DataError names file and line of the first invalid opinion.

    With `faults`, opinions about songs that are not there are left out, and their reasons appended.
    """
    if not STARS[0] < centre < STARS[1]:
        raise DataError(f"the centre of the stars must lie between 1 and 5, got {centre:g}")
    for number, row in _lines(path):
        location = f"{path}:{number}"
        cells = {
            key: text for key, value in row.items() if value is not None and (text := str(value).strip())
        }
        song_column = _single_column(cells, SONG_COLUMNS, location)
        opinion_column = _single_column(cells, OPINION_COLUMNS, location)
        rating = (
            _thumb(cells[opinion_column], location)
            if opinion_column == "thumb"
            else (_number(cells[opinion_column], "stars", location, *STARS) - centre) / 2
        )
        weight = _number(cells.get("weight", "1"), "weight", location, 1e-6, 1e6)
        try:
            song = index.find(
                song_column, cells[song_column], cells.get("samples", ""), path.parent, location
            )
        except DataError as error:
            if faults is None:
                raise
            faults.append(str(error))
            continue
        yield Opinion(song=song, rater=cells.get("rater", ""), rating=rating, weight=weight)


def _single_column(cells: Mapping[str, str], columns: Sequence[str], location: str) -> str:
    """The column that a line has, of several; DataError unless it has exactly one."""
    present = [column for column in columns if column in cells]
    if len(present) != 1:
        raise DataError(
            f"{location}: needs one of {', '.join(columns)}, has {' and '.join(present) or 'none'}"
        )
    return present[0]


def _thumb(text: str, location: str) -> float:
    word = text.lower()
    if word in THUMBS:
        return THUMBS[word]
    try:
        return {1.0: 1.0, 0.0: -1.0, -1.0: -1.0}[float(word)]
    except (ValueError, KeyError):
        raise DataError(
            f"{location}: thumb must be up, down, true, false, 1, 0 or -1, got {text!r}"
        ) from None


def _number(text: str, key: str, location: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise DataError(f"{location}: {key} must be a number from {low:g} to {high:g}, got {text!r}")
    return value


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, fields) of CSV with a header, or of JSON lines, by the suffix of the file's name."""
    if path.suffix not in (".jsonl", ".ndjson"):
        yield from _csv(path)
        return
    for number, row in read_jsonl(path):
        _check_columns(list(row), f"{path}:{number}")
        yield number, row


def _check_columns(names: Sequence[str], location: str) -> None:
    for key in names:
        if key not in FEEDBACK_COLUMNS:
            hint = closest(key, FEEDBACK_COLUMNS)
            raise DataError(
                f"{location}: unknown column {key!r}.{hint} Known: {', '.join(FEEDBACK_COLUMNS)}."
            )
    if len(set(names)) < len(names):
        raise DataError(f"{location}: two columns have the same name")


def _csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = read_text(path)
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
