"""Train the tiny codec on songs: `python tools/train_codec.py MANIFEST OUT --minutes 60`.

MANIFEST is a JSONL as tools/corpus/fetch.py writes it. Band features of all songs are computed once and kept
beside the weights. The same command again continues where the last one stopped, for another --minutes.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.models.spectral_codec import SpectralCodec
from diffdpo.progress import bar

LOUDNESS = -16.0
CROP = 64


def cached_features(manifest: Path, cache: Path, codec: SpectralCodec) -> dict[str, list[np.ndarray]]:
    """Band features [frame, feature] of every song in half precision, by split, from disk after the first time."""
    cache.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    features: dict[str, list[np.ndarray]] = {}
    with bar("features", len(rows), "song") as progress:
        for row in rows:
            path = cache / f"{row['id']}.npy"
            if not path.exists():
                clip = audio.stereo(audio.resample(audio.read(manifest.parent / row["audio"]), 44100))
                samples = torch.from_numpy(audio.normalise(clip, LOUDNESS).samples)
                pieces = [
                    codec.analyse(piece[None])[0]
                    for piece in samples.split(codec.config.samples_per_frame * 2048, -1)
                ]
                np.save(path, torch.cat(pieces).half().numpy())
            features.setdefault(row["split"], []).append(np.load(path, mmap_mode="r"))
            progress.advance()
    return features


def initialise(codec: SpectralCodec, songs: list[np.ndarray]) -> None:
    """Set the linear path to the principal components of the features, whitened."""
    total, square, count = 0.0, 0.0, 0
    for song in songs:
        x = torch.from_numpy(song[::3].astype(np.float32)).double()
        total, square, count = total + x.sum(0), square + x.T @ x, count + len(x)
    mean = total / count
    values, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
    channels = codec.config.latent_channels
    basis, std = vectors[:, -channels:].flip(1), values[-channels:].flip(0).sqrt()
    with torch.no_grad():
        codec.linear_encode.weight.copy_((basis / std).T)
        codec.linear_encode.bias.copy_(-(mean @ basis) / std)
        codec.linear_decode.weight.copy_(basis * std)
        codec.linear_decode.bias.copy_(mean)
        codec.encoder_out.bias[channels:] = -3.0


def crops(songs: list[np.ndarray], count: int, generator: np.random.Generator) -> torch.Tensor:
    """Random crops, songs weighted by their length, at random levels."""
    lengths = np.array([len(song) for song in songs], dtype=np.float64)
    picks = generator.choice(len(songs), count, p=lengths / lengths.sum())
    starts = [generator.integers(0, len(songs[i]) - CROP) for i in picks]
    batch = np.stack([songs[i][s : s + CROP] for i, s in zip(picks, starts, strict=True)]).astype(np.float32)
    gain_db = generator.normal(0, 3, (count, 1, 1)).astype(np.float32)
    return torch.from_numpy(batch * 10 ** (gain_db / 40))  # features are roots of magnitudes


def loss(
    codec: SpectralCodec, features: torch.Tensor, kl_weight: float
) -> tuple[torch.Tensor, dict[str, float]]:
    mean, log_variance = codec.encode_features(features)
    latents = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
    decoded = codec.decode_features(latents)
    linear = F.l1_loss(decoded, features)
    square = F.mse_loss(decoded, features)
    floor = 1e-4
    logarithmic = F.l1_loss((decoded.clamp(min=0) ** 2 + floor).log(), (features**2 + floor).log())
    change = F.l1_loss(decoded.diff(dim=1), features.diff(dim=1))
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1).mean()
    value = linear + 4 * square + 0.01 * logarithmic + 0.25 * change + kl_weight * kl
    return value, {
        "l1": linear.item(),
        "rmse": square.item() ** 0.5,
        "log": logarithmic.item(),
        "kl": kl.item(),
        "noise": torch.exp(log_variance / 2).mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--total-minutes", type=float, help="length of the learning-rate schedule over all stages"
    )
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=2e-5)
    args = parser.parse_args()
    total = 60 * (args.total_minutes or args.minutes)
    torch.manual_seed(0)
    codec = SpectralCodec()
    songs = cached_features(args.manifest, args.out / "features", codec)
    initialise(codec, songs["train"])
    optimizer = torch.optim.AdamW(codec.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=1e-3)
    state, seconds, step = args.out / "state.pt", 0.0, 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        codec.load_state_dict(saved["codec"])
        optimizer.load_state_dict(saved["optimizer"])
        seconds, step = saved["seconds"], saved["step"]
    valid = torch.cat([crops(songs["valid"], 16, np.random.default_rng(s)) for s in range(8)])
    began, budget = time.monotonic(), 60 * args.minutes
    while (elapsed := time.monotonic() - began) < budget:
        progress = min(1.0, (seconds + elapsed) / total)
        rate = args.lr * min(1, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        value, metrics = loss(codec, crops(songs["train"], args.batch, np.random.default_rng(step)), args.kl)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            with torch.no_grad():
                _, held_out = loss(codec, valid, args.kl)
            shown = " ".join(f"{k} {v:.4f}/{held_out[k]:.4f}" for k, v in metrics.items())
            print(f"step {step} {elapsed:.0f} s lr {rate:.1e} train/valid {shown}", flush=True)
        if step % 1000 == 0 or elapsed > budget - 5:
            saved = {"codec": codec.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(saved | {"seconds": seconds + elapsed, "step": step}, state)
    codec.save_pretrained(args.out / "codec")


if __name__ == "__main__":
    main()
