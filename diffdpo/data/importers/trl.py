"""Preference pairs as TRL and many data sets on the hub have them: prompt, chosen, rejected.

`chosen` and `rejected` are sounds in a Parquet file, or names of audio files. Which of the two was presented first
is not told: a half of the pairs, by their ids, gets the better song as the second.
"""

from collections import Counter
from pathlib import Path

from diffdpo.data.importers.base import (
    Importer,
    PreferenceImport,
    SoundFiles,
    find_tables,
    is_swapped,
    prompt_group,
    root_of,
    text_digest,
)
from diffdpo.data.importers.records import AUDIO_SUFFIXES, EmbeddedSound, Record, SoundSource, read_records
from diffdpo.data.votes import VoteRow
from diffdpo.errors import DataError

TRL_COLUMNS = ("prompt", "chosen", "rejected")
TRL_LAYOUT = "a Parquet, JSON lines, JSON or CSV file of prompt, chosen, rejected"


def read_trl(path: Path, license_name: str) -> PreferenceImport:
    """A vote a row. DataError for pairs of texts, which train language models."""
    files = find_tables(path, ("*.parquet", "data/*.parquet", "*.jsonl", "*.csv", "*.json"), TRL_LAYOUT)
    sound_files = SoundFiles(root_of(path))
    votes: list[VoteRow] = []
    sounds: dict[str, SoundSource] = {}
    repeats: Counter[str] = Counter()
    for record in (record for file in files for record in read_records(file, TRL_COLUMNS)):
        names = [_song_name(record, column) for column in ("chosen", "rejected")]
        for column, name in zip(("chosen", "rejected"), names, strict=True):
            sound = sound_files.resolve(record, column)
            if sound is not None:
                sounds[name] = sound
        digest = text_digest(record.text("prompt"), *names)
        repeats[digest] += 1
        votes.append(_vote(record, names, f"{digest}-{repeats[digest]}", license_name))
    return PreferenceImport(votes=votes, sounds=sounds, notes=sound_files.notes())


def _song_name(record: Record, column: str) -> str:
    """What identifies a song: the name of its sound, with its place where the data set has no name."""
    cell = record.cells[column]
    if isinstance(cell, EmbeddedSound):
        return f"{column}-{text_digest(cell.location)}-{Path(cell.name).name}"
    if not isinstance(cell, str) or Path(cell).suffix.lower() not in AUDIO_SUFFIXES:
        raise DataError(f"{record.location}: {column} must be a sound or the name of an audio file")
    return cell


def _vote(record: Record, names: list[str], vote_id: str, license_name: str) -> VoteRow:
    prompt = record.text("prompt").strip()
    swapped_names = names[::-1] if is_swapped(vote_id) else names
    return VoteRow(
        vote_id=vote_id,
        source=TRL.source,
        prompt_id=prompt_group(prompt),
        prompt=prompt,
        group=prompt_group(prompt),
        song_a=swapped_names[0],
        song_b=swapped_names[1],
        answer="b" if is_swapped(vote_id) else "a",
        license=license_name,
    )


TRL = Importer(source="trl", license="", layout=TRL_LAYOUT, read=read_trl)
