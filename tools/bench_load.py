"""Time and memory of reading, converting and writing a full-size DiffRhythm checkpoint of random weights; JSON out.

    python tools/bench_load.py [--depth 16 --dtype bfloat16 --folder FOLDER]

A published `cfm_model.pt` is made, loaded, converted into our folder, loaded again and converted back; every step
in a process of its own, and in the end every tensor is compared bit for bit. Needs three times the file on disk.
`weights_mb` is one copy of the weights as loaded; `above_start_mb` is what the step needed beyond importing the
libraries, pages of mapped files included.
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

from tools.bench.measure import apart, memory_mb, rounded


def make(path: Path, depth: int, dtype: str) -> dict[str, Any]:
    """A published file of random weights, made tensor by tensor."""
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


def load(source: Path, dtype: str) -> dict[str, Any]:
    """Load and touch every weight, as the first forward would."""
    import torch

    from diffdpo.models.diffrhythm.checkpoints import load_network

    network = load_network(source, dtype=getattr(torch, dtype), release="v1.2-base")
    total = sum(float(parameter.detach().sum()) for parameter in network.parameters())
    size = sum(parameter.nbytes for parameter in network.parameters()) / 2**20
    return {"weights_mb": size, "sum": total}


def to_target(source: Path, target: Path) -> dict[str, Any]:
    """What `diffdpo convert SOURCE TARGET --release v1.2-base` does."""
    from diffdpo.recipes.convert import Conversion, convert

    convert(Conversion(source=str(source), target=target, release="v1.2-base"))
    return {}


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Tensors of two published files that are not the same bits."""
    import torch

    from diffdpo.models.diffrhythm.checkpoints import read_network

    first, second = (read_network(path, release="v1.2-base").state for path in (one, other))
    same = [n for n in first if torch.equal(first[n].view(torch.uint8), second[n].view(torch.uint8))]
    return {"tensors": len(first), "identical": len(same), "keys_equal": list(first) == list(second)}


STEPS = {
    "make": lambda a: make(a.folder / "cfm_model.pt", a.depth, a.dtype),
    "load_published": lambda a: load(a.folder / "cfm_model.pt", a.dtype),
    "load_published_as_fp32": lambda a: load(a.folder / "cfm_model.pt", "float32"),
    "to_folder": lambda a: to_target(a.folder / "cfm_model.pt", a.folder / "ours"),
    "load_folder": lambda a: load(a.folder / "ours", a.dtype),
    "to_published": lambda a: to_target(a.folder / "ours", a.folder / "back.pt"),
    "compare": lambda a: compare(a.folder / "cfm_model.pt", a.folder / "back.pt"),
}


def step(args: argparse.Namespace) -> dict[str, Any]:
    import diffdpo.recipes.convert  # noqa: F401 - with all that the steps import: not what is measured

    before = memory_mb()
    began = time.perf_counter()
    facts = STEPS[args.step](args)
    facts |= {"seconds": time.perf_counter() - began, **memory_mb()}
    return facts | {"above_start_mb": facts["peak_rss_mb"] - before["peak_rss_mb"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=16, help="layers; 16 is the published size, 1.1 billion")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder by default")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(rounded(step(args))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        shared = ("--depth", args.depth, "--dtype", args.dtype, "--folder", folder)
        report: dict[str, Any] = {"depth": args.depth, "dtype": args.dtype}
        for name in STEPS:
            report[name] = apart(__file__, "--step", name, *shared)
            if name == "make":
                report["file_mb"] = round((folder / "cfm_model.pt").stat().st_size / 2**20, 1)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
