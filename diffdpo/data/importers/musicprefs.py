"""MusicPrefs: pairs of clips judged on musicality and fidelity; published without a license.

`human_preference.csv` names the clips by the file names of the sounds, which are in data/*.parquet.
"""

from collections import Counter
from pathlib import Path, PurePosixPath

from diffdpo.data.importers.base import (
    UNSTATED_LICENSE,
    Importer,
    PreferenceImport,
    find_tables,
    index_sounds,
    prompt_group,
    root_of,
    text_digest,
)
from diffdpo.data.importers.records import EmbeddedSound, Record, SoundSource, read_records
from diffdpo.data.votes import VoteRow
from diffdpo.errors import DataError

MUSICPREFS_COLUMNS = ("audio_a", "audio_b", "musicality", "fidelity")
MUSICPREFS_AXES = ("musicality", "fidelity")
PROMPT_COLUMNS = ("prompt", "text", "caption")
"""Columns of the Parquet files that may hold the prompt of a clip, the first that is there."""
MUSICPREFS_LAYOUT = "human_preference.csv, with data/train-*.parquet"


def read_musicprefs(path: Path, license_name: str) -> PreferenceImport:
    """A vote a pair and axis. `a_wins` and `b_wins` are answers, anything else is a tie."""
    table = find_tables(path, ("human_preference.csv",), MUSICPREFS_LAYOUT)[0]
    clips = _clips(root_of(path))
    votes: list[VoteRow] = []
    sounds: dict[str, SoundSource] = {}
    repeats: Counter[str] = Counter()
    for record in read_records(table, MUSICPREFS_COLUMNS):
        names = [PurePosixPath(record.required_text(f"audio_{side}")).name for side in ("a", "b")]
        for side, name in zip(("a", "b"), names, strict=True):
            if clips and name not in clips:
                raise DataError(f"{record.location}: audio_{side} {name!r} is not in the Parquet files")
            if clips:
                sounds[name] = clips[name][0]
        digest = text_digest(*names)
        repeats[digest] += 1
        prompt = record.text("prompt") or (clips[names[0]][1] if clips else "")
        votes += [
            _vote(record, axis, names, prompt, f"{digest}-{repeats[digest]}", license_name)
            for axis in MUSICPREFS_AXES
        ]
    notes = [] if clips else [f"{root_of(path)}: holds no sound; its rows have none"]
    return PreferenceImport(votes=votes, sounds=sounds, notes=notes)


def _vote(record: Record, axis: str, names: list[str], prompt: str, pair: str, license_name: str) -> VoteRow:
    return VoteRow(
        vote_id=f"{pair}-{axis}",
        source=MUSICPREFS.source,
        prompt_id=prompt_group(prompt) if prompt else "",
        prompt=prompt,
        group=prompt_group(prompt) if prompt else pair.partition("-")[0],
        song_a=names[0],
        song_b=names[1],
        axis=axis,
        answer={"a_wins": "a", "b_wins": "b"}.get(record.text(axis).strip(), "tie"),
        license=license_name,
    )


def _clips(root: Path) -> dict[str, tuple[SoundSource, str]]:
    """Sound and prompt of each clip by the name of its file: from Parquet files, else from audio files."""
    clips: dict[str, tuple[SoundSource, str]] = {}
    for file in sorted(root.glob("data/*.parquet")):
        for record in read_records(file, ("audio",)):
            sound = record.cells["audio"]
            if not isinstance(sound, EmbeddedSound) or not sound.name:
                raise DataError(f"{record.location}: audio holds no sound with the name of its file")
            prompt = next((record.text(name) for name in PROMPT_COLUMNS if name in record.cells), "")
            clips[PurePosixPath(sound.name).name] = sound, prompt
    return clips or {path.name: (path, "") for path in index_sounds(root).values()}


MUSICPREFS = Importer(
    source="musicprefs",
    license=UNSTATED_LICENSE,
    attribution="MusicPrefs, i-need-sleep/musicprefs",
    layout=MUSICPREFS_LAYOUT,
    read=read_musicprefs,
)
