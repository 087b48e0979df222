"""Runs `diffdpo train` from a checkout.

accelerate launch tools/train.py CONFIG [KEY=VALUE]...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

from diffdpo.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
