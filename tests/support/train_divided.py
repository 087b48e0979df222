"""Several trainings one after another in one launch: `accelerate launch … train_divided.py COMMANDS.json`.

Besides the file of errors of `train_many.py` each process leaves WIDTHS.json: by command, the most frames that any
block of the network computed at once.
"""

import json
import os
import sys
from pathlib import Path

from torch.nn.modules.module import register_module_forward_hook

from diffdpo.cli import load_config
from diffdpo.errors import UserError
from diffdpo.recipes import train
from diffdpo.run_dir import shutdown


def train_all(commands: list[list[str]]) -> tuple[list[str], list[int]]:
    """The error of each command, and the most frames at once."""
    errors, widths = [], []

    def measure(module, inputs, output):
        if type(module).__name__ == "TransformerBlock":
            widths[-1] = max(widths[-1], output.shape[1])

    register_module_forward_hook(measure)
    for words in commands:
        widths.append(0)
        try:
            train.run(load_config("train", None, words))
            errors.append("")
        except UserError as error:
            errors.append(str(error))
    return errors, widths


if __name__ == "__main__":
    path, rank = Path(sys.argv[1]), os.environ["RANK"]
    errors, widths = train_all(json.loads(path.read_text()))
    path.with_suffix(f".widths.{rank}.json").write_text(json.dumps(widths))
    if rank == "0":
        path.with_suffix(".errors.json").write_text(json.dumps(errors))
    shutdown()
