"""Text as people and programs leave it on disk: UTF-8 whatever the locale, with or without a byte order mark.

Lines of JSON lines end at "\\n" and nowhere else: a text in JSON may hold U+2028, U+2029 and U+0085 as they are.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffdpo.errors import DataError

MARK = "\ufeff"
"""The byte order mark, which some editors write in front of UTF-8."""
MAX_DEPTH = 32
"""Levels of objects and lists within each other that a line of JSON may have."""
LARGEST_INTEGER = 2**63 - 1


def read_text(path: Path) -> str:
    """The text of a file without its byte order mark; line ends stay as they are.

    DataError in one line for a file that is missing, a folder or not UTF-8.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, not a file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a name that no file can have
        raise DataError(f"{str(path)!r}: no such file ({error})") from None
    try:
        return content.decode("utf-8").removeprefix(MARK)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: not UTF-8 (line {line}: {error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def is_file(path: Path) -> bool:
    """Whether a path is an existing file; a name that no file can have, such as one too long, is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_jsonl(path: Path, *, non_finite: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not empty.

    DataError names the line that is not an object, or holds what nobody means: a key twice in one object, numbers
    that are not finite (unless `non_finite`) or need more than 64 bits, half of a character, more than 32 levels.
    """
    for number, raw in enumerate(read_text(path).split("\n"), start=1):
        line = raw.strip(MARK + " \t\r")  # a mark stands inside a file that was put together from several
        if not line:
            continue
        location = f"{path}:{number}"
        value = parse_json(line, location, _to_object)
        if not isinstance(value, dict):
            raise DataError(f'{location}: expected an object like {{"id": …}}, got {type(value).__name__}')
        if _is_deeper(value, MAX_DEPTH):
            raise DataError(f"{location}: more than {MAX_DEPTH} objects and lists within each other")
        for leaf in _leaves(value):
            if complaint := _explain_leaf(leaf, non_finite):
                raise DataError(f"{location}: {complaint}")
        yield number, value


JsonPairs = list[tuple[str, Any]]
"""Keys and values of an object of JSON, in their order."""


def parse_json(text: str, location: str, to_object: Callable[[JsonPairs], dict[str, Any]] = dict) -> Any:
    """The value of a JSON text; DataError at `location` for whatever is not JSON."""
    try:
        return json.loads(text, object_pairs_hook=None if to_object is dict else to_object)
    except json.JSONDecodeError as error:
        line = f" at line {error.lineno}" if "\n" in text else ""
        raise DataError(f"{location}: not valid JSON ({error.msg}{line})") from None
    except RecursionError:
        raise DataError(f"{location}: too many objects and lists within each other") from None
    except ValueError as error:
        complaint = str(error).splitlines()[0]
        if "integer string conversion" in complaint:  # Python's own words, for thousands of digits
            complaint = "an integer of too many digits"
        raise DataError(f"{location}: {complaint}") from None


def _to_object(pairs: JsonPairs) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, entry in pairs:
        if key in value:
            raise ValueError(f"the key {key!r} is there twice; leave one out")
        value[key] = entry
    return value


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    entries = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(entry, depth - 1) for entry in entries)


def _leaves(value: Any) -> Iterator[Any]:
    """The keys, texts and numbers in a JSON value."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from _leaves(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _leaves(entry)
    else:
        yield value


def _explain_leaf(leaf: Any, non_finite: bool) -> str:
    """The reason why a text or number cannot be meant; empty if it can."""
    if isinstance(leaf, str) and HALF_CHARACTER.search(leaf):
        return f"holds a half of a character, {leaf!a}; write the text as UTF-8"
    if isinstance(leaf, float) and not (math.isfinite(leaf) or non_finite):
        return f"{leaf} is not a number of JSON; leave the key out, or write a number"
    if type(leaf) is int and abs(leaf) > LARGEST_INTEGER:
        return "an integer of more than 64 bits"
    return ""


HALF_CHARACTER = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""A surrogate that stands for nothing. U+DC80 to U+DCFF are the bytes of file names that are not UTF-8."""


def check_text(text: str, key: str, location: str) -> None:
    """DataError at `location` for a text with a surrogate, which no encoding can write."""
    if printable(text) != text:
        raise DataError(f"{location}: {key} holds a part of a character, {text!a}; write it as UTF-8")


def printable(text: str) -> str:
    """A text that can be written as UTF-8: bytes of file names that are not UTF-8 become \\udc.., as in JSON."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
