"""Trains the codec of the tiny model on songs.

    python tools/tiny/train_codec.py MANIFEST OUT --minutes 30 [--start CODEC] [--decoder-only]

MANIFEST is a JSONL as tools/tiny/corpus/fetch.py writes it. Band features of all songs are computed once and kept
in OUT. The same command again continues the training for another --minutes; --start begins with a finished codec,
--decoder-only does not change the latents, so that a network trained on them stays valid.
"""

import argparse
import json
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import librosa
import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo.codecs.spectral import SpectralCodec, standardise
from diffdpo.progress import bar
from tools.tiny.excerpts import read_clip

CROP = 64
SIDE = 0.5
EPSILON = 1e-4


def cached_features(
    manifest: Path, cache: Path, codec: SpectralCodec, workers: int
) -> dict[str, list[np.ndarray]]:
    """By split, the features [frame, feature] of every song in half precision; computed if `cache` lacks them."""
    cache.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    paths = [cache / f"{row['id']}.npy" for row in rows]
    todo = [(manifest.parent / row["audio"], path) for row, path in zip(rows, paths, strict=True)]
    todo = [(song, path) for song, path in todo if not path.exists()]
    with bar("features", len(todo), "song") as progress, ProcessPoolExecutor(workers) as pool:
        for _ in pool.map(write_features, *zip(*todo, strict=True), repeat(codec)) if todo else ():
            progress.advance()
    features: dict[str, list[np.ndarray]] = {}
    for row, path in zip(rows, paths, strict=True):
        features.setdefault(row["split"], []).append(np.load(path, mmap_mode="r"))
    return features


def write_features(song: Path, path: Path, codec: SpectralCodec) -> None:
    """Write the features of a song in half precision."""
    torch.set_num_threads(1)
    samples = torch.from_numpy(read_clip(song, rate=codec.config.sample_rate).samples)
    with torch.no_grad():
        features = analyse_song(codec, samples)
    with path.with_suffix(".part").open("wb") as file:
        np.save(file, features.half().numpy())
    path.with_suffix(".part").rename(path)


