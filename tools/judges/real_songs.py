"""The table of real songs: every scorer's values of windows of the corpus through the tiny model's codec.

    python tools/judges/real_songs.py MANIFEST --corpus FOLDER [--work build/real_songs.jsonl] [--limit N]

FOLDER holds a folder for each Debian package. Of every song that is there, three windows of ten seconds are brought
through the codec and scored. What the work file holds of a scorer of the same version is not scored again, so that
the tool can be stopped and continued, and another scorer costs its own time only; at its end the tool writes the
table of the package from what the work file holds.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.evaluation.real_songs import (
    HELD_OUT_SPLITS,
    REAL_SONG_COLUMNS,
    REAL_SONGS_PATH,
    REAL_WINDOW_COLUMNS,
    SONG_GROUPS,
    RealSongs,
    read_table,
    song_group,
    write_table,
)
from diffdpo.models.base import SongModel
from diffdpo.models.tiny import Tiny
from diffdpo.parts import build_scorers
from diffdpo.scorers.base import Scorer
from diffdpo.scorers.engine import fingerprints, score_clips
from diffdpo.types import Prompt

Row = dict[str, Any]
SCORERS = (
    "harmony", "rhythm", "structure", "order", "production", "critic", "adherence",
    "musicnn", "tags", "notes", "beats", "form", "second_critic",
)  # fmt: skip
PLACES = (0.2, 0.45, 0.7)
"""Where windows begin, as shares of the song's length."""
WINDOW_S = 9.985
"""As long as what the tiny model makes of a prompt of ten seconds."""
SHORTEST_S = 9.0
LEVEL_LUFS = -16.0
"""The level of the songs that the codec was trained on."""
TRAINING_SONGS = ROOT / "diffdpo" / "assets" / "tiny" / "SONGS.md"


def find_song(corpus: Path, row: Row) -> Path | None:
    """The file of a line of the manifest, or None where its package is not there."""
    folder = corpus / row["package"]
    path = folder / row["path"].split("/", 1)[1]
    if path.is_file():
        return path
    return next(iter(sorted(folder.rglob(Path(row["path"]).name))), None)


def training_titles() -> set[tuple[str, str]]:
    """Title and package of every song that the tiny model was trained on."""
    titles = set()
    for line in TRAINING_SONGS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[2] == "train":
            name, _, package = cells[0].rpartition(" (Debian package ")
            titles.add((name, package.split()[0]))
    return titles


def was_trained_on(row: Row, titles: set[tuple[str, str]]) -> bool:
    """Whether a title of the list begins with the song's, of the same package: the list has "TITLE by AUTHOR"."""
    return any(
        package == row["package"] and (name == row["title"] or name.startswith(f"{row['title']} by "))
        for name, package in titles
    )


def windows(row: Row, path: Path, model: SongModel, scorers: Mapping[str, Scorer]) -> list[Row]:
    """The values of a song's windows after the codec; shorter ends are left out."""
    clips, starts = [], []
    for place in PLACES:
        start_s = round(place * row["duration_s"], 2)
        clip = audio.read(path, start_s=start_s, seconds=WINDOW_S)
        if clip.seconds >= SHORTEST_S and clip.samples.any():
            clips.append(model.decode(model.encode(audio.normalise(clip, LEVEL_LUFS))))
            starts.append(start_s)
    prompts = [Prompt(id="window", text=", ".join(row["style_words"]))] * len(clips)
    scores = score_clips(clips, scorers, prompts=prompts)
    return [
        {"start_s": start_s, "values": dict(score.values)}
        for start_s, score in zip(starts, scores, strict=True)
    ]


def score_songs(rows: list[Row], corpus: Path, work: Path, scorers: Mapping[str, Scorer]) -> Iterator[Row]:
    """Score what the work file lacks, and add it there song by song."""
    lines = {line["path"]: line for line in map(json.loads, read_lines(work))}
    versions = {name: version for name, version in fingerprints(scorers).items() if name in scorers}
    model, todo = Tiny().load(), [row for row in rows if not is_complete(lines.get(row["path"]), versions)]
    for number, row in enumerate(todo, 1):
        path = find_song(corpus, row)
        if path is None:
            print(f"{row['path']}: not there")
            continue
        begin = time.perf_counter()
        line = lines.get(row["path"], {})
        names = [name for name in scorers if line.get("versions", {}).get(name) != versions[name]]
        fresh = windows(row, path, model, {name: scorers[name] for name in names})
        lines[row["path"]] = merge_line(line, row["path"], fresh, {name: versions[name] for name in names})
        with work.open("a") as file:
            file.write(json.dumps(lines[row["path"]]) + "\n")
        print(f"{number}/{len(todo)} {row['path']} {time.perf_counter() - begin:.1f} s", flush=True)
    yield from (lines[row["path"]] for row in rows if is_complete(lines.get(row["path"]), versions))


