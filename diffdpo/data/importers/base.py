"""What an importer is: a function from files of a published data set to votes, opinions and the sounds they are
about."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffdpo.data.importers.records import AUDIO_SUFFIXES, TABLE_SUFFIXES, EmbeddedSound, Record, SoundSource
from diffdpo.data.votes import OpinionRow, VoteRow
from diffdpo.errors import DataError

UNSTATED_LICENSE = "unknown"
"""License of what was published without one: nobody may pass it on, and cards say so."""


@dataclass(frozen=True, kw_only=True)
class PreferenceImport:
    """The rows of a data set, all checked. A song of a row is a key of `sounds`, or has no sound at hand."""

    votes: Sequence[VoteRow] = ()
    opinions: Sequence[OpinionRow] = ()
    sounds: Mapping[str, SoundSource] = field(default_factory=dict)
    """The sound of each song by the id that rows call it."""
    notes: Sequence[str] = ()
    """What was left out, and why: lines for the terminal."""


@dataclass(frozen=True, kw_only=True)
class Importer:
    """A data set of preferences that is read from local files."""

    source: str
    """The source of its rows, which names the data set in every table."""
    license: str
    """The license that it is published under; empty where the user has to say it."""
    attribution: str = ""
    """What the license asks to be named."""
    layout: str
    """The files, in one line, as an error and the documentation say it."""
    read: Callable[[Path, str], PreferenceImport]
    """From path and license of the data set to its rows. DataError with file and line for what does not fit."""


@dataclass
class SoundFiles:
    """Audio files of a data set by the names in its rows, which are relative to the folder of the data set."""

    root: Path
    absent: Counter[str] = field(default_factory=Counter)
    """Number of names whose files are not there, by their first folder."""

    def resolve(self, record: Record, name: str) -> SoundSource | None:
        """The sound that a cell names; None where it was withheld, or where no audio was copied along at all.

        DataError for a file that is missing beside others, and for a name that leaves the folder.
        """
        value = record.cells.get(name)
        if isinstance(value, EmbeddedSound):
            return value
        text = record.text(name).strip()
        if not text:
            return None
        path = self.root / text
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise DataError(f"{record.location}: {name} {text!r} lies outside of {self.root}")
        if path.is_file():
            return path
        first = Path(text).parts[0]
        if len(Path(text).parts) > 1 and not (self.root / first).is_dir():
            self.absent[first] += 1
            return None
        raise DataError(f"{record.location}: {name} {text!r} is no file of {self.root}")

    def notes(self) -> list[str]:
        """Lines about audio that was not copied along."""
        return [
            f"{count} sounds are in {self.root / first}, which is not there: their rows have no sound"
            for first, count in sorted(self.absent.items())
        ]


def index_sounds(folder: Path) -> dict[str, Path]:
    """The audio files anywhere in a folder, by names without suffix. DataError for a name that occurs twice."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file():
            if path.stem in files:
                raise DataError(f"{path}: has the name of {files[path.stem]}; rows name sounds by it")
            files[path.stem] = path
    return files


def find_tables(path: Path, patterns: Iterable[str], layout: str) -> list[Path]:
    """The file that a path is, or the files of a folder that match the first pattern that any matches.

    DataError, with the layout that is expected, where there is none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    for pattern in patterns:
        if files := sorted(file for file in path.glob(pattern) if file.suffix.lower() in TABLE_SUFFIXES):
            return files
    raise DataError(f"{path}: holds no such data set; expected {layout}")


def root_of(path: Path) -> Path:
    """The folder of a data set whose path is a folder or its table."""
    return path if path.is_dir() else path.parent


def text_digest(*texts: str) -> str:
    """A short identity of texts: 16 hexadecimal digits."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def prompt_group(text: str) -> str:
    """The group of a prompt that has only a text: the same for texts that differ in case and space."""
    return text_digest(" ".join(text.lower().split()))


def is_swapped(vote_id: str) -> bool:
    """Whether a pair without an order is told with its sides exchanged: a half of all pairs, by their ids.

    A data set that names the better song first would else teach a preference for the first.
    """
    return int(text_digest(vote_id, "side"), 16) % 2 == 1
