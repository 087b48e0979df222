"""Tensors of weight files: mapped into memory, compared with a network, and assigned to it.

Files are mapped, never read as a whole: a tensor is copied when its precision changes, one at a time, and otherwise
stays in the file's pages until somebody writes to it. Pickles are opened with `weights_only`, so none can run code.
"""

import pickle
import re
from _codecs import encode
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffdpo.errors import CheckpointError, plain, reason

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""Name of the weights in a folder of diffusers' format."""
MAX_KEYS = 3
"""Keys of each kind that an error names."""
LFS_SIGN = b"version https://git-lfs"
"""The beginning of the small file that stands for a large one where Git LFS is not installed."""
PAGE_SIGNS = (b"<!doctype", b"<html", b"<?xml")
COMPILED = "_orig_mod."
"""What `torch.compile` puts into the names of a module that it wraps."""
MULTIARRAY: Any = import_module("numpy._core.multiarray")
NUMPY_GLOBALS: list[Any] = [
    np.ndarray,
    np.dtype,
    *(
        entry
        for function in (MULTIARRAY._reconstruct, MULTIARRAY.scalar)
        for entry in (function, (function, f"numpy.core.multiarray.{function.__name__}"))
    ),
    encode,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
]
"""Functions and types by which pickles build numbers and arrays of numpy; numpy 1 had them in another module."""

V = TypeVar("V")
Shapes = Mapping[str, tuple[int, ...]]
Identify = Callable[[Shapes], str]
"""A description of the model that has weights of these names and shapes."""


def check_weights_file(path: Path) -> None:
    """CheckpointError for a file that cannot hold tensors: a folder, an empty file, a pointer, a web page."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; expected weights here")
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder, expected a file of weights")
    try:
        with path.open("rb") as file:
            head = file.read(64).lstrip().lower()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise CheckpointError(f"{path}: empty; copy it again")
    if head.startswith(LFS_SIGN):
        raise CheckpointError(f"{path}: a Git LFS pointer, not weights: git lfs pull")
    if head.startswith(PAGE_SIGNS):
        raise CheckpointError(f"{path}: a web page, not weights; download the file itself")


def unreadable(path: Path, cause: str) -> CheckpointError:
    """The error for a file that could not be read as tensors, by its cause; a text file is called one."""
    with path.open("rb") as file:
        head = file.read(64)
    try:
        text = getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut
    except UnicodeDecodeError:
        return CheckpointError(f"{path}: {cause}")
    is_text = all(letter.isprintable() or letter.isspace() for letter in text)
    return CheckpointError(f"{path}: {'a text file, not weights' if is_text else cause}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, mapped; the names are those of a network that is not compiled."""
    check_weights_file(path)
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(path, f"damaged ({reason(error)}); copy it again") from None
    return eager_names(tensors)


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a file of `torch.save`, its tensors mapped; numbers of numpy may be beside them."""
    content = unpickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def read_state_dict(path: Path, key: str = "") -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`, or the one that its dictionary has under `key`.

    CheckpointError for a file of anything else.
    """
    check_weights_file(path)
    content: Any = read_pickle(path)
    state = content.get(key) if key else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        place = f" under {key!r}" if key else ""
        names = ", ".join(map(str, list(content)[:MAX_KEYS]))
        raise CheckpointError(f"{path}: no state dict{place}; it has {names or 'nothing'}")
    return state


def unpickle(path: Path) -> Any:
    """What `torch.save` wrote, read without running code; CheckpointError for a damaged file or other objects."""
    check_weights_file(path)
    try:
        with torch.serialization.safe_globals(NUMPY_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except torch.OutOfMemoryError:
        raise
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
    ) as error:
        text = plain(str(error))
        if match := re.search(r"GLOBAL ([\w.]+) (was not an allowed global|whose module)", text):
            raise CheckpointError(
                f"{path}: holds a {match[1]} beside its tensors, and reading one could run code; save the tensors "
                "alone: torch.save(model.state_dict(), …)"
            ) from None
        cause = reason(error) if is_zipfile(path) else "it is cut, or no archive"
        raise unreadable(
            path, f"cannot be read as tensors saved by torch 1.6 or newer ({cause}); copy or save it again"
        ) from None


def eager_names(state: Mapping[str, V]) -> dict[str, V]:
    """A state dict without the marks that `torch.compile` puts into the names of a module that it wrapped."""
    return {name.replace(COMPILED, ""): value for name, value in state.items()}


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_state(
    network: torch.nn.Module, state: Mapping[str, Tensor], location: str, identify: Identify | None = None
) -> None:
    """Compare a state dict with a network's: the same keys, of the same shapes.

    CheckpointError with the first keys that are missing, unexpected or misshapen, and with the model that
    `identify` recognises in the weights.
    """
    network_shapes, file_shapes = shapes(network.state_dict()), shapes(state)
    missing_keys = [f"{name} {network_shapes[name]}" for name in network_shapes if name not in file_shapes]
    extra_keys = [f"{name} {file_shapes[name]}" for name in file_shapes if name not in network_shapes]
    misshapen_keys = [
        f"{name} {file_shapes[name]} instead of {network_shapes[name]}"
        for name in network_shapes
        if name in file_shapes and file_shapes[name] != network_shapes[name]
    ]
    complaints = [
        f"{len(names)} {kind}, first {', '.join(names[:MAX_KEYS])}"
        for kind, names in (
            ("missing", missing_keys),
            ("unexpected", extra_keys),
            ("misshapen", misshapen_keys),
        )
        if names
    ]
    if complaints:
        hint = f"; {identify(file_shapes)}" if identify else ""
        raise CheckpointError(f"{location}: the weights are of another model: {'; '.join(complaints)}{hint}")


def assign(
    module: torch.nn.Module,
    state: dict[str, Tensor],
    location: str,
    dtype: torch.dtype | None,
    identify: Identify | None = None,
) -> None:
    """Assign tensors to a module on the meta device, one by one.

    `state` is emptied on the way, so that no tensor is held twice. CheckpointError as in `check_state`.
    """
    check_state(module, state, location, identify)
    for name in list(state):
        tensor = state.pop(name)
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        owner, _, leaf = name.rpartition(".")
        target = module.get_submodule(owner)
        old = getattr(target, leaf)
        if isinstance(old, torch.nn.Parameter):
            setattr(target, leaf, torch.nn.Parameter(tensor, requires_grad=old.requires_grad))
        else:
            target.register_buffer(leaf, tensor)
    module.eval()
