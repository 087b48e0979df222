"""Make the shipped tiny bundle from a corpus, step by step (docs/howto/rebuild-the-tiny-model.md).

python tools/build_tiny.py style  MANIFEST OUT       style.json: words, and terciles of measures of real songs
python tools/build_tiny.py codec  CODEC OUT          the trained codec, in half precision
python tools/build_tiny.py seed   OUT                a fresh network to be trained
python tools/build_tiny.py network EXPORT OUT        the trained network, in half precision
python tools/build_tiny.py songs  MANIFEST OUT       SONGS.md: what it was trained on, by whom, under which licence
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.encoders.words import MEASURED, measure
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.models.spectral_codec import SpectralCodec
from diffdpo.progress import bar

NETWORK = {
    "dim": 256,
    "depth": 8,
    "num_attention_heads": 4,
    "ff_mult": 2,
    "text_num_embeds": 1,
    "text_dim": 32,
    "style_dim": 512,
    "cond_dim": 256,
    "conv_layers": 1,
    "max_frames": 6144,
    "duration_embedding": True,
}
WINDOWS, WINDOW_S = 8, 10.0


def style(manifest: Path, out: Path) -> None:
    """Terciles of every measure over excerpts of the training songs, and the words songs are labelled with."""
    rows = [row for row in map(json.loads, manifest.read_text().splitlines()) if row["split"] == "train"]
    seen: dict[str, list[float]] = {name: [] for name in MEASURED}
    with bar("measure", len(rows), "song") as progress:
        for row in rows:
            path = manifest.parent / row["audio"]
            length = audio.seconds_of(path)
            for place in np.linspace(0.05, 0.9, WINDOWS):
                clip = audio.read(path, start_s=float(place) * length, seconds=WINDOW_S)
                for name, value in measure(clip).items():
                    seen[name].append(value)
            progress.advance()
    thirds = {name: [float(x) for x in np.quantile(values, [1 / 3, 2 / 3])] for name, values in seen.items()}
    words = sorted({word for row in rows for word in re.findall(r"[a-z]+", row["text"].lower())})
    out.mkdir(parents=True, exist_ok=True)
    (out / "style.json").write_text(json.dumps({"thirds": thirds, "words": words}, indent=1) + "\n")


def songs(manifest: Path, out: Path) -> None:
    """The attribution that the songs' licences ask for."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines = [
        "# Songs",
        "",
        "The tiny model was trained on the songs marked train; the others were held out. Thanks to their authors.",
        "",
        "| Song | Licence | Split |",
        "|---|---|---|",
        *sorted(
            f"| {row['attribution'].replace('|', '/')} | {row['license']} | {row['split']} |" for row in rows
        ),
    ]
    (out / "SONGS.md").write_text("\n".join(lines) + "\n")


def halve(folder: Path) -> None:
    """Store a model's weights in half precision; they are computed with in fp32."""
    for path in folder.glob("*.safetensors"):
        save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("style", "codec", "seed", "network", "songs"))
    parser.add_argument("paths", type=Path, nargs="+")
    args = parser.parse_args()
    out = args.paths[-1]
    if args.what == "style":
        style(args.paths[0], out)
    elif args.what == "codec":
        SpectralCodec.from_pretrained(args.paths[0]).save_pretrained(out / "codec")
        halve(out / "codec")
    elif args.what == "songs":
        songs(args.paths[0], out)
    elif args.what == "seed":
        torch.manual_seed(0)
        DiffRhythmTransformer(**NETWORK).save_pretrained(out / "network")
    else:
        DiffRhythmTransformer.from_pretrained(args.paths[0]).save_pretrained(out / "network")
        halve(out / "network")


if __name__ == "__main__":
    main()
