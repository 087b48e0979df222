"""Published data sets of preferences in small, with exactly the published columns; sounds are short tones."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

RATE = 8000


def tone(hertz: float, seconds: float = 0.25) -> bytes:
    """A WAV file of a tone."""
    buffer = io.BytesIO()
    samples = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)
    soundfile.write(buffer, samples.astype(np.float32), RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def write_tone(path: Path, hertz: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tone(hertz))
    return path


def write_csv(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def battle(number: int, preference, *, withheld: bool = False, **cells) -> dict:
    """A battle of Music Arena, all 28 columns."""
    uuid = f"0000-{number}"
    return {
        "battle_uuid": uuid,
        "date": "2025-12-03T00:16:19.799690-05:00",
        "prompt": f" jazz number {number}",
        "is_instrumental": True,
        "is_prebaked": False,
        "user_pseudonym": f"listener{number % 2}",
        "audio_a": "" if withheld else f"audio_files/x/{uuid}-a.wav",
        "system_a": "sao" if withheld else "acestep",
        "audio_b": f"audio_files/x/{uuid}-b.wav",
        "system_b": "musicgen-small",
        "preference": preference,
        "total_listening_time_a": 6.5,
        "total_listening_time_b": 7.25,
        "feedback": "",
        "timestamp": 1764738979.79969,
        "lyrics": "",
        "hardware_a": "A6000",
        "hardware_b": "A6000",
        "system_time_a": 1.0,
        "system_time_b": 2.0,
        "gateway_time_a": 1.5,
        "gateway_time_b": 2.5,
        "duration_a": 0.25,
        "duration_b": 0.25,
        "sample_rate_a": RATE,
        "sample_rate_b": RATE,
        "listen_data_a": None,
        "listen_data_b": '[["PLAY", 1.0]]',
        **cells,
    }


def write_music_arena(folder: Path, rows: list[dict]) -> Path:
    """The older mirror: a JSON file a battle, and the sounds that were not withheld."""
    for number, row in enumerate(rows):
        path = folder / "battle_data" / "x" / f"{row['battle_uuid']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(row), encoding="utf-8")
        for side in ("a", "b"):
            if row[f"audio_{side}"]:
                write_tone(folder / row[f"audio_{side}"], 200 + 20 * number + (side == "b"))
    return folder


def write_musicprefs(folder: Path, rows: list[dict]) -> Path:
    """`human_preference.csv`, and the clips that it names with their prompts in Parquet."""
    write_csv(folder / "human_preference.csv", rows)
    names = sorted({row[side].rsplit("/", 1)[-1] for row in rows for side in ("audio_a", "audio_b")})
    clips = [
        {"audio": {"bytes": tone(303 + 10 * i), "path": name}, "prompt": f"prompt of {name}"}
        for i, name in enumerate(names)
    ]
    write_parquet(folder / "data" / "train-00000-of-00012.parquet", clips)
    return folder


def answer_of_aime(number: int, answer, **cells) -> dict:
    """An answer of AIME's survey."""
    return {
        "question-type": "Music Quality" if number % 2 else "Text-Audio Alignment",
        "description": f"newage, world {number // 2}",
        "model-1": "Suno v3",
        "track-1-id": 4501 + number,
        "track-1-begin": "00:00:53",
        "track-1-end": "00:01:03",
        "model-2": "MusicGen Large",
        "track-2-id": 26,
        "track-2-begin": "00:00:00",
        "track-2-end": "00:00:10",
        "answer": answer,
        **cells,
    }


def write_aime(folder: Path, rows: list[dict]) -> Path:
    """The survey as CSV, and the tracks in Parquet by ids of five digits."""
    write_csv(folder / "survey.csv", rows)
    tracks = sorted({int(row[f"track-{side}-id"]) for row in rows for side in (1, 2)})
    songs = [
        {"id": f"{track:05d}", "audio": {"bytes": tone(100 + track % 97), "path": None}} for track in tracks
    ]
    write_parquet(folder / "audio" / "train-0.parquet", songs)
    return folder


def rated_song(number: int, people: list[list[float]]) -> dict:
    """A song of SongEval, with the five values of each rater."""
    axes = ("Coherence", "Musicality", "Memorability", "Clarity", "Naturalness")
    return {
        "file_name": f"mp3/{number}.wav",
        "gender": "female",
        "annotation": [dict(zip(axes, values, strict=True)) for values in people],
    }


def write_songeval(folder: Path, rows: list[dict]) -> Path:
    write_jsonl(folder / "metadata.jsonl", rows)
    for number, row in enumerate(rows):
        write_tone(folder / row["file_name"], 150 + 7 * number)
    return folder


def cmi_pair(number: int, musicality: str, alignment: str, **cells) -> dict:
    """A pair of CMI-Pref; all cells are text."""
    return {
        "audio-path": f"cmi-pref/gen-audio/{number}a.wav",
        "audio2": f"cmi-pref/gen-audio/{number}b.wav",
        "prompt": "anime rock",
        "lyrics": "[Verse1] la la",
        "prompt id": f"9050{number}",
        "ref-audio-path": "",
        "feedback": "",
        "preference-musicality": musicality,
        "preference-alignment": alignment,
        "confidence_preference-musicality": "2.5" if musicality else "",
        "confidence_preference-alignment": "5.0" if alignment else "",
        "user id": f"60{number}",
        "model_a": "songgen",
        "model_b": "yue",
        "source": "cmi-arena-annotation",
        "split": "train",
        "total_listening_time_a": "12.5",
        "total_listening_time_b": "9.0",
        **cells,
    }


def write_cmi_pref(folder: Path, rows: list[dict]) -> Path:
    write_jsonl(folder / "train.jsonl", rows)
    for number, row in enumerate(rows):
        write_tone(folder / row["audio-path"], 250 + 10 * number)
        write_tone(folder / row["audio2"], 255 + 10 * number)
    return folder
