"""Writes the sounds (OGG) and spectrograms (SVG) of excerpts and their reconstructions for the codec's model card.

    python tools/tiny/eval_codec.py corpus/manifest.jsonl CODEC --keep excerpts
    python tools/tiny/codec_card.py excerpts OUT SONG-PLACE...

SONG-PLACE names a pair in the folder of excerpts, such as `singularity-music-inevitable-0.4`.
"""

import argparse
import sys
from pathlib import Path

import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout, whether or not it is installed

from diffdpo import audio
from diffdpo.report.plots import draw_pictures, match_loudness

KINDS = ("original", "decoded")
WIDTH, HEIGHT, LEFT, GAP = 640, 150, 70, 24


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("excerpts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        clips = match_loudness([audio.read(args.excerpts / f"{name}-{kind}.flac") for kind in KINDS])
        for kind, clip in zip(KINDS, clips, strict=True):
            path = args.out / f"{name}-{kind}.ogg"
            soundfile.write(path, clip.samples.T, clip.sample_rate, format="OGG", subtype="VORBIS")
        rows = []
        for i, (kind, picture) in enumerate(zip(KINDS, draw_pictures(clips), strict=True)):
            top = i * (HEIGHT + GAP)
            rows.append(
                f'<text x="8" y="{top + HEIGHT / 2}">{kind}</text>'
                f'<image x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" preserveAspectRatio="none" '
                f'href="{picture.spectrogram}"/>'
            )
        seconds = clips[0].samples.shape[1] / clips[0].sample_rate
        foot = 2 * HEIGHT + GAP + 16
        (args.out / f"{name}.svg").write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 8} {foot + 8}" '
            'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
            + "".join(rows)
            + f'<text x="{LEFT}" y="{foot}">0 s</text><text x="{LEFT + WIDTH}" y="{foot}" '
            f'text-anchor="end">{seconds:.0f} s, mel scale to 16 kHz</text></svg>\n'
        )


if __name__ == "__main__":
    main()