def read_lines(work: Path) -> list[str]:
    """The lines of the work file; the last one of a song is the newest."""
    return work.read_text().splitlines() if work.exists() else []


def is_complete(line: Row | None, versions: Mapping[str, str]) -> bool:
    """Whether a line has the values of all scorers in these versions."""
    return line is not None and versions.items() <= line["versions"].items()


def merge_line(line: Row, path: str, fresh: list[Row], versions: Mapping[str, str]) -> Row:
    """A song's line with the values of more scorers. Windows are those of `fresh`, which are always the same."""
    earlier = {window["start_s"]: window["values"] for window in line.get("windows", [])}
    merged = [
        {"start_s": window["start_s"], "values": earlier.get(window["start_s"], {}) | window["values"]}
        for window in fresh
    ]
    return {"path": path, "versions": line.get("versions", {}) | versions, "windows": merged}


def build_table(rows: list[Row], lines: list[Row], scorers: Mapping[str, Scorer]) -> RealSongs:
    """The lines of the work file as a table, in the order of the manifest."""
    by_path, titles = {line["path"]: line for line in lines}, training_titles()
    axes = tuple(axis for scorer in scorers.values() for axis in scorer.axes)
    columns: dict[str, list[Any]] = {name: [] for name in REAL_WINDOW_COLUMNS}
    values = []
    for row in rows:
        artist = row["artist"] or ""
        tags = [tag for family in ("msd", "mtt") for tag in row["style_auto"].get(family, [])]
        song = {
            "song": row["path"],
            "title": row["title"],
            "package": row["package"],
            "artist": artist,
            "style": ", ".join(row["style_words"]),
            "tags": ", ".join(dict.fromkeys(tags)),
            "split": row["split"],
            "group": song_group(row["package"], artist, row["split"]),
            "in_training": was_trained_on(row, titles),
        }
        for window in by_path.get(row["path"], {"windows": []})["windows"]:
            for name in REAL_SONG_COLUMNS:
                columns[name].append(song[name])
            columns["start_s"].append(window["start_s"])
            values.append([window["values"][axis] for axis in axes])
    return RealSongs(
        axes=axes,
        values=np.array(values),
        versions={name: version for name, version in fingerprints(scorers).items() if name in scorers},
        **{name: tuple(column) for name, column in columns.items()},
    )


def summary(table: RealSongs) -> str:
    """Songs, windows and packages of each group, what the tiny model was trained on, and the bands of all axes."""
    songs = {song: place for place, song in enumerate(table.song)}
    artists = {(table.package[place], table.artist[place], table.group[place]) for place in songs.values()}
    lines = [f"{len(songs)} songs, {len(table)} windows"]
    for group in SONG_GROUPS:
        places = [place for place in songs.values() if table.group[place] == group]
        trained = sum(table.in_training[place] for place in places)
        packages = len({table.package[place] for place in places})
        line = f"{group:14s} {len(places)} songs of {packages} packages, {trained} of them trained on"
        if group == "judge":
            names = {(p, a) for (p, a, g) in artists if g != group}
            shared = sum(
                table.split[place] in HELD_OUT_SPLITS and (table.package[place], table.artist[place]) in names
                for place in places
            )
            line += f"; {shared} held-out ones have an artist in another group"
        lines.append(line)
    for axis in table.axes:
        low, middle, high = np.percentile(table.column(axis), [10, 50, 90])
        lines.append(f"{axis:22s} {low:7.3f} {middle:7.3f} {high:7.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "real_songs.jsonl")
    parser.add_argument("--out", type=Path, default=REAL_SONGS_PATH)
    parser.add_argument("--limit", type=int, default=0, help="songs to score now, 0 for all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in arguments.manifest.read_text().splitlines()]
    random.Random(0).shuffle(rows)  # an unfinished table is a sample of all packages
    scorers = build_scorers(SCORERS)
    arguments.work.parent.mkdir(parents=True, exist_ok=True)
    lines = list(score_songs(rows[: arguments.limit or None], arguments.corpus, arguments.work, scorers))
    rows.sort(key=lambda row: row["path"])
    write_table(arguments.out, build_table(rows, lines, scorers))
    print(f"{arguments.out}: {arguments.out.stat().st_size} bytes")
    print(summary(read_table(arguments.out)))


if __name__ == "__main__":
    main()
