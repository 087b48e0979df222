"""The reference of the package: where songs of the group `targets` lie on the mined axes, by style.

    python tools/judges/targets.py MANIFEST --corpus FOLDER [--work build/targets.jsonl] [--groups targets]

FOLDER holds a folder for each Debian package. The songs' styles are the words of people and those of a tagger. It
writes a manifest of the songs and calls what `diffdpo reference` calls; no song of another group is read.
"""

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.evaluation.real_songs import SONG_GROUPS, song_group
from diffdpo.mining.reference import REFERENCE_PATH
from diffdpo.recipes.reference import ReferenceSettings, make_reference
from tools.judges.real_songs import WINDOW_S, find_song


def target_songs(manifest: Path, corpus: Path, groups: Collection[str]) -> list[dict[str, str]]:
    """Lines of a manifest of `prepare`: the songs of these groups that lie in the corpus."""
    lines = []
    for row in map(json.loads, manifest.read_text().splitlines()):
        song = find_song(corpus, row)
        if song and song_group(row["package"], row["artist"] or "", row["split"]) in groups:
            tags = row["style_auto"]
            words = dict.fromkeys([*row["style_words"], *tags["mtt"], *tags["msd"]])
            name = row["path"].replace("/", "-").replace(" ", "-")
            lines.append({"id": name, "audio": str(song.resolve()), "text": ", ".join(words)})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "targets.jsonl")
    parser.add_argument("--out", type=Path, default=REFERENCE_PATH)
    parser.add_argument("--groups", nargs="+", default=["targets"], choices=set(SONG_GROUPS) - {"judge"})
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.parent.mkdir(parents=True, exist_ok=True)
    songs = target_songs(arguments.manifest, arguments.corpus, arguments.groups)
    arguments.work.write_text("\n".join(json.dumps(song) for song in songs) + "\n")
    print(make_reference(arguments.work, arguments.out, ReferenceSettings(seconds=WINDOW_S)))


if __name__ == "__main__":
    main()
