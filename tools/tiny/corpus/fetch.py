"""Fetches the songs listed in songs.jsonl from Debian packages and writes a manifest for `diffdpo prepare`.

    python tools/tiny/corpus/fetch.py DEST [--light]

Nothing is installed. DEST/manifest.jsonl has one song a line: id, audio, text, license, attribution, split. The
manifest leaves out songs whose licence does not permit shipped weights. Stems are mixed to one file.

The tool needs apt-get (run `apt-get update` once before) and dpkg-deb. Files are checked against the SHA-256 of the
list, where the list has one. --light leaves out LARGE_PACKAGES, all but one of the packages of 100 MB and more: 79
songs, 7.2 hours, 0.5 GB to download remain.
"""

import argparse
import hashlib
import json
import subprocess
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

SONGS = Path(__file__).with_name("songs.jsonl")
LARGE_PACKAGES = {
    "freeorion-data",
    "0ad-data",
    "ufoai-music",
    "naev-data",
    "supertuxkart-data",
    "redeclipse-data",
}
AUDIO = ("*.ogg", "*.opus", "*.mp3")
ARCHIVES = {  # packages that keep their music in a zip
    "0ad-data": ("usr/share/games/0ad/mods/public/public.zip", "public", "audio/music/"),
    "ufoai-music": ("usr/share/games/ufoai/base/0music.pk3", "pk3", "music/"),
}


def read_song_list() -> list[dict]:
    """The rows of songs.jsonl."""
    return [json.loads(line) for line in SONGS.read_text().splitlines()]


def fetch(package: str, dest: Path) -> None:
    """Download one package and unpack its music into DEST/PACKAGE."""
    folder = dest / package
    if (folder / ".done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest) as scratch:
        subprocess.run(["apt-get", "download", "-q", package], cwd=scratch, check=True)
        deb = next(Path(scratch).glob("*.deb"))
        archive, inner, prefix = ARCHIVES.get(package, (None, "", ""))
        patterns = [*AUDIO, *([Path(archive).name] if archive else [])]
        unpack = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
        subprocess.run(
            [
                "tar",
                "-x",
                "-C",
                str(folder),
                "--wildcards",
                "--no-anchored",
                "--wildcards-match-slash",
                *patterns,
            ],
            stdin=unpack.stdout,
            stderr=subprocess.DEVNULL,
            check=False,  # tar counts a pattern without a match as an error
        )
        if unpack.wait():
            raise SystemExit(f"{package}: cannot unpack {deb.name}")
    if archive:
        with zipfile.ZipFile(folder / archive) as file:
            for name in file.namelist():
                if name.startswith(prefix) and name.endswith(".ogg"):
                    file.extract(name, folder / inner)
        (folder / archive).unlink()
    (folder / ".done").touch()


def mix_stems(song: dict, dest: Path) -> str:
    """The path of the song below DEST; of a song in stems, that of their mix, which is written if missing."""
    if "stems" not in song:
        return song["path"]
    mix = dest / Path(song["path"]).with_name("mix.flac")
    if not mix.exists():
        stems, rate = [], 0
        for stem in song["stems"]:
            samples, rate = soundfile.read(dest / stem, always_2d=True)
            stems.append(samples if samples.shape[1] == 2 else np.repeat(samples[:, :1], 2, axis=1))
        total = np.zeros((max(len(stem) for stem in stems), 2))
        for stem in stems:
            total[: len(stem)] += stem
        soundfile.write(mix, total / max(1.0, np.abs(total).max()), rate)
    return str(mix.relative_to(dest))


def entry(song: dict, dest: Path) -> dict:
    """One line of the manifest."""
    slug = "".join(c.lower() if c.isalnum() else "-" for c in f"{song['package']} {song['title']}")
    author = song.get("artist") or song.get("rights_holder") or "unknown"
    return {
        "id": "-".join(filter(None, slug.split("-"))),
        "audio": mix_stems(song, dest),
        "text": ", ".join(song["style_words"]),
        "license": song["license"],
        "attribution": f"{song['title']} by {author} (Debian package {song['package']} {song['version']})",
        "split": song["split"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dest", type=Path)
    parser.add_argument("--light", action="store_true")
    args = parser.parse_args()
    args.dest.mkdir(parents=True, exist_ok=True)
    songs = [song for song in read_song_list() if not (args.light and song["package"] in LARGE_PACKAGES)]
    for package in sorted({song["package"] for song in songs}):
        print(package, flush=True)
        fetch(package, args.dest)
    wrong = []
    for song in songs:
        path = args.dest / song["path"]
        sha256 = song.get("sha256")
        if not path.is_file() or sha256 not in (None, hashlib.sha256(path.read_bytes()).hexdigest()):
            wrong.append(song["path"])
    print(f"{len(songs) - len(wrong)} of {len(songs)} songs present and as listed")
    for path in wrong:
        print(f"missing or changed: {path}")
    usable = [s for s in songs if s["path"] not in wrong and s.get("may_enter_shipped_weights")]
    entries = [entry(song, args.dest) for song in usable]
    titles: Counter[str] = Counter()
    for row in entries:  # songs of a package can bear the same title
        titles[row["id"]] += 1
        if titles[row["id"]] > 1:
            row["id"] += f"-{titles[row['id']]}"
    lines = [json.dumps(row, ensure_ascii=False) for row in entries]
    (args.dest / "manifest.jsonl").write_text("".join(f"{line}\n" for line in lines))
    print(f"{args.dest / 'manifest.jsonl'}: {len(lines)} songs")


if __name__ == "__main__":
    main()
