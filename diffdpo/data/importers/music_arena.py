"""Music Arena: battles of two systems on a user's prompt (Kim et al. 2025), CC BY 4.0.

Months are Parquet files; the older mirror has a JSON file a battle. The sound of some systems was never released:
their battles come without it.
"""

from pathlib import Path

from diffdpo.data.importers.base import (
    Importer,
    PreferenceImport,
    SoundFiles,
    find_tables,
    prompt_group,
    root_of,
)
from diffdpo.data.importers.records import Record, SoundSource, read_records
from diffdpo.data.votes import VoteRow
from diffdpo.errors import DataError

MUSIC_ARENA_COLUMNS = (
    "battle_uuid", "date", "prompt", "is_instrumental", "is_prebaked", "user_pseudonym", "audio_a", "system_a",
    "audio_b", "system_b", "preference", "total_listening_time_a", "total_listening_time_b", "feedback",
    "timestamp", "lyrics", "hardware_a", "hardware_b", "system_time_a", "system_time_b", "gateway_time_a",
    "gateway_time_b", "duration_a", "duration_b", "sample_rate_a", "sample_rate_b", "listen_data_a",
    "listen_data_b",
)  # fmt: skip
"""The columns as published in 2026. Only those of NEEDED_COLUMNS are read: earlier releases lack some others."""
NEEDED_COLUMNS = ("battle_uuid", "prompt", "audio_a", "system_a", "audio_b", "system_b", "preference")
MUSIC_ARENA_ANSWERS = {"A": "a", "B": "b", "TIE": "tie", "BOTH_BAD": "both_bad"}
LONGEST_S = 86_400.0
MUSIC_ARENA_LAYOUT = "Parquet files of months, or battle_data/**/*.json with audio_files/"


def read_music_arena(path: Path, license_name: str) -> PreferenceImport:
    """The battles of a folder or file; those without a preference are left out, which is noted."""
    files = find_tables(path, ("battle_data/**/*.json", "**/*.parquet"), MUSIC_ARENA_LAYOUT)
    sound_files = SoundFiles(root_of(path))
    votes: dict[str, VoteRow] = {}
    sounds: dict[str, SoundSource] = {}
    blanks = silent = 0
    for record in (record for file in files for record in read_records(file, NEEDED_COLUMNS)):
        vote_id = record.required_text("battle_uuid")
        if vote_id in votes:
            raise DataError(f"{record.location}: battle_uuid {vote_id!r} is there twice")
        if not record.text("preference").strip():
            blanks += 1
            continue
        votes[vote_id] = _vote(record, vote_id, license_name)
        for side in ("a", "b"):
            sound = sound_files.resolve(record, f"audio_{side}")
            if sound is not None:
                sounds[f"{vote_id}/{side}"] = sound
            silent += sound is None
    notes = [f"{blanks} battles without a preference left out"] if blanks else []
    if silent:
        notes.append(f"{silent} of {2 * len(votes)} songs have no sound: withheld, or not copied along")
    return PreferenceImport(votes=list(votes.values()), sounds=sounds, notes=[*notes, *sound_files.notes()])


def _vote(record: Record, vote_id: str, license_name: str) -> VoteRow:
    prompt = record.text("prompt").strip()
    return VoteRow(
        vote_id=vote_id,
        source=MUSIC_ARENA.source,
        rater=record.text("user_pseudonym"),
        prompt_id=prompt_group(prompt),
        prompt=prompt,
        lyrics=record.text("lyrics"),
        group=prompt_group(prompt),
        song_a=f"{vote_id}/a",
        song_b=f"{vote_id}/b",
        system_a=record.text("system_a"),
        system_b=record.text("system_b"),
        answer=record.word("preference", MUSIC_ARENA_ANSWERS),
        heard_a_s=record.number("total_listening_time_a", 0, LONGEST_S),
        heard_b_s=record.number("total_listening_time_b", 0, LONGEST_S),
        license=license_name,
        comment=record.text("feedback"),
        created_at=record.instant("timestamp") or record.instant("date"),
    )


MUSIC_ARENA = Importer(
    source="music-arena",
    license="CC-BY-4.0",
    attribution="Music Arena (Kim et al. 2025), music-arena/music-arena-dataset",
    layout=MUSIC_ARENA_LAYOUT,
    read=read_music_arena,
)