def analyse_song(codec: SpectralCodec, samples: torch.Tensor, chunk: int = 256) -> torch.Tensor:
    """Features [frame, feature] of a song [2, sample], computed `chunk` frames at a time with enough context."""
    per_frame, features = codec.config.samples_per_frame, []
    context = -(-codec.config.stft_size // (2 * per_frame))
    for start in range(0, -(-samples.shape[-1] // per_frame), chunk):
        first = max(0, start - context)
        part = samples[:, first * per_frame : (start + chunk + context) * per_frame]
        features.append(codec.analyse(part[None])[0, start - first :][:chunk])
    return torch.cat(features)


def importance(codec: SpectralCodec) -> torch.Tensor:
    """The weight of each feature's error [feature]; a side feature has half the weight of a middle feature."""
    weights = []
    for count, hop in (
        (codec.tonal_features, codec.config.stft_hop),
        (codec.features - codec.tonal_features, codec.config.attack_hop),
    ):
        sides = torch.ones(codec.config.samples_per_frame // hop, 2, 1)
        sides[:, 1] = SIDE
        per_side = count // sides.numel()
        weights.append(sides.expand(-1, -1, per_side).flatten())
    return torch.cat(weights)


def initialise(codec: SpectralCodec, songs: list[np.ndarray]) -> None:
    """Set the linear path to the whitened principal components of the weighted features."""
    scale, count = importance(codec), 0
    total = torch.zeros(codec.features, dtype=torch.float64)
    square = torch.zeros(codec.features, codec.features, dtype=torch.float64)
    for song in songs:
        x = scale * torch.from_numpy(song[::9].astype(np.float32))
        total, square, count = total + x.sum(0).double(), square + (x.T @ x).double(), count + len(x)
    mean = total / count
    values, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
    channels = codec.config.latent_channels
    basis, std = vectors[:, -channels:].flip(1), values[-channels:].flip(0).sqrt()
    with torch.no_grad():
        codec.linear_encode.weight.copy_((basis / std).T * scale)
        codec.linear_encode.bias.copy_(-(mean @ basis) / std)
        codec.linear_decode.weight.copy_(basis * std / scale[:, None])
        codec.linear_decode.bias.copy_(mean / scale)
        codec.encoder_out.bias[channels:] = -3.0


def groups(codec: SpectralCodec) -> list[dict]:
    """The parameter groups of the optimiser; the linear path, at its optimum from the start, learns at a tenth."""
    linear = [*codec.linear_encode.parameters(), *codec.linear_decode.parameters()]
    linear_ids = {id(p) for p in linear}
    other_parameters = [p for p in codec.parameters() if id(p) not in linear_ids]
    return [{"params": linear, "share": 0.1}, {"params": other_parameters, "share": 1.0}]


def crops(songs: list[np.ndarray], count: int, generator: np.random.Generator) -> torch.Tensor:
    """Random crops [crop, frame, feature] at random levels; a song is drawn in proportion to its length."""
    lengths = np.array([len(song) for song in songs], dtype=np.float64)
    picks = generator.choice(len(songs), count, p=lengths / lengths.sum())
    starts = [generator.integers(0, len(songs[i]) - CROP) for i in picks]
    batch = np.stack([songs[i][s : s + CROP] for i, s in zip(picks, starts, strict=True)]).astype(np.float32)
    gain_db = generator.normal(0, 3, (count, 1, 1)).astype(np.float32)
    return torch.from_numpy(batch * 10 ** (gain_db / 40))  # features are roots of magnitudes


def mel_shares(codec: SpectralCodec) -> torch.Tensor:
    """The share of 128 mel bands in each attack band; librosa's onset detector averages over mel bands."""
    edges = torch.tensor(codec.attack_bands.edges) * codec.config.sample_rate / codec.config.attack_size
    mels = torch.from_numpy(librosa.mel_frequencies(n_mels=130, fmax=codec.config.sample_rate / 2)[1:-1])
    inside = torch.bucketize(mels, edges.double(), right=True) - 1
    return torch.bincount(inside.clamp(0, len(edges) - 2), minlength=len(edges) - 1).float() / 128


def strength(codec: SpectralCodec, features: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Onset strength of the middle [batch, moment], like librosa's with windows of 2,048 at every 512 samples.

    Powers are smoothed over short windows; the strength is the mean over mel bands of their rises in decibels.
    """
    middle = in_time(codec, features)[..., : len(shares)]
    power = middle.clamp(min=0) ** 4
    window = torch.hann_window(9)[1:-1]
    smooth = F.conv1d(
        power.transpose(1, 2).flatten(0, 1)[:, None], (window / window.sum())[None, None], stride=2
    )
    decibels = 10 * (smooth[:, 0] + EPSILON**2).log10()
    rises = decibels.unflatten(0, (len(features), -1)).diff(dim=-1).relu()
    return (rises * shares[:, None]).sum(1)


def codec_loss(
    codec: SpectralCodec,
    features: torch.Tensor,
    weight: torch.Tensor,
    shares: torch.Tensor,
    args: argparse.Namespace,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss and its terms: errors of roots (loud), of logarithms (quiet) and of changes of these (attacks)."""
    mean, log_variance = codec.encode_features(features)
    latents = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
    decoded_features = codec.decode_features(latents)
    linear = (weight * (decoded_features - features)).abs()
    tonal, attack = linear.split([codec.tonal_features, codec.features - codec.tonal_features], -1)
    square = (tonal**2).mean() + (attack**2).mean()
    logs = [(x.clamp(min=0) ** 2 + EPSILON).log() * weight for x in (decoded_features, features)]
    tonal_log, attack_log = ((logs[0] - logs[1]).abs()).split([tonal.shape[-1], attack.shape[-1]], -1)
    changes = [in_time(codec, x).diff(dim=1) for x in logs]
    change = (changes[0] - changes[1]).abs().mean()
    rises = [
        x[..., : x.shape[-1] // 2].relu().mean(-1) for x in changes
    ]  # of the middle, which carries the onsets
    onset = (rises[0] - rises[1]).abs().mean()
    strengths = [strength(codec, x, shares) for x in (decoded_features, features)]
    strength_error = (strengths[0] - strengths[1]).abs().mean()
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1).mean()
    value = tonal.mean() + 0.7 * attack.mean() + 30 * square + args.kl * kl
    value = value + 0.01 * tonal_log.mean() + 0.015 * attack_log.mean() + 0.005 * change
    value = value + args.onset * onset + args.strength * strength_error
    return value, {
        "loss": value.item(),
        "tonal": tonal.mean().item(),
        "attack": attack.mean().item(),
        "tonal_log": tonal_log.mean().item(),
        "attack_log": attack_log.mean().item(),
        "change": change.item(),
        "onset": onset.item(),
        "strength": strength_error.item(),
        "kl": kl.item(),
        "noise": torch.exp(log_variance / 2).mean().item(),
    }


def in_time(codec: SpectralCodec, features: torch.Tensor) -> torch.Tensor:
    """The attack features along time: [batch, step, side and band]."""
    steps = codec.config.samples_per_frame // codec.config.attack_hop
    return features[..., codec.tonal_features :].unflatten(-1, (steps, -1)).flatten(1, 2)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument(
        "--total-minutes", type=float, help="length of the learning-rate schedule over all stages"
    )
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--kl", type=float, default=1e-5)
    parser.add_argument("--onset", type=float, default=0.02, help="weight of the error of summed rises")
    parser.add_argument("--strength", type=float, default=0.0, help="weight of the error of onset strengths")
    parser.add_argument("--start", type=Path, help="a finished codec to begin with")
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--workers", type=int, default=2, help="processes that compute features")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(0)
    codec = SpectralCodec()
    songs = cached_features(args.manifest, args.out / "features", codec, args.workers)
    optimizer = torch.optim.AdamW(groups(codec), lr=args.lr, betas=(0.9, 0.98), weight_decay=1e-3)
    seconds, step = resume(args.out / "state.pt", codec, optimizer)
    if not step and args.start:
        codec.load_state_dict(SpectralCodec.from_pretrained(args.start).state_dict())
    elif not step:
        initialise(codec, songs["train"])
    if args.decoder_only:
        for part in (codec.linear_encode, codec.encoder_in, codec.encoder, codec.encoder_out):
            part.requires_grad_(False)
    weight, shares = importance(codec), mel_shares(codec)
    valid = torch.cat([crops(songs["valid"], 16, np.random.default_rng(s)) for s in range(8)])
    t_start, budget = time.monotonic(), 60 * args.minutes
    total = 60 * (args.total_minutes or args.minutes)
    while (elapsed_s := time.monotonic() - t_start) < budget:
        progress = min(1.0, (seconds + elapsed_s) / total)
        rate = args.lr * min(1, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        batch = crops(songs["train"], args.batch, np.random.default_rng(step))
        value, metrics = codec_loss(codec, batch, weight, shares, args)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            with torch.no_grad():
                valid_metrics = codec_loss(codec, valid, weight, shares, args)[1]
            metrics_text = " ".join(f"{k} {v:.4f}/{valid_metrics[k]:.4f}" for k, v in metrics.items())
            print(f"step {step} {elapsed_s:.0f} s lr {rate:.1e} train/valid {metrics_text}", flush=True)
        if step % 200 == 0:
            save_state(args.out, codec, optimizer, seconds + elapsed_s, step)
    save_state(args.out, codec, optimizer, seconds + elapsed_s, step)
    if not (args.start and args.decoder_only):  # else its latents stay as they are, and are standard already
        standardise(codec, *latent_statistics(codec, songs["train"]))
        codec.save_pretrained(args.out / "codec")


def resume(path: Path, codec: SpectralCodec, optimizer: torch.optim.Optimizer) -> tuple[float, int]:
    """Load the state of earlier stages and return their seconds and steps; zeros if there is none."""
    if not path.exists():
        return 0.0, 0
    state = torch.load(path, weights_only=True)
    codec.load_state_dict(state["codec"])
    optimizer.load_state_dict(state["optimizer"])
    return state["seconds"], state["step"]


@torch.no_grad()
def latent_statistics(codec: SpectralCodec, songs: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel over half a minute of every song."""
    excerpts = [song[len(song) // 3 :][:640].astype(np.float32) for song in songs]
    latents = torch.cat([codec.encode_features(torch.from_numpy(x)[None])[0][0] for x in excerpts])
    return latents.mean(0), latents.std(0)


def save_state(
    out: Path, codec: SpectralCodec, optimizer: torch.optim.Optimizer, seconds: float, step: int
) -> None:
    """Write the state from which the next stage continues, and the codec."""
    state = {"codec": codec.state_dict(), "optimizer": optimizer.state_dict(), "seconds": seconds}
    torch.save(state | {"step": step}, out / "state.part")
    (out / "state.part").rename(out / "state.pt")
    codec.save_pretrained(out / "codec")


if __name__ == "__main__":
    main()
