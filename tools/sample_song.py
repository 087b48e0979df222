"""One song from a checkout, of any length: python tools/sample_song.py "slow dark ambient" song.flac --seconds 600

Uses the shipped tiny model, or any other: --model diffrhythm --arg network=FOLDER. A song of several windows can be
heard while it is made: its beginning grows in song.preview.flac, see docs/howto/long-songs.md.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", help="the style, in words")
    parser.add_argument("out", type=Path, help="a .flac or .wav file")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--window", type=float, default=0.0, help="seconds; 0: the longest the model takes")
    parser.add_argument("--overlap", type=float, default=6.0, help="seconds that windows share")
    parser.add_argument("--method", choices=("continue", "joint"), default="continue", help="across windows")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help="of the model")
    return parser.parse_args()


def main() -> int:
    args = arguments()

    import torch

    from diffdpo.config import Choice, build_model
    from diffdpo.errors import UserError
    from diffdpo.progress import bar, say
    from diffdpo.sampling.denoising import SamplingConfig
    from diffdpo.sampling.longform import LongformConfig, Song, compose, steps
    from diffdpo.sampling.render import Preview, Sound, write_song
    from diffdpo.types import Prompt

    began, preview = time.monotonic(), Preview(args.out.with_suffix(f".preview{args.out.suffix}"))
    try:
        cfg = SamplingConfig(steps=args.steps, guidance=args.guidance)
        longform = LongformConfig(method=args.method, window_s=args.window, overlap_s=args.overlap)
        model = build_model(Choice(args.model, dict(word.split("=", 1) for word in args.arg)))
        song = Song("song", model.embed(Prompt(id="song", text=args.text, duration_s=args.seconds)))

        def hear(_: str, latents: torch.Tensor, finished: int) -> None:
            first = not preview.frames
            if preview.frames or finished < len(latents):
                preview.grow(Sound(model, latents), finished)
            if first and preview.frames:
                say(f"{preview.path}: first sound after {time.monotonic() - began:.0f} s")

        all_frames = torch.ones(model.latents.frames(args.seconds), dtype=torch.bool)
        total = steps(model.latents, [all_frames], cfg, longform)
        with bar("sample", total, "step") as progress:
            (latents,) = compose(
                model, [song], cfg, longform, seed=args.seed, on_step=progress.advance, on_finished=hear
            )
        write_song(Sound(model, latents), args.out)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        preview.remove()
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
