"""Several trainings one after another in one launch: `accelerate launch … train_many.py COMMANDS.json`.

Beside the file of commands it leaves the errors, one a command, empty for those that went well. A command that
begins with `inspect` trains nothing: it leaves what `support.sharding` sees of the network under FSDP2. One that
begins with `replicas` trains, and each process leaves a hash of its weights behind every step.
"""

import gc
import json
import os
import sys
from pathlib import Path

gc.disable()  # until everything is imported: a fifth of the time to start

from diffdpo.cli import load_config  # noqa: E402
from diffdpo.errors import UserError  # noqa: E402
from diffdpo.recipes import train  # noqa: E402
from diffdpo.run_dir import shutdown  # noqa: E402
from diffdpo.torchao_import import deferred_torchao  # noqa: E402

if __name__ == "__main__":
    path, errors = Path(sys.argv[1]), []
    with deferred_torchao():
        import diffusers  # noqa: F401
        import peft  # noqa: F401
    gc.enable()
    for words in json.loads(path.read_text()):
        try:
            if words[0] == "inspect":
                sys.path.insert(0, str(Path(__file__).parents[1]))
                from support.sharding import inspect_sharding

                inspect_sharding(load_config("train", None, words[1:]))
            elif words[0] == "replicas":
                sys.path.insert(0, str(Path(__file__).parents[1]))
                from support.replicas import train_replicas

                train_replicas(load_config("train", None, words[1:]))
            else:
                train.run(load_config("train", None, words))
            errors.append("")
        except UserError as error:
            errors.append(str(error))
    if os.environ.get("RANK", "0") == "0":
        path.with_suffix(".errors.json").write_text(json.dumps(errors))
    shutdown()
