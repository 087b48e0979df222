"""Time and memory of decoding and encoding long songs in pieces, on random Oobleck weights; JSON out.

    python tools/bench_vae.py [--minutes 1 10 --channels 16 --join cross_fade]

Every measurement has a process of its own. `file` decodes into a WAV file piece by piece, `song` into one array,
`encode` encodes an array, `one_piece` decodes the first length without windows and compares. `loaded_rss_mb` is
what was there before. 128 channels are the published size.
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

from tools.bench.measure import apart, memory_mb, rounded

RATE, HOP = 44100, 2048


def measure(work: str, minutes: float, channels: int, join: str) -> dict[str, float]:
    """One piece of work, in this process."""
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
    before = memory_mb()["peak_rss_mb"]
    facts: dict[str, float] = {"minutes": minutes, "frames": frames}
    began = time.perf_counter()
    if work == "file":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "song.wav"
            with soundfile.SoundFile(path, "w", RATE, 2, "PCM_24") as file:
                for piece in vae.decode_chunks(latents):
                    file.write(piece[0].T.numpy())
            facts["samples"] = soundfile.info(str(path)).frames
    elif work == "song":
        facts["samples"] = vae.decode(latents).shape[-1]
    elif work == "encode":
        facts["samples"] = audio.shape[-1]
        assert vae.encode(audio).shape[1] == frames
    facts["seconds"] = time.perf_counter() - began
    if work == "one_piece":
        with torch.no_grad():
            whole = module.decoder(latents.transpose(1, 2))
        facts |= {"seconds": time.perf_counter() - began, **memory_mb()}
        difference = (vae.decode(latents) - whole).abs().max() / whole.abs().max()
        return facts | {"relative_difference": float(difference), "loaded_rss_mb": before}
    return facts | memory_mb() | {"loaded_rss_mb": before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--channels", type=int, default=16, help="at the rate of the sound")
    parser.add_argument("--join", choices=("cross_fade", "published"), default="cross_fade")
    parser.add_argument("--works", nargs="+", default=["file", "song", "encode", "one_piece"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(rounded(measure(args.one, args.minutes[0], args.channels, args.join))))
        return
    shared = ("--channels", args.channels, "--join", args.join)
    report: dict[str, object] = {"channels": args.channels, "join": args.join}
    for work in args.works:
        lengths = args.minutes[:1] if work == "one_piece" else args.minutes
        runs = [apart(__file__, "--one", work, "--minutes", minutes, *shared) for minutes in lengths]
        report[work] = runs
        if len(runs) > 1:
            report[f"{work}_memory_ratio"] = round(runs[-1]["peak_rss_mb"] / runs[0]["peak_rss_mb"], 3)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
