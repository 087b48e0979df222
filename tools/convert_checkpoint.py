"""DiffRhythm checkpoints between their published layouts and our folders, bit for bit.

    python tools/convert_checkpoint.py SOURCE TARGET [--release v1.2-base] [--adapter A,B [--keep-adapter]]

SOURCE is anything a model's `checkpoint` may be. TARGET ends in .pt (the published `cfm_model.pt`), in .safetensors
(published names), or is a folder to be made. Adapters are merged, or with --keep-adapter written beside the
untouched network. Only --dtype and merging change a bit. Exit code 2: nothing was written, and one line says why.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, whether or not it is installed

import torch
from torch import Tensor

from diffdpo.errors import ConfigError, UserError
from diffdpo.models.adapters import ADAPTER, merge_adapter, parse_adapters, read_adapter, write_adapter
from diffdpo.models.checkpoints import save_network
from diffdpo.models.diffrhythm.checkpoints import Checkpoint, read_network, save_published
from diffdpo.models.diffrhythm.published import HEADS, PREFIX
from diffdpo.weight_files import assign

FILES = (".pt", ".safetensors")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("target", type=Path)
    parser.add_argument("--release", default="", help="which model SOURCE is, where its file does not tell")
    parser.add_argument("--ema", action="store_true", help="the moving average of a training checkpoint")
    parser.add_argument("--adapter", default="", help="folders of LoRA adapters to merge: A,B or A@0.5,B@0.5")
    parser.add_argument("--keep-adapter", action="store_true", help="write the adapter beside the network")
    parser.add_argument("--dtype", choices=("keep", *DTYPES), default="keep")
    args = parser.parse_args(argv)
    try:
        convert(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.target)
    return 0


def convert(args: argparse.Namespace) -> None:
    published = args.target.suffix in FILES
    adapters = parse_adapters(args.adapter)
    check_target(args, adapters, args.target.parent if published else args.target)
    checkpoint = read_network(args.source, release=args.release, ema=args.ema)
    network = checkpoint.build()
    if published and network.config.num_attention_heads != HEADS:
        raise ConfigError(
            f"{args.source}: has {network.config.num_attention_heads} attention heads; the published code "
            f"always builds {HEADS}, so no published file can hold it"
        )
    state = checkpoint.state if args.keep_adapter else merged(checkpoint, adapters)
    state = {name: state[name] for name in network.state_dict()}  # in the published order
    if args.dtype != "keep":
        for name in list(state):  # one by one: the old tensor goes when the new one is there
            state[name] = state[name].to(DTYPES[args.dtype])
    staging = args.target.with_name(f".{args.target.stem}.partial{args.target.suffix}")
    clear(staging)
    try:
        if published:
            args.target.parent.mkdir(parents=True, exist_ok=True)
            save_published(state, staging)
        else:
            save_network(network, state, staging)
        if args.keep_adapter:
            tensors, config = read_adapter(adapters[0][0])
            prefix, beside = (PREFIX, args.target.parent) if published else ("", staging)
            write_adapter({prefix + name: tensor for name, tensor in tensors.items()}, config, beside)
        staging.rename(args.target)
    finally:
        clear(staging)


def check_target(args: argparse.Namespace, adapters: Sequence[tuple[Path, float]], beside: Path) -> None:
    """Nothing is overwritten."""
    if args.target.exists():
        raise ConfigError(f"{args.target}: exists; remove it or choose another target")
    if args.keep_adapter and len(adapters) != 1:
        raise ConfigError(f"--keep-adapter keeps one adapter, got {len(adapters)}; merge them instead")
    if args.keep_adapter and adapters[0][1] != 1:
        raise ConfigError("--keep-adapter keeps an adapter as it is; merge it to give it a weight")
    if args.keep_adapter and (beside / ADAPTER).exists():
        raise ConfigError(f"{beside / ADAPTER}: exists; remove it or choose another target")


def clear(path: Path) -> None:
    """What a killed conversion left behind."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def merged(checkpoint: Checkpoint, adapters: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """The weights with adapters added in fp32 and rounded back; without any, the file's own tensors."""
    if not adapters:
        return checkpoint.state
    dtypes = {name: tensor.dtype for name, tensor in checkpoint.state.items()}
    network = checkpoint.build()
    assign(network, checkpoint.state, checkpoint.where, torch.float32)
    for folder, weight in adapters:
        merge_adapter(network, folder, weight)
    state = dict(network.state_dict())
    del network
    for name, dtype in dtypes.items():
        state[name] = state[name].detach().to(dtype)
    return state


if __name__ == "__main__":
    sys.exit(main())
