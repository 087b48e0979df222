"""Clips cut from songs, as `sample` would leave them: audio, hashes, durations and prompts; no latents."""

import json
from pathlib import Path

import numpy as np
import soundfile

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES, SampleRow, Samples, sample_id

RATE = 44_100


def song(number: int, seconds: float) -> np.ndarray:
    """Chords that change with the beat over noise; another key, tempo and level in every song. [sample, channel]"""
    generator = np.random.default_rng(number)
    time = np.arange(int(seconds * RATE)) / RATE
    beat = generator.uniform(0.4, 0.8)
    roots = 110 * 2 ** (generator.integers(0, 24, 64) / 12)
    frequency = roots[(time / beat).astype(int) % 64]
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    chord = sum(np.sin(phase * ratio) for ratio in (1, 1.25, 1.5))
    sound = generator.uniform(0.02, 0.2) * chord * np.exp(-3 * (time % beat))
    noise = generator.normal(0, 0.01, (len(time), 2))
    return (sound[:, None] + noise).astype(np.float32)


def write_clips(folder: Path, songs: int, per_song: int, seconds: float) -> Path:
    """A samples folder of clips, `per_song` from each song, every third clip a quarter shorter."""
    samples, rows, prompts = Samples(folder), [], []
    for number in range(songs):
        prompt = f"song-{number:03d}"
        prompts.append({"id": prompt, "text": "rock", "duration_s": seconds, "group": prompt})
        full = song(number, seconds * per_song)
        for place in range(per_song):
            length = seconds * (0.75 if (number + place) % 3 == 0 else 1)
            begin = int(place * seconds * RATE)
            clip = full[begin : begin + int(length * RATE)]
            name = sample_id(prompt, place)
            path = samples.audio(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, clip, RATE, subtype="PCM_16")
            sound = audio.read(path, with_fold=False)
            sha256 = audio.pcm_sha256(sound.samples, sound.sample_rate)
            rows.append(
                SampleRow(sample_id=name, prompt_id=prompt, group=prompt, duration_s=length, sha256=sha256)
            )
    tables.append(folder, SAMPLES, rows)
    (folder / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in prompts))
    return folder
