"""Ids of prompts and songs, and the files that are named by them: inside their folder, and no two the same."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from diffdpo.errors import DataError

MAX_STEM_BYTES = 220
"""Longest stem of a file: 255 bytes less a suffix, and the prefix and `.PID.partial` of a file being written."""
SEPARATORS = "/\\\0"
SHORTENED = re.compile(r"~[0-9a-f]{32}\Z", re.IGNORECASE)


def check_id(name: str, location: str) -> str:
    """The id, if files can be named by it.

    DataError at `location` for an id that is empty, of dots only, or holds a path separator, a control character or
    a part of a character.
    """
    if not name.strip():
        raise DataError(f"{location}: needs an id")
    if any(char in SEPARATORS for char in name):
        raise DataError(f"{location}: the id {name!r} names files and may not contain a path separator")
    if not name.strip("."):
        raise DataError(f"{location}: the id {name!r} names files and may not be of dots only")
    if not _is_clean(name):
        raise DataError(f"{location}: the id {name!a} names files and may not contain control characters")
    return name


def _is_clean(name: str) -> bool:
    """Whether a name is free of separators, control characters, line ends and parts of characters."""
    categories = {unicodedata.category(char) for char in name}
    return not categories & {"Cc", "Cs", "Zl", "Zp"} and not any(char in SEPARATORS for char in name)


def add_id(ids: dict[str, str], name: str, location: str) -> None:
    """Check an id, and add it to those of its table, by their folded form.

    DataError for an id that is there already, or differs from another only in case or in the form of its accents:
    on some file systems the files of both would be one.
    """
    check_id(name, location)
    twin = ids.setdefault(fold(name), "")
    if twin == name:
        raise DataError(f"{location}: the id {name!r} is used twice; ids name files and must differ")
    if twin:
        raise DataError(
            f"{location}: the ids {twin!r} and {name!r} differ only in case or in the form of accents; ids name "
            "files, and on some file systems these would be one"
        )
    ids[fold(name)] = name


def fold(name: str) -> str:
    """A name as a file system compares it that is blind to case and to the form of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def file_stem(name: str) -> str:
    """The name, without suffix, of the files of an id; no two ids have the same.

    It is the id itself where that can be a file's name and is not too long; else the beginning of the id and a hash
    of it. It never leaves the folder, whatever the id.
    """
    if (
        name
        and _is_clean(name)
        and not name.startswith(".")
        and len(name.encode()) <= MAX_STEM_BYTES
        and not SHORTENED.search(name)
    ):
        return name
    return _shorten(name, "~" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32])


def _shorten(name: str, end: str) -> str:
    """The readable beginning of a name, and an end, in MAX_STEM_BYTES at most."""
    readable = "".join(char if _is_clean(char) else "_" for char in name).lstrip(".")
    return readable.encode()[: MAX_STEM_BYTES - len(end)].decode(errors="ignore") + end


def slug(path: PurePath) -> str:
    """The id of a file, from its path in a folder of songs: folders and name, joined by hyphens.

    A path that is too long, or has bytes that are not UTF-8, has a hash of the path behind it.
    """
    name = "-".join([*path.parent.parts, path.stem])
    is_plain = _is_clean(name) and name.strip(". ") and len(name.encode()) <= MAX_STEM_BYTES
    return name if is_plain else _with_digest(name, path)


def slugs(paths: Sequence[PurePath]) -> list[str]:
    """The ids of files; all that would share an id have a hash of their path behind it, whatever their order."""
    names = [slug(path) for path in paths]
    counts = Counter(map(fold, names))
    return [
        _with_digest(name, path) if counts[fold(name)] > 1 else name
        for name, path in zip(names, paths, strict=True)
    ]


def _with_digest(name: str, path: PurePath) -> str:
    return _shorten(name, "-" + hashlib.sha256(os.fsencode(path)).hexdigest()[:12])
