"""Measures how well the tiny codec reconstructs excerpts of held-out songs, and the speed of decoding. JSON out.

    python tools/tiny/eval_codec.py MANIFEST [CODEC] [--split test] [--ceiling] [--keep FOLDER]

The measures between an excerpt and its reconstruction are chroma correlation (librosa CQT chroma, all bins and
frames of an excerpt), onset F1 (50 ms) and the cosine of musicnn embeddings. The summary has their medians, the
speed of decoding and statistics of the latents.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import librosa
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.codecs.spectral import SpectralCodec
from diffdpo.encoders import musicnn
from tools.tiny.excerpts import RATE, read_clip


def chroma_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of the chroma of two mono signals over all bins and frames."""
    chroma = [librosa.feature.chroma_cqt(y=x, sr=RATE, hop_length=2048) for x in (a, b)]
    return float(np.corrcoef(chroma[0].ravel(), chroma[1].ravel())[0, 1])


def onset_f1(a: np.ndarray, b: np.ndarray, tolerance_s: float = 0.05) -> float:
    """F1 of the onsets of two mono signals, matched within a tolerance; 1 when neither has an onset."""
    first, second = (librosa.onset.onset_detect(y=x, sr=RATE, hop_length=512, units="time") for x in (a, b))
    if len(first) == 0 or len(second) == 0:
        return float(len(first) == len(second))
    matches = np.abs(first[:, None] - second[None]) <= tolerance_s
    rows, columns = linear_sum_assignment(-matches.astype(float))
    return float(2 * matches[rows, columns].sum() / (len(first) + len(second)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("codec", type=Path, nargs="?", default=Path("diffdpo/assets/tiny/codec"))
    parser.add_argument("--split", default="test")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument(
        "--ceiling", action="store_true", help="skip the network: true band magnitudes, synthetic phases"
    )
    parser.add_argument("--keep", type=Path, help="folder for original and decoded excerpts")
    args = parser.parse_args()
    codec, listener = SpectralCodec.from_pretrained(args.codec).eval(), musicnn.load_musicnn()
    rows = [json.loads(line) for line in args.manifest.read_text().splitlines()]
    results, latents, decode_s, decoded_s = [], [], 0.0, 0.0
    for row in [row for row in rows if row["split"] == args.split]:
        path = args.manifest.parent / row["audio"]
        total = audio.seconds_of(path)
        for place in (0.2, 0.4, 0.7):
            clip = read_clip(path, place * total, args.seconds)
            length = clip.samples.shape[1] // 2048 * 2048
            original = clip.samples[:, :length]
            z = codec.encode(torch.from_numpy(original)[None])
            t_start = time.perf_counter()
            if args.ceiling:
                reconstruction = codec.synthesise(codec.analyse(torch.from_numpy(original)[None]))[0].numpy()
            else:
                reconstruction = codec.decode(z)[0].numpy()
            decode_s, decoded_s = decode_s + time.perf_counter() - t_start, decoded_s + length / RATE
            a, b = original.mean(0), reconstruction.mean(0)
            pair = [torch.from_numpy(librosa.resample(x, orig_sr=RATE, target_sr=16000)) for x in (a, b)]
            first, second = listener.describe(pair).embedding
            results.append(
                {
                    "song": row["id"],
                    "at": place,
                    "chroma": chroma_correlation(a, b),
                    "onset_f1": onset_f1(a, b),
                    "musicnn_cosine": float(torch.cosine_similarity(first, second, dim=0)),
                }
            )
            latents.append(z[0])
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                for name, samples in (("original", original), ("decoded", reconstruction)):
                    out = audio.limit(type(clip)(samples=samples, sample_rate=RATE))
                    audio.write(args.keep / f"{row['id']}-{place}-{name}.flac", out)
    z = torch.cat(latents)
    summary = {
        "excerpts": len(results),
        **{
            f"median_{key}": float(np.median([r[key] for r in results]))
            for key in ("chroma", "onset_f1", "musicnn_cosine")
        },
        "decode_times_real_time": decoded_s / decode_s,
        "latent_mean_abs_max": float(z.mean(0).abs().max()),
        "latent_std_range": [float(z.std(0).min()), float(z.std(0).max())],
        "parameters": sum(p.numel() for p in codec.parameters()),
    }
    print(json.dumps({"summary": summary, "excerpts": results}, indent=1))


if __name__ == "__main__":
    main()
