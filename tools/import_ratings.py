"""Thumbs and stars to ratings.parquet: python tools/import_ratings.py ratings.csv --samples FOLDER --out FOLDER."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo.data.feedback import import_ratings
from diffdpo.data.ratings import PEOPLE
from diffdpo.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "opinions", type=Path, help="CSV with a header, or .jsonl; see docs/howto/feedback.md"
    )
    parser.add_argument("--samples", nargs="+", required=True, help="folders that `diffdpo sample` wrote")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the ratings; train with data.ratings="
    )
    parser.add_argument(
        "--source", default=PEOPLE, help="whose ratings these are; the same name replaces them"
    )
    parser.add_argument(
        "--keep-raters", action="store_true", help="a row for each rater instead of their mean"
    )
    parser.add_argument(
        "--centre", type=float, default=3.0, help="stars above it are liked, below it disliked"
    )
    args = parser.parse_args()
    try:
        done = import_ratings(
            args.opinions,
            args.samples,
            args.out,
            source=args.source,
            keep_raters=args.keep_raters,
            centre=args.centre,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(done.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
