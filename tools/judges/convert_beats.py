"""The networks of BeatNet as safetensors, and what the published code makes of sounds.

    pip install --no-deps --target PACKAGES BeatNet==1.1.3
    python tools/judges/convert_beats.py PACKAGES [--networks 1 2 3]

Nothing of the package is imported: its weights are dictionaries of tensors.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.encoders.beat_net import WEIGHTS_PATH, build_beat_networks, split_levels
from diffdpo.weight_files import read_pickle

NAMES = {"conv1": "conv", "linear0": "project", "lstm": "recurrent", "linear": "output"}
"""Their names of the layers, and ours."""


def convert(package: Path, numbers: list[int]) -> dict[str, torch.Tensor]:
    """The weights of these networks under the names of `BeatEnsemble`."""
    state = {}
    for place, number in enumerate(numbers):
        weights = read_pickle(package / "BeatNet" / "models" / f"model_{number}_weights.pt")
        for name, tensor in weights.items():
            layer, leaf = name.split(".")
            state[f"networks.{place}.{NAMES[layer]}.{leaf}"] = tensor
    return state


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--networks", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    tensors = convert(arguments.package, arguments.networks)
    build_beat_networks(tensors, "the converted weights")
    save_file(split_levels(tensors), WEIGHTS_PATH, metadata={"source": "BeatNet 1.1.3", "license": "CC-BY-4.0"})
    print(f"{WEIGHTS_PATH}: {WEIGHTS_PATH.stat().st_size} bytes")
