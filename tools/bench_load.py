"""Measures time and memory of reading, converting and writing a full-size DiffRhythm checkpoint. JSON out.

    python tools/bench_load.py [--depth 16 --dtype bfloat16 --folder FOLDER]

A published `cfm_model.pt` of random weights is written, loaded, converted into a folder of this project, loaded
again and converted back, each step in a process of its own. At the end every tensor is compared bit for bit. The
disk needs room for three copies. `weights_mb` is one copy of the weights as loaded; `above_start_mb` is the peak
memory of a step less that after importing the libraries, pages of mapped files included.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, whether or not it is installed

from tools.bench.measure import memory_mb, round_values, run_in_process


def make_checkpoint(path: Path, depth: int, dtype: str) -> dict[str, Any]:
    """Write a published file of random weights, generated tensor by tensor."""
    import torch

    from diffdpo.models.diffrhythm.checkpoints import save_published
    from diffdpo.models.diffrhythm.network import DiffRhythmTransformer

    with torch.device("meta"):
        network = DiffRhythmTransformer(depth=depth)
    generator, precision = torch.Generator().manual_seed(0), getattr(torch, dtype)
    state = {
        name: (torch.randn(tensor.shape, generator=generator) * 0.02).to(precision)
        for name, tensor in network.state_dict().items()
    }
    save_published(state, path)
    return {"parameters": sum(tensor.numel() for tensor in state.values())}


def load_weights(source: Path, dtype: str) -> dict[str, Any]:
    """Load a network and read every weight, as the first forward pass does."""
    import torch

    from diffdpo.models.diffrhythm.checkpoints import load_network

    network = load_network(source, dtype=getattr(torch, dtype), release="v1.2-base")
    total = sum(float(parameter.detach().sum()) for parameter in network.parameters())
    size = sum(parameter.nbytes for parameter in network.parameters()) / 2**20
    return {"weights_mb": size, "sum": total}


def convert_checkpoint(source: Path, target: Path) -> dict[str, Any]:
    """The same as `diffdpo convert SOURCE TARGET --release v1.2-base`."""
    from diffdpo.recipes.convert import Conversion, convert

    convert(Conversion(source=str(source), target=target, release="v1.2-base"))
    return {}


def compare_files(first_path: Path, second_path: Path) -> dict[str, Any]:
    """The number of tensors of two published files, and the number of those with identical bits."""
    import torch

    from diffdpo.models.diffrhythm.checkpoints import read_network

    first, second = (read_network(path, release="v1.2-base").state for path in (first_path, second_path))
    equal_names = [n for n in first if torch.equal(first[n].view(torch.uint8), second[n].view(torch.uint8))]
    return {"tensors": len(first), "identical": len(equal_names), "keys_equal": list(first) == list(second)}


STEPS = {
    "make": lambda a: make_checkpoint(a.folder / "cfm_model.pt", a.depth, a.dtype),
    "load_published": lambda a: load_weights(a.folder / "cfm_model.pt", a.dtype),
    "load_published_as_fp32": lambda a: load_weights(a.folder / "cfm_model.pt", "float32"),
    "to_folder": lambda a: convert_checkpoint(a.folder / "cfm_model.pt", a.folder / "ours"),
    "load_folder": lambda a: load_weights(a.folder / "ours", a.dtype),
    "to_published": lambda a: convert_checkpoint(a.folder / "ours", a.folder / "back.pt"),
    "compare": lambda a: compare_files(a.folder / "cfm_model.pt", a.folder / "back.pt"),
}


def run_step(args: argparse.Namespace) -> dict[str, Any]:
    """The result of one step with its seconds and memory, in this process."""
    import diffdpo.recipes.convert  # noqa: F401 - with all that the steps import: not what is measured

    start_memory = memory_mb()
    t_start = time.perf_counter()
    result = STEPS[args.step](args)
    result |= {"seconds": time.perf_counter() - t_start, **memory_mb()}
    return result | {"above_start_mb": result["peak_rss_mb"] - start_memory["peak_rss_mb"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=16, help="layers; 16 is the published size, 1.1 billion")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder by default")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(round_values(run_step(args))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        options = ("--depth", args.depth, "--dtype", args.dtype, "--folder", folder)
        report: dict[str, Any] = {"depth": args.depth, "dtype": args.dtype}
        for name in STEPS:
            report[name] = run_in_process(__file__, "--step", name, *options)
            if name == "make":
                report["file_mb"] = round((folder / "cfm_model.pt").stat().st_size / 2**20, 1)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
