"""AIME: 15,600 answers about excerpts of ten seconds from twelve systems (Grötschla et al. 2025), CC BY 4.0.

The survey counts tracks by whole numbers, the audio calls them by five digits with zeros in front ("04501").
"""

from collections import Counter
from pathlib import Path

from diffdpo.data.importers.base import (
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

AIME_COLUMNS = (
    "question-type", "description", "model-1", "track-1-id", "track-1-begin", "track-1-end", "model-2",
    "track-2-id", "track-2-begin", "track-2-end", "answer",
)  # fmt: skip
AIME_AXES = {"Music Quality": "quality", "Text-Audio Alignment": "prompt", "Text Alignment": "prompt"}
AIME_LAYOUT = "the survey (CSV or Parquet), with Parquet files of id and audio, or files such as 04501.mp3"
ID_DIGITS = 5


def read_aime(path: Path, license_name: str) -> PreferenceImport:
    """A vote an answer."""
    root = root_of(path)
    tables = find_tables(path, ("*.csv", "*.jsonl", "**/*.csv", "**/*.parquet"), AIME_LAYOUT)
    surveys = [file for file in tables if not _is_audio_table(file)]
    if not surveys:
        raise DataError(f"{path}: holds no survey; expected {AIME_LAYOUT}")
    audio = _tracks(root)
    votes: list[VoteRow] = []
    sounds: dict[str, SoundSource] = {}
    repeats: Counter[str] = Counter()
    for record in (record for file in surveys for record in read_records(file, AIME_COLUMNS)):
        tracks = [track_id(record, f"track-{number}-id") for number in (1, 2)]
        for number, track in enumerate(tracks, start=1):
            if audio and track not in audio:
                raise DataError(f"{record.location}: track-{number}-id {track!r} is not in the audio")
            if audio:
                sounds[track] = audio[track]
        digest = text_digest(*(record.text(name) for name in AIME_COLUMNS))
        repeats[digest] += 1  # two people may have given the same answer to the same excerpts
        votes.append(_vote(record, tracks, f"{digest}-{repeats[digest]}", license_name))
    notes = [] if audio else [f"{root}: holds no sound; its rows have none"]
    return PreferenceImport(votes=votes, sounds=sounds, notes=notes)


def track_id(record: Record, name: str) -> str:
    """A track as the audio calls it: five digits, zeros in front. DataError for what is no whole number."""
    text = record.required_text(name)
    digits = text[:-2] if text.endswith(".0") else text
    if not (digits.isascii() and digits.isdigit() and len(digits) <= ID_DIGITS):
        raise DataError(f"{record.location}: {name} must be a whole number of at most 5 digits, got {text!r}")
    return digits.zfill(ID_DIGITS)


def _vote(record: Record, tracks: list[str], vote_id: str, license_name: str) -> VoteRow:
    prompt = record.text("description").strip()
    begins, ends = (
        [record.seconds(f"track-{number}-{place}") for number in (1, 2)] for place in ("begin", "end")
    )
    for number, begin, end in zip((1, 2), begins, ends, strict=True):
        if end and end <= begin:
            raise DataError(f"{record.location}: track-{number}-end is not behind track-{number}-begin")
    return VoteRow(
        vote_id=vote_id,
        source=AIME.source,
        prompt_id=prompt_group(prompt),
        prompt=prompt,
        group=prompt_group(prompt),
        song_a=tracks[0],
        song_b=tracks[1],
        begin_a_s=begins[0],
        end_a_s=ends[0],
        begin_b_s=begins[1],
        end_b_s=ends[1],
        system_a=record.text("model-1"),
        system_b=record.text("model-2"),
        axis=record.word("question-type", AIME_AXES),
        answer=record.word("answer", {"1": "a", "2": "b", "1.0": "a", "2.0": "b"}),
        license=license_name,
    )


def _is_audio_table(file: Path) -> bool:
    if file.suffix.lower() != ".parquet":
        return False
    import pyarrow.parquet as pq

    return {"id", "audio"} <= set(pq.read_schema(file).names)


def _tracks(root: Path) -> dict[str, SoundSource]:
    """The sound of each track, by its five digits."""
    tracks: dict[str, SoundSource] = {}
    for file in sorted(root.rglob("*.parquet")):
        if not _is_audio_table(file):
            continue
        for record in read_records(file, ("id", "audio")):
            sound = record.cells["audio"]
            if not isinstance(sound, EmbeddedSound):
                raise DataError(f"{record.location}: audio holds no sound")
            tracks[track_id(record, "id")] = sound
    if tracks:
        return tracks
    files = index_sounds(root)
    return {stem.zfill(ID_DIGITS): path for stem, path in files.items() if stem.isdigit()}


AIME = Importer(
    source="aime",
    license="CC-BY-4.0",
    attribution="AIME (Grötschla et al. 2025), disco-eth/AIME and disco-eth/AIME-survey",
    layout=AIME_LAYOUT,
    read=read_aime,
)
