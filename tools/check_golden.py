"""Compares the project with a folder of golden numbers, measured on original implementations.

    python tools/check_golden.py KIND FOLDER [--vocab vocab.json]

Prints the largest error of every case. Exit code 0: all within tolerance; 1: some beyond; 2: a bad folder.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo.errors import DataError, UserError
from diffdpo.torchao_import import deferred_torchao

with deferred_torchao():
    from tools.parity import audiobox as golden_audiobox
    from tools.parity import diffrhythm as golden
    from tools.parity import lyrics as golden_lyrics
    from tools.parity import objectives as golden_losses
    from tools.parity import songeval as golden_scorers

KINDS = {
    "diffrhythm": golden.diffrhythm,
    "dpo": golden_losses.dpo,
    "muq": golden_scorers.muq,
    "songeval": golden_scorers.songeval,
    "audiobox": golden_audiobox.audiobox,
    "lyrics": golden_lyrics.lyrics,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vocab", type=Path, help="of lyrics: the published vocab.json")
    args = parser.parse_args()
    if args.vocab:
        os.environ["DIFFDPO_DIFFRHYTHM_VOCAB"] = str(args.vocab)
    try:
        with deferred_torchao():
            cases = KINDS[args.kind](args.folder)
        if not any(case.is_covered for case in cases):
            raise DataError(f"{args.folder}: nothing in it is covered")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for case in cases:
        print(line(case))
    n_failed = sum(not case.is_within_tolerance for case in cases)
    n_covered = sum(case.is_covered for case in cases)
    print(f"{n_covered} compared, {n_failed} beyond tolerance, {len(cases) - n_covered} not covered")
    return 1 if n_failed else 0


def line(case: golden.Case) -> str:
    """The line of a case in the report."""
    if not case.is_covered:
        return f"        not covered             {case.name}"
    verdict = "ok  " if case.is_within_tolerance else "FAIL"
    return f"{verdict}  error {case.error:.1e} of {case.tolerance:.1e}  {case.name}"


if __name__ == "__main__":
    sys.exit(main())
