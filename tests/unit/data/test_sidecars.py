"""What people put beside their songs, in the layouts of several trainers, is one description."""

import json

import numpy as np
import pytest
import soundfile

from diffdpo.data.sidecars import read_sidecars, spell_key
from diffdpo.data.song_manifest import read_songs
from diffdpo.errors import DataError

WORDS = "[verse]\nhello world\n\n[chorus]\nagain: and again"
FULL = {"text": "slow rock", "lyrics": WORDS, "language": "en", "bpm": 92.0, "key": "A minor", "metre": "3/4"}
LAYOUTS = {
    "ACE-Step": {
        "song.json": json.dumps({"caption": "slow rock", "bpm": 92, "keyscale": "A minor", "timesignature": "3",
                                 "language": "en"}),
        "song.lyrics.txt": WORDS,
    },
    "ACE-Step, words in song.txt": {
        "song.json": json.dumps({"caption": "slow rock", "bpm": 92, "keyscale": "Am", "timesignature": "3",
                                 "language": "en"}),
        "song.txt": WORDS,
    },
    "Side-Step": {
        "song.txt": f"caption: slow rock\ngenre: rock\nbpm: 92\nkey: A min\nsignature: 3/4\nlanguage: en\n"
                    f"is_instrumental: false\nlyrics:\n{WORDS}",
    },
    "ai-toolkit": {
        "song.txt": f"<CAPTION>slow rock</CAPTION>\n<LYRICS>\n{WORDS}\n</LYRICS>\n<BPM>92</BPM>\n"
                    "<KEYSCALE>a minor</KEYSCALE>\n<TIMESIGNATURE>3</TIMESIGNATURE>\n<LANGUAGE>en</LANGUAGE>",
    },
    "one file": {"song.json": json.dumps(FULL)},
}  # fmt: skip


def song(folder, files):
    audio = folder / "song.flac"
    soundfile.write(audio, np.zeros((441, 1)), 44100)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return audio


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_says_what_the_others_say(tmp_path, layout):
    assert read_sidecars(song(tmp_path, LAYOUTS[layout])) == FULL


@pytest.mark.parametrize(
    ("files", "values"),
    [
        ({}, {}),
        ({"song.txt": "slow rock, guitar"}, {"text": "slow rock, guitar"}),
        ({"song.txt": "an evening: slow rock"}, {"text": "an evening: slow rock"}),
        ({"song.txt": WORDS}, {"lyrics": WORDS}),
        ({"song.caption.txt": "rock", "song.txt": "la la"}, {"text": "rock", "lyrics": "la la"}),
        ({"song.lrc": "[00:01.00]la", "song.lyrics.txt": "la"}, {"lyrics": "[00:01.00]la"}),
        ({"song.txt": "caption: rock\nlyrics: [Instrumental]"}, {"text": "rock", "lyrics": ""}),
        ({"song.json": '{"genre": "jazz", "is_instrumental": true, "mood": "x"}'}, {"text": "jazz", "lyrics": ""}),
        ({"song.txt": "caption: rock\nbpm: N/A\nkey:"}, {"text": "rock"}),
        ({"song.json": '{"timesignature": 6}'}, {"metre": "6/8"}),
    ],
)  # fmt: skip
def test_parts_of_a_description(tmp_path, files, values):
    assert read_sidecars(song(tmp_path, files)) == values


def test_tags_of_the_recording_are_the_last_resort(tmp_path):
    audio = tmp_path / "song.flac"
    with soundfile.SoundFile(audio, "w", 44100, 1) as file:
        file.genre, file.artist, file.title, file.license = "folk", "Ann", "Rain", "CC-BY-4.0"
        file.write(np.zeros(441))
    tags = {"license": "CC-BY-4.0", "attribution": "Ann - Rain"}
    assert read_sidecars(audio) == {"text": "folk"} | tags
    (tmp_path / "song.caption.txt").write_text("a slow song", encoding="utf-8")
    assert read_sidecars(audio) == {"text": "a slow song"} | tags


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"bpm": "fast"}', "song.json: bpm: must be a number of beats a minute"),
        ('{"bpm": 5000}', "song.json: bpm: must be a number of beats a minute"),
        ('{"key": "H"}', "must be a key such as 'A minor'"),
        ('{"caption": ["a"]}', "song.json: caption: must be text"),
        ("[1]", "expected an object"),
        ('{"caption": "a', "not valid JSON"),
    ],
)
def test_a_fault_of_one_song_is_that_songs(tmp_path, content, says):
    audio = song(tmp_path, {"song.json": content})
    with pytest.raises(DataError, match=says):
        read_sidecars(audio)
    soundfile.write(tmp_path / "other.flac", np.zeros((441, 1)), 44100)
    faults = {entry.id: entry.fault for entry in read_songs(tmp_path, 0.0)}
    assert says in faults["song"]
    assert faults["other"] == ""


@pytest.mark.parametrize(
    ("text", "key"),
    [("Am", "A minor"), ("a", "A minor"), ("A", "A major"), ("C# minor", "C# minor"), ("B♭ Major", "Bb major"),
     ("gb", "Gb minor"), ("F dur", "F major"), ("d moll", "D minor"), ("E min", "E minor")],
)  # fmt: skip
def test_keys_are_spelled_in_one_way(text, key):
    assert spell_key(text) == key
