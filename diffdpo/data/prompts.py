"""prompts.jsonl: one prompt a line, checked before any work is done; a line may hold an edit of a song."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffdpo.data.edits import Edit, parse_edit
from diffdpo.errors import DataError
from diffdpo.registry import closest
from diffdpo.runs import read_jsonl
from diffdpo.types import CONTROLS, Prompt

TEXTS = ("id", "text", "style_audio", "negative_text", "lyrics", "language", "group")
"""Keys of a line whose values are text."""
DURATION, EDIT, CONTROL_MAP = "duration_s", "edit", "controls"
KEYS = (*TEXTS, DURATION, *CONTROLS, CONTROL_MAP, EDIT)
"""All keys of a line. The controls that every model shares stand beside the rest; others are under `controls`."""
LYRICS_FILES = (".lrc", ".txt")


def read_prompts(path: str | Path) -> list[Prompt]:
    """All prompts of a file. DataError names the line of an unknown key, a wrong value or an id used twice.

    `style_audio`, and `lyrics` ending in .lrc or .txt, are paths relative to the prompt file. Edits are checked
    here and read by `read_edits`.
    """
    return [prompt for prompt, _ in _read(Path(path))]


def read_edits(path: str | Path) -> dict[str, Edit]:
    """The edits of a prompt file, by prompt id."""
    return {prompt.id: edit for prompt, edit in _read(Path(path)) if edit is not None}


def _read(path: Path) -> list[tuple[Prompt, Edit | None]]:
    prompts, seen = [], set()
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        edit = _edit(row, where, path.parent)
        prompt = _prompt(row, where, path.parent)
        if prompt.id in seen:
            raise DataError(
                f"{path}:{number}: the id {prompt.id!r} is used twice; ids name files and must differ"
            )
        seen.add(prompt.id)
        prompts.append((prompt, edit))
    if not prompts:
        raise DataError(f"{path}: holds no prompts")
    return prompts


def _prompt(row: dict[str, Any], where: str, folder: Path) -> Prompt:
    _check_types(row, where)
    fields = {key: row[key] for key in (*TEXTS, DURATION) if row.get(key) is not None}
    if not fields.get("id", "").strip("."):
        raise DataError(f"{where}: a prompt needs an id")
    if any(c in fields["id"] for c in "/\\\0"):
        raise DataError(f"{where}: the id {fields['id']!r} names files and may not contain a path separator")
    if "style_audio" in fields:
        fields["style_audio"] = str(_existing(folder / fields["style_audio"], "style_audio", where))
    if fields.get("lyrics", "").endswith(LYRICS_FILES):
        fields["lyrics"] = _existing(folder / fields["lyrics"], "lyrics", where).read_text()
    try:
        return Prompt(**fields, controls=_controls(row))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def _controls(row: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The controls of a line as sorted pairs that can be hashed."""
    values = {key: row[key] for key in CONTROLS if row.get(key) is not None} | (row.get(CONTROL_MAP) or {})
    return tuple(sorted((name, _hashable(value)) for name, value in values.items()))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


def prompt_row(prompt: Prompt) -> dict[str, Any]:
    """A prompt as the object of a line; the inverse of reading it."""
    row = {key: getattr(prompt, key) for key in (*TEXTS, DURATION) if getattr(prompt, key) is not None}
    shared = {name: value for name, value in prompt.controls if name in CONTROLS}
    others = {name: value for name, value in prompt.controls if name not in CONTROLS}
    return row | shared | ({CONTROL_MAP: others} if others else {})


def _edit(row: dict[str, Any], where: str, folder: Path) -> Edit | None:
    if row.get(EDIT) is None:
        return None
    if row.get("duration_s") is not None:
        raise DataError(f"{where}: the length of an edit is that of its song; leave duration_s out")
    try:
        return parse_edit(row[EDIT], folder)
    except ValueError as error:
        raise DataError(f"{where}: prompt {row.get('id')!r}: {error}") from None


def _check_types(row: dict[str, Any], where: str) -> None:
    for key, value in row.items():
        if key not in KEYS:
            raise DataError(f"{where}: unknown key {key!r}.{closest(key, KEYS)} Known: {', '.join(KEYS)}.")
        expected: Any = {DURATION: (int, float), CONTROL_MAP: dict}.get(key, str)
        if value is None or key in CONTROLS or key == EDIT:
            continue
        if not isinstance(value, expected) or isinstance(value, bool):
            kind = {DURATION: "a number", CONTROL_MAP: "an object of names and values"}.get(key, "a string")
            raise DataError(f"{where}: {key} must be {kind}, got {value!r}")


def _existing(path: Path, key: str, where: str) -> Path:
    if not path.is_file():
        raise DataError(f"{where}: {key} {path}: no such file")
    return path


def negative_prompt(prompt: Prompt) -> Prompt | None:
    """The prompt of the other branch of guidance: the negative style, nothing sung, no control but its place in the
    song. None where there is no negative text."""
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
    """Whether a prompt group falls into a share of all groups: a hash decides, never the order of rows."""
    digest = hashlib.sha256(f"{salt}|{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def check_disjoint(mining: Sequence[Prompt], evaluation: Sequence[Prompt]) -> None:
    """Evaluation on prompts that were mined proves nothing: refuse it."""
    both = {p.group for p in mining} & {p.group for p in evaluation}
    if both:
        raise DataError(
            f"{len(both)} prompt group(s) are in both the mining and the evaluation prompts, e.g. {min(both)!r}; "
            "give them to one side only"
        )
