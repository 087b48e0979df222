"""Compares Audiobox-Aesthetics with numbers of the original, at tiny size.

A folder holds config.json (`aes_config`, `wavlm_config`, `order_of_wavs`), the weights `tiny_model.safetensors`
and `tiny_io.safetensors`: sounds as `wav.*`, and the original's outputs for them, from the resampler to the scores.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffdpo.encoders import audiobox as encoder
from diffdpo.encoders.wavlm import WAVLM_SAMPLE_RATE, Frames
from diffdpo.errors import DataError
from diffdpo.scorers.features import ClipFeatures, mono
from diffdpo.types import Clip
from tools.parity.diffrhythm import Case, compare, read_json, read_tensors

WEIGHTS, SOUNDS = "tiny_model.safetensors", "tiny_io.safetensors"
RATES = {"16k": 16_000, "44k": 44_100}
"""The sample rate by the word in a sound's name, such as "c_44k_stereo_1p5s"."""
LAYERS = re.compile(r"layer_results_chunk(\d+)_first(\d+)")


def audiobox(folder: Path) -> list[Case]:
    """The case of every tensor of the original, compared or not covered."""
    config = read_json(folder / "config.json")
    if missing_keys := {"aes_config", "wavlm_config", "order_of_wavs"} - config.keys():
        raise DataError(f"{folder / 'config.json'}: lacks {', '.join(sorted(missing_keys))}")
    golden = read_tensors(folder / SOUNDS)
    network = encoder.build_audiobox(
        read_tensors(folder / WEIGHTS),
        {**config["aes_config"], "wavlm_config": config["wavlm_config"]},
        location=str(folder / WEIGHTS),
    )
    results, frames = run(network, sounds(config["order_of_wavs"], golden, folder))
    cases = []
    for key in sorted(key for key in golden if not key.startswith("wav.")):
        tensor = results.get(key, layer_frames(key, frames))
        if tensor is None:
            cases.append(Case(key, is_covered=False))
        else:
            cases.append(compare(key, tensor.double(), golden[key].double()))
    other_files = {path.name for path in folder.iterdir()} - {"config.json", "README.md", WEIGHTS, SOUNDS}
    return cases + [Case(name, is_covered=False) for name in sorted(other_files)]


def sounds(order: Any, golden: Mapping[str, Tensor], folder: Path) -> dict[str, Clip]:
    """The sounds by name, in the order of the original's batch."""
    clips = {}
    for name in order:
        rate = next((rate for word, rate in RATES.items() if word in str(name).split("_")), None)
        if rate is None or f"wav.{name}" not in golden:
            raise DataError(f"{folder}: no sound wav.{name}, or its name tells no sample rate")
        clips[name] = Clip(samples=golden[f"wav.{name}"].float().numpy(), sample_rate=rate)
    return clips


@torch.no_grad()
def run(network: encoder.AudioboxNetwork, clips: Mapping[str, Clip]) -> tuple[dict[str, Tensor], Frames]:
    """All outputs by name, and WavLM's frames, of all windows of all sounds in one batch, as published."""
    waves = {
        name: torch.from_numpy(mono(ClipFeatures(clip), WAVLM_SAMPLE_RATE, at_least_s=0.0))
        for name, clip in clips.items()
    }
    cuts = [encoder.cut_windows(samples) for samples in waves.values()]
    frames = network.wavlm_model(torch.cat([w.samples for w in cuts]), torch.cat([w.lengths for w in cuts]))
    predictions = network.predict(frames)
    scores = network.to_scale(predictions).split([len(w.lengths) for w in cuts])
    finals = torch.stack([encoder.song_score(*pair) for pair in zip(scores, cuts, strict=True)])
    results = {f"resampled.{name.split('_')[0]}": samples[None] for name, samples in waves.items()}
    results |= {
        "chunk_batch_ids": torch.cat([torch.full_like(w.lengths, i) for i, w in enumerate(cuts)]),
        "chunk_weights": torch.cat([w.weights for w in cuts]),
        "frame_padding_mask": ~frames.valid,
    }
    for i, axis in enumerate(encoder.AXES):
        results |= {f"chunk_pred_normalized.{axis}": predictions[:, i], f"final.{axis}": finals[:, i]}
    return results, frames


def layer_frames(key: str, frames: Frames) -> Tensor | None:
    """All layers of the first frames of one window [layer, frame, dim]; None for a key of another kind."""
    match = LAYERS.fullmatch(key)
    if match is None or int(match[1]) >= len(frames.valid):
        return None
    return torch.stack([layer[int(match[1]), : int(match[2])] for layer in frames.layers])
