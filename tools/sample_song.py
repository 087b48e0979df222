"""One song from a checkout: python tools/sample_song.py "slow dark ambient" song.flac --seconds 30

Uses the shipped tiny model, or any other: --model diffrhythm --arg network=FOLDER.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", help="the style, in words")
    parser.add_argument("out", type=Path, help="a .flac or .wav file")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help="of the model")
    args = parser.parse_args()

    from diffdpo import audio
    from diffdpo.config import Choice, build_model
    from diffdpo.errors import UserError
    from diffdpo.progress import bar
    from diffdpo.sampling import Request, SamplingConfig, sample
    from diffdpo.types import Prompt

    try:
        model = build_model(Choice(args.model, dict(word.split("=", 1) for word in args.arg)))
        prompt = model.embed(Prompt(id="song", text=args.text, duration_s=args.seconds))
        cfg = SamplingConfig(steps=args.steps, guidance=args.guidance, batch=1)
        with bar("sample", args.steps, "step") as progress:
            (latents,) = sample(
                model, [Request("song", prompt)], cfg, seed=args.seed, on_step=progress.advance
            )
        audio.write(args.out, audio.limit(audio.normalise(model.decode(latents), -16.0)))
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
