"""CMI-Pref: 4,027 pairs judged on musicality and on alignment with text, lyrics and reference sound
(CMI-RewardBench 2026), CC BY-NC-SA 4.0.

All cells are text; an axis that was not judged is empty.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from diffdpo.data.importers.base import (
    Importer,
    PreferenceImport,
    SoundFiles,
    find_tables,
    prompt_group,
    root_of,
    text_digest,
)
from diffdpo.data.importers.records import EmbeddedSound, Record, SoundSource, read_records
from diffdpo.data.votes import VoteRow

CMI_PREF_COLUMNS = (
    "audio-path", "audio2", "prompt", "lyrics", "prompt id", "ref-audio-path", "feedback",
    "preference-musicality", "preference-alignment", "confidence_preference-musicality",
    "confidence_preference-alignment", "user id", "model_a", "model_b", "source", "split",
    "total_listening_time_a", "total_listening_time_b",
)  # fmt: skip
NEEDED_CELLS = (
    "audio-path",
    "audio2",
    "prompt",
    "preference-musicality",
    "preference-alignment",
    "model_a",
    "model_b",
)
CMI_PREF_AXES = {"musicality": "musicality", "alignment": "prompt"}
CMI_PREF_ANSWERS = {"model_a": "a", "model_b": "b", "": ""}
CMI_PREF_LAYOUT = "JSON lines or Parquet files, with the folders that audio-path names"


def read_cmi_pref(path: Path, license_name: str) -> PreferenceImport:
    """A vote a pair and axis that was judged."""
    files = find_tables(path, ("*.jsonl", "*.parquet", "**/*.jsonl", "**/*.parquet"), CMI_PREF_LAYOUT)
    sound_files = SoundFiles(root_of(path))
    votes: list[VoteRow] = []
    sounds: dict[str, SoundSource] = {}
    repeats: Counter[str] = Counter()
    blanks: Counter[str] = Counter()
    for record in (record for file in files for record in read_records(file, NEEDED_CELLS)):
        for column in ("audio-path", "audio2"):
            sound = sound_files.resolve(record, column)
            if sound is not None:
                sounds[_song_id(record, column)] = sound
        digest = text_digest(
            *(_song_id(record, name) for name in ("audio-path", "audio2")), record.text("user id")
        )
        repeats[digest] += 1
        votes += _votes(record, f"{digest}-{repeats[digest]}", license_name, blanks)
    notes = [f"{count} pairs without an answer on {axis}" for axis, count in sorted(blanks.items())]
    return PreferenceImport(votes=votes, sounds=sounds, notes=[*notes, *sound_files.notes()])


def _song_id(record: Record, column: str) -> str:
    """The id of a song: its path, or the name of its sound in a Parquet file."""
    cell = record.cells[column]
    return cell.name if isinstance(cell, EmbeddedSound) else record.required_text(column)


def _votes(record: Record, pair: str, license_name: str, blanks: Counter[str]) -> Iterator[VoteRow]:
    prompt, lyrics = record.text("prompt").strip(), record.text("lyrics").strip()
    for axis, name in CMI_PREF_AXES.items():
        answer = record.word(f"preference-{axis}", CMI_PREF_ANSWERS)
        if not answer:
            blanks[name] += 1
            continue
        confidence = record.number(f"confidence_preference-{axis}", 0, 5)
        yield VoteRow(
            vote_id=f"{pair}-{name}",
            source=CMI_PREF.source,
            rater=record.text("user id"),
            prompt_id=record.text("prompt id") or prompt_group(prompt),
            prompt=prompt,
            lyrics=lyrics,
            group=prompt_group(prompt or lyrics or record.text("ref-audio-path") or pair),
            song_a=_song_id(record, "audio-path"),
            song_b=_song_id(record, "audio2"),
            system_a=record.text("model_a"),
            system_b=record.text("model_b"),
            axis=name,
            answer=answer,
            confidence=confidence / 5,
            heard_a_s=record.number("total_listening_time_a", 0, 86_400),
            heard_b_s=record.number("total_listening_time_b", 0, 86_400),
            license=license_name,
            comment=record.text("feedback"),
            split=record.text("split"),
        )


CMI_PREF = Importer(
    source="cmi-pref",
    license="CC-BY-NC-SA-4.0",
    attribution="CMI-Pref (CMI-RewardBench 2026), HaiwenXia/cmi-pref",
    layout=CMI_PREF_LAYOUT,
    read=read_cmi_pref,
)
