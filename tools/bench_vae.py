"""Measures time and memory of decoding and encoding long songs in chunks, with random Oobleck weights. JSON out.

    python tools/bench_vae.py [--minutes 1 10 --channels 16 --join cross_fade]

Every measurement has a process of its own. `file` decodes into a WAV file chunk by chunk, `song` into one array,
`encode` encodes an array, `one_piece` decodes the first length at once and compares with chunks. `loaded_rss_mb` is
the peak memory before the work. 128 channels are the published size.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from tools.bench.measure import memory_mb, round_values, run_in_process

RATE, HOP = 44100, 2048


def measure_work(work: str, minutes: float, channels: int, join: str) -> dict[str, float]:
    """Time and memory of one work (`file`, `song`, `encode` or `one_piece`) on a song, in this process."""
    import soundfile
    import torch
    from diffusers import AutoencoderOobleck

    from diffdpo.codecs.oobleck import Join, of_oobleck

    torch.manual_seed(0)
    module = AutoencoderOobleck(
        encoder_hidden_size=channels, decoder_channels=channels, decoder_input_channels=channels // 2
    )
    vae = of_oobleck(module, cast(Join, join))
    frames = int(minutes * 60 * RATE / HOP)
    latents = torch.randn(1, frames, channels // 2, generator=torch.Generator().manual_seed(1))
    audio = torch.randn(1, 2, frames * HOP if work == "encode" else 0)
    loaded_mb = memory_mb()["peak_rss_mb"]
    result: dict[str, float] = {"minutes": minutes, "frames": frames}
    t_start = time.perf_counter()
    if work == "file":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "song.wav"
            with soundfile.SoundFile(path, "w", RATE, 2, "PCM_24") as file:
                for piece in vae.decode_chunks(latents):
                    file.write(piece[0].T.numpy())
            result["samples"] = soundfile.info(str(path)).frames
    elif work == "song":
        result["samples"] = vae.decode(latents).shape[-1]
    elif work == "encode":
        result["samples"] = audio.shape[-1]
        assert vae.encode(audio).shape[1] == frames
    result["seconds"] = time.perf_counter() - t_start
    if work == "one_piece":
        with torch.no_grad():
            full_decode = module.decoder(latents.transpose(1, 2))
        result |= {"seconds": time.perf_counter() - t_start, **memory_mb()}
        difference = (vae.decode(latents) - full_decode).abs().max() / full_decode.abs().max()
        return result | {"relative_difference": float(difference), "loaded_rss_mb": loaded_mb}
    return result | memory_mb() | {"loaded_rss_mb": loaded_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--channels", type=int, default=16, help="at the rate of the sound")
    parser.add_argument("--join", choices=("cross_fade", "published"), default="cross_fade")
    parser.add_argument("--works", nargs="+", default=["file", "song", "encode", "one_piece"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(round_values(measure_work(args.one, args.minutes[0], args.channels, args.join))))
        return
    options = ("--channels", args.channels, "--join", args.join)
    report: dict[str, object] = {"channels": args.channels, "join": args.join}
    for work in args.works:
        lengths = args.minutes[:1] if work == "one_piece" else args.minutes
        runs = [
            run_in_process(__file__, "--one", work, "--minutes", minutes, *options) for minutes in lengths
        ]
        report[work] = runs
        if len(runs) > 1:
            report[f"{work}_memory_ratio"] = round(runs[-1]["peak_rss_mb"] / runs[0]["peak_rss_mb"], 3)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
