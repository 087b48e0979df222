"""Several trainings one after another in one process: `python train_many.py COMMANDS.json`, launched or not."""

import json
import sys
from pathlib import Path

from diffdpo.cli import load_config
from diffdpo.recipes import train
from diffdpo.run_dir import leave

if __name__ == "__main__":
    for words in json.loads(Path(sys.argv[1]).read_text()):
        train.run(load_config("train", None, words))
    leave()
