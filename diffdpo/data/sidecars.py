"""Descriptions beside a recording, as people have them: text files, JSON, and the tags in the recording itself.

For `song.flac` these are read, the first that says something counts:

* `song.json`: caption, lyrics, bpm, key, metre, language (ACE-Step's tutorial writes keyscale and timesignature);
* `song.caption.txt`, `song.lyrics.txt`, `song.lrc`;
* `song.txt`: `key: value` lines with the lyrics last (Side-Step), elements such as <CAPTION> and <LYRICS>
  (ai-toolkit), the words of the song where a caption stands elsewhere or a section is named, else the caption;
* the tags of the recording: genre, artist and title, license; bpm and key in MP3 and FLAC.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from diffdpo.errors import DataError
from diffdpo.text_files import parse_json, read_text
from diffdpo.types import CONTROLS

PROPERTY_NAMES = {
    "caption": "text", "text": "text", "prompt": "text", "description": "text", "genre": "genre", "tags": "genre",
    "lyrics": "lyrics", "lyric": "lyrics",
    "bpm": "bpm", "tempo": "bpm", "key": "key", "keyscale": "key", "key_scale": "key",
    "metre": "metre", "meter": "metre", "signature": "metre", "timesignature": "metre", "time_signature": "metre",
    "language": "language", "vocal_language": "language", "lang": "language",
    "license": "license", "licence": "license", "attribution": "attribution",
    "is_instrumental": "instrumental", "instrumental": "instrumental",
}  # fmt: skip
"""Names of properties in sidecar files, and what diffdpo calls them."""
NO_VALUES = ("", "n/a", "none", "null", "unknown", "auto")
INSTRUMENTAL_TEXT = re.compile(r"\s*[\[(]?\s*instrumental\s*[\])]?\s*", re.IGNORECASE)
ELEMENT = re.compile(r"<(\w+)>(.*?)</\1>", re.DOTALL)
SECTION_LINE = re.compile(r"^\s*\[[^\]\n]+\]\s*$", re.MULTILINE)
KEY_TEXT = re.compile(r"([A-Ga-g])\s*([#b♯♭]?)\s*(major|minor|maj|min|dur|moll|m)?", re.IGNORECASE)


def read_sidecars(audio: Path) -> dict[str, Any]:
    """What stands beside a recording and in its tags: text, lyrics, language, bpm, key, metre, license and such.

    DataError, with the file, for a value that is none, such as a tempo in words. Names that mean nothing here are
    passed over.
    """
    layers = [_json(audio.with_suffix(".json")), _separate_files(audio)]
    layers.append(_text(audio.with_suffix(".txt"), has_caption=any("text" in layer for layer in layers)))
    layers.append(_tags(audio))
    values: dict[str, Any] = {}
    for layer in layers:
        values = layer | values
    genre = values.pop("genre", "")
    text = values.get("text") or genre
    if values.pop("instrumental", False) or INSTRUMENTAL_TEXT.fullmatch(values.get("lyrics", " ")):
        values["lyrics"] = ""
    return values | ({"text": text} if text else {})


def _separate_files(audio: Path) -> dict[str, Any]:
    """The properties that have a file each. Times are worth more than words without: .lrc before .lyrics.txt."""
    values: dict[str, Any] = {}
    for name, suffix in (("text", ".caption.txt"), ("lyrics", ".lyrics.txt"), ("lyrics", ".lrc")):
        path = audio.with_name(audio.stem + suffix)
        if path.is_file():
            values[name] = read_text(path).strip()
    return values


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = parse_json(read_text(path), str(path))
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected an object with caption, lyrics, bpm, …")
    return _properties(content, path)


def _text(path: Path, *, has_caption: bool) -> dict[str, Any]:
    """The properties in `song.txt`, in whichever layout it has."""
    if not path.is_file():
        return {}
    text = read_text(path).strip()
    if elements := {name.lower(): value.strip() for name, value in ELEMENT.findall(text)}:
        return _properties(elements, path)
    name, colon, _ = text.partition(":")
    if colon and name.strip().lower() in PROPERTY_NAMES:
        return _properties(_lines(text), path)
    return {"lyrics": text} if has_caption or SECTION_LINE.search(text) else {"text": text}


def _lines(text: str) -> dict[str, str]:
    """`key: value` lines; all lines from `lyrics:` on are the lyrics."""
    head, *words = re.split(r"(?im)^\s*lyrics?\s*:", text, maxsplit=1)
    values: dict[str, str] = {}
    for line in head.split("\n"):
        name, colon, value = line.partition(":")
        if colon and name.strip():
            values[name.strip().lower()] = value.strip()
    return values | ({"lyrics": words[0].strip()} if words else {})


def _tags(audio: Path) -> dict[str, Any]:
    """Genre, license, attribution, tempo and key in the tags of a recording; {} for a file that cannot be
    opened. A tempo or key that is none is passed over: tags come from many programs."""
    from diffdpo.audio import decode
    from diffdpo.data.recording_tags import read_tags

    try:
        with decode(audio) as file:
            tags = file.copy_metadata()
    except DataError:
        return {}
    names = [tags[name] for name in ("artist", "title") if tags.get(name)]
    values = {
        "genre": tags.get("genre", ""),
        "license": tags.get("license", "") or tags.get("copyright", ""),
        "attribution": " - ".join(names),
    }
    for name, value in read_tags(audio).items():
        with suppress(DataError):
            values[name] = _value(name, value, str(audio))
    return {name: value for name, value in values.items() if value}


def _properties(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The properties of a sidecar file under our names, in our units."""
    values: dict[str, Any] = {}
    for name, value in content.items():
        label = PROPERTY_NAMES.get(str(name).strip().lower())
        if label is None or value is None or str(value).strip().lower() in NO_VALUES:
            continue
        values.setdefault(label, _value(label, value, f"{path}: {name}"))
    return values


def _value(name: str, value: Any, location: str) -> Any:
    if name == "instrumental":
        return str(value).strip().lower() in ("true", "yes", "1")
    if name == "bpm":
        try:
            value = float(value)
        except (TypeError, ValueError):
            raise DataError(f"{location}: must be {CONTROLS['bpm'].description}, got {value!r}") from None
    elif not isinstance(value, str | int | float) or isinstance(value, bool):
        raise DataError(f"{location}: must be text, got {value!r}")
    else:
        value = str(value).strip()
    if name == "key":
        value = spell_key(value, location)
    if name == "metre" and re.fullmatch(r"\d+", value):
        value = f"{value}/8" if int(value) > 5 else f"{value}/4"
    if name in CONTROLS and not CONTROLS[name].accepts(value):
        raise DataError(f"{location}: must be {CONTROLS[name].description}, got {value!r}")
    return value


def spell_key(text: str, location: str = "key") -> str:
    """A key as 'A minor': 'Am', 'a moll', 'A min' and 'A minor' are one. DataError for what is no key."""
    match = KEY_TEXT.fullmatch(text.strip())
    if match is None:
        raise DataError(f"{location}: must be a key such as 'A minor', got {text!r}")
    tonic, accidental, mode = match[1], match[2].replace("♯", "#").replace("♭", "b"), match[3]
    if mode is None:
        kind = "major" if tonic.isupper() else "minor"
    else:
        kind = "minor" if mode == "m" or mode.lower() in ("min", "minor", "moll") else "major"
    return f"{tonic.upper()}{accidental} {kind}"
