"""The networks of BeatNet as safetensors, and what the published code makes of sounds.

    pip install --no-deps --target PACKAGES BeatNet==1.1.3
    python tools/judges/convert_beats.py PACKAGES                             # writes the weights
    python tools/judges/convert_beats.py PACKAGES --check [--golden FILE]

Nothing of the package is imported but, for `--check`, its file model.py, which needs torch alone: its networks in
single precision, on features by the definition in double precision, against ours, with weights stored as 16-bit
integers. `--golden` stores a part of the original's numbers for the tests. The package is not part of diffdpo.
"""

import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from diffdpo.encoders.beat_net import (
    BEATS_SAMPLE_RATE,
    BEATS_WEIGHTS,
    beat_features,
    build_beat_networks,
    load_beat_networks,
    split_levels,
)
from diffdpo.weight_files import read_pickle
from tools.judges.sounds import parse_arguments, sounds

NUMBERS = (1, 2, 3)
"""The package's networks, of which each was trained on other data. Their mean is more reliable than any of them."""
STEP = 7
"""The golden file keeps every STEP-th frame."""
NAMES = {"conv1": "conv", "linear0": "project", "lstm": "recurrent", "linear": "output"}
"""Their names of the layers, and ours."""


def convert(package: Path) -> dict[str, torch.Tensor]:
    """The weights of these networks under the names of `BeatEnsemble`."""
    state = {}
    for place, number in enumerate(NUMBERS):
        weights = read_pickle(package / "BeatNet" / "models" / f"model_{number}_weights.pt")
        for name, tensor in weights.items():
            layer, leaf = name.split(".")
            state[f"networks.{place}.{NAMES[layer]}.{leaf}"] = tensor
    return state


def features_by_definition(samples: np.ndarray) -> np.ndarray:
    """Log levels of quarter-tone bands and their rise, frame by frame, as madmom defines them."""
    rate, hop, frame = 22_050, 441, 1411
    bins = np.arange(frame // 2) * rate / (2 * (frame // 2))
    tones = 440 * 2 ** (np.arange(-400, 400) / 24)
    tones = tones[(tones >= 30) & (tones <= 17_000)]
    corners = sorted({int(np.abs(bins - tone).argmin()) for tone in tones})
    rows = []
    for start in range(0, len(samples), hop):
        places = np.arange(start - frame // 2, start - frame // 2 + frame)
        inside = (places >= 0) & (places < len(samples))
        part = np.where(inside, samples[np.clip(places, 0, len(samples) - 1)], 0.0).astype(np.float64)
        magnitude = np.abs(np.fft.rfft(part * np.hanning(frame)))[: frame // 2]
        levels = []
        for low, top, high in zip(corners, corners[1:], corners[2:], strict=False):
            band = np.interp(np.arange(low, high), [low, top, high], [0.0, 1.0, 0.0])
            levels.append(np.log10(magnitude[low:high] @ band / band.sum() + 1))
        rows.append(levels)
    table = np.array(rows)
    rise = np.maximum(np.diff(table, axis=0, prepend=table[:1]), 0)
    return np.concatenate([table, rise], axis=1).astype(np.float32)


def original(package: Path, features: np.ndarray) -> np.ndarray:
    """The mean over the package's networks of the probabilities of beat and downbeat."""
    build = runpy.run_path(str(package / "BeatNet" / "model.py"))["BDA"]
    outputs = []
    for number in NUMBERS:
        network = build(features.shape[1], 150, 2, "cpu")
        network.load_state_dict(read_pickle(package / "BeatNet" / "models" / f"model_{number}_weights.pt"))
        with torch.no_grad():
            outputs.append(
                network.final_pred(network.eval()(torch.from_numpy(features)[None])[0])[:2].T.numpy()
            )
    return np.mean(outputs, axis=0)


def check(package: Path, golden: Path | None) -> None:
    """Compare features and probabilities on every sound; print, and store what the tests compare."""
    networks = {
        "shipped": load_beat_networks(BEATS_WEIGHTS),
        "exact": build_beat_networks(convert(package), ""),
    }
    stored = {}
    for name, samples in sounds(BEATS_SAMPLE_RATE).items():
        features = features_by_definition(samples)
        values = original(package, features)
        wave = torch.from_numpy(samples)
        errors = [f"features {np.abs(beat_features(wave).numpy() - features).max():.1e}"]
        for kind, network in networks.items():
            errors.append(f"{kind} {np.abs(network.track(wave).numpy() - values).max():.1e}")
        stored[name] = np.ascontiguousarray(values[::STEP])
        print(f"{name:14s} {', '.join(errors)}; largest {values.max():.3f}")
    if golden:
        metadata = {"source": "BeatNet 1.1.3 (CC-BY-4.0)", "step": str(STEP)}
        save_arrays(stored, golden, metadata=metadata)


if __name__ == "__main__":
    arguments = parse_arguments(__doc__)
    torch.set_num_threads(1)
    if arguments.check:
        check(arguments.package, arguments.golden)
    else:
        tensors = split_levels(convert(arguments.package))
        save_file(tensors, BEATS_WEIGHTS, metadata={"source": "BeatNet 1.1.3", "license": "CC-BY-4.0"})
        print(f"{BEATS_WEIGHTS}: {BEATS_WEIGHTS.stat().st_size} bytes")
