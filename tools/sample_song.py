"""Runs `diffdpo song` from a checkout.

python tools/sample_song.py "slow dark ambient" song.flac --seconds 600
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "song")
    main()
