"""Builds the shipped tiny bundle from a corpus, step by step (docs/howto/rebuild-the-tiny-model.md).

python tools/tiny/build_tiny.py codec  CODEC OUT          the trained codec, in half precision
python tools/tiny/build_tiny.py seed   OUT                a network of random weights, before training
python tools/tiny/build_tiny.py beats  DATA OUT           the map from a style to a tempo, fitted to prepared songs
python tools/tiny/build_tiny.py network EXPORT... OUT     the trained network, or a mean of several, in fp16
python tools/tiny/build_tiny.py songs  MANIFEST OUT       SONGS.md: the training songs with authors and licences
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo.codecs.spectral import SpectralCodec
from diffdpo.data import tables
from diffdpo.data.song_embeddings import SongEmbeddings
from diffdpo.data.songs import SONGS, song_embeddings
from diffdpo.encoders.beats import BEATS_FILE
from diffdpo.models.diffrhythm.network import DiffRhythmTransformer

LEAST_GAPS = 4
"""The fewest gaps between beats in a window with a tempo."""
RIDGE = 1e-3
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


def write_song_list(manifest: Path, out: Path) -> None:
    """Write SONGS.md, the attribution that the songs' licences ask for."""
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
    """The network whose weights are the mean of several exports from one start (Wortsman et al. 2022)."""
    states = [DiffRhythmTransformer.from_pretrained(export).state_dict() for export in exports]
    network = DiffRhythmTransformer(**NETWORK)  # one of those read would keep the path it was read from
    network.load_state_dict({key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]})
    return network


def tempo_of_styles(data: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Styles [window, dim] of all windows, and log2 of the beats a minute of each window (NaN without a pulse)."""
    styles, octaves = [], []
    for row in tables.read_rows(data, SONGS):
        if row.split != split or row.error:
            continue
        embeddings = SongEmbeddings(song_embeddings(data, row.id))
        rows = [
            [embeddings.read(v, w) for w in range(embeddings.windows)] for v in range(embeddings.variants)
        ]
        beats = rows[0][0]["line_s"].numpy()
        per_window = torch.stack([torch.stack([e["style"] for e in variant]) for variant in rows])
        edges = np.linspace(0, row.duration_s, per_window.shape[1] + 1)
        for window, (start, stop) in enumerate(itertools.pairwise(edges)):
            gaps = np.diff(beats[(beats >= start) & (beats < stop)])
            value = math.log2(60 / np.median(gaps)) if len(gaps) >= LEAST_GAPS else math.nan
            styles.append(per_window[:, window])
            octaves += [value] * len(per_window)
    return torch.cat(styles), torch.tensor(octaves)


def fit_beats(data: Path, out: Path) -> None:
    """Fit two ridge regressions on styles, of the tempo and of the presence of a pulse, and write their weights."""
    styles, octaves = tempo_of_styles(data, "train")
    pulse = ~octaves.isnan()
    maps = [ridge(styles[pulse], octaves[pulse]), ridge(styles, pulse.float())]
    weight, bias = torch.stack([w for w, _ in maps]), torch.stack([b for _, b in maps])
    out.mkdir(parents=True, exist_ok=True)
    save_file({"weight": weight, "bias": bias}, out / BEATS_FILE)
    styles, octaves = tempo_of_styles(data, "valid")
    pulse, predictions = ~octaves.isnan(), styles @ weight.T + bias
    correlations = [torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in (
        (predictions[pulse, 0], octaves[pulse]), (predictions[:, 1], pulse.float()))]  # fmt: skip
    print(f"correlation on validation songs: tempo {correlations[0]:.2f}, pulse {correlations[1]:.2f}")


def ridge(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of least squares with a penalty of RIDGE per example on the weight."""
    mean, level = x.mean(0), y.mean()
    covariance = (x - mean).T @ (x - mean) / len(x) + RIDGE * torch.eye(x.shape[1])
    weight = torch.linalg.solve(covariance, (x - mean).T @ (y - level) / len(x))
    return weight, level - weight @ mean


def halve(folder: Path) -> None:
    """Convert the safetensors files of a folder to half precision; loading converts weights back to fp32."""
    for path in folder.glob("*.safetensors"):
        save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("codec", "seed", "beats", "network", "songs"))
    parser.add_argument("paths", type=Path, nargs="+")
    args = parser.parse_args()
    out = args.paths[-1]
    if args.step == "codec":
        source = SpectralCodec.from_pretrained(args.paths[0])
        codec = SpectralCodec(**{k: v for k, v in source.config.items() if not k.startswith("_")})
        codec.load_state_dict(source.state_dict())  # the one read would keep the path it was read from
        codec.save_pretrained(out / "codec")
        halve(out / "codec")
    elif args.step == "beats":
        fit_beats(args.paths[0], out)
    elif args.step == "songs":
        write_song_list(args.paths[0], out)
    elif args.step == "seed":
        torch.manual_seed(0)
        DiffRhythmTransformer(**NETWORK).save_pretrained(out / "network")
    else:
        mean_network(args.paths[:-1]).save_pretrained(out / "network")
        halve(out / "network")


if __name__ == "__main__":
    main()
