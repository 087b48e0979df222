"""Measures the flow-matching loss of networks of the tiny model on crops of several lengths. JSON out.

    python tools/tiny/eval_loss.py DATA [NETWORK ...] [--split valid] [--frames 320 1024 6144] [--crops 64 16 4]

DATA is a folder of `diffdpo prepare`; a NETWORK is an export of training, by default the shipped network. All
networks get the same crops, noises and times (logit-normal, as in training), so that their losses are paired.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo.data.datasets.songs import CropConfig, Songs
from diffdpo.flow import interpolate
from diffdpo.models import MODELS
from diffdpo.models.base import SongModel
from diffdpo.progress import bar
from tools.bench.measure import round_values


@torch.no_grad()
def crop_losses(model: SongModel, songs: Songs, count: int) -> list[float]:
    """The loss mean((v - (noise - song))²) of each crop, conditioned on the crop's style."""
    generator = torch.Generator().manual_seed(0)
    losses = []
    for i in range(count):
        crop = songs.example(i % len(songs), i)
        song = crop.latents[None]
        noise = torch.randn(song.shape, generator=generator)
        t = torch.sigmoid(torch.randn(1, generator=generator))
        frames = torch.tensor([song.shape[1]])
        condition = model.condition([crop.row], song.shape[1])
        v = model.velocity(model.network, interpolate(song, noise, t), t, condition, frames)
        losses.append(float((v - (noise - song)).square().mean()))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("networks", nargs="*", default=[""], help="exports of training")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--frames", type=int, nargs="+", default=[320, 1024, 6144])
    parser.add_argument("--crops", type=int, nargs="+", default=[64, 16, 4], help="so many of each length")
    args = parser.parse_args()
    if len(args.frames) != len(args.crops):
        parser.error("--frames and --crops must be as many")
    losses_by_network: dict[str, dict[str, dict[str, float]]] = {}
    for network in args.networks:
        model = MODELS["tiny"](network=network).load()
        losses_by_network[network or "shipped"] = by_length = {}
        with bar("loss", len(args.frames), "lengths") as progress:
            for frames, count in zip(args.frames, args.crops, strict=True):
                songs = Songs(args.data, split=args.split, crop=CropConfig(frames, frames), seed=5)
                losses = crop_losses(model, songs, count)
                by_length[str(frames)] = round_values({"loss": sum(losses) / count, "crops": count})
                progress.advance()
    print(json.dumps(losses_by_network, indent=2))


if __name__ == "__main__":
    main()
