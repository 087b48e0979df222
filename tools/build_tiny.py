"""Make the shipped tiny bundle from a corpus, step by step (docs/howto/rebuild-the-tiny-model.md).

python tools/build_tiny.py codec  CODEC OUT          the trained codec, in half precision
python tools/build_tiny.py seed   OUT                a fresh network to be trained
python tools/build_tiny.py network EXPORT... OUT     the trained network, or the mean of several, in half precision
python tools/build_tiny.py songs  MANIFEST OUT       SONGS.md: what it was trained on, by whom, under which licence
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo.models.diffrhythm.network import DiffRhythmTransformer
from diffdpo.models.spectral_codec import SpectralCodec

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


def mean_network(exports: Sequence[Path]) -> DiffRhythmTransformer:
    """The network whose weights are the mean of several, trained from one start (Wortsman et al. 2022)."""
    states = [DiffRhythmTransformer.from_pretrained(export).state_dict() for export in exports]
    network = DiffRhythmTransformer(**NETWORK)  # one of those read would keep the path it was read from
    network.load_state_dict({key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]})
    return network


def halve(folder: Path) -> None:
    """Store a model's weights in half precision; they are computed with in fp32."""
    for path in folder.glob("*.safetensors"):
        save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("codec", "seed", "network", "songs"))
    parser.add_argument("paths", type=Path, nargs="+")
    args = parser.parse_args()
    out = args.paths[-1]
    if args.what == "codec":
        SpectralCodec.from_pretrained(args.paths[0]).save_pretrained(out / "codec")
        halve(out / "codec")
    elif args.what == "songs":
        songs(args.paths[0], out)
    elif args.what == "seed":
        torch.manual_seed(0)
        DiffRhythmTransformer(**NETWORK).save_pretrained(out / "network")
    else:
        mean_network(args.paths[:-1]).save_pretrained(out / "network")
        halve(out / "network")


if __name__ == "__main__":
    main()
