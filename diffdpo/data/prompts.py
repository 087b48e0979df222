"""prompts.jsonl: one prompt a line, checked before any work is done; a line may hold an edit of a song."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from diffdpo.data.edits import KEY as EDIT
from diffdpo.data.edits import Edit, parse_edit
from diffdpo.errors import DataError
from diffdpo.registry import closest
from diffdpo.runs import read_jsonl
from diffdpo.types import Prompt

KEYS = (
    "id",
    "text",
    "style_audio",
    "negative_text",
    "lyrics",
    "language",
    "duration_s",
    "start",
    "axis",
    "group",
)
NUMBERS = ("duration_s", "start")


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
        prompt = _prompt({key: row[key] for key in row if key != EDIT}, where, path.parent)
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
    given = {key: value for key, value in row.items() if value is not None}
    if not given.get("id", "").strip("."):
        raise DataError(f"{where}: a prompt needs an id")
    if any(c in given["id"] for c in "/\\\0"):
        raise DataError(f"{where}: the id {given['id']!r} names files and may not contain a path separator")
    if "style_audio" in given:
        given["style_audio"] = str(_existing(folder / given["style_audio"], "style_audio", where))
    if given.get("lyrics", "").endswith((".lrc", ".txt")):
        given["lyrics"] = _existing(folder / given["lyrics"], "lyrics", where).read_text()
    try:
        return Prompt(**given)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


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
            known = (*KEYS, EDIT)
            raise DataError(f"{where}: unknown key {key!r}.{closest(key, known)} Known: {', '.join(known)}.")
        expected = (int, float) if key in NUMBERS else str
        if value is not None and (not isinstance(value, expected) or isinstance(value, bool)):
            raise DataError(
                f"{where}: {key} must be a {'number' if key in NUMBERS else 'string'}, got {value!r}"
            )


def _existing(path: Path, key: str, where: str) -> Path:
    if not path.is_file():
        raise DataError(f"{where}: {key} {path}: no such file")
    return path


def lines_within(
    lines: Sequence[Sequence[Any]], start_s: float, stop_s: float
) -> tuple[tuple[float, tuple[int, ...]], ...]:
    """The (start, tokens) that begin inside an excerpt, in its time. Their last tokens may lie behind its end."""
    return tuple((at - start_s, tuple(tokens)) for at, tokens in lines if start_s <= at < stop_s)


def negative(prompt: Prompt) -> Prompt:
    """The other branch of guidance: the negative style, or none; no lyrics, no axis."""
    return replace(
        prompt,
        text=prompt.negative_text,
        style=None,
        style_audio=None,
        lyrics=None,
        lyric_lines=(),
        axis="",
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


assert set(KEYS) <= {f.name for f in fields(Prompt)}
