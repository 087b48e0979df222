"""Stores, votes and runs in small."""

from pathlib import Path

import numpy as np

from diffdpo import audio
from diffdpo.data import tables
from diffdpo.data.samples import SAMPLES, SampleRow
from diffdpo.data.store.adding import AddSummary, add_intake
from diffdpo.data.store.folder import Store, open_store
from diffdpo.data.store.intake import IntakeOptions, read_intake
from diffdpo.data.votes import OPINIONS, VOTES, OpinionRow, VoteRow
from diffdpo.runs import finish
from diffdpo.types import Clip


def sound(hertz: float, seconds: float = 0.5, rate: int = 22050) -> Clip:
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return Clip(samples=wave[None].astype(np.float32), sample_rate=rate)


def write_songs(folder: Path, count: int = 4, *, prompts: int = 2) -> Path:
    """A samples folder of tones, `count` songs over `prompts` prompts."""
    rows = []
    for number in range(count):
        name = f"p{number % prompts}.{number:03d}"
        clip = sound(200 + 10 * number)
        audio.write(folder / "audio" / f"{name}.flac", clip)
        sha256 = audio.file_sha256(folder / "audio" / f"{name}.flac")
        rows.append(
            SampleRow(
                sample_id=name,
                prompt_id=name.split(".")[0],
                group=f"g{number % prompts}",
                sha256=sha256,
                model='{"name": "tiny"}',
            )
        )
    tables.append(folder, SAMPLES, rows)
    lines = (f'{{"id": "p{k}", "text": "prompt {k}", "group": "g{k}"}}\n' for k in range(prompts))
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def study_vote(number: int, **values) -> VoteRow:
    """A vote of a listening test on the songs of ../samples."""
    row = {
        "vote_id": f"t{number}",
        "source": "study",
        "rater": f"rater{number % 2}",
        "prompt": "prompt 0",
        "prompt_id": "p0",
        "group": "g0",
        "samples_a": "../samples",
        "samples_b": "../samples",
        "song_a": "p0.000",
        "song_b": "p0.002",
        "answer": "a",
        "license": "CC-BY-4.0",
        "consent": "3f2a/en",
    }
    return VoteRow(**(row | values))


def study_opinion(**values) -> OpinionRow:
    """An opinion of a listening test on a song of ../samples."""
    row = {
        "opinion_id": "o",
        "source": "study",
        "rater": "rater0",
        "samples": "../samples",
        "song": "p1.001",
        "scale": "thumb",
        "value": 1.0,
        "license": "CC-BY-4.0",
        "consent": "3f2a/en",
    }
    return OpinionRow(**(row | values))


def write_study(folder: Path, votes: list[VoteRow], opinions: list[OpinionRow] = ()) -> Path:
    """The tables of a listening test, as they are now."""
    tables.replace(folder, VOTES, votes)
    tables.replace(folder, OPINIONS, list(opinions))
    return folder


def add(
    folder: Path, path: Path, *, copy: bool = False, scope: str = "", **options: str
) -> tuple[Store, AddSummary]:
    """Add a path to a store, which is made where there is none."""
    store = open_store(folder, create=True)
    intake = read_intake(path, IntakeOptions(**options), store)
    return store, add_intake(store, intake, copy=copy, scope=scope, clock=lambda: 1e9)


def write_run(folder: Path, config: str, **entries) -> Path:
    """A finished run of a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    finish(folder, **entries)
    return folder
