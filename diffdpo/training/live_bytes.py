"""Live tensor bytes: the sizes of the distinct storages that are alive, counted operation by operation.

The count does not depend on an allocator, and it works on fake tensors, which have sizes and no memory.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

Kind = Literal["weights", "gradients", "optimizer", "reference", "activations"]


class LiveBytes(TorchDispatchMode):
    """A context in which every tensor that an operation makes is counted until its storage is freed.

    What lives already is told by `add`. `peak` is the largest sum, `peaks` that of each kind alone. A gradient is
    counted among the activations until it is `add`ed as what it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[weakref.ref[Any], tuple[int, Kind]] = {}
        self.refs: dict[int, weakref.ref[Any]] = {}
        self.total = self.peak = 0
        self.totals: dict[Kind, int] = {}
        self.peaks: dict[Kind, int] = {}

    def add(self, values: Any, kind: Kind = "activations") -> None:
        """Count the tensors of a tree, those inside wrappers of tensors too; a known one changes its kind."""
        for tensor in plain_tensors(tree_leaves(values)):
            self._add(tensor.untyped_storage(), kind, new_kind=kind != "activations")

    def _add(self, storage: Any, kind: Kind, *, new_kind: bool) -> None:
        reference = self.refs.get(id(storage))
        if reference is not None and reference() is storage:
            size, old_kind = self.sizes[reference]
            if new_kind and old_kind != kind:
                self._move(reference, size, old_kind, kind)
            return
        key, reference = id(storage), weakref.ref(storage, self._free)
        self.refs[key], self.sizes[reference] = reference, (storage.nbytes(), kind)
        self._count(storage.nbytes(), kind)

    def _move(self, reference: "weakref.ref[Any]", size: int, old_kind: Kind, kind: Kind) -> None:
        self.sizes[reference] = (size, kind)
        self.totals[old_kind] -= size
        self.totals[kind] = self.totals.get(kind, 0) + size
        self.peaks[kind] = max(self.peaks.get(kind, 0), self.totals[kind])

    def _count(self, size: int, kind: Kind) -> None:
        self.total += size
        self.totals[kind] = self.totals.get(kind, 0) + size
        self.peak = max(self.peak, self.total)
        self.peaks[kind] = max(self.peaks.get(kind, 0), self.totals[kind])

    def _free(self, reference: "weakref.ref[Any]") -> None:
        size, kind = self.sizes.pop(reference)
        self.total -= size
        self.totals[kind] -= size

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it made; one on wrapped tensors is counted inside the wrapper."""
        if any(is_traceable_wrapper_subclass(value) for value in tree_leaves((args, kwargs))):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        self.add(result)
        return result


def plain_tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among values, with those inside wrappers, such as quantised weights, in the wrappers' place."""
    for value in values:
        if not isinstance(value, Tensor):
            continue
        if is_traceable_wrapper_subclass(value):
            names, _ = value.__tensor_flatten__()
            yield from plain_tensors(getattr(value, name) for name in names)
        else:
            yield value


def tensor_bytes(values: Any) -> int:
    """Bytes of the distinct storages of a tree of tensors."""
    storages = {id(s): s for s in (t.untyped_storage() for t in plain_tensors(tree_leaves(values)))}
    return sum(storage.nbytes() for storage in storages.values())


def count_gradients(count: LiveBytes, parameters: Iterable[torch.nn.Parameter]) -> list[Any]:
    """Hooks after which a gradient counts as one; remove them by their `remove()`."""

    def hook(parameter: torch.nn.Parameter) -> None:
        count.add(parameter.grad, "gradients")

    return [p.register_post_accumulate_grad_hook(hook) for p in parameters if p.requires_grad]
