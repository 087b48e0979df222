"""prompts.jsonl: one prompt a line, checked before any work is done; a line may hold an edit of a song."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffdpo.data.edits import Edit, parse_edit
from diffdpo.data.lyrics_files import read_lyrics
from diffdpo.data.song_prompts import SongPrompts, song_prompts
from diffdpo.errors import DataError
from diffdpo.names import add_id
from diffdpo.registry import closest
from diffdpo.text_files import check_text, is_file, read_jsonl
from diffdpo.types import CONTROLS, Prompt

TEXTS = ("id", "text", "style_audio", "negative_text", "lyrics", "language", "group")
"""Keys of a line whose values are text."""
DURATION, EDIT, CONTROL_MAP = "duration_s", "edit", "controls"
PROMPT_KEYS = (*TEXTS, DURATION, *CONTROLS, CONTROL_MAP, EDIT)
"""All keys of a line. Controls that models share are keys of the line; other controls are under `controls`."""


def read_prompts(path: str | Path, songs: SongPrompts | None = None) -> list[Prompt]:
    """All prompts of a file. DataError names the line of an unknown key, a wrong value or an id used twice.

    With `songs`, a prepared folder may stand in the place of the file: for the captions of its songs.

    `style_audio`, and `lyrics` that name a .lrc or .txt file, are paths relative to the prompt file. Edits are
    checked too; `read_edits` returns them.
    """
    if songs is not None and Path(path).is_dir():
        return song_prompts(Path(path), songs)
    return [prompt for prompt, _ in _read(Path(path))]


def read_edits(path: str | Path) -> dict[str, Edit]:
    """The edits of a prompt file, by prompt id; a prepared folder has none."""
    if Path(path).is_dir():
        return {}
    return {prompt.id: edit for prompt, edit in _read(Path(path)) if edit is not None}


def _read(path: Path) -> list[tuple[Prompt, Edit | None]]:
    prompts: list[tuple[Prompt, Edit | None]] = []
    ids: dict[str, str] = {}
    for number, row in read_jsonl(path):
        location = f"{path}:{number}"
        edit = _edit(row, location, path.parent)
        prompt = _prompt(row, location, path.parent)
        add_id(ids, prompt.id, location)
        prompts.append((prompt, edit))
    if not prompts:
        raise DataError(f"{path}: holds no prompts")
    return prompts


def _prompt(row: dict[str, Any], location: str, folder: Path) -> Prompt:
    _check_types(row, location)
    fields = {key: row[key] for key in (*TEXTS, DURATION) if row.get(key) is not None}
    if not fields.get("id"):
        raise DataError(f"{location}: a prompt needs an id")
    if "style_audio" in fields:
        fields["style_audio"] = str(_check_file(folder / fields["style_audio"], "style_audio", location))
    if "lyrics" in fields:
        fields["lyrics"] = read_lyrics(fields["lyrics"], folder, location)
    try:
        return Prompt(**fields, controls=_controls(row))
    except ValueError as error:
        raise DataError(f"{location}: {error}") from None


def _controls(row: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The controls of a line as sorted, hashable pairs of name and value."""
    values = {key: row[key] for key in CONTROLS if row.get(key) is not None} | (row.get(CONTROL_MAP) or {})
    return tuple(sorted((name, _hashable(value)) for name, value in values.items()))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """A prompt as the JSON object of a line, the inverse of reading."""
    row = {key: getattr(prompt, key) for key in (*TEXTS, DURATION) if getattr(prompt, key) is not None}
    shared_controls = {name: value for name, value in prompt.controls if name in CONTROLS}
    model_controls = {name: value for name, value in prompt.controls if name not in CONTROLS}
    return row | shared_controls | ({CONTROL_MAP: model_controls} if model_controls else {})


def _edit(row: dict[str, Any], location: str, folder: Path) -> Edit | None:
    if row.get(EDIT) is None:
        return None
    if row.get("duration_s") is not None:
        raise DataError(f"{location}: the length of an edit is that of its song; leave duration_s out")
    try:
        return parse_edit(row[EDIT], folder)
    except ValueError as error:
        raise DataError(f"{location}: prompt {row.get('id')!r}: {error}") from None


def _check_types(row: dict[str, Any], location: str) -> None:
    for key, value in row.items():
        if key not in PROMPT_KEYS:
            hint = f"{closest(key, PROMPT_KEYS)} Known: {', '.join(PROMPT_KEYS)}."
            raise DataError(f"{location}: unknown key {key!r}.{hint}")
        if key not in ("id", "style_audio", EDIT):
            check_text(json.dumps(value, ensure_ascii=False), key, location)
        value_type: Any = {DURATION: (int, float), CONTROL_MAP: dict}.get(key, str)
        if value is None or key in CONTROLS or key == EDIT:
            continue
        if not isinstance(value, value_type) or isinstance(value, bool):
            kind = {DURATION: "a number", CONTROL_MAP: "an object of names and values"}.get(key, "a string")
            raise DataError(f"{location}: {key} must be {kind}, got {value!r}")


def _check_file(path: Path, key: str, location: str) -> Path:
    if not is_file(path):
        raise DataError(f"{location}: {key} {path}: no such file")
    return path


def negative_prompt(prompt: Prompt) -> Prompt | None:
    """The prompt of guidance's unconditional branch: the negative style, no lyrics, no controls but the place in
    the song. None for a prompt without negative text."""
    if prompt.negative_text is None:
        return None
    start = prompt.control("start")
    return replace(
        prompt,
        text=prompt.negative_text,
        negative_text=None,
        style_audio=None,
        lyrics="",
        controls=() if start is None else (("start", start),),
    )


def in_share(group: str, share: float, salt: str = "") -> bool:
    """Whether a prompt group falls into a share of all groups, by a hash of its name, not by the order of rows."""
    digest = hashlib.sha256(f"{salt}|{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def check_disjoint(mining: Sequence[Prompt], evaluation: Sequence[Prompt]) -> None:
    """DataError if prompts of mining and evaluation share a group: such an evaluation would prove nothing."""
    shared_groups = {p.group for p in mining} & {p.group for p in evaluation}
    if shared_groups:
        raise DataError(
            f"{len(shared_groups)} prompt group(s) are in both the mining and the evaluation prompts, e.g. "
            f"{min(shared_groups)!r}; give them to one side only"
        )
